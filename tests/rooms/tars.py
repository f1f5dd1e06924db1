"""Archives for tests: well made ones, and single headers that say whatever they are told to."""

import gzip
import io
import tarfile
from collections.abc import Mapping

import zstandard

MOMENT = 1_700_000_000


def tar_of(files: Mapping[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of these files, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as made:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), MOMENT
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(data: bytes) -> bytes:
    """As gzip, always the same bytes."""
    return gzip.compress(data, 1, mtime=0)


def squeezed(data: bytes, frame: int = 0) -> bytes:
    """As zstd with checksums, in one frame, or in frames of so many bytes each."""
    made = zstandard.ZstdCompressor(level=1, write_checksum=True)
    step = frame or max(1, len(data))
    return b"".join(made.compress(data[start : start + step]) for start in range(0, len(data), step))


def header(name: str, kind: bytes = tarfile.REGTYPE, *, size: int = 0, link: str = "", field: bytes = b"") -> bytes:
    """One header of 512 bytes with a right checksum; `field` stands where its size is, if it is given."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mtime = kind, size, link, MOMENT
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT)[-512:])
    if field:
        raw[124:136] = field.ljust(12, b"\0")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def padded(data: bytes) -> bytes:
    """Filled up to whole blocks."""
    return data + bytes(-len(data) % 512)


END = bytes(1024)
