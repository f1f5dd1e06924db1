"""What is in a tar archive: names, sizes, and where the bytes of each file lie. Parsing is Python's tarfile.

Its job: give the members that can be shown as they are, and refuse what is no archive, damaged, or made to do harm.
Must not know where the bytes come from, nor compression. Blocks; for a thread.

The rule: a regular file is shown, by its name without leading slashes and dots, as tar and tarfile's data filter unpack
it. Hidden, and counted: names with `..`, that are no UTF-8, or too long; devices and pipes; sparse files, whose bytes
do not lie in one piece. A link to a file in the archive is that file; any other link is hidden. Of a name that is there
twice the last counts, as when it is unpacked; a name that is also a directory is one.
"""

import io
import re
import tarfile
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, cast

from lazyfs.errors import LazyfsError

NAME_MAX = 255
"""linux/limits.h."""
PATH_MAX = 4096
MOST_MEMBERS = 100_000
"""Of an archive that is shown: each takes some 300 bytes of memory while its directory is looked at."""
MOST_NAMES = 32 * 1024 * 1024
"""Characters of all names together."""
LONGEST_HEADER = 64 * 1024
"""Bytes of one header beyond the first 512: attributes may have as many, and tarfile reads it at once."""
MOST_HEADERS = 64 * 1024 * 1024
"""Bytes of all of those."""
MOST_HOPS = 8
"""Links that are followed one after the other."""
LATEST = 1 << 33
"""Seconds since the epoch, the year 2242: what tar without extensions can say."""

_DIGITS = re.compile(rb"[0-9]{1000}")
"""A number in a header that takes tarfile's regular expressions of Python before 3.11.10 hours (CVE-2024-6232)."""


class Damaged(LazyfsError):
    """It is no archive, or one that cannot be shown; the text says why, to follow the name of the object."""


