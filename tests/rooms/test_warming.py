"""Warming over a store in memory and a real disk: all of it on disk, or a sentence; behind readers; at a rate."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from lazyfs.cache import pins
from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.disk import Disk
from lazyfs.cache.memory import Memory
from lazyfs.cache.pins import Pin
from lazyfs.cache.threads import DiskThreads, Workers
from lazyfs.cache.warming import Wanted, Warmer, Warming
from lazyfs.errors import AccessDenied, Corrupt
from lazyfs.objects import MIB, ObjectVersion
from lazyfs.stores.base import Arrived, Claim
from tests.rooms.building import PLACE, CacheMaker, chunk_on, keep, part, pattern, version_of
from tests.rooms.memory_store import Fault, MemoryStore, Valve

DATA = pattern(5 * MIB + 70_001)


class Watched(MemoryStore):
    """Which GETs were urgent when they were sent."""

    def __init__(self) -> None:
        super().__init__()
        self.urgent: list[bool] = []

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """See `base.Store.read`."""
        self.urgent.append(claim.urgent)
        await super().read(version, start, into, arrived, claim)


class Reluctant(DiskThreads):
    """The threads of a disk that keeps nothing of the first so many writes, as one that is too slow."""

    def __init__(self, disk: Disk, times: int) -> None:
        super().__init__()
        self._keep = disk.keep
        self.left = times

    async def write(self, function: Callable[..., Any], *args: Any) -> Any:
        """See `Workers.write`."""
        if function == self._keep:
            self.left -= 1
            if self.left >= 0:
                return 0
        return await super().write(function, *args)


@dataclass
class Bench:
    """A warmer with all it needs."""

    disk: Disk
    store: Watched = field(default_factory=Watched)
    opened: list[ObjectVersion] = field(default_factory=list)
    workers: Workers | None = None

    @asynccontextmanager
    async def running(self, memory: int = 64 * MIB) -> AsyncIterator[tuple[ChunkCache, Warmer]]:
        """As a mount runs them."""
        async with trio.open_nursery() as nursery:
            made = Memory(memory)
            chunks = ChunkCache(
                store=self.store,
                disk=self.disk,
                memory=made,
                nursery=nursery,
                span_size=8 * MIB,
                workers=self.workers,
            )
            warmer = Warmer(
                chunks=chunks, disk=self.disk, nursery=nursery, slots=made.slots, open_now=lambda: self.opened
            )
            nursery.start_soon(chunks.writer.run)
            yield chunks, warmer
            while not chunks.idle():
                await chunks.writer.settled()
                await trio.lowlevel.checkpoint()
            assert made.statistics().lent == 0
            nursery.cancel_scope.cancel()


@pytest.fixture
def bench(caches: CacheMaker) -> Bench:
    """One with an empty cache without a bound."""
    return Bench(caches.open())


Source = Callable[[], AsyncGenerator[Wanted, None]]


def of(*versions: ObjectVersion, changed: Callable[[], None] = lambda: None) -> Source:
    """What gives these."""

    async def source() -> AsyncGenerator[Wanted, None]:
        for version in versions:
            yield version, changed
            await trio.lowlevel.checkpoint()

    return source


async def over(job: Warming) -> Warming:
    """Wait until the job is over."""
    await job.ended.wait()
    assert job.step == "done"
    return job


@pytest.mark.parametrize("memory", [4 * MIB, 16 * MIB, 64 * MIB])
async def test_all_is_on_disk_and_each_byte_came_once(bench: Bench, memory: int) -> None:
    """With little memory and much; also what is empty, and what is there twice."""
    versions = [bench.store.put(f"{number}", pattern(size, number)) for number, size in enumerate((0, 1, 9 * MIB, MIB))]
    async with bench.running(memory) as (_, warmer):
        job = await over(warmer.start("12345678", of(*versions)))
        assert (job.outcome, job.words, job.files_here, job.fetched) == ("warm", "", 4, 10 * MIB + 1)
        assert chunk_on(bench.disk, versions[2], 8) == pattern(9 * MIB, 2)[8 * MIB :]
        assert sum(stop - start for start, stop in bench.store.gets()) == 10 * MIB + 1
        assert not any(bench.store.urgent), "nobody waits for them"
        assert warmer.running() == []
        again = await over(warmer.start("87654321", of(*versions)))
        assert (again.outcome, again.fetched) == ("warm", 0)
        assert warmer.start("12345678", of()) is job, "asked twice, done once"


async def test_what_the_disk_did_not_keep_is_fetched_again(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    """Until it is there."""
    version = bench.store.put("k", DATA)
    reluctant = bench.workers = Reluctant(bench.disk, 5)
    async with bench.running() as (_, warmer):
        job = await over(warmer.start("12345678", of(version)))
        assert job.outcome == "warm"
        assert reluctant.left < 0
        assert bench.disk.generation(version) is not None


async def test_a_disk_that_never_keeps_is_given_up(bench: Bench, autojump_clock: trio.testing.MockClock) -> None:
    """In a sentence that says how much is missing."""
    version = bench.store.put("k", DATA)
    bench.workers = Reluctant(bench.disk, 1 << 30)
    async with bench.running() as (_, warmer):
        job = await over(warmer.start("12345678", of(version)))
        assert job.outcome == ""
        assert "does not keep 5.1 MiB" in job.words


async def test_what_cannot_fit_is_not_begun(caches: CacheMaker) -> None:
    """Alone, or beside what is pinned or open; what is itself pinned and open counts once."""
    bench = Bench(caches.open(max_size=14 * MIB))
    held = bench.store.put("held", DATA)
    pinned = bench.store.put("pinned", pattern(3 * MIB))
    wanted = bench.store.put("k", pattern(6 * MIB))
    huge = version_of("huge", bytes(14 * MIB))
    keep(bench.disk, held, DATA, range(6))
    keep(bench.disk, pinned, pattern(3 * MIB), range(3))
    async with bench.running() as (_, warmer):
        assert "nothing was fetched" in (await over(warmer.start("job-huge", of(huge)))).words
        bench.opened.append(held)
        with bench.disk.index.change() as (txn, tables):
            pins.put(txn, tables.pins, Pin(PLACE, "pinned"))
            pins.put(txn, tables.pins, Pin(PLACE, "held"))
        refused = await over(warmer.start("job-wanted", of(wanted)))
        assert "beside 8.1 MiB that are pinned or open" in refused.words
        assert bench.store.gets() == []
        assert (await over(warmer.start("job-held", of(held, pinned)))).outcome == "warm"
        bench.opened.clear()
        with bench.disk.index.change() as (txn, tables):
            pins.drop(txn, tables.pins, Pin(PLACE, "held"))
        assert (await over(warmer.start("job-again", of(wanted)))).outcome == "warm"
        assert bench.disk.generation(pinned) is not None
        assert bench.disk.used() <= 14 * MIB


async def test_parts_of_what_is_pinned_stay_as_well(caches: CacheMaker) -> None:
    """And are not in the way of what they are parts of."""
    bench = Bench(caches.open(max_size=8 * MIB))
    data = pattern(4 * MIB)
    pinned, wanted = bench.store.put("pinned", data), bench.store.put("k", pattern(5 * MIB, 1))
    assert bench.disk.keep([part(pinned, data, number, 0, 1) for number in range(4)]) == 4
    with bench.disk.index.change() as (txn, tables):
        pins.put(txn, tables.pins, Pin(PLACE, "pinned"))
    async with bench.running() as (_, warmer):
        refused = await over(warmer.start("job-wanted", of(wanted)))
        assert "beside 4.0 MiB that are pinned or open" in refused.words
        assert bench.store.gets() == []
        assert (await over(warmer.start("job-pinned", of(pinned)))).outcome == "warm"


async def test_what_is_open_is_not_what_goes(caches: CacheMaker) -> None:
    """Though it was not read for long: of a full cache the other file makes room."""
    bench = Bench(caches.open(max_size=13 * MIB))
    held = bench.store.put("held", pattern(4 * MIB, 1))
    other = bench.store.put("other", pattern(4 * MIB, 2))
    wanted = bench.store.put("k", pattern(6 * MIB))
    keep(bench.disk, held, pattern(4 * MIB, 1), range(4))
    keep(bench.disk, other, pattern(4 * MIB, 2), range(4))
    bench.opened.append(held)
    async with bench.running() as (_, warmer):
        assert (await over(warmer.start("12345678", of(wanted)))).outcome == "warm"
    assert bench.disk.generation(held) is not None
    assert bench.disk.cached_chunks(other) == 0


async def test_a_rate_is_kept(bench: Bench, autojump_clock: trio.testing.MockClock) -> None:
    """10 MiB at 1 MiB a second take no less than 9 s, of a clock that jumps; a second job has its own."""
    version = bench.store.put("k", pattern(10 * MIB))
    async with bench.running() as (_, warmer):
        started = trio.current_time()
        job = await over(warmer.start("12345678", of(version), MIB))
        assert job.outcome == "warm"
        assert trio.current_time() - started >= 9


async def test_a_reader_passes_it(bench: Bench) -> None:
    """What waits to be warmed is urgent at once when somebody reads it; and memory has room for who reads."""
    version = bench.store.put("k", pattern(40 * MIB))
    other = bench.store.put("other", DATA)
    valve = Valve()
    bench.store.valve = lambda call: valve if call.key == "k" else None
    async with bench.running(16 * MIB) as (chunks, warmer):
        job = warmer.start("12345678", of(version))
        while bench.store.active == 0:
            await trio.lowlevel.checkpoint()
        assert bytes(await chunks.read(other, 0, MIB)) == DATA[:MIB]
        assert bench.store.urgent[-1]
        valve.open()
        assert (await over(job)).outcome == "warm"


async def test_chunks_that_readers_have_in_memory_stay(bench: Bench) -> None:
    """What was read in part, and may be read on, is not pushed out by what passes through."""
    touched = bench.store.put("touched", pattern(8 * MIB, 1))
    version = bench.store.put("k", pattern(40 * MIB))
    async with bench.running(16 * MIB) as (chunks, warmer):
        for number in range(8):
            await chunks.read(touched, number * MIB, number * MIB + 5)
        assert (await over(warmer.start("12345678", of(version)))).outcome == "warm"
        assert all(chunks._memory.get((touched.object_id, number)) is not None for number in range(8))


async def test_it_is_cancelled(bench: Bench) -> None:
    """What is on its way arrives, nothing more is sent."""
    version = bench.store.put("k", pattern(40 * MIB))
    valve = Valve()
    bench.store.valve = lambda call: valve
    async with bench.running(16 * MIB) as (_, warmer):
        job = warmer.start("12345678", of(version))
        while bench.store.active == 0:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        sent = len(bench.store.gets())
        assert warmer.cancel() == 1
        assert (await over(job)).outcome == "cancelled"
        valve.open()
        await trio.testing.wait_all_tasks_blocked()
        assert len(bench.store.gets()) == sent


async def test_another_version_by_now(bench: Bench) -> None:
    """Who lists is told, and the next round warms what is there."""
    old = bench.store.put("k", DATA)
    new = bench.store.put("k", pattern(2 * MIB, 7))
    found = [old]

    async def source() -> AsyncGenerator[Wanted, None]:
        for version in found:
            yield version, lambda: found.__setitem__(0, new)

    async with bench.running() as (_, warmer):
        job = await over(warmer.start("12345678", source))
        assert (job.outcome, job.bytes_here) == ("warm", 2 * MIB)


async def test_failures_are_told_and_the_rest_is_warmed(bench: Bench, autojump_clock: trio.testing.MockClock) -> None:
    """A file that may not be read, one whose bytes are refused."""
    denied, right = bench.store.put("denied", DATA), bench.store.put("right", pattern(MIB))
    refused = bench.store.put("refused", pattern(2 * MIB))
    bench.store.fault = lambda call: Fault(AccessDenied("not for you")) if call.key == "denied" else None
    async with bench.running() as (chunks, warmer):
        chunks.barred.refuse(refused, Corrupt("wrong bytes"))
        job = await over(warmer.start("12345678", of(denied, refused, right)))
        assert job.outcome == ""
        assert {*job.problems} == {"not for you", "wrong bytes"}
        assert job.words in job.problems
        assert bench.disk.generation(right) is not None


async def test_a_listing_that_fails_is_told(bench: Bench) -> None:
    """Nothing is there to be warmed."""

    async def source() -> AsyncGenerator[Wanted, None]:
        raise AccessDenied("may not list")
        yield version_of("k", DATA), lambda: None

    async with bench.running() as (_, warmer):
        job = await over(warmer.start("12345678", source))
        assert (job.outcome, job.words) == ("", "may not list")
