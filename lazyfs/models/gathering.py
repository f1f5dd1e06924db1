"""What a directory holds that is to be published: which files, under which names, and what their bytes come to.

Links are followed: the snapshots of a hub's cache are links to its blobs. A link to a directory only inside of what is
published, else one link could bring a whole disk. Must not know where the files go.

Blocks; `digests` reads all of a file.
"""

import hashlib
import mmap
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from awscrt.checksums import crc64nvme

from lazyfs.errors import UsageError
from lazyfs.models.names import MANIFEST, flaw
from lazyfs.objects import MIB, Checksums

MOST_FILES = 200_000
"""Of a version. More is a data set, and each file costs requests."""

DEEPEST = 64
"""Directories below each other."""

PIECE = 4 * MIB
"""Bytes read at a time."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to publish: `name` is its path below the version, `path` where it is. Nanoseconds since the epoch."""

    name: str
    path: str
    size: int
    mtime_ns: int

    def unchanged(self) -> bool:
        """Whether it is still what it was when it was found."""
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)


def gather(path: Path) -> list[LocalFile]:
    """The files at or below `path`, sorted by name. `UsageError` for what cannot be published as it is."""
    try:
        root = path.resolve(strict=True)
        if root.is_file():
            found = [_local(path.name, path)]
        else:
            found = []
            _gather(root, root, "", [root], found)
            found.sort(key=lambda file: file.name)
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or path}: {error.strerror}") from None
    except RuntimeError:  # of pathlib, for links that lead to each other
        raise UsageError(f"{path} is a link that leads to itself") from None
    if not found:
        raise UsageError(f"{path} holds no files to publish")
    return found


def _gather(root: Path, folder: Path, prefix: str, above: list[Path], found: list[LocalFile]) -> None:
    """The files below `folder`, which is `prefix` in what is published, into `found`."""
    if len(above) > DEEPEST:
        raise UsageError(f"{folder} is more than {DEEPEST} directories deep; publish something flatter")
    with os.scandir(folder) as entries:
        here = list(entries)
    for entry in here:
        # As it grows: links to directories that hold links to directories make an endless tree of a few names.
        if len(found) > MOST_FILES:
            raise UsageError(f"{root} holds more than {MOST_FILES} files; publish an archive of them")
        name = prefix + entry.name
        if name == MANIFEST:
            continue  # of the version that this is a copy of; it gets one of its own
        if problem := flaw(name):
            raise UsageError(f"{os.fsencode(entry.path)!r} cannot be published: {problem}; rename it")
        if entry.is_symlink():
            target = _target(entry.path)
            if target.is_dir():
                if target in above:
                    raise UsageError(f"{entry.path} is a link to a directory that it is in; remove it")
                if not target.is_relative_to(root):
                    raise UsageError(
                        f"{entry.path} is a link to the directory {target}, not in {root}; publish a copy of it"
                    )
        if entry.is_dir():
            inner = Path(entry.path)
            _gather(root, inner, f"{name}/", [*above, inner.resolve()], found)
        else:
            found.append(_local(name, Path(entry.path)))


def _target(path: str) -> Path:
    try:
        return Path(path).resolve(strict=True)
    except (OSError, RuntimeError):
        raise UsageError(f"{path} is a link that leads nowhere; remove it or restore what it is a link to") from None


def _local(name: str, path: Path) -> LocalFile:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is neither a file nor a directory, and cannot be published; remove it")
    if problem := flaw(name):
        raise UsageError(f"{path} cannot be published: {problem}; rename it")
    return LocalFile(name, str(path), found.st_size, found.st_mtime_ns)


def digests(path: str, told: Callable[[int], None] = lambda _: None, *, stop: Callable[[], bool] = bool) -> Checksums:
    """Both digests of a file's bytes, telling after each piece how many are done; OSError if it cannot be read, and
    empty if `stop` says so."""
    sha256, crc, done = hashlib.sha256(), 0, 0
    with open(path, "rb", buffering=0) as file, mmap.mmap(-1, PIECE) as buffer, memoryview(buffer) as view:
        while count := file.readinto(view):
            if stop():
                return Checksums()
            with view[:count] as piece:
                sha256.update(piece)
                crc = crc64nvme(piece, crc)
            done += count
            told(done)
    return Checksums(sha256.hexdigest(), crc)
