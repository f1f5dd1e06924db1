"""Blocks of chunks of which nobody wants the rest: a small piece of one that is on disk is read from there, and of two
chunks between which a touch lies only its blocks are brought.

The kernel reads as much around a fault of a mapped file as it would read ahead, 960 KiB that lie in two chunks nearly
always: with 1 MiB read around each, 200 random touches of a cold GiB fetched 1.7 MiB each, and 0.90 to 0.99 so; of
2 GiB 1.01, and 0.955 with 960 KiB. What was brought is kept as parts of those chunks, so that the next touch there, or
the next daemon, finds it on disk; whoever wants such a chunk whole has it fetched whole.

Must not know how a touch is told from a stream, nor how a flight brings bytes. Loop thread only.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import trio

from lazyfs.cache.disk import Disk
from lazyfs.cache.flights import Flights
from lazyfs.cache.marker import Marker
from lazyfs.cache.records import ABSENT, LOWER, Kept
from lazyfs.cache.threads import Workers
from lazyfs.cache.writer import Writer
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, ObjectVersion, chunk_range


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [start, stop) of a chunk that are wanted; of those, the blocks `lacking` are not on disk."""

    number: int
    start: int
    stop: int
    kept: Kept | None
    lacking: range


class Parts:
    """Parts of chunks, by way of the flights of a cache."""

    def __init__(
        self,
        *,
        disk: Disk,
        flights: Flights,
        writer: Writer,
        marker: Marker,
        workers: Workers,
        copies: Mapping[str, trio.Semaphore],
    ) -> None:
        """`copies`: how many reads of each origin may hold a copy while they wait for more."""
        self._marker = marker
        self._copies = copies
        self._disk = disk
        self._flights = flights
        self._writer = writer
        self._workers = workers

    def now(self, version: ObjectVersion, number: int, start: int, stop: int) -> bytes | None:
        """Bytes [start, stop) of one chunk that is not in memory, if they are on disk, read here and now."""
        kept = self._kept(version, number, start, stop)
        if kept is None:
            return None
        part = self._workers.here(self._disk.read_part, version, number, kept, start, stop)
        return None if part is None else self._took(version, number, kept, part)

    async def touch(self, version: ObjectVersion, number: int, start: int, stop: int) -> bytes | None:
        """The same in a thread while the disk is slow. None also of damaged bytes, which are forgotten then."""
        kept = self._kept(version, number, start, stop)
        if kept is None:
            return None
        part = await self._workers.touch(self._disk.read_part, version, number, kept, start, stop)
        if part is None:
            await self._flights.found_wrong(version, number, kept, start, stop)
            return None
        return self._took(version, number, kept, part)

    def apart(self, version: ObjectVersion, start: int, stop: int) -> bool:
        """Whether bytes [start, stop) lie in two adjacent chunks that are not both on disk. If they are, both are read
        as quickly as blocks of them, side by side, and may hold the next touch."""
        numbers = chunk_range(start, stop)
        return len(numbers) == 2 and any(self._disk.kept(version.object_id, number) is None for number in numbers)

    async def across(self, version: ObjectVersion, start: int, stop: int) -> bytes | None:
        """Bytes [start, stop) of two adjacent chunks. None if those are to be brought whole: one is in memory or on its
        way, memory is short, or what is on disk is damaged. Raises the store's errors."""
        numbers = chunk_range(start, stop)
        keys = [(version.object_id, number) for number in numbers]
        if any(self._flights.here(key) or self._flights.get(key) for key in keys):
            return None
        pieces = [self._piece(version, number, start, stop) for number in numbers]
        lacking = [piece.number * CHUNK_SIZE + block * BLOCK_SIZE for piece in pieces for block in piece.lacking]
        begin, end = start, start
        came = b""
        if lacking:
            begin, end = lacking[0], min(version.size, lacking[-1] + BLOCK_SIZE)
            flight = self._flights.launch_part(version, begin, end)
            if flight is None:
                return None
            await flight.done.wait()
            error = flight.error_for(version)
            if error is not None:
                raise error
            if flight.came is None:
                return None
            came = flight.came[max(0, start - begin) : stop - begin]
            if begin <= start and stop <= end:
                return came
        # Copies held while something else is waited for are memory beyond the budget.
        async with self._copies[version.origin]:
            before = await self._from_disk(version, pieces, start, max(start, begin))
            after = await self._from_disk(version, pieces, max(start, min(end, stop)), stop)
        return None if before is None or after is None else before + came + after

    def _piece(self, version: ObjectVersion, number: int, start: int, stop: int) -> Piece:
        base = number * CHUNK_SIZE
        low, high = max(0, start - base), min(CHUNK_SIZE, stop - base)
        kept = self._disk.kept(version.object_id, number, partly=True)
        lacking = kept.lacks(low, high) if kept else range(low // BLOCK_SIZE, -(-high // BLOCK_SIZE))
        return Piece(number, low, high, kept, lacking)

    async def _from_disk(self, version: ObjectVersion, pieces: list[Piece], start: int, stop: int) -> bytes | None:
        """Bytes [start, stop), which are on disk; None of damaged ones, which are forgotten then."""
        wanted = []
        for piece in pieces:
            base = piece.number * CHUNK_SIZE
            low, high = max(piece.start, start - base), min(piece.stop, stop - base)
            if low < high and piece.kept is not None:
                wanted.append((piece.number, piece.kept, low, high))
        if not wanted:
            return b""
        found: list[bytes] = []
        for one, part in zip(wanted, await self._workers.read(self._read_parts, version, wanted), strict=True):
            if part is None:
                await self._flights.found_wrong(version, *one)
                return None
            found.append(self._took(version, one[0], one[1], part))
        return b"".join(found)

    def _read_parts(self, version: ObjectVersion, wanted: list[tuple[int, Kept, int, int]]) -> list[bytes | None]:
        """Each of these, one after another, in one thread."""
        return [self._disk.read_part(version, *one) for one in wanted]

    def _kept(self, version: ObjectVersion, number: int, start: int, stop: int) -> Kept | None:
        """The record of a chunk of which bytes [start, stop) are on disk, and that is not on its way."""
        if self._flights.get((version.object_id, number)) is not None:
            return None
        kept = self._disk.kept(version.object_id, number, partly=True)
        return kept if kept and (kept.marks or not kept.lacks(start, stop)) else None

    def _can_have_marks(self, version: ObjectVersion, number: int, kept: Kept) -> bool:
        """Not a chunk of one block, one of a lower layer, or one that is here in part."""
        return version.chunk_length(number) > BLOCK_SIZE and kept.generation < LOWER and ABSENT not in kept.sums

    def _took(self, version: ObjectVersion, number: int, kept: Kept, part: bytes) -> bytes:
        """These bytes of a chunk came from disk."""
        if not kept.marks and self._can_have_marks(version, number, kept):
            self._marker.touched(version, number)
        self._flights.disk_hits += 1
        self._flights.disk_bytes += len(part)
        self._writer.touch(version, number)
        return part
