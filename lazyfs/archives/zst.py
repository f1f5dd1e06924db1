"""zstd by its frames: the only importer of zstandard.

Its job: find where frames begin, in one pass over all of it, which compares the checksums that zstd has; then give
unpacked bytes from anywhere. A frame is unpacked from its beginning. What many programs write is one frame for all
(`tar --zstd`, `zstd`): such a one is `solid`, and quick only for who reads on; `pzstd`, `t2sz` and whatever writes the
seekable format make many. Blocks, without the interpreter's lock while it unpacks. Must not know archives.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import IO, cast

import zstandard

from lazyfs.archives.members import Damaged
from lazyfs.archives.pieces import Pieces
from lazyfs.archives.stored import StoredFile
from lazyfs.objects import GIB, MIB

MAGIC = b"\x28\xb5\x2f\xfd"
SPACING = 4 * MIB
"""Unpacked bytes between two places that are remembered, if frames are smaller; and of a piece, if they are larger."""
SOLID = 64 * MIB
"""Unpacked bytes of a frame from which on nobody should have to unpack it for a touch."""
LARGEST_WINDOW = 128 * MIB
"""Memory that unpacking may take: what `zstd --long` asks for, and unpacks without being told."""
MOST_PLACES = 1 << 20
MOST_SKIPPED = 1 << 16
"""Skippable frames, which are empty."""

ALWAYS_FINE = GIB
MOST_RATIO = 64
"""As for `gz`."""

_SKIPPABLE = 0x184D2A50
_PLACE = struct.Struct("<QQ")
_RLE, _RESERVED = 1, 3
_LONGEST_HEADER = 18


def may_begin(head: bytes) -> bool:
    """Whether an object that begins so may be one."""
    return head.startswith(MAGIC) or (len(head) > 3 and int.from_bytes(head[:4], "little") & ~0xF == _SKIPPABLE)


def bound(size: int) -> int:
    """The most that an object of `size` bytes may unpack to."""
    return max(ALWAYS_FINE, MOST_RATIO * size)


Failed = zstandard.ZstdError
"""What reading a `stream` raises of bytes that are no zstd."""


def stream(raw: IO[bytes]) -> IO[bytes]:
    """What all frames unpack to, for who reads on and never goes back."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
    return cast("IO[bytes]", unpacker.stream_reader(raw, read_across_frames=True))


