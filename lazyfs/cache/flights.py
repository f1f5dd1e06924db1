"""Flights: adjacent chunks on their way into lent slots of memory, and who waits for each.

Their job: a chunk is brought once however many want it (a flight, owned by the service and not by a reader), from the
object file if the index has it and it verifies, else from the store; it is verified or checksummed, kept in memory, and
given to a writer that puts it on disk later. Must not know who reads, or what will be wanted next.

Concurrency: loop thread only. Code between two awaits is the lock: `launch` and `_land` are one step each. Only
`Flight.sums` and `received` are written by other threads, those of the store, which look at `waiting`, `few` and
`landed`. No index transaction is held across an await.
Invariants: a chunk is in at most one flight; a chunk is never in memory and in a flight at once; a flight's slots are
lent until each lands or the flight ends; a waiter's chunk is pinned from landing until the waiter has run.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence

import trio

from lazyfs.cache.disk import Disk, Verified
from lazyfs.cache.flight import Flight, aside
from lazyfs.cache.memory import Chunk, Key, Memory
from lazyfs.cache.records import Kept
from lazyfs.cache.shares import DISK, Shares
from lazyfs.cache.sums import block_sums
from lazyfs.cache.threads import Workers
from lazyfs.cache.writer import Writer
from lazyfs.errors import LazyfsError
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, ObjectVersion, chunk_range
from lazyfs.stores.base import Claim, Reads

log = logging.getLogger(__name__)

TOLD_TOGETHER = 4
"""Chunks of a flight that are complete before the loop is woken for them, if nobody waits for one: of a cold GiB that
is read through, ten chunks of a thousand are waited for, and each word took 30 us to say and as long to hear."""


class Flights:
    """The flights of one cache, by the chunks they bring. `made_room` is called when slots came back."""

    def __init__(
        self,
        *,
        store: Reads,
        disk: Disk,
        memory: Memory,
        shares: Shares,
        writer: Writer,
        workers: Workers,
        nursery: trio.Nursery,
        made_room: Callable[[], None],
    ) -> None:
        self._store = store
        self._disk = disk
        self._memory = memory
        self._shares = shares
        self._writer = writer
        self._workers = workers
        self._nursery = nursery
        self._made_room = made_room
        self._by_chunk: dict[Key, Flight] = {}
        # Flights that no task has taken up yet, in the order of wanting.
        self._launched: deque[Flight] = deque()
        self._discarding: set[Key] = set()
        self._token = trio.lowlevel.current_trio_token()
        self.flying: Counter[str] = Counter()
        """Flights that have not ended, by the origin of what they bring."""
        self.asking: Counter[str] = Counter()
        """The GETs of those of them that ask the origin for it."""
        self.disk_hits = self.misses = self.corrupt = self.disk_bytes = 0
        self.short = 0
        """Readers that wait for memory: then every chunk lands as soon as it is complete."""

    def __len__(self) -> int:
        return len(self._by_chunk)

    def get(self, key: Key) -> Flight | None:
        """The flight that still brings this chunk; what is complete of it lands first."""
        flight = self._by_chunk.get(key)
        if flight is None or flight.landed == len(flight.sums):
            return flight
        self._land(flight)
        return self._by_chunk.get(key)

    def here(self, key: Key) -> Chunk | None:
        """The chunk, if it is in memory, or complete in a flight, and lands now."""
        chunk = self._memory.get(key)
        return self._memory.get(key) if chunk is None and self.get(key) is None else chunk

    def numbers(self, object_id: bytes) -> list[int]:
        """The chunks of an object that are on their way, in no order."""
        return [number for one, number in self._by_chunk if one == object_id]

    def launch(self, version: ObjectVersion, span: range, claim: Claim, *, on_disk: bool) -> int:
        """Start one flight for chunks that have none, and that are all `on_disk` or all not; how many of them it
        brings, as memory allows."""
        lent_to = DISK if on_disk else version.origin
        room = self._shares.room(lent_to)
        slots = self._memory.lend(len(span), urgent=claim.urgent) if len(span) <= room else None
        if slots is None and claim.urgent:
            for flight in dict.fromkeys(self._by_chunk.values()):
                self._land(flight)  # what is complete can be written, and makes room
            if self._shares.room(lent_to):
                slots = self._memory.lend(1, urgent=True) or self._lend_by_giving_up_writes()
                span = span[:1]
        if slots is None:
            return 0
        views = [self._memory.slot_view(slot, version.chunk_length(n)) for slot, n in zip(slots, span, strict=True)]
        self._take_off(Flight(version, span, slots, views, claim, lent_to))
        return len(span)

    def launch_part(self, version: ObjectVersion, start: int, stop: int) -> Flight | None:
        """Start one flight for whole blocks, bytes [start, stop), of chunks that have none, and for a reader who waits;
        None if memory is short, or has other blocks of those chunks that are not written yet."""
        span = chunk_range(start, stop)
        ends = [min(stop, (number + 1) * CHUNK_SIZE) for number in span]
        lengths = [end - max(start, number * CHUNK_SIZE) for number, end in zip(span, ends, strict=True)]
        for number in span:
            self._memory.forget(aside(version, number))
        if any(self._memory.get(aside(version, number)) for number in span):
            return None
        room = self._shares.room(version.origin)
        slots = self._memory.lend(len(span), urgent=True) if len(span) <= room else None
        if slots is None:
            return None
        views = [self._memory.slot_view(slot, length) for slot, length in zip(slots, lengths, strict=True)]
        block = (start - span.start * CHUNK_SIZE) // BLOCK_SIZE
        flight = Flight(version, span, slots, views, Claim(urgent=True), version.origin, block)
        self._take_off(flight)
        return flight

    def _take_off(self, flight: Flight) -> None:
        self._shares.take(flight.lent_to, len(flight.slots))
        for number in range(flight.first, flight.stop):
            self._by_chunk[flight.version.object_id, number] = flight
        self.flying[flight.version.origin] += 1
        self.asking[flight.version.origin] += flight.lent_to != DISK
        self._nursery.start_soon(self._fly_next)
        self._launched.append(flight)

    def _lend_by_giving_up_writes(self) -> list[int] | None:
        """A slot for a reader at the price of chunks that will not be kept on disk: readers go before writers."""
        slots = None
        while slots is None and self._writer.give_up_one():
            slots = self._memory.lend(1, urgent=True)
        return slots

    async def _fly_next(self) -> None:
        """Fly what was launched first, whichever task runs first: trio runs those that were started together in one
        order or in the reverse, by chance, so a task with a flight of its own had the last bytes of a window sent
        before the first ones."""
        await self._fly(self._launched.popleft())

    async def _fly(self, flight: Flight) -> None:
        """Bring the flight's chunks, whatever that takes, and end it."""
        try:
            if flight.lent_to == DISK:
                kept = [self._disk.kept(flight.version.object_id, n) for n in range(flight.first, flight.stop)]
                await self._from_disk(flight, kept)
            await (self._in_two(flight) if flight.cut else self._from_store(flight))
        except LazyfsError as error:
            flight.error = error
        except Exception as error:
            log.exception("a defect while bringing %r", flight.version.key)
            flight.error = LazyfsError(f"a defect: {type(error).__name__}: {error}")
        finally:
            self.flying[flight.version.origin] -= 1
            self.asking[flight.version.origin] -= (flight.lent_to != DISK) + (flight.cut > 0)
            self._end(flight)

    async def _from_disk(self, flight: Flight, kept: Sequence[Kept | None]) -> None:
        """Land the leading chunks that are on disk and verify; those of each object file in one read."""
        first = 0
        while first < len(kept) and (head := kept[first]) is not None:
            found: list[Kept] = []
            for one in kept[first:]:
                if one is None or one.generation != head.generation:
                    break
                found.append(one)
            if not await self._read(flight, first, found):
                return
            first += len(found)

    async def _read(self, flight: Flight, place: int, kept: Sequence[Kept]) -> bool:
        """Land these chunks of one object file; False if one is wrong, and then none after it."""
        views = flight.views[place : place + len(kept)]
        right = await self._workers.read(self._disk.read, flight.version, flight.first + place, kept, views)
        for offset, (good, one) in enumerate(zip(right, kept, strict=True), place):
            number = flight.first + offset
            if not good:
                await self.found_wrong(flight.version, number, one)
                return False
            flight.received[0] += len(flight.views[offset])
            flight.sums.append(one.sums)
            self.disk_hits += 1
            self.disk_bytes += len(flight.views[offset])
            self._writer.touch(flight.version, number)
            self._land(flight, fresh=False)
        return True

    async def _from_store(self, flight: Flight) -> None:
        """Land the rest from the store, each chunk as soon as its last byte is here."""
        begin = flight.landed
        views = flight.views[begin:]
        if not views:
            return
        before = flight.received[0]
        ends: list[int] = []
        for view in views:
            ends.append((ends[-1] if ends else 0) + len(view))

        def arrived(count: int) -> None:
            flight.received[0] = before + count
            if flight.few:
                self._token.run_sync_soon(flight.tell)
            done = len(flight.sums) - begin
            if done < len(ends) and count >= ends[done]:
                while done < len(ends) and count >= ends[done]:
                    flight.sums.append(block_sums(views[done]))
                    done += 1
                # In this order: who waits looks once more after he is in `waiting`, so one of the two sees the other.
                # As with `few`.
                if flight.waiting or self.short or len(flight.sums) - flight.landed >= TOLD_TOGETHER:
                    self._token.run_sync_soon(self._land, flight)

        start = (flight.first + begin) * CHUNK_SIZE + (0 if begin else flight.block * BLOCK_SIZE)
        await self._store.read(flight.version, start, views, arrived, flight.claim)
        self._land(flight)

    def cut(self, flight: Flight, place: int) -> None:
        """Bring the one chunk of a flight that no task has taken up yet by two GETs side by side, of which one begins
        with the byte `place`, where a reader waits for a few. Not one that comes from disk."""
        if flight.lent_to != DISK:
            flight.cut, flight.front = place, Claim(urgent=True)
            self.asking[flight.version.origin] += 1

    async def _in_two(self, flight: Flight) -> None:
        """Land a chunk that is cut."""
        (view,), start, cut = flight.views, flight.first * CHUNK_SIZE, flight.cut
        errors: list[LazyfsError] = []

        async def get(half: int, low: int, high: int, claim: Claim) -> None:
            def arrived(count: int) -> None:
                flight.received[half] = count
                if flight.few:
                    self._token.run_sync_soon(flight.tell)

            try:
                await self._store.read(flight.version, start + low, [view[low:high]], arrived, claim)
            except LazyfsError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get, 0, 0, cut, flight.front)
            # Here and now, so that it is sent first.
            await get(1, cut, len(view), flight.claim)
        if errors:
            raise errors[0]
        flight.sums.append(block_sums(view))
        self._land(flight)

    def _land(self, flight: Flight, *, fresh: bool = True) -> None:
        """The chunks whose checksums are known are here: keep them in memory, wake their waiters, queue the write."""
        flight.tell()
        while flight.landed < len(flight.sums) and not flight.over:
            place = flight.landed
            number = flight.first + place
            part = flight.part and len(flight.views[place]) < flight.version.chunk_length(number)
            key = aside(flight.version, number) if part else (flight.version.object_id, number)
            if not part:
                del self._by_chunk[key]
            chunk = self._memory.keep(key, flight.slots[place], len(flight.views[place]))
            if not flight.part:
                self._shares.give(flight.lent_to)
            if number in flight.ended:
                self._memory.use(key, chunk, taken=len(chunk.view), to_end=True)
            flight.landed += 1
            if fresh:
                block = 0 if place else flight.block
                self.misses += 1
                self._writer.put(Verified(flight.version, number, chunk.view, flight.sums[place], block), chunk)
            if flight.part:
                self._memory.pin(chunk)
                flight.pieces.append((key, chunk))
            if not part:
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
        # The word that a chunk is complete may still be queued; its slot is somebody else's from here on.
        flight.over = True
        for few in flight.few:
            few.event.set()
        if flight.part:
            self._end_part(flight)
        for place in range(flight.landed, len(flight.slots)):
            number = flight.first + place
            self._by_chunk.pop((flight.version.object_id, number), None)
            self._memory.give_back(flight.slots[place])
            self._shares.give(flight.lent_to)
            self._wake(flight, number, None)
        self._made_room()

    def _end_part(self, flight: Flight) -> None:
        """Give what landed to who waits for all of it, and let go of it: from here on it is there to be written."""
        if flight.landed == len(flight.slots):
            flight.came = b"".join(chunk.view for _, chunk in flight.pieces)
        for number, (key, chunk) in enumerate(flight.pieces, flight.first):
            self._memory.use(key, chunk, taken=len(chunk.view), to_end=True)
            self._shares.give(flight.lent_to)  # not before: it was pinned
            self._memory.unpin(chunk)
            if key[1] != number and self._by_chunk.pop((key[0], number), None) is not None:
                self._wake(flight, number, None)
        flight.done.set()

    async def found_wrong(
        self, version: ObjectVersion, number: int, kept: Kept, start: int = 0, stop: int = CHUNK_SIZE
    ) -> None:
        """Bytes [start, stop) of a chunk on disk did not match. If the index still stands by them, and they do not
        match when they are read again, they are damaged: forget the chunk. Else they were evicted as we read, and
        perhaps kept again, which is nothing to report."""
        key, stop = (version.object_id, number), min(stop, version.chunk_length(number))
        if key in self._discarding or self._disk.kept(*key, partly=True) != kept:
            return
        if kept.marks and self._disk.kept(*key) != kept:
            return  # the record is damaged, which was not looked at for a touch
        self._discarding.add(key)
        try:
            again = await self._workers.read(self._disk.read_part, version, number, kept, start, stop)
            if again is not None or self._disk.kept(*key, partly=True) != kept:
                return
            self.corrupt += 1
            log.error("cached bytes of %r, chunk %d, are damaged and will be fetched again", version.key, number)
            await self._writer.step(self._disk.discard, version, number)
        finally:
            self._discarding.discard(key)
