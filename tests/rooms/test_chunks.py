"""The chunk cache over a store in memory and a real disk: each chunk brought once, delivered early, never wrong."""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing

from lazyfs.cache import writer as writer_module
from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.directory import CacheDirectory
from lazyfs.cache.disk import Disk
from lazyfs.cache.flight import Waiting
from lazyfs.cache.memory import Key, Memory
from lazyfs.cache.sums import block_sums
from lazyfs.errors import CacheUnavailable, Dropped, ObjectChanged, StoreError, Unreachable
from lazyfs.objects import CHUNK_SIZE, MIB, ObjectVersion
from tests.rooms.building import chunk_on, keep, object_files, pattern
from tests.rooms.caching import caching
from tests.rooms.memory_store import Call, Fault, MemoryStore, Valve, in_turn

Running = Callable[..., AbstractAsyncContextManager[ChunkCache]]


@pytest.fixture
def running(store: MemoryStore, disk: Disk) -> Running:
    """A chunk cache that runs for a while; in the end all is idle: no flight, no pin, no slot lent."""

    @asynccontextmanager
    async def run(memory: int = 64 * MIB, *, writes: bool = True, ways: int = 32) -> AsyncIterator[ChunkCache]:
        async with caching(store, disk, memory, writes=writes, ways=ways) as cache:
            yield cache

    return run


async def read(cache: ChunkCache, version: ObjectVersion, start: int, stop: int) -> bytes:
    """The bytes, copied before the next await."""
    return bytes(await cache.read(version, start, stop))


async def test_bytes_are_right_whatever_the_range(store: MemoryStore, running: Running) -> None:
    """Inside a chunk, across two, across many, the end."""
    data = pattern(3 * MIB + 77)
    version = store.put("k", data)
    async with running() as cache:
        for start, stop in ((0, 1), (5, MIB), (MIB - 3, MIB + 3), (10, 3 * MIB + 70), (3 * MIB, len(data))):
            assert await read(cache, version, start, stop) == data[start:stop]


async def test_many_readers_fetch_a_chunk_once(store: MemoryStore, running: Running) -> None:
    """Fifty readers of one cold chunk are one GET."""
    data = pattern(2 * MIB)
    version = store.put("k", data)
    found: list[bytes] = []

    async def reader(cache: ChunkCache) -> None:
        found.append(await read(cache, version, 100, 200))

    async with running() as cache:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(reader, cache)
        assert found == [data[100:200]] * 50
        assert store.gets() == [(0, MIB)]


async def test_spans_keep_to_the_grid(store: MemoryStore, running: Running) -> None:
    """Far ahead a range becomes GETs of 8 MiB between multiples of 8 MiB, so that those of different readers coincide;
    within 8 MiB of what a reader waits for each MiB is a GET, so that many connections bring it."""
    version = store.put("k", pattern(20 * MIB))
    async with running() as cache:
        assert cache.start(version, 3 * MIB, 20 * MIB, demand=4 * MIB) == 20 * MIB
        cache.start(version, 0, 20 * MIB, demand=0)
        await read(cache, version, 0, 20 * MIB)
        near = [(number * MIB, (number + 1) * MIB) for number in range(12)]
        assert sorted(store.gets()) == [*near, (12 * MIB, 16 * MIB), (16 * MIB, 20 * MIB)]


