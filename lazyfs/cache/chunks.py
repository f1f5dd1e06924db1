"""Chunks for readers: what is here, what is coming, what must be brought.

Its job: give the bytes of a range, from memory, from the blocks of a chunk on disk that is barely touched, or from a
flight, which it joins or starts; and start flights ahead of readers, as far as memory allows. Must not know names, S3,
how chunks come (`flights.py`), or why somebody reads.

Concurrency: loop thread only. Code between two awaits is the lock: `start` is one step. No lock and no index
transaction is held across an await.
Invariant: a chunk is never in memory and in a flight at once.
"""

from collections.abc import Hashable, Iterator, Sequence

import trio

from lazyfs.cache.barred import Barred
from lazyfs.cache.bringing import bring
from lazyfs.cache.disk import Disk
from lazyfs.cache.flights import Flights
from lazyfs.cache.forgetting import forget
from lazyfs.cache.marker import Marker
from lazyfs.cache.memory import Chunk, Memory
from lazyfs.cache.parts import Parts
from lazyfs.cache.records import Kept
from lazyfs.cache.shares import Shares
from lazyfs.cache.spans import spans_to_get
from lazyfs.cache.statistics import ChunkStatistics
from lazyfs.cache.threads import DiskThreads, Workers
from lazyfs.cache.waits import MOST_FEW, Waits
from lazyfs.cache.writer import Writer
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, SEGMENT_CHUNKS, ObjectVersion, Pieces, chunk_range, runs
from lazyfs.stores.base import Claim, Reads

TOGETHER = 3
"""Attempts to have both chunks of a read in memory at once, which then is answered from both."""

COPIES = 4
"""Reads at once that hold a copy while they wait for another chunk; of each of several origins its part."""

