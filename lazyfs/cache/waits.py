"""Who waits for a chunk, or for a few bytes of one.

Their job: look for the chunk, have it sent for where it is not on its way, and wait until it lands, or until the bytes
that are wanted are here. Must not know what a flight is for, how it brings bytes, or what is wanted beside it.

A touch of a mapped file with MADV_RANDOM, or the first bytes of a file that is read from its beginning, are a few
KiB, for which the rest of the chunk is not waited for: at 30 ms to the first byte and 90 MB/s a connection a chunk
takes 42 ms, and its first block 31. A touch further inside has a GET begin with it, and another one bring what is
before it.

Concurrency: loop thread only. Invariant: a waiter's chunk is pinned from landing until the waiter has run.
"""

from collections.abc import Callable

import trio

from lazyfs.cache.flight import Flight, Waiting
from lazyfs.cache.flights import Flights
from lazyfs.cache.memory import Chunk, Memory
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, ObjectVersion

MOST_FEW = CHUNK_SIZE // 4
"""Bytes of a read that is answered with a copy, before the rest of its chunk is here. The first read that the kernel
sends of a file is four times as long as what it was asked for, up to 32 KiB of that, and else twice (`get_init_ra_size`
in mm/readahead.c): 128 KiB for who reads through a buffer of `st_blksize`. A copy is there until its reader runs, which
is what the loop does next."""

CUT = 4
"""Blocks before a touch for which it has a GET of its own: 256 KiB, 2.9 ms of a connection of 90 MB/s, where a GET
costs the CPU half a millisecond."""


class Waits:
    """Waits for the chunks of one cache. `launch` sets bytes of a version on their way as far as memory allows, those
    before a limit as urgent; `ways` is how many GETs a store does at once."""

    def __init__(
        self, *, flights: Flights, memory: Memory, launch: Callable[[ObjectVersion, int, int, int], int], ways: int
    ) -> None:
        self._flights = flights
        self._memory = memory
        self._launch = launch
        self._ways = ways
        # Set, and replaced, when memory may have become free; `Flights.short` readers wait for that.
        self._room = trio.Event()
        self.count = 0
        """Waits since the start."""

    async def chunk(self, version: ObjectVersion, number: int, *, urgent: bool = True) -> Chunk:
        """The chunk. Good until the next await: its pin is undone as the waiter runs."""
        self.count += 1
        while True:
            found = await self._coming(version, number, urgent)
            if isinstance(found, Chunk):
                return found
            waiting = found.waiting.setdefault(number, Waiting())
            waiting.count += 1
            self._flights.get((version.object_id, number))  # complete since, and nobody was told
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
                if self._flights.short:
                    self.made_room()
                return waiting.chunk
            error = found.error_for(version)
            if error is not None:
                raise error

    async def few(self, version: ObjectVersion, number: int, start: int, stop: int) -> Chunk | bytes:
        """Bytes [start, stop) of the chunk, of which nothing else is waited for; or the chunk, if it is here."""
        self.count += 1
        while True:
            found = await self._coming(version, number, urgent=True, place=start // BLOCK_SIZE * BLOCK_SIZE)
            if isinstance(found, Chunk):
                return found
            part = await found.some(number, start, stop)
            if part is not None:
                return part
            error = found.error_for(version)
            if error is not None:
                raise error

    async def _coming(self, version: ObjectVersion, number: int, urgent: bool, place: int = 0) -> Chunk | Flight:
        """The chunk, or the flight that brings it. `place` is where bytes begin that are waited for by themselves."""
        key = (version.object_id, number)
        while True:
            flight = self._flights.get(key)  # first: what completes now is in memory then
            chunk = self._memory.get(key)
            if chunk is not None:
                return chunk
            if flight is None:
                start, origin = number * CHUNK_SIZE, version.origin
                # With nothing of its origin on its way nobody makes room: then what nobody has read yet goes.
                pushing = urgent or not self._flights.flying[origin]
                self._launch(version, start, start + 1, start + 1 if pushing else 0)
                flight = self._flights.get(key)
                if flight is not None and place >= CUT * BLOCK_SIZE and self._flights.asking[origin] <= self._ways // 2:
                    self._flights.cut(flight, place)
            if flight is not None:
                if urgent:
                    flight.claim.urge()
                return flight
            self._flights.short += 1
            try:
                await self.room()
            finally:
                self._flights.short -= 1

    async def room(self) -> None:
        """Wait until memory may have become free."""
        await self._room.wait()

    def made_room(self) -> None:
        """Memory may have become free."""
        event, self._room = self._room, trio.Event()
        event.set()
