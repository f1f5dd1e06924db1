"""A chunk cache that runs for a while, over a store in memory and a real disk."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing

from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.disk import Disk
from lazyfs.cache.memory import Memory
from lazyfs.objects import MIB
from tests.rooms.memory_store import MemoryStore


@asynccontextmanager
async def caching(
    store: MemoryStore, disk: Disk, memory: int = 64 * MIB, *, writes: bool = True, ways: int = 32
) -> AsyncIterator[ChunkCache]:
    """In the end all is idle: no flight, no pin, no slot lent."""
    async with trio.open_nursery() as nursery:
        made = Memory(memory)
        cache = ChunkCache(store=store, disk=disk, memory=made, nursery=nursery, span_size=8 * MIB, ways=ways)
        if writes:
            nursery.start_soon(cache.writer.run)
        yield cache
        while cache._flights:
            await trio.testing.wait_all_tasks_blocked()
            await trio.lowlevel.checkpoint()
        await cache.writer.flush()
        await cache.writer.step(lambda: None)
        await trio.testing.wait_all_tasks_blocked()
        assert cache.idle()
        assert made.statistics().lent == 0
        nursery.cancel_scope.cancel()
