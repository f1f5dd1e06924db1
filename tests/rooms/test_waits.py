"""A few bytes of a chunk that is on its way: given when they are here, and the chunk is brought once all the same."""

from collections.abc import Callable

import pytest
import trio
import trio.testing

from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.disk import Disk
from lazyfs.cache.waits import MOST_FEW
from lazyfs.errors import StoreError, Transient
from lazyfs.objects import BLOCK_SIZE, KIB, MIB, ObjectVersion
from tests.rooms.building import pattern
from tests.rooms.caching import caching
from tests.rooms.memory_store import Call, Fault, MemoryStore, Valve, in_turn

DATA = pattern(3 * MIB)
PAGE = 4 * KIB
INSIDE = MIB + 10 * BLOCK_SIZE
"""Where a touch begins, ten blocks inside the second chunk."""


class Readers:
    """Reads of one version under way; `done` says which of them ended, by where they began."""

    def __init__(self, cache: ChunkCache, version: ObjectVersion, nursery: trio.Nursery) -> None:
        self._cache, self._version, self._nursery = cache, version, nursery
        self.done: list[int] = []

    async def begin(self, start: int, size: int = PAGE) -> None:
        """One more, which has got as far as it gets."""
        self._nursery.start_soon(self._read, start, size)
        await trio.testing.wait_all_tasks_blocked()

    async def _read(self, start: int, size: int) -> None:
        assert await self._cache.read(self._version, start, start + size) == DATA[start : start + size]
        self.done.append(start)


def by_start(valves: dict[int, Valve]) -> Callable[[Call], Valve | None]:
    """A valve for each GET, by where that begins."""
    return lambda call: valves.get(call.start)


async def test_they_are_given_before_the_rest_is_here(store: MemoryStore, disk: Disk) -> None:
    """To everybody whose bytes are here; who wants others waits for those, and who wants more than a copy is made of
    for the chunk. One GET, one chunk."""
    version = store.put("k", DATA)
    valve = Valve()
    store.valve = by_start({0: valve})
    async with caching(store, disk) as cache, trio.open_nursery() as nursery:
        readers = Readers(cache, version, nursery)
        await readers.begin(0)
        await readers.begin(100 * KIB)
        await readers.begin(500 * KIB)
        await readers.begin(1, MOST_FEW + 1)
        assert readers.done == []
        valve.open(256 * KIB)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(readers.done) == [0, 100 * KIB]
        await readers.begin(200 * KIB)
        assert readers.done[2:] == [200 * KIB], "here before it was asked for"
        valve.open(512 * KIB)
        await trio.testing.wait_all_tasks_blocked()
        assert readers.done[3:] == [500 * KIB]
        assert cache.statistics().misses == 0
        valve.open()
        await trio.testing.wait_all_tasks_blocked()
        assert readers.done[4:] == [1]
        assert cache.statistics().misses == 1
        assert cache.statistics().waits == cache.statistics().memory_hits == 5
    assert store.gets() == [(0, MIB)]


async def test_a_touch_far_inside_has_a_get_of_its_own(store: MemoryStore, disk: Disk) -> None:
    """Sent first; what is before it comes by another, and who reads on both sides waits for both. The chunk is there
    in the end, as if it had been brought by one."""
    version = store.put("k", DATA)
    head, rest = Valve(), Valve()
    store.valve = by_start({MIB: head, INSIDE: rest})
    async with caching(store, disk) as cache, trio.open_nursery() as nursery:
        readers = Readers(cache, version, nursery)
        await readers.begin(INSIDE + 7)
        assert store.gets() == [(INSIDE, 2 * MIB), (MIB, INSIDE)]
        assert cache._flights.asking[version.origin] == 2
        await readers.begin(INSIDE - 100, 200)
        await readers.begin(MIB)
        rest.open(256 * KIB)
        await trio.testing.wait_all_tasks_blocked()
        assert readers.done == [INSIDE + 7]
        head.open(256 * KIB)
        await trio.testing.wait_all_tasks_blocked()
        assert readers.done[1:] == [MIB]
        head.open()
        await trio.testing.wait_all_tasks_blocked()
        assert readers.done[2:] == [INSIDE - 100]
        assert cache.statistics().misses == 0
        rest.open()
        await trio.testing.wait_all_tasks_blocked()
        assert cache.statistics().misses == 1
        assert not cache._flights.asking.total()
        await readers.begin(MIB, MIB)
        await cache.writer.settled()
        assert len(store.gets()) == 2
    store.calls.clear()
    async with caching(store, disk) as cache:
        assert await cache.read(version, MIB, 2 * MIB) == DATA[MIB : 2 * MIB]
    assert store.calls == [], "kept, and right on disk"


