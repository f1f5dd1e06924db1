"""Chunks on their way: what is here, what is coming, who waits for it.

Its job: a chunk is brought once however many want it (a flight, owned by the service and not by a reader), from the
object file if the index has it and it verifies, else from the store; it is verified or checksummed, kept in memory, and
given to a writer that puts it on disk later. Must not know names, S3, or why somebody reads.

Concurrency: loop thread only. Code between two awaits is the lock: `start` and `_land` are one step each. Worker
threads only append to `Flight.sums`. No lock and no index transaction is held across an await.
Invariants: a chunk is in at most one flight; a chunk is never in memory and in a flight at once; a flight's slots are
lent until each lands or the flight ends; a waiter's chunk is pinned from landing until the waiter has run.
"""

import logging
from collections.abc import Hashable, Iterator, Sequence

import trio

from lazyfs.cache.disk import Disk, Verified
from lazyfs.cache.flights import ChunkStatistics, Flight, Waiting
from lazyfs.cache.memory import Chunk, Key, Memory
from lazyfs.cache.records import Kept
from lazyfs.cache.spans import spans_to_get
from lazyfs.cache.sums import block_sums
from lazyfs.cache.threads import Threads
from lazyfs.cache.writer import Writer
from lazyfs.errors import Dropped, LazyfsError
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, SEGMENT_CHUNKS, ObjectVersion, chunk_range, runs
from lazyfs.stores.base import Claim, Store

log = logging.getLogger(__name__)

SMALL_READ = 2 * BLOCK_SIZE
"""A read up to this size of a chunk that is on disk and wanted by no stream reads only its blocks, not the chunk."""

DISK_THREADS = 4
"""Reads from the disk under way at once, of several chunks each."""


