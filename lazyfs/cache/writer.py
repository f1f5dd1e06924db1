"""Write-behind: what landed in memory goes to disk later, by one writer, under a bound.

Its job: keep readers from ever waiting for the disk cache. When the disk cannot follow, chunks are served and not kept,
and counted; when it fails, that is logged and forgotten. Must not know where chunks come from.

Concurrency: loop thread only; one step of the disk cache at a time, in a worker thread. Invariant: each queued chunk
holds one pin.
"""

import logging
import math
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import trio

from lazyfs.cache.disk import Disk, Verified
from lazyfs.cache.memory import Chunk, Memory
from lazyfs.cache.threads import Workers
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import SEGMENT_CHUNKS, ObjectVersion
from lazyfs.tallies import SLOW, Tally

log = logging.getLogger(__name__)

T = TypeVar("T")

WRITE_BATCH = 64
"""Chunks written and committed together: an index commit costs as much for one as for 64, and
neighbours among them are one write."""

TOUCH_DELAY = 10.0
"""Seconds for which uses are collected before they are written to the index in one transaction."""

QUIET = 60.0
"""Seconds between two words in the log about a disk cache that does not work."""


class Writer:
    """The one writer of a disk cache. `made_room` is called when pins were undone."""

    def __init__(
        self, *, disk: Disk, memory: Memory, nursery: trio.Nursery, workers: Workers, made_room: Callable[[], None]
    ) -> None:
        self._disk = disk
        self._memory = memory
        self._nursery = nursery
        self._workers = workers
        self._made_room = made_room
        self._queue: deque[tuple[Verified, Chunk, float]] = deque()
        self._limit = max(1, memory.slots // 2)
        self._wanted = trio.Event()
        self._touched: set[tuple[bytes, int]] = set()
        self._quiet_until = -math.inf
        self.on_kept: Callable[[ObjectVersion], None] | None = None
        """Called with each version of which chunks came to be on disk, or were given up."""
        self.on_fresh: Callable[[Verified], None] | None = None
        """Called with each chunk that came, whether it will be kept or not."""
        self.waits = Tally(SLOW)
        """How long chunks waited until their write began."""
        self._batches = 0
        self.kept = 0
        self.unkept = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether a chunk waits to be written, or is being written."""
        return bool(self._queue) or self._batches > 0

    def put(self, verified: Verified, chunk: Chunk) -> None:
        """Write this chunk soon, or not at all if too many wait already."""
        if self.on_fresh is not None and verified.whole:
            self.on_fresh(verified)
        if len(self._queue) >= self._limit:
            self.unkept += 1
            return
        self._memory.pin(chunk)
        self._queue.append((verified, chunk, trio.current_time()))
        self._wanted.set()

    def give_up_one(self) -> bool:
        """Do not write the chunk that waits longest, so that its slot can serve a reader. False if none waits."""
        if not self._queue:
            return False
        _, chunk, _ = self._queue.popleft()
        self._memory.unpin(chunk)
        self.unkept += 1
        return True

    async def run(self) -> None:
        """Write what is queued, for ever. Cancelling it leaves the rest unwritten; `flush` first to keep it."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            await self.flush()

    async def settled(self) -> None:
        """Write everything that is queued now, and wait for what was under way."""
        await self.flush()
        await self.step(lambda: None)

    async def flush(self) -> None:
        """Write everything that is queued now."""
        while self._queue:
            await trio.lowlevel.checkpoint_if_cancelled()
            batch = [self._queue.popleft() for _ in range(min(WRITE_BATCH, len(self._queue)))]
            self._batches += 1
            now = trio.current_time()
            for _, _, queued in batch:
                self.waits.add(now - queued)
            kept = 0
            try:
                # What waits is not only the caller's: it is not lost with whoever is cancelled.
                with trio.CancelScope(shield=True):
                    kept = await self.step(self._disk.keep, [verified for verified, _, _ in batch]) or 0
            finally:
                self._batches -= 1
                self.kept += kept
                self.unkept += len(batch) - kept
                for _, chunk, _ in batch:
                    self._memory.unpin(chunk)
                self._made_room()
            if self.on_kept is not None:
                for version in {verified.version for verified, _, _ in batch}:
                    self.on_kept(version)

    def touch(self, version: ObjectVersion, number: int) -> None:
        """A chunk on disk was used; the index hears of it in a while, together with others."""
        if not self._touched:
            self._nursery.start_soon(self._touch_later)
        self._touched.add((version.object_id, number // SEGMENT_CHUNKS))

    async def flush_touches(self) -> None:
        """Write the collected uses to the index now."""
        touched, self._touched = self._touched, set()
        if touched:
            await self.step(self._disk.touch, touched)

    async def close(self) -> None:
        """Close the disk cache after the step under way: an index that is closed inside a transaction of another thread
        never returns. What is put from now on is not kept."""
        self._limit = 0
        await self.step(self._disk.close)

    async def _touch_later(self) -> None:
        await trio.sleep(TOUCH_DELAY)
        await self.flush_touches()

    async def step(self, function: Callable[..., T], *args: object) -> T | None:
        """One step of the disk cache. The cache is advice: a failure is logged, once in a while, and forgotten."""
        try:
            return await self._workers.write(function, *args)
        except (CacheUnavailable, OSError) as error:
            if trio.current_time() >= self._quiet_until:
                self._quiet_until = trio.current_time() + QUIET
                log.warning("the disk cache does not work, reads go on without it: %s", error)
        except Exception:
            log.exception("a defect in the disk cache, reads go on without it")
        return None