class Unpacked:
    """The unpacked bytes of one object; the failures are those of `stored`, and `Damaged`."""

    def __init__(self, stored: StoredFile, size: int, index: bytes | None = None) -> None:
        """`index`: what `index_all` gave of an object of these bytes, `size` of them."""
        self._stored = stored
        self._size = size
        self._at = 0
        self._reader: zstandard.ZstdDecompressionReader | None = None
        self._places = [(0, 0)] if index is None else _places(index, size)
        self._pieces = Pieces(_cuts(self._places), self._fill) if index is not None else None

    def index_all(self) -> bytes:
        """Go through all of it; the index. `Damaged` if checksums do not hold, or it unpacks to too much."""
        places, total = [(0, 0)], 0
        most = bound(self._size)
        for start, stop in self._frames():
            if total - places[-1][1] >= SPACING:
                places.append((start, total))
                if len(places) > MOST_PLACES:
                    raise Damaged(f"has more than {MOST_PLACES} frames")
            total += self._length(start, stop, most - total)
        places.append((self._size, total))
        self._places, self._reader, self._at = places, None, 0
        return b"".join(_PLACE.pack(*place) for place in places)

    def _frames(self) -> Iterator[tuple[int, int]]:
        """Where each frame begins and ends, as the headers of its blocks say."""
        at = skipped = 0
        while at < self._size:
            head = self._read_stored(at, _LONGEST_HEADER)
            if may_begin(head) and not head.startswith(MAGIC):
                at, skipped = at + 8 + int.from_bytes(head[4:8], "little"), skipped + 1
                if skipped > MOST_SKIPPED or at > self._size:
                    raise Damaged("has frames that no zstd writes")
                continue
            try:
                says = zstandard.get_frame_parameters(head)
                stop = at + zstandard.frame_header_size(head)
            except zstandard.ZstdError:
                raise Damaged(f"is damaged at byte {at}") from None
            if says.dict_id or says.window_size > LARGEST_WINDOW:
                raise Damaged("needs a dictionary, or more memory than it may have, to be unpacked")
            last = False
            while not last:
                header = int.from_bytes(self._read_stored(stop, 3), "little")
                last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
                stop += 3 + (1 if kind == _RLE else size)
                if kind == _RESERVED or stop > self._size:
                    raise Damaged("is cut off, or damaged")
            stop += 4 * says.has_checksum
            if stop > self._size:
                raise Damaged("is cut off")
            yield at, stop
            at = stop

    def _read_stored(self, at: int, size: int) -> bytes:
        self._stored.seek(at)
        return self._stored.read(size)

    def _length(self, start: int, stop: int, most: int) -> int:
        """How many bytes a frame unpacks to."""
        reader, total = self._opened(start, stop), 0
        while count := len(self._step(reader, MIB)):
            total += count
            if total > most:
                raise Damaged("unpacks to more bytes than an archive of its size does")
        return total

    def _opened(self, start: int, stop: int) -> zstandard.ZstdDecompressionReader:
        unpacker = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
        part = _Part(self._stored, start, stop)
        return unpacker.stream_reader(cast("IO[bytes]", part), read_size=128 * 1024, read_across_frames=True)

    def _step(self, reader: zstandard.ZstdDecompressionReader, size: int) -> bytes:
        try:
            return reader.read(size)
        except zstandard.ZstdError as error:
            raise Damaged(f"cannot be unpacked ({error})") from None

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, less only at the end."""
        if self._reader is None:
            self.seek(self._at)
        found = bytearray()
        while self._reader is not None and len(found) < size and (part := self._step(self._reader, size - len(found))):
            found += part
        self._at += len(found)
        return bytes(found)

    def seek(self, offset: int) -> int:
        """Go there, from here or from the place before it."""
        stored, unpacked = next(place for place in reversed(self._places) if place[1] <= offset)
        if self._reader is None or offset < self._at or unpacked > self._at:
            self._reader, self._at = self._opened(stored, self._size), unpacked
        while self._at < offset and (part := self._step(self._reader, min(MIB, offset - self._at))):
            self._at += len(part)
        self._at = offset
        return offset

    def tell(self) -> int:
        """The offset of the next byte."""
        return self._at

    def read_into(self, start: int, into: Sequence[memoryview]) -> None:
        """Fill `into` with what is there from `start` on; `Damaged` if there is less. Of one with an index."""
        if self._pieces is not None:
            self._pieces.read_into(start, into)

    def _fill(self, start: int, view: memoryview) -> None:
        self.seek(start)
        found = self.read(len(view))
        if len(found) != len(view):
            raise Damaged(f"ends before byte {start + len(view)} of what it unpacks to")
        view[:] = found


class _Part:
    """Bytes [start, stop) of a stored object, one after the other, though others read of it as well."""

    def __init__(self, stored: StoredFile, start: int, stop: int) -> None:
        self._stored = stored
        self._at = start
        self._stop = stop

    def read(self, size: int = -1) -> bytes:
        self._stored.seek(self._at)
        found = self._stored.read(self._stop - self._at if size < 0 else min(size, self._stop - self._at))
        self._at += len(found)
        return found


def solid(index: bytes) -> bool:
    """Whether a frame is so large that unpacking it for a touch takes long."""
    unpacked = [one for _, one in _PLACE.iter_unpack(index)]
    return any(stop - start > SOLID for start, stop in pairwise(unpacked))


def _places(index: bytes, size: int) -> list[tuple[int, int]]:
    if len(index) % _PLACE.size or len(index) < 2 * _PLACE.size:
        raise Damaged("has a damaged index")
    found = [(stored, unpacked) for stored, unpacked in _PLACE.iter_unpack(index)]
    ascending = all(one <= other for column in zip(*found, strict=True) for one, other in pairwise(column))
    if found[0] != (0, 0) or found[-1][0] != size or not ascending or found[-1][1] > bound(size):
        raise Damaged("has an index of another object")
    return found


def _cuts(places: list[tuple[int, int]]) -> list[int]:
    """Where pieces begin and end: at places, and within a large frame."""
    cuts = [0]
    for _, place in places[1:]:
        cuts += range(cuts[-1] + SPACING, place - SPACING, SPACING)
        if place > cuts[-1]:
            cuts.append(place)
    return cuts
