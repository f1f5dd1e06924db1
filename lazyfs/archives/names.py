"""Names: which object may be an archive, what its directory is called, and members as object versions. Pure.

`model.tar.gz` keeps its name and its bytes, and what is in it stands beside it in `model.tar.gz.d/`. Why not
`model.tar.gz/`: then nobody could read the file. Why not `model/`: that is what an unpacked copy is called, which often
lies beside the archive. `.d` is how a directory that belongs to a file is called elsewhere, too. A key that has this
name itself goes before the archive.

A member is an object version of its own: what keeps bytes (memory, disk, pins, passthrough) knows nothing of archives,
its chunks are on the grid of the member so that a read of the kernel's is one chunk, and what was unpacked once stays
so. Its ETag says all that is needed to get its bytes, whoever asks for them, also a process that takes a mount over.
"""

import re
from dataclasses import dataclass

from lazyfs.objects import ObjectVersion

SUFFIX = ".d"

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")

_MARK = "+lazyfs:"
_MEMBER = re.compile(r"(.*)\+lazyfs:(tar|gz|zst):([0-9]{1,4}):([0-9]{1,19}):([0-9]{1,19})", re.DOTALL)
_INDEX = f"{_MARK}index:"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a member are: in this archive of this kind (`tar`, `gz`, `zst`), from `start` on once it is
    unpacked."""

    archive: ObjectVersion
    kind: str
    start: int


def may_be_archive(name: str) -> bool:
    """Whether an object of this name or key is looked at; what it is, its first bytes say."""
    return name.lower().endswith(ENDINGS) and name.rpartition("/")[2].lower() not in ENDINGS


def directory_of(key: str) -> str:
    """The prefix that stands for what is in the archive under this key."""
    return f"{key}{SUFFIX}/"


def member_etag(archive: ObjectVersion, kind: str, start: int) -> str:
    """The ETag of the member whose bytes begin at `start` of the unpacked archive."""
    return f"{archive.etag}{_MARK}{kind}:{len(archive.key)}:{archive.size}:{start}"


def is_ours(version: ObjectVersion) -> bool:
    """Whether it is no object of a bucket, but made here: a member, or the list of an archive."""
    return _MARK in version.etag


def place_of(version: ObjectVersion) -> Place | None:
    """Where a member's bytes are; None for what is none."""
    match = _MEMBER.fullmatch(version.etag)
    if match is None:
        return None
    key = version.key[: int(match[3])]
    if not may_be_archive(key) or not version.key.startswith(directory_of(key)):
        return None
    archive = ObjectVersion(version.place, key, match[1], int(match[4]), "", version.origin)
    return Place(archive, match[2], int(match[5]))


def index_version(archive: ObjectVersion, size: int) -> ObjectVersion:
    """What the cache keeps the list of an archive under, of `size` bytes: a marker's key, which no directory shows."""
    key = directory_of(archive.key)
    return ObjectVersion(archive.place, key, f"{archive.etag}{_INDEX}{archive.size}", size, "", archive.origin)


def is_index(version: ObjectVersion) -> bool:
    """Whether it is one that `index_version` made."""
    return _INDEX in version.etag and version.key.endswith(f"{SUFFIX}/")