SMALL_READ = 2 * BLOCK_SIZE
"""A read up to this size of a chunk that is on disk and wanted by no stream reads only its blocks, not the chunk."""


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
        self.marker = Marker(mark=disk.mark, workers=workers, reads=self.reads)
        self._parts = Parts(
            disk=disk,
            flights=self._flights,
            writer=self.writer,
            marker=self.marker,
            workers=workers,
            copies=self._copies,
        )
        self.barred = Barred()
        self._waits = Waits(flights=self._flights, memory=memory, launch=self.launch, ways=ways)
        self._memory_hits = 0
        self.looks = [0, 0]  # how often a chunk that somebody reads was not in memory, and was

    def statistics(self) -> ChunkStatistics:
        """A frozen copy of the counters."""
        flights, writer = self._flights, self.writer
        return ChunkStatistics(
            memory_hits=self._memory_hits,
            disk_hits=flights.disk_hits,
            misses=flights.misses,
            waits=self._waits.count,
            corrupt=flights.corrupt,
            kept=writer.kept,
            unkept=writer.unkept,
            unmarked=len(self.marker),
        )

    @property
    def disk_bytes(self) -> int:
        """Bytes that came from disk, and verified, since the start."""
        return self._flights.disk_bytes

    @property
    def flying(self) -> int:
        """Chunks that are on their way into memory."""
        return len(self._flights)

    def reads(self) -> int:
        """A number that changes with each read of chunks, and as some come or are sent for; see `Quiet`."""
        return sum(self.looks) + len(self._flights)

    def idle(self) -> bool:
        """Whether nothing is on its way and nothing waits to be written."""
        return not self._flights and not self.writer and self._memory.statistics().pinned == 0

    def start(
        self, version: ObjectVersion, start: int, stop: int, *, demand: int, reader: int | None = None,
        lane: Hashable = None,
    ) -> int:  # fmt: skip
        """Set bytes [start, stop) on their way if they are not here or coming; those before `demand` are urgent, the
        rest shares connections evenly with what other lanes queue. It is ahead of who has got to `reader`, which is
        `demand` unless given, and negative if he reads something that is before this version.

        Returns the offset up to which all is here or coming: less than `stop` when memory is short, or while the
        version is barred. Never waits.
        """
        if version in self.barred:
            return start
        return self.launch(version, start, stop, demand, reader=reader, lane=lane)

    def launch(
        self, version: ObjectVersion, start: int, stop: int, demand: int, *, reader: int | None = None,
        lane: Hashable = None,
    ) -> int:  # fmt: skip
        """As `start`, though the version be barred."""
        missing: list[int] = []
        for number in chunk_range(start, stop):
            key = (version.object_id, number)
            flight = self._flights.get(key)
            if flight is not None and flight.part:
                stop = max(start, number * CHUNK_SIZE)  # not all of it comes
                break
            if flight is not None:
                if number * CHUNK_SIZE < demand:
                    flight.claim.urge()
            elif self._memory.get(key) is None:
                missing.append(number)
        for span, on_disk in self._spans(version, missing, demand, demand if reader is None else reader):
            first = span.start
            while first < span.stop:
                claim = Claim(urgent=first * CHUNK_SIZE < demand, lane=lane)
                launched = self._flights.launch(version, range(first, span.stop), claim, on_disk=on_disk)
                first += launched
                # While memory is short one comes at a time, and all that is waited for.
                if first < span.stop and not (launched and first * CHUNK_SIZE < demand):
                    return first * CHUNK_SIZE
        return stop

    def _spans(
        self, version: ObjectVersion, missing: list[int], demand: int, reader: int
    ) -> Iterator[tuple[range, bool]]:
        """Runs of chunks that are all on disk (True), or all not: none is fetched because its neighbour is missing."""
        bits, segment = 0, -1
        on_disk: list[int] = []
        absent: list[int] = []
        for number in missing:
            if number // SEGMENT_CHUNKS != segment:
                segment = number // SEGMENT_CHUNKS
                bits = self._disk.present(version.object_id, segment)
            (on_disk if bits >> number % SEGMENT_CHUNKS & 1 else absent).append(number)
        most, idle = self._span_chunks, self._ways - self._flights.asking[version.origin]
        gets = ((span, False) for span in spans_to_get(absent, demand, reader, idle=idle, most=most))
        yield from sorted([*((span, True) for span in runs(on_disk, most)), *gets], key=lambda span: span[0].start)

    def apart(self, version: ObjectVersion, start: int, stop: int) -> bool:
        """Whether only blocks may be brought of the chunks in which these bytes lie, if nothing else is wanted there:
        they lie in two, which are not both on disk."""
        return self._parts.apart(version, start, stop)

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
        touched = self.touched(version, start, stop)
        if touched is not None:
            return touched
        found = self.now(version, start, stop)
        if found is None:
            found = await self.wait(version, start, stop)
        return found[0] if len(found) == 1 else b"".join(found)

    def touched(self, version: ObjectVersion, start: int, stop: int) -> bytes | None:
        """As `read`, for a small piece of a chunk that is not in memory, nor on its way, if it is on a disk that is
        quick."""
        number = start // CHUNK_SIZE
        base = number * CHUNK_SIZE
        if stop - start > SMALL_READ or stop - base > CHUNK_SIZE or self.barred or not self.workers.quick:
            return None
        if self._flights.here((version.object_id, number)) is not None:
            return None
        part = self._parts.now(version, number, start - base, stop - base)
        self.looks[0] += part is not None
        return part

    def now(self, version: ObjectVersion, start: int, stop: int) -> Pieces | None:
        """As `read`, if the bytes are in memory. Else None; `touched` may give them, and `wait` does."""
        first, last = start // CHUNK_SIZE, (stop - 1) // CHUNK_SIZE
        chunk = self._flights.here((version.object_id, first))
        self.looks[chunk is not None] += 1
        second = chunk if first == last else self._flights.here((version.object_id, last))
        if first != last:
            self.looks[second is not None] += 1
        if self.barred:
            return None
        if chunk and second and last <= first + 1:
            return self._found(version, start, stop, chunk, second)
        return None

    def _found(self, version: ObjectVersion, start: int, stop: int, chunk: Chunk, second: Chunk) -> Pieces:
        """Bytes that lie in one chunk, or in two adjacent ones."""
        first, last = start // CHUNK_SIZE, (stop - 1) // CHUNK_SIZE
        begin = start - first * CHUNK_SIZE
        self._use(version, first, chunk, start, stop)
        if first == last:
            return (chunk.view[begin : stop - first * CHUNK_SIZE],)
        self._use(version, last, second, start, stop)
        return chunk.view[begin:], second.view[: stop - last * CHUNK_SIZE]

    def held(self, version: ObjectVersion, number: int) -> memoryview | None:
        """The bytes of a chunk that is in memory, for who is no reader. Good until the next await."""
        chunk = self._flights.here((version.object_id, number))
        return None if chunk is None else chunk.view

    async def wait(self, version: ObjectVersion, start: int, stop: int, *, alone: bool = False) -> Pieces:
        """What `read` gives, in pieces, as soon as it is here. `alone`: nothing else is wanted, and it is `apart`."""
        if self.barred:
            await self.barred.passed(version)
        first, last = start // CHUNK_SIZE, (stop - 1) // CHUNK_SIZE
        if first != last:
            if alone:
                part = await self._parts.across(version, start, stop)
                if part is not None:
                    return (part,)
                self.launch(version, start, stop, stop)
            return await self._read_across(version, start, stop)
        begin, end = start - first * CHUNK_SIZE, stop - first * CHUNK_SIZE
        chunk = self._memory.get((version.object_id, first))
        if chunk is None and stop - start <= SMALL_READ:
            part = await self._parts.touch(version, first, begin, end)
            if part is not None:
                return (part,)
        if chunk is None and stop - start <= MOST_FEW:
            found = await self._waits.few(version, first, begin, end)
            if isinstance(found, bytes):
                self._memory_hits += 1
                return (found,)
            chunk = found
        chunk = chunk or await self.obtain(version, first)
        self._use(version, first, chunk, start, stop)
        return (chunk.view[begin:end],)

    async def _read_across(self, version: ObjectVersion, start: int, stop: int) -> Pieces:
        """Bytes that lie in several chunks. A pin held across a wait could be a deadlock, and a copy is memory beyond
        the budget: so the two of a read of the kernel's are waited for until both are there. Else they are copied chunk
        by chunk, for a few reads at once."""
        numbers = chunk_range(start, stop)
        for _ in range(TOGETHER if len(numbers) == 2 else 0):
            for number in numbers:
                if self._memory.get((version.object_id, number)) is None:
                    await self.obtain(version, number)
            chunk, second = (self._memory.get((version.object_id, number)) for number in numbers)
            if chunk and second:
                return self._found(version, start, stop, chunk, second)
        async with self._copies[version.origin]:
            return (await self._copy(version, start, stop),)

    async def _copy(self, version: ObjectVersion, start: int, stop: int) -> memoryview:
        """Chunk by chunk, waiting for those that are not here."""
        whole = memoryview(bytearray(stop - start))
        for number in chunk_range(start, stop):
            base = number * CHUNK_SIZE
            chunk = self._memory.get((version.object_id, number)) or await self.obtain(version, number)
            self._use(version, number, chunk, start, stop)
            low, high = max(start - base, 0), min(stop - base, CHUNK_SIZE)
            whole[base + low - start : base + high - start] = chunk.view[low:high]
        return whole

    def _use(self, version: ObjectVersion, number: int, chunk: Chunk, start: int, stop: int) -> None:
        self._memory_hits += 1
        base, length = number * CHUNK_SIZE, len(chunk.view)
        taken = min(stop - base, length) - max(start - base, 0)
        self._memory.use((version.object_id, number), chunk, taken=taken, to_end=stop >= base + length)

    async def obtain(self, version: ObjectVersion, number: int, *, urgent: bool = True) -> Chunk:
        """The chunk, waiting for it. Good until the next await."""
        return await self._waits.chunk(version, number, urgent=urgent)

    async def bring(self, version: ObjectVersion, start: int, stop: int) -> None:
        """Have bytes [start, stop) on disk, as far as the disk takes them, behind everything that readers wait for."""
        await bring(self, self._disk, self._memory, self.writer, version, start, stop)

    async def copy(self, version: ObjectVersion, number: int) -> bytes:
        """The bytes of a chunk, behind everything that readers wait for, and though it be barred to them."""
        chunk = await self.obtain(version, number, urgent=False)
        self._memory.use((version.object_id, number), chunk, taken=len(chunk.view), to_end=True)
        return bytes(chunk.view)

    async def found_wrong(self, version: ObjectVersion, number: int, kept: Kept) -> None:
        """Bytes of a chunk on disk did not verify: forget them, if the index still stands by them."""
        await self._flights.found_wrong(version, number, kept)

    async def forget(self, version: ObjectVersion) -> None:
        """Drop everything of a version, in memory and on disk, with what is on its way."""
        writer, landing = self.writer, self._waits.room
        await forget(
            version, disk=self._disk, memory=self._memory, writer=writer, flights=self._flights, landing=landing
        )

    async def evict(self, objects: Sequence[bytes]) -> tuple[int, int]:
        """Drop what is on disk, and in memory unless it is in use, of objects by their ids: how many bytes of disk were
        freed, and how many objects stay since they are being written. Readers bring again what they need."""
        dropped = await self.workers.write(self._disk.drop, objects)
        self._memory.forget_objects(set(objects))
        return dropped

    def coming(self, version: ObjectVersion) -> list[int]:
        """The chunks of the version that are on their way."""
        return self._flights.numbers(version.object_id)

    def cached_bytes(self, version: ObjectVersion) -> int:
        """Bytes of the version that are on disk, to a chunk."""
        return self._disk.cached_bytes(version)

    def _made_room(self) -> None:
        self._waits.made_room()
