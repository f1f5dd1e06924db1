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


def from_bytes(disk: Disk, version: ObjectVersion, told: Told, *, stop: Callable[[], bool]) -> Checksums | None:
    """Both digests, of the bytes on disk, each block compared with its own checksum on the way. None if not all of them
    are there, or `stop` says so; `Damaged` for a chunk that is wrong."""
    sha256 = hashlib.sha256()
    total = 0
    buffer = memoryview(mmap.mmap(-1, AT_ONCE * CHUNK_SIZE))
    for first in range(0, version.chunk_count, AT_ONCE):
        if stop():
            return None
        numbers = range(first, min(first + AT_ONCE, version.chunk_count))
        kept = [disk.kept(version.object_id, number) for number in numbers]
        found = [one for one in kept if one is not None]
        if len(found) < len(kept) or len({one.generation for one in found if one.generation < LOWER}) > 1:
            return None
        views = [buffer[i * CHUNK_SIZE : i * CHUNK_SIZE + version.chunk_length(n)] for i, n in enumerate(numbers)]
        for number, one, right in zip(numbers, found, disk.read(version, first, found, views), strict=True):
            if not right:
                raise Damaged(number, one)
            total = joined(total, version.chunk_length(number), one.sums)
        for view in views:
            sha256.update(view)
        told(min(version.size, numbers.stop * CHUNK_SIZE))
    return Checksums(sha256.hexdigest(), total)
