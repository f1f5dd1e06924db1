"""A disk cache over a read-only lower layer: what that has is read from there, and the rest is fetched and kept here.

What is here goes first: a chunk that was damaged in the layer, or an object that was wrong there, was fetched again and
is here. The layers are told apart by generations: those of the layer have LOWER added, and a file of which both have
chunks has one of its own (MIXED), so that a verdict holds only for the very bytes that were looked at.

Must not know where the layer came from. As `disk.py` for concurrency: what only reads is for any thread.
"""

import dataclasses
from collections.abc import Sequence

from lazyfs.cache import readback, verdicts
from lazyfs.cache.directory import CacheDirectory
from lazyfs.cache.disk import Disk
from lazyfs.cache.lower import LowerLayer
from lazyfs.cache.packing import time_of
from lazyfs.cache.records import ABSENT, LOWER, MIXED, Kept
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import CHUNK_SIZE, SEGMENT_CHUNKS, ObjectVersion


class LayeredDisk(Disk):
    """The disk cache in `directory`, over `lower`."""

    def __init__(
        self, directory: CacheDirectory, *, max_size: int | None, min_free: int | float, lower: LowerLayer
    ) -> None:
        super().__init__(directory, max_size=max_size, min_free=min_free)
        self._lower = lower
        self.lower = str(lower.path)

    def kept(self, object_id: bytes, number: int, *, partly: bool = False) -> Kept | None:
        """See `Disk.kept`."""
        found = super().kept(object_id, number, partly=partly)
        if found is None or ABSENT in found.sums:  # that may be chance
            whole = super().kept(object_id, number)
            if whole is None and (below := self._lower.kept(object_id, number, marked=partly)) is not None:
                return dataclasses.replace(below, generation=below.generation + LOWER)
        return found

    def present(self, object_id: bytes, segment: int) -> int:
        """See `Disk.present`."""
        return super().present(object_id, segment) | self._lower.present(object_id, segment)

    def cached_chunks(self, version: ObjectVersion) -> int:
        """See `Disk.cached_chunks`."""
        here, below = super().cached_chunks(version), self._lower.chunks(version)
        if not here or not below:
            return here + below
        segments = range(-(-version.chunk_count // SEGMENT_CHUNKS))
        return sum(self.present(version.object_id, segment).bit_count() for segment in segments)

    def below(self, version: ObjectVersion) -> int:
        """See `Disk.below`."""
        return min(version.size, self._lower.chunks(version) * CHUNK_SIZE)

    def generation(self, version: ObjectVersion) -> int | None:
        """See `Disk.generation`."""
        found = super().generation(version)
        if found is not None:
            return found
        if not super().cached_chunks(version):
            below = self._lower.complete(version)
            return None if below is None else below + LOWER
        if self.cached_chunks(version) < version.chunk_count:
            return None
        try:
            return self._index.generation(version) + MIXED
        except CacheUnavailable:
            return None

    def listing(self, key: bytes) -> bytes | None:
        """The younger one; see `Disk.listing`."""
        here, below = super().listing(key), self._lower.listing(key)
        if here is None or below is None:
            return here or below
        return here if time_of(here) >= time_of(below) else below

    def verdict(self, object_id: bytes) -> bytes | None:
        """What was found here, unless that was of a file that is gone; see `Disk.verdict`."""
        packed = super().verdict(object_id)
        here, below = verdicts.unpack(packed), verdicts.unpack(self._lower.verdict(object_id))
        if below is None or below.wrong:
            return packed
        if here is not None and (here.wrong or here.generation >= LOWER or self._has(object_id)):
            return packed
        return verdicts.pack(dataclasses.replace(below, generation=below.generation + LOWER))

    def _has(self, object_id: bytes) -> bool:
        try:
            return bool(self._index.present_chunks(object_id))
        except CacheUnavailable:
            return False

    def read(self, version: ObjectVersion, first: int, kept: Sequence[Kept], into: Sequence[memoryview]) -> list[bool]:
        """See `Disk.read`; of chunks that are in several files, too."""
        right: list[bool] = []
        while len(right) < len(kept):
            at = len(right)
            generation = kept[at].generation
            stop = next((n for n in range(at, len(kept)) if kept[n].generation != generation), len(kept))
            if generation < LOWER:
                right += super().read(version, first + at, kept[at:stop], into[at:stop])
            else:
                plain = [_plain(one) for one in kept[at:stop]]
                right += readback.read(self._lower.files, version, first + at, plain, into[at:stop])
        return right

    def read_part(self, version: ObjectVersion, number: int, kept: Kept, start: int, stop: int) -> bytes | None:
        """See `Disk.read_part`."""
        if kept.generation < LOWER:
            return super().read_part(version, number, kept, start, stop)
        files, scratch = self._lower.files, self._lower.scratch
        return readback.read_part(files, scratch, version, number, _plain(kept), start, stop)

    def lend(self, version: ObjectVersion, generation: int) -> int | None:
        """See `Disk.lend`."""
        if generation < LOWER:
            return super().lend(version, generation)
        if generation >= MIXED or not self._lower.whole(version.object_id, generation - LOWER):
            return None
        return self._lower.files.lend(version.object_id, generation - LOWER, version.size)

    def path(self, version: ObjectVersion) -> str:
        """See `Disk.path`."""
        generation = self.generation(version)
        if generation is None or generation < LOWER:
            return super().path(version)
        if generation >= MIXED or not self._lower.whole(version.object_id, generation - LOWER):
            return ""
        return str(self._lower.files.path(version.object_id, generation - LOWER))

    def discard(self, version: ObjectVersion, number: int) -> None:
        """See `Disk.discard`."""
        # As `kept` chooses.
        below = self._lower.kept(version.object_id, number) is not None
        if below and super().kept(version.object_id, number) is None:
            self._open_again(version)
            self._lower.discard(version.object_id, number)
        else:
            super().discard(version, number)

    def forget(self, version: ObjectVersion) -> bool:
        """See `Disk.forget`: of the lower layer as long as this daemon lives."""
        self._lower.hide(version.object_id)
        return super().forget(version)

    def close(self) -> None:
        """See `Disk.close`."""
        super().close()
        self._lower.close()


def _plain(kept: Kept) -> Kept:
    """As the lower layer itself has it."""
    return dataclasses.replace(kept, generation=kept.generation - LOWER)
