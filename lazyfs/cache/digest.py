"""The digests of an object that is all on disk: read from there once more, or put together from checksums.

Blocks, and is run in a thread of its own. Must not know what they are compared with.
"""

import hashlib
import mmap
from collections.abc import Callable, Mapping

from lazyfs.cache.disk import Disk
from lazyfs.cache.records import LOWER, Kept
from lazyfs.cache.sums import joined
from lazyfs.objects import CHUNK_SIZE, Checksums, ObjectVersion

AT_ONCE = 4
"""Chunks of one read: each is a hand-over of the interpreter to and from this thread."""

Told = Callable[[int], None]
"""Told, in the thread, how many bytes of the object are done."""


class Damaged(Exception):
    """A chunk on disk does not verify; `number` says which, and `kept` what the index says of it."""

    def __init__(self, number: int, kept: Kept) -> None:
        super().__init__(number)
        self.number = number
        self.kept = kept


def from_sums(disk: Disk, version: ObjectVersion, passed: Mapping[int, bytes]) -> Checksums | None:
    """The CRC64-NVME that the chunks' own checksums come to, no byte of the object read; those of chunks that are not
    on disk are in `passed`. None if that is not all."""
    total = 0
    for number in range(version.chunk_count):
        kept = disk.kept(version.object_id, number)
        sums = passed.get(number) if kept is None else kept.sums
        if sums is None:
            return None
        total = joined(total, version.chunk_length(number), sums)
    return Checksums(crc64nvme=total)


class Hashing:
    """Both digests, of the bytes of one object on disk, some at a time, each block compared with its own checksum on
    the way. For one thread at a time."""

    def __init__(self, disk: Disk, version: ObjectVersion) -> None:
        self._disk = disk
        self._version = version
        self._sha256 = hashlib.sha256()
        self._total = 0
        self._next = 0

    def some(self, most: int, told: Told, stop: Callable[[], bool] = lambda: False) -> bool:
        """Go on for up to `most` chunks. False if not all of those are there, or `stop` says so; then nothing more will
        come of it. `Damaged` for a chunk that is wrong."""
        version = self._version
        buffer = memoryview(mmap.mmap(-1, AT_ONCE * CHUNK_SIZE))
        end = min(self._next + most, version.chunk_count)
        for first in range(self._next, end, AT_ONCE):
            if stop():
                return False
            numbers = range(first, min(first + AT_ONCE, end))
            kept = [self._disk.kept(version.object_id, number) for number in numbers]
            found = [one for one in kept if one is not None]
            if len(found) < len(kept) or len({one.generation for one in found if one.generation < LOWER}) > 1:
                return False
            views = [buffer[i * CHUNK_SIZE : i * CHUNK_SIZE + version.chunk_length(n)] for i, n in enumerate(numbers)]
            for number, one, right in zip(numbers, found, self._disk.read(version, first, found, views), strict=True):
                if not right:
                    raise Damaged(number, one)
                self._total = joined(self._total, version.chunk_length(number), one.sums)
            for view in views:
                self._sha256.update(view)
            told(min(version.size, numbers.stop * CHUNK_SIZE))
        self._next = end
        return True

    @property
    def digests(self) -> Checksums | None:
        """None before the end of the object."""
        if self._next < self._version.chunk_count:
            return None
        return Checksums(self._sha256.hexdigest(), self._total)