async def test_a_read_of_two_chunks_is_answered_from_both(store: MemoryStore, running: Running) -> None:
    """Wherever in memory they are, and whether or not they are waited for: as they lie there, with nothing copied."""
    data = pattern(9 * MIB)
    version = store.put("k", data)
    async with running() as cache:
        await cache.read(version, 3 * MIB, 4 * MIB)  # takes the slot before that of chunk 2, which comes later
        for start in (MIB // 2, 2 * MIB + 4096, 7 * MIB + 1):
            stop = min(start + MIB, len(data))
            for found in (await cache.wait(version, start, stop), cache.now(version, start, stop)):
                assert found is not None
                assert [len(piece) for piece in found] == [MIB - start % MIB, stop - start - MIB + start % MIB]
                assert b"".join(found) == data[start:stop]
                whole = cache._memory.slot_view(0, MIB).obj
                assert all(isinstance(piece, memoryview) and piece.obj is whole for piece in found)


async def test_a_chunk_is_delivered_before_its_span_is_complete(store: MemoryStore, running: Running) -> None:
    """The reader of a span's first MiB does not wait for the eighth."""
    data = pattern(24 * MIB)
    version = store.put("k", data)
    valve = Valve()
    store.valve = lambda call: valve
    async with running() as cache:
        cache.start(version, 16 * MIB, 24 * MIB, demand=0)
        valve.open(MIB)
        assert await read(cache, version, 16 * MIB, 17 * MIB) == data[16 * MIB : 17 * MIB]
        valve.open()
        assert await read(cache, version, 23 * MIB, 24 * MIB) == data[23 * MIB :]
        assert len(store.gets()) == 1


async def test_what_is_complete_is_there_for_who_looks(store: MemoryStore, running: Running) -> None:
    """Though the loop was not told of it: it is woken for who waits, and for several chunks at once."""
    data = pattern(8 * MIB)
    version = store.put("k", data)
    told = 0

    def counted(function: Callable[..., object], *args: object) -> None:
        nonlocal told
        told += 1

    valve = Valve()
    store.valve = lambda _: valve
    async with running(ways=0) as cache:
        flights = cache._flights
        token, flights._token = flights._token, cast(trio.lowlevel.TrioToken, SimpleNamespace(run_sync_soon=counted))
        cache.start(version, 0, 8 * MIB, demand=0)
        valve.open(3 * MIB)
        await trio.testing.wait_all_tasks_blocked()
        assert (told, cache.statistics().misses) == (0, 0)
        assert b"".join(cache.now(version, MIB, 2 * MIB) or ()) == data[MIB : 2 * MIB]
        assert cache.statistics().misses == 3, "all that is complete lands with it"
        assert cache.now(version, 3 * MIB, 4 * MIB) is None
        assert bytes(cache.held(version, 2) or b"") == data[2 * MIB : 3 * MIB]
        valve.open(7 * MIB)
        await trio.testing.wait_all_tasks_blocked()
        assert told > 0, "four at once are worth a word"
        flights._token = token
        assert await cache.read(version, 6 * MIB, 7 * MIB) == data[6 * MIB : 7 * MIB]
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cache.read, version, 7 * MIB, 8 * MIB)
                await trio.testing.wait_all_tasks_blocked()
                valve.open()
        assert cache.statistics().misses == 8
        assert store.gets() == [(0, 8 * MIB)]


