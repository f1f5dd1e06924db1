"""Small things of which the tests of several rooms are built: versions, bytes, disk caches that are closed."""

import ctypes
import mmap
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import trio

from lazyfs.cache.directory import CacheDirectory
from lazyfs.cache.disk import Disk, Verified
from lazyfs.cache.sums import block_sums
from lazyfs.cache.threads import DiskThreads
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, ObjectVersion

T = TypeVar("T")

PLACE = "http://127.0.0.1|models"


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes that differ from chunk to chunk and from seed to seed, the same in every run."""
    return random.Random(seed).randbytes(size)


def version_of(key: str, data: bytes, etag: str = '"1"') -> ObjectVersion:
    """The version of an object that holds `data`."""
    return ObjectVersion(PLACE, key, etag, len(data))


def verified(version: ObjectVersion, data: bytes, number: int) -> Verified:
    """Chunk `number` of an object that holds `data`, ready to be kept."""
    view = memoryview(data)[number * CHUNK_SIZE : number * CHUNK_SIZE + version.chunk_length(number)]
    return Verified(version, number, view, block_sums(view))


def part(version: ObjectVersion, data: bytes, number: int, first: int, stop: int) -> Verified:
    """Blocks [first, stop) of a chunk, ready to be kept."""
    view = memoryview(data)[number * CHUNK_SIZE : number * CHUNK_SIZE + version.chunk_length(number)]
    view = view[first * BLOCK_SIZE : stop * BLOCK_SIZE]
    return Verified(version, number, view, block_sums(view), first)


def keep(disk: Disk, version: ObjectVersion, data: bytes, numbers: Sequence[int]) -> int:
    """Put these chunks on disk; how many were kept."""
    return disk.keep([verified(version, data, number) for number in numbers])


def chunk_on(disk: Disk, version: ObjectVersion, number: int) -> bytes | None:
    """The chunk as a reader would get it from disk; None if it is absent or does not verify."""
    kept = disk.kept(version.object_id, number)
    if kept is None:
        return None
    buffer = bytearray(version.chunk_length(number))
    return bytes(buffer) if disk.read(version, number, [kept], [memoryview(buffer)]) == [True] else None


def bury(disk: Disk, size: int) -> None:
    """Evict at least `size` bytes, if so many are there."""
    disk._index.bury(size)
    disk.room._dig()


def no_space(*_: object) -> None:
    """In the place of what writes: a full disk."""
    raise OSError(28, "No space left on device")


def object_files(place: Path) -> list[Path]:
    """Every object file below a cache directory."""
    return sorted(path for path in (place / "objects").rglob("*") if path.is_file())


def takes_direct(path: Path) -> bool:
    """Whether its filesystem reads past the page cache."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            os.preadv(descriptor, [mmap.mmap(-1, mmap.PAGESIZE)], 0)
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return True


def resident(path: Path) -> int:
    """How many pages of a file are in the page cache (mincore(2))."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    count = -(-len(mapped) // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * count)()
    whole = ctypes.c_char.from_buffer(mapped)
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(whole)), ctypes.c_size_t(len(mapped)), found) == 0
    del whole
    mapped.close()
    return sum(one & 1 for one in found)


def allocated(place: Path) -> int:
    """Bytes of disk that the files below a directory take, as `du` counts them."""
    return sum(path.lstat().st_blocks * 512 for path in place.rglob("*") if path.is_file())


class CacheMaker:
    """Opens disk caches on one directory, with nothing kept free unless a test says so."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._open: list[Disk] = []

    def open(self, *, max_size: int | None = None, min_free: int | float = 0) -> Disk:
        """A daemon's disk cache on the directory."""
        disk = Disk(CacheDirectory(self.place, create=False), max_size=max_size, min_free=min_free)
        self._open.append(disk)
        return disk

    def close(self, disk: Disk) -> None:
        """An orderly end."""
        self._open.remove(disk)
        disk.close()

    def kill(self, disk: Disk) -> None:
        """What SIGKILL leaves: the lock of the daemon is free, nothing was settled, cleared or synced.

        LMDB refuses to open one file twice in a process, so the old environment is closed, which writes nothing.
        """
        self._open.remove(disk)
        # A process that dies has no public method.
        disk._index._env.close()
        disk._files.close()
        os.close(disk._directory._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for disk in self._open:
            try:
                disk.close()
            except CacheUnavailable:
                continue


class Inline(DiskThreads):
    """Workers that have no threads, for a clock that jumps."""

    async def _inline(self, function: Callable[..., T], *args: Any) -> T:
        await trio.lowlevel.checkpoint()
        return function(*args)

    touch = read = write = look = _inline
