"""Bytes of a version past the memory for chunks: for who works inside a flight.

A flight holds slots of memory until it lands. If what fills it waited for slots itself, all of them could be held by
flights that wait. So here bytes are copied from where they are, memory or disk, or fetched into memory of their own,
and are not kept. Must not know why. Loop thread only.
"""

from collections.abc import Callable

from lazyfs.cache.disk import Disk
from lazyfs.cache.threads import Workers
from lazyfs.objects import CHUNK_SIZE, ObjectVersion, chunk_range
from lazyfs.stores.base import Claim, Reads


class Straight:
    """Reads of one cache, whose store is `store`; `held` gives a chunk that is in memory (`ChunkCache.held`)."""

    def __init__(
        self, *, store: Reads, disk: Disk, held: Callable[[ObjectVersion, int], memoryview | None], workers: Workers
    ) -> None:
        self._store = store
        self._disk = disk
        self._held = held
        self._workers = workers

    async def at_hand(self, version: ObjectVersion, start: int, stop: int) -> bytearray | None:
        """Bytes [start, stop), within the version's size, if all of them are here and right; asks nobody."""
        if not all(self._is_here(version, number) for number in chunk_range(start, stop)):
            return None
        found = bytearray(stop - start)
        for number in chunk_range(start, stop):
            base = number * CHUNK_SIZE
            low, high = max(start - base, 0), min(stop - base, version.chunk_length(number))
            part = await self._part(version, number, low, high)
            if part is None:
                return None
            found[base + low - start : base + high - start] = part
        return found

    async def read(self, version: ObjectVersion, start: int, stop: int) -> bytearray:
        """The same, from the store if they are not here; raises its errors."""
        found = await self.at_hand(version, start, stop)
        if found is None:
            found = bytearray(stop - start)
            claim = Claim(urgent=True, lane=version.object_id)
            await self._store.read(version, start, [memoryview(found)], lambda _: None, claim)
        return found

    def _is_here(self, version: ObjectVersion, number: int) -> bool:
        return self._held(version, number) is not None or self._disk.kept(version.object_id, number) is not None

    async def _part(self, version: ObjectVersion, number: int, start: int, stop: int) -> bytes | memoryview | None:
        chunk = self._held(version, number)
        if chunk is not None:
            return chunk[start:stop]
        kept = self._disk.kept(version.object_id, number)
        if kept is None:
            return None
        return await self._workers.read(self._disk.read_part, version, number, kept, start, stop)