@pytest.mark.parametrize(("start", "ways"), [(MIB + 4 * BLOCK_SIZE - 1, 32), (INSIDE, 1), (3 * MIB - PAGE, 2)])
async def test_what_it_would_save_decides(start: int, ways: int, store: MemoryStore, disk: Disk) -> None:
    """Near the beginning of a chunk one GET is as good, and two where connections are short would cost others; else
    they are cut at the block in which the touch begins."""
    version = store.put("k", DATA)
    async with caching(store, disk, ways=ways) as cache:
        assert await cache.read(version, start, start + PAGE) == DATA[start : start + PAGE]
    chunk = start // MIB * MIB
    cut = start // BLOCK_SIZE * BLOCK_SIZE
    assert store.gets() == ([(cut, chunk + MIB), (chunk, cut)] if ways == 2 else [(chunk, chunk + MIB)])


async def test_what_is_on_disk_is_not_cut(store: MemoryStore, disk: Disk) -> None:
    """More bytes than are read by blocks, far inside a chunk that is on disk: it comes from there, and nothing is
    asked for."""
    version = store.put("k", DATA)
    async with caching(store, disk) as cache:
        for number in range(3):
            await cache.read(version, number * MIB, (number + 1) * MIB)
        await cache.writer.settled()
    store.calls.clear()
    async with caching(store, disk) as cache:
        for start, size in ((INSIDE - MIB, PAGE), (INSIDE, 192 * KIB), (INSIDE + MIB, MOST_FEW)):
            assert await cache.read(version, start, start + size) == DATA[start : start + size]
        await cache.writer.settled()
        assert cache.statistics().disk_hits == 3
        assert not cache._flights.asking.total()
    assert store.calls == []


async def test_stores_are_told_that_a_few_are_waited_for(store: MemoryStore, disk: Disk) -> None:
    """On both sides of a cut; of a long flight only as long as somebody waits for few, for its chunks need no copy."""
    version = store.put("k", DATA)
    valve = Valve()
    store.valve = lambda call: valve
    async with caching(store, disk) as cache, trio.open_nursery() as nursery:
        readers = Readers(cache, version, nursery)
        await readers.begin(INSIDE)
        (flight,) = set(cache._flights._by_chunk.values())
        assert (flight.claim.few, flight.front.few, flight.front.urgent) == (True, True, True)
        valve.open()
        await trio.testing.wait_all_tasks_blocked()
    version, valve = store.put("long", DATA), Valve()
    async with caching(store, disk, ways=0) as cache, trio.open_nursery() as nursery:
        readers = Readers(cache, version, nursery)
        cache.start(version, 0, 3 * MIB, demand=0)
        (flight,) = set(cache._flights._by_chunk.values())
        assert not flight.claim.few
        await readers.begin(MIB)
        assert flight.claim.few
        valve.open(MIB + 256 * KIB)
        await trio.testing.wait_all_tasks_blocked()
        assert readers.done == [MIB]
        assert not flight.claim.few
        valve.open()