class ChunkCache:
    """The chunk cache of one mount. `nursery` runs its flights and its writer; `span_size` is the most bytes of a
    GET, `ways` how many of them the store does at once."""

    def __init__(
        self, *, store: Store, disk: Disk, memory: Memory, nursery: trio.Nursery, span_size: int, ways: int = 32
    ) -> None:
        self._store = store
        self._disk = disk
        self._memory = memory
        self._nursery = nursery
        self._span_chunks = span_size // CHUNK_SIZE
        self._ways = ways
        self._flying = 0
        self._flights: dict[Key, Flight] = {}
        # Set, and replaced, when memory may have become free; `_short` readers wait for that.
        self._room = trio.Event()
        self._short = 0
        self._readers = trio.CapacityLimiter(DISK_THREADS)
        self._touches = Threads(DISK_THREADS, "small reads")
        self.writer = Writer(disk=disk, memory=memory, nursery=nursery, made_room=self._made_room)
        self._token = trio.lowlevel.current_trio_token()
        self._counts = dict.fromkeys(("memory_hits", "disk_hits", "misses", "waits", "corrupt"), 0)

    def statistics(self) -> ChunkStatistics:
        """A frozen copy of the counters."""
        return ChunkStatistics(**self._counts, kept=self.writer.kept, unkept=self.writer.unkept)

    def idle(self) -> bool:
        """Whether nothing is on its way and nothing waits to be written."""
        return not self._flights and not self.writer and self._memory.statistics().pinned == 0

    # ---- for readers

    def start(self, version: ObjectVersion, start: int, stop: int, *, demand: int, lane: Hashable = None) -> int:
        """Set bytes [start, stop) on their way if they are not here or coming; those before `demand` are urgent, the
        rest shares connections evenly with what other lanes queue.

        Returns the offset up to which all is here or coming: less than `stop` when memory is short. Never waits.
        """
        missing: list[int] = []
        for number in chunk_range(start, stop):
            key = (version.object_id, number)
            flight = self._flights.get(key)
            if flight is not None:
                if number * CHUNK_SIZE < demand:
                    flight.claim.urge()
            elif self._memory.get(key) is None:
                missing.append(number)
        for span in self._spans(version, missing, demand):
            claim = Claim(urgent=span.start * CHUNK_SIZE < demand, lane=lane)
            launched = self._launch(version, span, claim)
            if launched < len(span):
                return (span.start + launched) * CHUNK_SIZE
        return stop

    def _spans(self, version: ObjectVersion, missing: list[int], demand: int) -> Iterator[range]:
        """Runs of chunks that are all on disk, or all not: none is fetched because its neighbour is missing."""
        bits, segment = 0, -1
        on_disk: list[int] = []
        absent: list[int] = []
        for number in missing:
            if number // SEGMENT_CHUNKS != segment:
                segment = number // SEGMENT_CHUNKS
                bits = self._disk.present(version.object_id, segment)
            (on_disk if bits >> number % SEGMENT_CHUNKS & 1 else absent).append(number)
        gets = spans_to_get(absent, demand, idle=self._ways - self._flying, most=self._span_chunks)
        spans = [*runs(on_disk, self._span_chunks), *gets]
        yield from sorted(spans, key=lambda span: span.start)

    def drop(self, version: ObjectVersion, start: int, stop: int) -> None:
        """Nobody will read bytes [start, stop) soon: what is queued of them need not be sent."""
        for number in chunk_range(start, stop):
            flight = self._flights.get((version.object_id, number))
            if flight is not None and not flight.waiting:
                flight.claim.drop()

    async def read(self, version: ObjectVersion, start: int, stop: int) -> memoryview | bytes:
        """Bytes [start, stop) of the version, not empty and within its size. The view is good until the next await.

        Raises the store's errors; a failing disk cache only makes it slower.
        """
        first, last = start // CHUNK_SIZE, (stop - 1) // CHUNK_SIZE
        chunk = self._memory.get((version.object_id, first))
        if first == last:
            if chunk is None and stop - start <= SMALL_READ:
                part = await self._read_part(version, first, start - first * CHUNK_SIZE, stop - first * CHUNK_SIZE)
                if part is not None:
                    return part
            chunk = chunk or await self._obtain(version, first)
            self._use(version, first, chunk, stop)
            return chunk.view[start - first * CHUNK_SIZE : stop - first * CHUNK_SIZE]
        second = self._memory.get((version.object_id, last))
        if chunk and second and last == first + 1 and self._memory.adjacent(chunk, second):
            self._use(version, first, chunk, stop)
            self._use(version, last, second, stop)
            return self._memory.span(chunk, start - first * CHUNK_SIZE, stop - start)
        return await self._read_across(version, start, stop)

    async def _read_across(self, version: ObjectVersion, start: int, stop: int) -> memoryview:
        """Chunk by chunk, copying each before waiting for the next: a pin held across a wait could be a deadlock."""
        whole = memoryview(bytearray(stop - start))
        for number in chunk_range(start, stop):
            base = number * CHUNK_SIZE
            chunk = self._memory.get((version.object_id, number)) or await self._obtain(version, number)
            self._use(version, number, chunk, stop)
            low, high = max(start - base, 0), min(stop - base, CHUNK_SIZE)
            whole[base + low - start : base + high - start] = chunk.view[low:high]
        return whole

    def _use(self, version: ObjectVersion, number: int, chunk: Chunk, stop: int) -> None:
        self._counts["memory_hits"] += 1
        to_end = stop >= number * CHUNK_SIZE + len(chunk.view)
        self._memory.use((version.object_id, number), chunk, to_end=to_end)

    async def _obtain(self, version: ObjectVersion, number: int) -> Chunk:
        """The chunk, waiting for it. Good until the next await: its pin is undone as the waiter runs."""
        key = (version.object_id, number)
        self._counts["waits"] += 1
        while True:
            chunk = self._memory.get(key)
            if chunk is not None:
                return chunk
            flight = self._flights.get(key)
            if flight is None:
                self.start(version, number * CHUNK_SIZE, number * CHUNK_SIZE + 1, demand=number * CHUNK_SIZE + 1)
                flight = self._flights.get(key)
            if flight is None:
                self._short += 1
                try:
                    await self._room.wait()
                finally:
                    self._short -= 1
                continue
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
            if flight.error is not None and not isinstance(flight.error, Dropped):
                raise flight.error

    async def _read_part(self, version: ObjectVersion, number: int, start: int, stop: int) -> bytes | None:
        """A small piece of a chunk that is on disk and not on its way; None if that is not the case."""
        if (version.object_id, number) in self._flights:
            return None
        kept = self._disk.kept(version.object_id, number)
        if kept is None:
            return None
        part = await self._touches.run(self._disk.read_part, version, number, kept, start, stop)
        if part is None:
            await self._found_wrong(version, number, kept)
        else:
            self._counts["disk_hits"] += 1
            self.writer.touch(version, number)
        return part

    def cached_bytes(self, version: ObjectVersion) -> int:
        """Bytes of the version that are on disk, to a chunk."""
        return self._disk.cached_bytes(version)

    # ---- flights

    def _launch(self, version: ObjectVersion, span: range, claim: Claim) -> int:
        """Start one flight for chunks that have none; how many of them it brings, as memory allows."""
        after = self._slot(version, span.start - 1)
        slots = self._memory.lend(len(span), urgent=claim.urgent, after=after)
        if slots is None and claim.urgent:
            slots = self._memory.lend(1, urgent=True) or self._lend_by_giving_up_writes()
            span = span[:1]
        if slots is None:
            return 0
        views = [self._memory.slot_view(slot, version.chunk_length(n)) for slot, n in zip(slots, span, strict=True)]
        flight = Flight(version, span, slots, views, claim)
        for number in span:
            self._flights[version.object_id, number] = flight
        self._flying += 1
        self._nursery.start_soon(self._fly, flight)
        return len(span)

    def _slot(self, version: ObjectVersion, number: int) -> int | None:
        """Where in memory a chunk is, or will be."""
        key = (version.object_id, number)
        chunk = self._memory.get(key)
        if chunk is not None:
            return chunk.slot
        flight = self._flights.get(key)
        return None if flight is None else flight.slots[number - flight.first]

    def _lend_by_giving_up_writes(self) -> list[int] | None:
        """A slot for a reader at the price of chunks that will not be kept on disk: readers go before writers."""
        slots = None
        while slots is None and self.writer.give_up_one():
            slots = self._memory.lend(1, urgent=True)
        return slots

    async def _fly(self, flight: Flight) -> None:
        """Bring the flight's chunks, whatever that takes, and end it."""
        try:
            kept = [self._disk.kept(flight.version.object_id, n) for n in range(flight.first, flight.stop)]
            await self._from_disk(flight, kept)
            await self._from_store(flight)
        except LazyfsError as error:
            flight.error = error
        except Exception as error:
            log.exception("a defect while bringing %r", flight.version.key)
            flight.error = LazyfsError(f"a defect: {type(error).__name__}: {error}")
        finally:
            self._flying -= 1
            self._end(flight)

    async def _from_disk(self, flight: Flight, kept: Sequence[Kept | None]) -> None:
        """Land the leading chunks that are on disk and verify."""
        found: list[Kept] = []
        for one in kept:
            if one is None or (found and one.generation != found[0].generation):
                break
            found.append(one)
        if not found:
            return
        right = await trio.to_thread.run_sync(
            self._disk.read, flight.version, flight.first, found, flight.views[: len(found)], limiter=self._readers
        )
        for offset, (good, one) in enumerate(zip(right, found, strict=True)):
            number = flight.first + offset
            if not good:
                await self._found_wrong(flight.version, number, one)
                break
            flight.sums.append(one.sums)
            self._counts["disk_hits"] += 1
            self.writer.touch(flight.version, number)
            self._land(flight, fresh=False)

    async def _from_store(self, flight: Flight) -> None:
        """Land the rest from the store, each chunk as soon as its last byte is here."""
        begin = flight.landed
        views = flight.views[begin:]
        if not views:
            return
        ends: list[int] = []
        for view in views:
            ends.append((ends[-1] if ends else 0) + len(view))

        def arrived(count: int) -> None:
            done = len(flight.sums) - begin
            if done < len(ends) and count >= ends[done]:
                while done < len(ends) and count >= ends[done]:
                    flight.sums.append(block_sums(views[done]))
                    done += 1
                self._token.run_sync_soon(self._land, flight)

        start = (flight.first + begin) * CHUNK_SIZE
        self._counts["misses"] += len(views)
        await self._store.read(flight.version, start, views, arrived, flight.claim)
        self._land(flight)

    def _land(self, flight: Flight, *, fresh: bool = True) -> None:
        """The chunks whose checksums are known are here: keep them in memory, wake their waiters, queue the write."""
        while flight.landed < len(flight.sums) and not flight.over:
            place = flight.landed
            number = flight.first + place
            key = (flight.version.object_id, number)
            del self._flights[key]
            chunk = self._memory.keep(key, flight.slots[place], len(flight.views[place]))
            flight.landed += 1
            if fresh:
                self.writer.put(Verified(flight.version, number, chunk.view, flight.sums[place]), chunk)
            self._wake(flight, number, chunk)

    def _wake(self, flight: Flight, number: int, chunk: Chunk | None) -> None:
        waiting = flight.waiting.pop(number, None)
        if waiting is None:
            return
        if chunk is not None:
            waiting.chunk = chunk
            for _ in range(waiting.count):
                self._memory.pin(chunk)
        waiting.event.set()

    def _end(self, flight: Flight) -> None:
        """Land what is complete, give back the slots of the rest and wake who waited for it; they look again, or fail
        with the error."""
        self._land(flight)
        # A worker's word that a chunk is complete may still be queued; its slot is somebody else's from here on.
        flight.over = True
        for place in range(flight.landed, len(flight.slots)):
            number = flight.first + place
            self._flights.pop((flight.version.object_id, number), None)
            self._memory.give_back(flight.slots[place])
            self._wake(flight, number, None)
        self._made_room()

    def _made_room(self) -> None:
        event, self._room = self._room, trio.Event()
        event.set()

    async def _found_wrong(self, version: ObjectVersion, number: int, kept: Kept) -> None:
        """Bytes on disk did not match. If the index still stands by them they are damaged: forget them. Else they were
        evicted as we read, which is nothing to report."""
        if self._disk.kept(version.object_id, number) != kept:
            return
        self._counts["corrupt"] += 1
        log.error("cached bytes of %r, chunk %d, are damaged and will be fetched again", version.key, number)
        await self.writer.step(self._disk.discard, version, number)
