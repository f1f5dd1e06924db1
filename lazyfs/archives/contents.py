"""What an archive holds, by directory, and how that is laid out in bytes. Pure.

The bytes are read again from a cache, or from a bucket where anybody may have written them: every number in them is
checked, and nothing in them can point out of the archive.
"""

import functools
import json
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from lazyfs.archives.members import MOST_MEMBERS, MOST_NAMES, Damaged, Member, Members
from lazyfs.archives.names import directory_of, member_etag
from lazyfs.objects import Listing, ObjectInfo, ObjectVersion

FORMAT = b"lazyfs-archive-1\n"
LONGEST_TABLE = 2 * MOST_NAMES + 64 * MOST_MEMBERS
"""Bytes of the table of members once it is unpacked."""
_NUMBER = 4

T = TypeVar("T")


@dataclass(frozen=True)
class Contents:
    """The members of one archive. `kind` is `tar`, `gz` or `zst`; `places` are where unpacking can begin, as the module
    of that name lays them out."""

    kind: str
    members: Members
    places: bytes = b""

    @functools.cached_property
    def _files(self) -> list[tuple[str, Member]]:
        return sorted(self.members.files.items())

    @functools.cached_property
    def _folders(self) -> list[tuple[str, None]]:
        return [(path, None) for path in sorted(self.members.folders)]

    def listing(self, archive: ObjectVersion, below: str, listed_at: float, storage_class: str) -> Listing:
        """What is right below a path in the archive (empty, or ending in `/`), as a listing of its directory."""
        prefix = directory_of(archive.key) + below
        files = [
            ObjectInfo(
                directory_of(archive.key) + path,
                member_etag(archive, self.kind, member.start),
                member.size,
                member.seconds * 10**9,
                storage_class,
            )
            for path, member in _right_below(below, self._files)
        ]
        prefixes = [f"{directory_of(archive.key)}{path}/" for path, _ in _right_below(below, self._folders)]
        return Listing(prefix, tuple(files), tuple(sorted(prefixes)), listed_at)


def pack(contents: Contents) -> bytes:
    """As bytes."""
    members = contents.members
    table = {
        "kind": contents.kind,
        "hidden": members.hidden,
        "folders": sorted(members.folders),
        "files": [[path, one.start, one.size, one.seconds] for path, one in sorted(members.files.items())],
    }
    packed = zlib.compress(json.dumps(table, separators=(",", ":")).encode(), 1)
    return FORMAT + len(packed).to_bytes(_NUMBER, "little") + packed + contents.places


def unpack(packed: bytes) -> Contents:
    """What `pack` laid out; `Damaged` for anything else."""
    begin = len(FORMAT) + _NUMBER
    end = begin + int.from_bytes(packed[len(FORMAT) : begin], "little")
    if not packed.startswith(FORMAT) or end > len(packed):
        raise Damaged("has a list of members of another kind")
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed[begin:end], LONGEST_TABLE)
        table = json.loads(text)
        files = {str(path): _member(*numbers) for path, *numbers in table["files"]}
        folders = {str(path) for path in table["folders"]}
        kind, hidden = str(table["kind"]), int(table["hidden"])
    except (zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"has a damaged list of members ({type(error).__name__})") from None
    if kind not in ("tar", "gz", "zst") or len(files) + len(folders) > 2 * MOST_MEMBERS:
        raise Damaged("has a list of members of another kind")
    if not all(_fine(path) for path in (*files, *folders)):
        raise Damaged("has a list with names that cannot be members")
    return Contents(kind, Members(files, folders, hidden), packed[end:])


def _member(start: int, size: int, seconds: int) -> Member:
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in (start, size, seconds)):
        raise ValueError("a number that no member has")
    return Member(start, size, seconds)


def _fine(path: str) -> bool:
    return not {"", ".", ".."} & set(path.split("/")) and "\0" not in path


def _right_below(below: str, ordered: list[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    for at in range(bisect_left(ordered, below, key=lambda one: one[0]), len(ordered)):
        path, what = ordered[at]
        if not path.startswith(below):
            return
        if "/" not in path[len(below) :]:
            yield path, what