class Readable(Protocol):
    """Unpacked bytes, from any offset."""

    def read(self, size: int) -> bytes: ...
    def seek(self, offset: int) -> int: ...
    def tell(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Member:
    """A file: where its bytes begin, how many, and when it was written, seconds since the epoch."""

    start: int
    size: int
    seconds: int


@dataclass(slots=True)
class Members:
    """All that is shown: files by path, directories, and how many names are hidden."""

    files: dict[str, Member] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    hidden: int = 0


class _Guarded(io.RawIOBase):
    """What tarfile reads through: it asks for as much as a header says, and a header may say anything."""

    def __init__(self, inner: Readable) -> None:
        self._inner = inner
        self._extended = 0

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LONGEST_HEADER:
            raise Damaged(f"has a header of {size} bytes")
        found = self._inner.read(size)
        if size > tarfile.BLOCKSIZE:
            self._extended += size
            if self._extended > MOST_HEADERS or _DIGITS.search(found):
                raise Damaged("has headers that no tar writes")
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < 0:
            raise Damaged("has a header that points before its beginning")
        return self._inner.seek(offset)

    def tell(self) -> int:
        return self._inner.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def looks_like_tar(head: bytes) -> bool:
    """Whether the first 512 bytes are a header of tar; its checksum says so."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def members(archive: Readable, *, whole: bool = False) -> Members:
    """What is in the archive. `Damaged` says why it cannot be shown; raises what reading raises. `whole`: one without
    the zeros at its end is damaged, for who cannot tell that bytes are missing."""
    guarded = _Guarded(archive)
    try:
        with tarfile.TarFile(fileobj=cast("IO[bytes]", guarded), mode="r", encoding="utf-8") as opened:
            found = _collected(opened)
            _check_end(guarded, opened.offset, whole)
    except tarfile.TarError as error:
        raise Damaged(f"is damaged ({error})") from None
    except (RecursionError, ValueError, OverflowError, TypeError, KeyError, IndexError) as error:
        raise Damaged(f"is damaged ({type(error).__name__})") from None
    return found


def _check_end(archive: _Guarded, offset: int, whole: bool) -> None:
    """tarfile ends in silence at a header that is none; an archive ends with zeros, or with the file."""
    archive.seek(offset)
    rest = archive.read(tarfile.BLOCKSIZE)
    if rest.strip(b"\0") or (whole and not rest):
        raise Damaged(f"is damaged at byte {offset}")


def _collected(opened: tarfile.TarFile) -> Members:
    found = Members()
    links: dict[str, str] = {}
    count = names = 0
    # The first header was read when it was opened.
    while (info := opened.next()) is not None:
        cast("Any", opened).members.clear()  # else all of them stay in memory
        count, names = count + 1, names + len(info.name)
        if count > MOST_MEMBERS or names > MOST_NAMES:
            raise Damaged(f"has more than {MOST_MEMBERS} members, or longer names than can be shown")
        if info.size < 0 or opened.offset < info.offset_data or info.offset_data <= info.offset:
            raise Damaged(f"is damaged at byte {info.offset}")
        _take(info, found, links)
    _resolve(found, links)
    _settle(found)
    return found


def _take(info: tarfile.TarInfo, found: Members, links: dict[str, str]) -> None:
    path = _path(info.name)
    if path == "":
        return  # the top itself
    if path is None:
        found.hidden += 1
        return
    if info.isdir():
        found.folders.add(path)
        return
    # What has this name from now on is another thing.
    found.files.pop(path, None)
    links.pop(path, None)
    seconds = min(max(int(info.mtime), 0), LATEST)
    if info.islnk():
        # To what has that name now, whatever takes it later.
        target = _path(info.linkname)
        member = found.files.get(target) if target else None
        if member is not None:
            found.files[path] = member
        elif target and target in links:
            links[path] = links[target]
        else:
            found.hidden += 1
    elif info.issym():
        there = _beside(path, info.linkname)
        if there is None:
            found.hidden += 1
        else:
            links[path] = there
    elif info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) and not info.issparse():
        found.files[path] = Member(info.offset_data, info.size, seconds)
    else:
        found.hidden += 1


def _path(name: str) -> str | None:
    """The path of a member in its directory, empty for the top; None for one that is hidden."""
    pieces = [piece for piece in name.split("/") if piece not in ("", ".")]
    try:
        lengths = [len(piece.encode()) for piece in pieces]
    except UnicodeEncodeError:
        return None
    if ".." in pieces or "\0" in name or any(length > NAME_MAX for length in lengths) or sum(lengths) > PATH_MAX:
        return None
    return "/".join(pieces)


def _beside(path: str, target: str) -> str | None:
    """What a symbolic link at `path` points to, if that is a name in the archive."""
    if target.startswith("/"):
        return None
    pieces = path.split("/")[:-1]
    for piece in target.split("/"):
        if piece == "..":
            if not pieces:
                return None
            pieces.pop()
        elif piece not in ("", "."):
            pieces.append(piece)
    return _path("/".join(pieces)) or None


def _resolve(found: Members, links: dict[str, str]) -> None:
    """Links to files are those files, and what they are is known when all names are."""
    resolved: dict[str, Member] = {}
    for path, first in links.items():
        target = first
        for _ in range(MOST_HOPS):
            if target not in links:
                break
            target = links[target]
        member = found.files.get(target)
        if member is None:
            found.hidden += 1
        else:
            resolved[path] = member
    found.files |= resolved


def _settle(found: Members) -> None:
    """A directory for each path that something is below, and no file of that name."""
    for path in (*found.files, *found.folders):
        cut = path.rfind("/")
        while cut > 0 and path[:cut] not in found.folders:
            found.folders.add(path[:cut])
            cut = path.rfind("/", 0, cut)
            if len(found.folders) > MOST_MEMBERS:
                raise Damaged(f"has more than {MOST_MEMBERS} directories")
    for path in found.folders & found.files.keys():
        del found.files[path]
        found.hidden += 1
