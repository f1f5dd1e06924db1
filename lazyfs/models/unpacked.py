"""A version that is one archive, unpacked on this disk: its files as plain files, beside it in `<archive>.d/`.

Its job: see what is in the archive, which may mean harm, and write its regular files, by the same rule as a mount
shows them (`archives.members`): nothing outside the directory, no link on the disk, no device; a link to a file of the
archive is another name of that file. The archive is read twice from its beginning to its end, first to learn what there
is and how much room that takes. Blocks; must not know the bucket, nor who wants it.
"""

import gzip
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from lazyfs.archives import gz, zst
from lazyfs.archives.members import Damaged, Members, looks_like_tar, members
from lazyfs.archives.names import SUFFIX, may_be_archive
from lazyfs.models.manifest import ManifestFile
from lazyfs.models.names import flaw
from lazyfs.objects import MIB

log = logging.getLogger(__name__)

BEHIND = 256 * 1024
"""Bytes that are kept for who goes back: tarfile does, by a header."""


class Forward:
    """A stream that is gone through once, as `archives.members` reads; going back reaches `BEHIND` bytes."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        """`most`: bytes that may come out of it."""
        self._stream = stream
        self._most = most
        self._kept = bytearray()
        self._end = self._at = 0

    def tell(self) -> int:
        """The offset of the next byte."""
        return self._at

    def seek(self, offset: int) -> int:
        """Go there, or to the end if that is before it."""
        while offset > self._end and self._more(min(offset - self._end, MIB)):
            pass
        if offset < self._end - len(self._kept):
            raise Damaged("has a header that points far back")
        self._at = min(offset, self._end)
        return self._at

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, less only at the end."""
        while self._at + size > self._end and self._more(min(self._at + size - self._end, MIB)):
            pass
        start = self._at - (self._end - len(self._kept))
        found = bytes(self._kept[start : start + size])
        self._at += len(found)
        return found

    def _more(self, size: int) -> bool:
        try:
            found = self._stream.read(size)
        except (OSError, EOFError, zlib.error, zst.Failed) as error:
            raise Damaged(f"cannot be unpacked ({error})") from None
        self._kept += found
        self._end += len(found)
        if self._end > self._most:
            raise Damaged(f"unpacks to more than {self._most} bytes, which no archive of its size does")
        # What is in front of the reader is not dropped: a read of a MiB asks for no more than that.
        del self._kept[: max(0, min(len(self._kept) - BEHIND, self._at - (self._end - len(self._kept)) - BEHIND))]
        return bool(found)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Forward, bool]]:
    """The unpacked bytes of an archive, and whether they were compressed. `Damaged` if it is none."""
    size = path.stat().st_size
    with path.open("rb") as raw:
        head = raw.read(512)
        raw.seek(0)
        if head.startswith(gz.MAGIC):
            with gzip.GzipFile(fileobj=raw) as stream:
                yield Forward(cast("IO[bytes]", stream), gz.bound(size)), True
        elif zst.may_begin(head):
            yield Forward(zst.stream(raw), zst.bound(size)), True
        elif looks_like_tar(head):
            yield Forward(raw, size), False
        else:
            raise Damaged("is no archive, whatever its name says")


def archive_of(files: Sequence[ManifestFile]) -> str:
    """The path of the one file of a version that may be an archive; empty if it has others."""
    return files[0].path if len(files) == 1 and may_be_archive(files[0].path) else ""


def folder_of(path: str) -> str:
    """Where what is in it goes."""
    return f"{path}{SUFFIX}"


def unpack(path: Path, room: Callable[[Sequence[int]], None]) -> bool:
    """Make `<path>.d/` with what is in the archive; whether it is one. `room` is told the sizes of all its files before
    the first is written, and may refuse."""
    target = Path(folder_of(str(path)))
    try:
        with _opened(path) as (stream, compressed):
            found = members(stream, whole=compressed)
        room([one.size for one in found.files.values()])
        target.mkdir(mode=0o700)
        for folder in sorted(found.folders):
            if not flaw(folder):
                (target / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(path) as (stream, _):
            _write(stream, found, target)
    except Damaged as error:
        shutil.rmtree(target, ignore_errors=True)
        log.warning("%s %s; it is not unpacked", path.name, error)
        return False
    if found.hidden:
        log.warning("%s has %d names that are not unpacked: links out of it, devices", path.name, found.hidden)
    return True


def _write(stream: Forward, found: Members, target: Path) -> None:
    made: dict[int, Path] = {}
    for name, member in sorted(found.files.items(), key=lambda item: item[1].start):
        path = target / name
        if flaw(name):
            continue
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if member.size and member.start in made:
            os.link(made[member.start], path)
            continue
        if stream.seek(member.start) != member.start:
            raise Damaged(f"ends before {name!r}")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400), "wb") as writing:
            left = member.size
            while left:
                piece = stream.read(min(left, MIB))
                if not piece:
                    raise Damaged(f"ends within {name!r}")
                writing.write(piece)
                left -= len(piece)
        os.utime(path, (member.seconds, member.seconds))
        made[member.start] = path
