"""Chunks for readers: what is here, what is coming, what must be brought.

Its job: give the bytes of a range, from memory, from the blocks of a chunk on disk that is barely touched, or from a
flight, which it joins or starts; and start flights ahead of readers, as far as memory allows. Must not know names, S3,
how chunks come (`flights.py`), or why somebody reads.

Concurrency: loop thread only. Code between two awaits is the lock: `start` is one step. No lock and no index
transaction is held across an await.
Invariants: a chunk is never in memory and in a flight at once; a reader's chunk is pinned from landing until the reader
has run.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import trio

from lazyfs.cache.barred import Barred
from lazyfs.cache.disk import Disk, Verified
from lazyfs.cache.flights import Flights, Waiting
from lazyfs.cache.memory import Chunk, Memory
from lazyfs.cache.records import Kept
from lazyfs.cache.shares import Shares
from lazyfs.cache.spans import spans_to_get
from lazyfs.cache.sums import block_sums
from lazyfs.cache.threads import DiskThreads, Workers
from lazyfs.cache.writer import Writer
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, SEGMENT_CHUNKS, ObjectVersion, chunk_range, runs
from lazyfs.stores.base import Claim, Reads

BRINGING = "bringing"
"""The lane of what is brought to be kept and not to be read."""

FORGET_AGAIN = 8
"""Times that a disk which does not forget is asked again, after pauses that double from 0.1 s: 25 s in all."""

TOGETHER = 3
"""Attempts to have both chunks of a read in memory at once."""

COPIES = 4
"""Reads at once that hold a copy while they wait for another chunk; of each of several origins its part."""

SMALL_READ = 2 * BLOCK_SIZE
"""A read up to this size of a chunk that is on disk and wanted by no stream reads only its blocks, not the chunk."""


@dataclass(frozen=True, slots=True)
class ChunkStatistics:
    """Chunks since the start. Reads by where they were found; corrupt: wrong on disk; unkept: not written to disk."""

    memory_hits: int
    disk_hits: int
    misses: int
    waits: int
    corrupt: int
    kept: int
    unkept: int


class ChunkCache:
    """The chunk cache of one mount. `nursery` runs its flights and its writer; `span_size` is the most bytes of a
    GET, `ways` how many of them a store does at once; `origins` share it; `workers` do what blocks, or else threads."""

    def __init__(
        self,
        *,
        store: Reads,
        disk: Disk,
        memory: Memory,
        nursery: trio.Nursery,
        span_size: int,
        ways: int = 32,
        origins: Sequence[str] = ("",),
        workers: Workers | None = None,
    ) -> None:
        self._disk = disk
        self._memory = memory
        self._span_chunks = span_size // CHUNK_SIZE
        self._ways = ways
        self.workers = workers = workers or DiskThreads()
        # Set, and replaced, when memory may have become free; `_short` readers wait for that.
        self._room = trio.Event()
        self._short = 0
        self._copies = {origin: trio.Semaphore(max(1, COPIES // len(origins))) for origin in origins}
        self.writer = Writer(disk=disk, memory=memory, nursery=nursery, workers=workers, made_room=self._made_room)
        self._flights = Flights(
            store=store,
            disk=disk,
            memory=memory,
            shares=Shares(memory.slots, origins),
            writer=self.writer,
            workers=workers,
            nursery=nursery,
            made_room=self._made_room,
        )
        self.barred = Barred()
        self._memory_hits = self._waits = 0
        self.looks = [0, 0]  # how often a chunk that somebody reads was not in memory, and was

    def statistics(self) -> ChunkStatistics:
        """A frozen copy of the counters."""
        flights, writer = self._flights, self.writer
        return ChunkStatistics(
            memory_hits=self._memory_hits,
            disk_hits=flights.disk_hits,
            misses=flights.misses,
            waits=self._waits,
            corrupt=flights.corrupt,
            kept=writer.kept,
            unkept=writer.unkept,
        )

    @property
    def disk_bytes(self) -> int:
        """Bytes that came from disk, and verified, since the start."""
        return self._flights.disk_bytes

    def idle(self) -> bool:
        """Whether nothing is on its way and nothing waits to be written."""
        return not self._flights and not self.writer and self._memory.statistics().pinned == 0

    def start(self, version: ObjectVersion, start: int, stop: int, *, demand: int, lane: Hashable = None) -> int:
        """Set bytes [start, stop) on their way if they are not here or coming; those before `demand` are urgent, the
        rest shares connections evenly with what other lanes queue.

        Returns the offset up to which all is here or coming: less than `stop` when memory is short, or while the
        version is barred. Never waits.
        """
        return start if version in self.barred else self._start(version, start, stop, demand, lane)

    def _start(self, version: ObjectVersion, start: int, stop: int, demand: int, lane: Hashable = None) -> int:
        missing: list[int] = []
        for number in chunk_range(start, stop):
            key = (version.object_id, number)
            flight = self._flights.get(key)
            if flight is not None:
                if number * CHUNK_SIZE < demand:
                    flight.claim.urge()
            elif self._memory.get(key) is None:
                missing.append(number)
        for span, on_disk in self._spans(version, missing, demand):
            claim = Claim(urgent=span.start * CHUNK_SIZE < demand, lane=lane)
            launched = self._flights.launch(version, span, claim, on_disk=on_disk)
            if launched < len(span):
                return (span.start + launched) * CHUNK_SIZE
        return stop

    def _spans(self, version: ObjectVersion, missing: list[int], demand: int) -> Iterator[tuple[range, bool]]:
        """Runs of chunks that are all on disk (True), or all not: none is fetched because its neighbour is missing."""
        bits, segment = 0, -1
        on_disk: list[int] = []
        absent: list[int] = []
        for number in missing:
            if number // SEGMENT_CHUNKS != segment:
                segment = number // SEGMENT_CHUNKS
                bits = self._disk.present(version.object_id, segment)
            (on_disk if bits >> number % SEGMENT_CHUNKS & 1 else absent).append(number)
        most, idle = self._span_chunks, self._ways - self._flights.flying[version.origin]
        gets = ((span, False) for span in spans_to_get(absent, demand, idle=idle, most=most))
        yield from sorted([*((span, True) for span in runs(on_disk, most)), *gets], key=lambda span: span[0].start)

    def drop(self, version: ObjectVersion, start: int, stop: int) -> None:
        """Nobody will read bytes [start, stop) soon: what is queued of them need not be sent."""
        for number in chunk_range(start, stop):
            flight = self._flights.get((version.object_id, number))
            if flight is not None and not flight.waiting:
                flight.claim.drop()

    async def read(self, version: ObjectVersion, start: int, stop: int) -> memoryview | bytes:
        """Bytes [start, stop) of the version, not empty and within its size. The view is good until the next await.

        Raises the store's errors, and what a version is refused with; a failing disk cache only makes it slower.
        """
        if self.barred:
            await self.barred.passed(version)
        first, last = start // CHUNK_SIZE, (stop - 1) // CHUNK_SIZE
        chunk = self._memory.get((version.object_id, first))
        self.looks[chunk is not None] += 1
        if first == last:
            if chunk is None and stop - start <= SMALL_READ:
                part = await self._read_part(version, first, start - first * CHUNK_SIZE, stop - first * CHUNK_SIZE)
                if part is not None:
                    return part
            chunk = chunk or await self._obtain(version, first)
            self._use(version, first, chunk, stop)
            return chunk.view[start - first * CHUNK_SIZE : stop - first * CHUNK_SIZE]
        second = self._memory.get((version.object_id, last))
        self.looks[second is not None] += 1
        if chunk and second and last == first + 1 and self._memory.adjacent(chunk, second):
            self._use(version, first, chunk, stop)
            self._use(version, last, second, stop)
            return self._memory.span(chunk, start - first * CHUNK_SIZE, stop - start)
        return await self._read_across(version, start, stop)

    async def _read_across(self, version: ObjectVersion, start: int, stop: int) -> memoryview:
        """Bytes that lie in several chunks, copied. A pin held across a wait could be a deadlock, and a copy is memory
        beyond the budget: so the two of a read of the kernel's are waited for first, and copied when both are there,
        which leaves no copy waiting. Else it is done chunk by chunk, for a few reads at once."""
        numbers = chunk_range(start, stop)
        for _ in range(TOGETHER if len(numbers) == 2 else 0):
            for number in numbers:
                if self._memory.get((version.object_id, number)) is None:
                    await self._obtain(version, number)
            if all(self._memory.get((version.object_id, number)) is not None for number in numbers):
                return await self._copy(version, start, stop)
        async with self._copies[version.origin]:
            return await self._copy(version, start, stop)

    async def _copy(self, version: ObjectVersion, start: int, stop: int) -> memoryview:
        """Chunk by chunk, waiting for those that are not here."""
        whole = memoryview(bytearray(stop - start))
        for number in chunk_range(start, stop):
            base = number * CHUNK_SIZE
            chunk = self._memory.get((version.object_id, number)) or await self._obtain(version, number)
            self._use(version, number, chunk, stop)
            low, high = max(start - base, 0), min(stop - base, CHUNK_SIZE)
            whole[base + low - start : base + high - start] = chunk.view[low:high]
        return whole

    def _use(self, version: ObjectVersion, number: int, chunk: Chunk, stop: int) -> None:
        self._memory_hits += 1
        to_end = stop >= number * CHUNK_SIZE + len(chunk.view)
        self._memory.use((version.object_id, number), chunk, to_end=to_end)

    async def _obtain(self, version: ObjectVersion, number: int, *, urgent: bool = True) -> Chunk:
        """The chunk, waiting for it. Good until the next await: its pin is undone as the waiter runs."""
        key = (version.object_id, number)
        self._waits += 1
        while True:
            chunk = self._memory.get(key)
            if chunk is not None:
                return chunk
            flight = self._flights.get(key)
            if flight is None:
                start = number * CHUNK_SIZE
                # With nothing of its origin on its way nobody makes room: then what nobody has read yet goes.
                pushing = urgent or not self._flights.flying[version.origin]
                self._start(version, start, start + 1, start + 1 if pushing else 0)
                flight = self._flights.get(key)
            if flight is None:
                self._short += 1
                try:
                    await self._room.wait()
                finally:
                    self._short -= 1
                continue
            if urgent:
                flight.claim.urge()
            waiting = flight.waiting.setdefault(number, Waiting())
            waiting.count += 1
            try:
                await waiting.event.wait()
            except BaseException:
                if waiting.chunk is None:
                    waiting.count -= 1
                else:
                    self._memory.unpin(waiting.chunk)
                raise
            if waiting.chunk is not None:
                self._memory.unpin(waiting.chunk)
                if self._short:
                    self._made_room()
                return waiting.chunk
            error = flight.error_for(version)
            if error is not None:
                raise error

    async def _read_part(self, version: ObjectVersion, number: int, start: int, stop: int) -> bytes | None:
        """A small piece of a chunk that is on disk and not on its way; None if that is not the case."""
        if self._flights.get((version.object_id, number)) is not None:
            return None
        kept = self._disk.kept(version.object_id, number)
        if kept is None:
            return None
        part = await self.workers.touch(self._disk.read_part, version, number, kept, start, stop)
        if part is None:
            await self._flights.found_wrong(version, number, kept)
        else:
            self._flights.disk_hits += 1
            self._flights.disk_bytes += len(part)
            self.writer.touch(version, number)
        return part

    async def bring(self, version: ObjectVersion, start: int, stop: int) -> None:
        """Have bytes [start, stop) on disk, as far as the disk takes them, behind everything that readers wait for."""
        missing = [n for n in chunk_range(start, stop) if self._disk.kept(version.object_id, n) is None]
        most = max(1, self._memory.slots // 4)  # half of what the writer takes at a time
        for at in range(0, len(missing), most):
            await self._bring(version, missing[at : at + most])

    async def _bring(self, version: ObjectVersion, missing: Sequence[int]) -> None:
        for span in runs(missing, SEGMENT_CHUNKS):
            self._start(version, span.start * CHUNK_SIZE, span.stop * CHUNK_SIZE, 0, BRINGING)
        for number in missing:
            chunk = await self._obtain(version, number, urgent=False)
            # Nobody reads it here, so it makes room for the next: else memory fills and nothing moves.
            self._memory.use((version.object_id, number), chunk, to_end=True)
        await self.writer.settled()
        for number in missing:
            # Here all the time, and given up by the writer when it had too much to do.
            found = self._memory.get((version.object_id, number))
            # A pinned one waits to be written already, or somebody is about to read it.
            if found is not None and found.pins == 0 and self._disk.kept(version.object_id, number) is None:
                self.writer.put(Verified(version, number, found.view, block_sums(found.view)), found)
        await self.writer.settled()

    async def copy(self, version: ObjectVersion, number: int) -> bytes:
        """The bytes of a chunk, behind everything that readers wait for, and though it be barred to them."""
        chunk = await self._obtain(version, number, urgent=False)
        self._memory.use((version.object_id, number), chunk, to_end=True)
        return bytes(chunk.view)

    async def found_wrong(self, version: ObjectVersion, number: int, kept: Kept) -> None:
        """Bytes of a chunk on disk did not verify: forget them, if the index still stands by them."""
        await self._flights.found_wrong(version, number, kept)

    async def forget(self, version: ObjectVersion) -> None:
        """Drop everything of a version, in memory and on disk, with what is on its way: that may be older than the
        wish. A disk that fails is asked again for a while, for what stays there would be taken for fetched again."""
        keys = [(version.object_id, number) for number in range(version.chunk_count)]
        pauses = [0.1 * 2**number for number in range(FORGET_AGAIN)]
        while True:
            await self.writer.settled()  # what waits to be written is pinned, and would be on disk after this
            gone = await self.writer.step(self._forget_on_disk, version)
            for key in keys:
                self._memory.forget(key)
            if any(self._flights.get(key) for key in keys):
                await self._room.wait()
            elif not gone and pauses:
                await trio.sleep(pauses.pop(0))
            elif not any(self._memory.get(key) for key in keys):
                return

    def _forget_on_disk(self, version: ObjectVersion) -> bool:
        self._disk.forget(version)
        return True

    async def evict(self, objects: Sequence[tuple[bytes, int]]) -> tuple[int, int]:
        """Drop what is on disk, and in memory unless it is in use, of objects by their ids and sizes: how many bytes of
        disk were freed, and how many objects stay since they are being written. Readers bring again what they need."""
        dropped = await self.workers.write(self._disk.drop, [object_id for object_id, _ in objects])
        for object_id, size in objects:
            for number in chunk_range(0, size):
                self._memory.forget((object_id, number))
        return dropped

    def coming(self, version: ObjectVersion) -> list[int]:
        """The chunks of the version that are on their way."""
        return self._flights.numbers(version.object_id)

    def cached_bytes(self, version: ObjectVersion) -> int:
        """Bytes of the version that are on disk, to a chunk."""
        return self._disk.cached_bytes(version)

    def _made_room(self) -> None:
        event, self._room = self._room, trio.Event()
        event.set()