@pytest.mark.parametrize("broken", [0, 1])
async def test_half_a_chunk_is_none(broken: int, store: MemoryStore, disk: Disk) -> None:
    """Who has his bytes keeps them; who waits for others has the error; whoever comes then has all of it fetched."""
    version = store.put("k", DATA)
    valve = Valve()
    store.valve = lambda call: valve
    fault = Fault(StoreError("broken"), after=100 * KIB)
    store.fault = in_turn(*[fault if place == broken else None for place in range(2)])
    failed: list[int] = []

    async def fails(cache: ChunkCache, start: int) -> None:
        with pytest.raises(StoreError, match="broken"):
            await cache.read(version, start, start + PAGE)
        failed.append(start)

    async with caching(store, disk) as cache, trio.open_nursery() as nursery:
        readers = Readers(cache, version, nursery)
        await readers.begin(INSIDE)
        nursery.start_soon(fails, cache, (2 * MIB - PAGE) if broken == 0 else INSIDE - PAGE)
        await trio.testing.wait_all_tasks_blocked()
        valve.open()
        await trio.testing.wait_all_tasks_blocked()
        assert (readers.done, len(failed), len(store.gets())) == ([INSIDE], 1, 2)
        assert cache.statistics().misses == 0
        await readers.begin(MIB, MIB)
        assert store.gets()[2:] == [(MIB, 2 * MIB)]


async def test_who_goes_away_is_not_waited_for(store: MemoryStore, disk: Disk) -> None:
    """And the chunk comes."""
    version = store.put("k", DATA)
    valve = Valve()
    store.valve = lambda call: valve
    async with caching(store, disk) as cache:
        async with trio.open_nursery() as nursery:
            await Readers(cache, version, nursery).begin(INSIDE)
            (flight,) = set(cache._flights._by_chunk.values())
            assert len(flight.few) == 1
            nursery.cancel_scope.cancel()
        assert flight.few == []
        valve.open()
        assert await cache.read(version, MIB, 2 * MIB) == DATA[MIB : 2 * MIB]
    assert len(store.gets()) == 2


async def test_a_failed_flight_is_an_error_of_those_who_wait(store: MemoryStore, disk: Disk) -> None:
    """Once each; the next read asks again."""
    version = store.put("k", DATA)
    store.fault = in_turn(Fault(Transient("once")))
    async with caching(store, disk) as cache:
        with pytest.raises(Transient, match="once"):
            await cache.read(version, 0, PAGE)
        assert await cache.read(version, 0, PAGE) == DATA[:PAGE]


async def test_a_chunk_that_was_read_to_its_end_makes_room(store: MemoryStore, disk: Disk) -> None:
    """As if the reader had waited for all of it; one of which he had the beginning is kept for who comes next."""
    ended, begun = store.put("a", DATA[: 100 * KIB]), store.put("b", DATA)
    async with caching(store, disk) as cache:
        assert await cache.read(ended, 0, 100 * KIB) == DATA[: 100 * KIB]
        assert await cache.read(begun, 0, PAGE) == DATA[:PAGE]
        await cache.writer.settled()
        assert list(cache._memory._read) == [(ended.object_id, 0)]
        assert list(cache._memory._unread) == [(begun.object_id, 0)]


async def test_blocks_on_their_way_are_given_too(store: MemoryStore, disk: Disk) -> None:
    """Of two chunks of which only the blocks come around which somebody faulted; what is not among them is fetched
    when they are here."""
    version = store.put("k", DATA)
    touch = MIB - 512 * KIB
    valve = Valve()
    store.valve = by_start({touch: valve})
    async with caching(store, disk) as cache, trio.open_nursery() as nursery:
        readers = Readers(cache, version, nursery)

        async def alone() -> None:
            found = await cache.wait(version, touch, touch + MIB, alone=True)
            assert b"".join(found) == DATA[touch : touch + MIB]

        nursery.start_soon(alone)
        await trio.testing.wait_all_tasks_blocked()
        for start in (touch, MIB + PAGE, touch - PAGE, 2 * MIB - PAGE):
            await readers.begin(start)
        valve.open(256 * KIB)
        await trio.testing.wait_all_tasks_blocked()
        assert readers.done == [touch]
        valve.open(768 * KIB)
        await trio.testing.wait_all_tasks_blocked()
        assert readers.done[1:] == [MIB + PAGE]
        assert store.gets() == [(touch, touch + MIB)]
        valve.open()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(readers.done[2:]) == [touch - PAGE, 2 * MIB - PAGE]