async def test_a_chunk_that_completes_as_somebody_begins_to_wait(
    store: MemoryStore, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the moment in which the thread that receives sees nobody, and who comes sees nothing: he looks again."""
    data = pattern(8 * MIB)
    version = store.put("k", data)
    valve = Valve()
    store.valve = lambda _: valve
    async with running(ways=0) as cache:
        cache.start(version, 0, 8 * MIB, demand=0)
        await trio.testing.wait_all_tasks_blocked()
        flight = cache._flights.get((version.object_id, 0))
        assert flight is not None

        def late() -> Waiting:
            flight.views[0][:] = data[:MIB]
            flight.sums.append(block_sums(flight.views[0]))
            return Waiting()

        monkeypatch.setattr("lazyfs.cache.waits.Waiting", late)
        with trio.fail_after(10):
            assert await read(cache, version, 0, MIB) == data[:MIB]
        valve.open()


async def test_what_is_complete_makes_room_for_a_reader(store: MemoryStore, running: Running) -> None:
    """Though its flight holds all of memory, goes on, and nobody was told of it."""
    held, other = store.put("held", pattern(4 * MIB)), store.put("other", pattern(MIB, 1))
    valve = Valve()
    store.valve = lambda call: valve if call.key == "held" else None
    async with running(4 * MIB, ways=0) as cache:
        assert cache.start(held, 0, 4 * MIB, demand=0) == 4 * MIB
        valve.open(3 * MIB)
        await trio.testing.wait_all_tasks_blocked()
        assert cache.statistics().misses == 0
        with trio.fail_after(10):
            assert await read(cache, other, 0, MIB) == pattern(MIB, 1)
        valve.open()


async def test_an_error_reaches_every_waiter_and_is_forgotten(store: MemoryStore, running: Running) -> None:
    """Whoever waited gets the failure; who comes later asks again."""
    data = pattern(MIB)
    version = store.put("k", data)
    store.fault = in_turn(Fault(Unreachable("gone")))
    failed: list[StoreError] = []

    async def reader(cache: ChunkCache) -> None:
        try:
            await cache.read(version, 0, 10)
        except StoreError as error:
            failed.append(error)

    async with running() as cache:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(reader, cache)
        assert [str(error) for error in failed] == ["gone"] * 3
        assert await read(cache, version, 0, 10) == data[:10]


async def test_what_arrived_before_an_error_is_kept(store: MemoryStore, running: Running) -> None:
    """Chunks that were complete are delivered; only the others fail."""
    data = pattern(20 * MIB)
    version = store.put("k", data)
    store.fault = in_turn(Fault(Unreachable("gone"), after=2 * MIB + 100), Fault(Unreachable("gone")))
    async with running() as cache:
        cache.start(version, 16 * MIB, 20 * MIB, demand=0)
        assert await read(cache, version, 16 * MIB, 18 * MIB) == data[16 * MIB : 18 * MIB]
        with pytest.raises(Unreachable):
            await cache.read(version, 18 * MIB, 19 * MIB)


async def test_a_changed_object_is_an_error(store: MemoryStore, running: Running) -> None:
    """Bytes of another version are never delivered; those that are here still are."""
    old = store.put("k", pattern(2 * MIB, 1))
    async with running() as cache:
        before = await read(cache, old, 0, MIB)
        store.put("k", pattern(2 * MIB, 2))
        assert await read(cache, old, 0, MIB) == before
        with pytest.raises(ObjectChanged):
            await cache.read(old, MIB, 2 * MIB)


async def test_dropped_read_ahead_never_reaches_a_reader(store: MemoryStore, running: Running) -> None:
    """A reader who comes for bytes whose flight was given up has them fetched again."""
    data = pattern(2 * MIB)
    version = store.put("k", data)
    store.fault = in_turn(Fault(Dropped("given up")))
    async with running() as cache:
        cache.start(version, 0, MIB, demand=0)
        assert await read(cache, version, 0, MIB) == data[:MIB]
        assert store.gets() == [(0, MIB), (0, MIB)]


@pytest.mark.parametrize("slots", [2, 3, 4])
async def test_little_memory_is_slow_and_not_stuck(store: MemoryStore, running: Running, slots: int) -> None:
    """Many readers of many chunks get through two slots of memory, across chunk borders too."""
    data = pattern(12 * MIB)
    version = store.put("k", data)
    right: list[bool] = []

    async def reader(cache: ChunkCache, number: int) -> None:
        for step in range(12):
            start = ((number * 5 + step * 7) % 11) * MIB + MIB // 2
            right.append(await read(cache, version, start, start + MIB) == data[start : start + MIB])

    with trio.fail_after(60):
        async with running(slots * MIB) as cache, trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(reader, cache, number)
    assert right == [True] * 120


async def test_a_walk_of_what_is_on_disk_gets_memory_that_nobody_read(
    store: MemoryStore, running: Running, disk: Disk
) -> None:
    """Read-ahead of files that were closed may fill it: a whole span at a time is pushed out, not a chunk."""
    there, left = pattern(24 * MIB, 1), pattern(16 * MIB, 2)
    cached, version = store.put("there", there), store.put("left", left)
    keep(disk, cached, there, range(24))
    async with running(16 * MIB) as cache:
        assert cache.start(version, 0, 16 * MIB, demand=0) == 16 * MIB
        while cache.flying:
            await trio.testing.wait_all_tasks_blocked()
        await cache.writer.settled()
        asked = len(store.gets())
        for start in range(0, 24 * MIB, 8 * MIB):
            assert cache.start(cached, start, start + 8 * MIB, demand=start + MIB) == start + 8 * MIB
            assert await read(cache, cached, start, start + 8 * MIB) == there[start : start + 8 * MIB]
        assert cache.statistics().disk_hits == 24
        assert len(store.gets()) == asked


async def test_both_chunks_of_a_read_are_asked_for_though_memory_is_short(
    store: MemoryStore, running: Running
) -> None:
    """The second for the price of a chunk that waits to be written."""
    full, data = pattern(2 * MIB, 1), pattern(3 * MIB, 2)
    other, version = store.put("full", full), store.put("k", data)
    async with running(2 * MIB, writes=False, ways=0) as cache:
        assert await read(cache, other, 0, 2 * MIB) == full
        assert len(cache.writer) == 1
        start, stop = MIB // 2, MIB + MIB // 2
        assert cache.start(version, start, stop, demand=stop) == stop
        assert len(cache.writer) == 0
        assert await read(cache, version, start, stop) == data[start:stop]


async def test_what_comes_from_disk_keeps_no_connection_busy(
    store: MemoryStore, running: Running, disk: Disk
) -> None:
    """The GETs beside it are cut as if it were not there."""
    there, data = pattern(16 * MIB, 1), pattern(2 * MIB, 2)
    cached, version = store.put("there", there), store.put("k", data)
    keep(disk, cached, there, range(16))
    async with running(ways=2) as cache:
        assert cache.start(cached, 0, 16 * MIB, demand=0) == 16 * MIB
        cache.start(version, 0, 2 * MIB, demand=2 * MIB)
        assert await read(cache, version, 0, 2 * MIB) == data
    assert sorted(store.gets()) == [(0, MIB), (MIB, 2 * MIB)]


async def test_what_was_fetched_is_read_from_disk_next_time(
    store: MemoryStore, running: Running, disk: Disk
) -> None:
    """A second cache on the same disk asks the store for nothing, whole chunks and small reads alike."""
    data = pattern(10 * MIB + 5)
    version = store.put("k", data)
    async with running() as cache:
        await read(cache, version, 0, len(data))
        await cache.writer.flush()
    assert chunk_on(disk, version, 10) == data[10 * MIB :]
    store.calls.clear()
    async with running() as cache:
        assert await read(cache, version, 5 * MIB + 7, 5 * MIB + 100) == data[5 * MIB + 7 : 5 * MIB + 100]
        assert await read(cache, version, 0, len(data)) == data
        assert cache.statistics().disk_hits > 0
    assert store.gets() == []


@pytest.mark.parametrize("small", [True, False])
async def test_damaged_bytes_are_fetched_again_once(
    store: MemoryStore, running: Running, disk: Disk, place: Path, small: bool
) -> None:
    """A flipped byte on disk is found, counted, and never served; the next reader finds good bytes on disk."""
    data = pattern(2 * MIB)
    version = store.put("k", data)
    async with running() as cache:
        await read(cache, version, 0, len(data))
        await cache.writer.flush()
    (path,) = object_files(place)
    raw = bytearray(path.read_bytes())
    raw[MIB + 1000] ^= 1
    path.write_bytes(raw)
    disk._files.close()
    store.calls.clear()
    start, stop = (MIB + 990, MIB + 1010) if small else (MIB, 2 * MIB)
    async with running() as cache:
        assert await read(cache, version, start, stop) == data[start:stop]
        assert cache.statistics().corrupt == 1
        assert store.gets() == [(MIB, 2 * MIB)]
        await cache.writer.flush()
        await cache.writer.step(lambda: None)
    assert chunk_on(disk, version, 1) == data[MIB:]


async def test_a_disk_that_fails_only_slows(
    store: MemoryStore, running: Running, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """With the index closed under it, reads go on from the store, and one warning is logged."""
    data = pattern(12 * MIB)
    version = store.put("k", data)
    disk._index._env.close()
    async with running(4 * MIB) as cache:
        for _ in range(2):
            assert await read(cache, version, 0, len(data)) == data
    assert "reads go on without it" in caplog.text
    assert disk.kept(version.object_id, 0) is None


async def test_a_writer_that_is_behind_drops_and_counts(store: MemoryStore, running: Running) -> None:
    """No reader waits for the disk: what cannot be queued is served and not kept."""
    data = pattern(16 * MIB)
    version = store.put("k", data)
    async with running(8 * MIB, writes=False) as cache:
        assert await read(cache, version, 0, len(data)) == data
        found = cache.statistics()
        assert found.unkept > 0
        assert found.unkept + len(cache.writer) == 16


async def test_demand_urges_a_flight_on(store: MemoryStore, running: Running) -> None:
    """A reader who wants what was only a guess makes it urgent."""
    version = store.put("k", pattern(MIB))
    valve = Valve()
    store.valve = lambda call: valve
    async with running() as cache:
        cache.start(version, 0, MIB, demand=0)
        flight = cache._flights.get((version.object_id, 0))
        assert flight is not None
        assert not flight.claim.urgent
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.read, version, 0, 10)
            await trio.testing.wait_all_tasks_blocked()
            assert flight.claim.urgent
            valve.open()


async def test_what_is_brought_does_not_wait_for_readers_that_never_come(
    store: MemoryStore, running: Running, disk: Disk
) -> None:
    """Memory is full of what was read ahead for somebody who went away; an object larger than memory comes to disk all
    the same."""
    ahead, whole = store.put("ahead", pattern(4 * MIB)), store.put("whole", pattern(9 * MIB + 1))
    with trio.fail_after(60):
        async with running(4 * MIB) as cache:
            assert cache.start(ahead, 0, 4 * MIB, demand=0) == 4 * MIB
            while cache._flights:
                await trio.testing.wait_all_tasks_blocked()
            await cache.bring(whole, 0, whole.size)
            assert disk.cached_bytes(whole) == whole.size
    assert len(store.calls) == len(set(store.calls)) == 14


class StubbornDisk(Disk):
    """A disk cache that does not forget at once."""

    refusals = 2

    def forget(self, version: ObjectVersion) -> bool:
        """The third time; the first it fails, the second it is being written."""
        self.refusals -= 1
        if self.refusals > 0:
            raise CacheUnavailable("not now")
        return self.refusals < 0 and super().forget(version)


@pytest.mark.parametrize("on_its_way", [False, True])
async def test_what_is_forgotten_is_fetched_again(
    store: MemoryStore, place: Path, autojump_clock: trio.testing.MockClock, on_its_way: bool
) -> None:
    """All of it: chunks in memory, on disk though it refuses at first, waiting to be written, and on their way."""
    data = pattern(6 * MIB)
    version = store.put("k", data)
    disk = StubbornDisk(CacheDirectory(place, create=False), max_size=None, min_free=0)
    valve = Valve()
    async with trio.open_nursery() as nursery:
        cache = ChunkCache(store=store, disk=disk, memory=Memory(16 * MIB), nursery=nursery, span_size=8 * MIB)
        await cache.read(version, 0, 4 * MIB)
        await cache.writer.flush()
        await cache.read(version, 4 * MIB, 5 * MIB)
        if on_its_way:
            store.valve = lambda call: valve
            cache.start(version, 5 * MIB, 6 * MIB, demand=0)
            await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as forgetting:
            forgetting.start_soon(cache.forget, version)
            await trio.testing.wait_all_tasks_blocked()
            valve.open()
        assert disk.cached_bytes(version) == 0
        store.calls.clear()
        assert await read(cache, version, 0, len(data)) == data
        assert sorted(store.gets()) == [(number * MIB, (number + 1) * MIB) for number in range(6)]
        nursery.cancel_scope.cancel()
    disk.close()


async def test_who_is_cancelled_while_chunks_are_written_loses_none(
    store: MemoryStore, running: Running, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is queued is not his alone: what he has begun is written, and the rest is left in the queue."""
    monkeypatch.setattr(writer_module, "WRITE_BATCH", 2)
    version = store.put("k", pattern(6 * MIB))
    busy = threading.Event()
    async with running(writes=False) as cache:
        await cache.read(version, 0, version.size)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.workers.write, busy.wait)
            await trio.testing.wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as flushing:
                    flushing.start_soon(cache.writer.flush)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
                    busy.set()
        assert (cache.writer.kept, cache.writer.unkept, len(cache.writer)) == (2, 0, 4)
        await cache.writer.flush()
        assert (cache.writer.kept, cache.writer.unkept, len(cache.writer)) == (6, 0, 0)
    assert disk.cached_chunks(version) == 6


async def test_to_forget_costs_no_more_for_a_large_object(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 TiB, of which nothing is here, were 8 s on the loop, and a GiB of memory."""
    looks = 0

    def look(self: Memory, key: Key) -> None:
        nonlocal looks
        looks += 1

    monkeypatch.setattr(Memory, "forget", look)
    monkeypatch.setattr(Memory, "get", look)
    async with running() as cache:
        huge = ObjectVersion("p", "huge", '"e"', 5 << 40)
        await cache.forget(huge)
        assert await cache.evict([huge.object_id]) == (0, 0)
    assert looks == 0


async def test_a_reader_that_goes_away_leaves_its_flight(store: MemoryStore, running: Running) -> None:
    """Cancelled while it waits, the bytes still arrive and the next reader has them without a request."""
    data = pattern(MIB)
    version = store.put("k", data)
    valve = Valve()
    store.valve = lambda call: valve
    async with running() as cache:
        with trio.move_on_after(0):
            await cache.read(version, 0, MIB)
        valve.open()
        assert await read(cache, version, 0, MIB) == data
    assert [call for call in store.calls if call.kind == "get"] == [Call("get", "k", 0, CHUNK_SIZE)]
