"""Parts of chunks: blocks that are kept without the rest of their chunk, what that costs, and who may not see them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from lazyfs.cache.catalogue import holds
from lazyfs.cache.checking import check
from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.disk import Disk
from lazyfs.cache.objectfile import ToWrite
from lazyfs.cache.records import ABSENT, HEAD, Run, chunk_size, segment_key
from lazyfs.cache.sweep import entries
from lazyfs.errors import CacheUnavailable, ObjectChanged
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, GIB, KIB, MIB, ObjectVersion
from lazyfs.reading.streams import Streams
from lazyfs.reading.windows import ALONE, Budget
from tests.rooms.building import CacheMaker, allocated, bury, chunk_on, keep, no_space, part, pattern, version_of
from tests.rooms.caching import caching
from tests.rooms.memory_store import Fault, MemoryStore, Valve, in_turn


def spoken_for(disk: Disk) -> int:
    """Bytes that are counted as used, but for those of the index itself."""
    return disk.used() - disk.index.own_size()


def there(disk: Disk, version: ObjectVersion, number: int) -> list[int]:
    """The blocks of a chunk that the index knows."""
    kept = disk.kept(version.object_id, number, partly=True)
    blocks = range(-(-version.chunk_length(number) // BLOCK_SIZE))
    return [at for at in blocks if kept and not kept.lacks(at * BLOCK_SIZE, at * BLOCK_SIZE + 1)]


def checked(disk: Disk, caches: CacheMaker, place: Path) -> list[str]:
    """What `lazyfs fsck` says of the cache, once it is closed."""
    caches.close(disk)
    return [problem.words for problem in check(place, mend=False, quick=False, told=lambda done, total: None).problems]


# ---- on disk


def test_a_part_is_read_by_block_and_is_no_chunk(caches: CacheMaker, place: Path) -> None:
    """Also for the next daemon, and at the short end of the object."""
    data = pattern(2 * MIB + 200_001)
    version = version_of("k", data)
    disk = caches.open()
    assert disk.keep([part(version, data, 0, 9, 16), part(version, data, 1, 0, 3), part(version, data, 2, 3, 4)]) == 3
    caches.close(disk)
    disk = caches.open()
    assert disk.cached_chunks(version) == 0
    assert disk.present(version.object_id, 0) == 0
    assert [disk.kept(version.object_id, number) for number in range(3)] == [None] * 3
    assert [there(disk, version, number) for number in range(3)] == [[*range(9, 16)], [0, 1, 2], [3]]
    for number, start, stop in ((0, 9 * BLOCK_SIZE, CHUNK_SIZE), (1, 5, 3 * BLOCK_SIZE), (2, 3 * BLOCK_SIZE, 200_001)):
        kept = disk.kept(version.object_id, number, partly=True)
        assert kept is not None
        base = number * CHUNK_SIZE
        assert disk.read_part(version, number, kept, start, stop) == data[base + start : base + stop]
    assert checked(disk, caches, place) == []


def test_a_part_takes_the_room_of_its_chunk_once(caches: CacheMaker, place: Path) -> None:
    """From its first block on, and no more when others come, also together; with the last one it is a chunk, and
    written over it is one as well."""
    data = pattern(2 * MIB + 5)
    version = version_of("k", data)
    disk = caches.open()
    empty = spoken_for(disk)
    assert disk.keep([part(version, data, 0, 0, 4), part(version, data, 0, 8, 12)]) == 2
    assert spoken_for(disk) - empty == MIB
    assert disk.keep([part(version, data, 0, 4, 8)]) == 1
    assert spoken_for(disk) - empty == MIB
    assert disk.cached_chunks(version) == 0
    disk.keep([part(version, data, 0, 12, 16), part(version, data, 1, 3, 5)])
    assert spoken_for(disk) - empty == 2 * MIB
    assert disk.cached_chunks(version) == 1
    assert chunk_on(disk, version, 0) == data[:MIB]
    assert keep(disk, version, data, range(3)) == 2
    assert spoken_for(disk) - empty == 2 * MIB + chunk_size(version.size, 2)
    assert disk.generation(version) is not None
    assert disk.keep([part(version, data, 1, 0, 2)]) == 0
    for number in range(3):
        assert chunk_on(disk, version, number) == data[number * MIB : (number + 1) * MIB]
    assert checked(disk, caches, place) == []


def test_what_is_evicted_takes_its_parts_along(caches: CacheMaker, place: Path) -> None:
    """Their room is given back, whether a segment goes or the whole object; parts elsewhere are no reason to keep
    nothing, and stay when their own segment does."""
    data = pattern(66 * MIB)
    version = version_of("k", data)
    disk = caches.open()
    empty = spoken_for(disk)
    disk.keep([part(version, data, 65, 0, 4)])
    keep(disk, version, data, [0])
    disk.keep([part(version, data, 1, 2, 4)])
    disk.touch({(version.object_id, 1)})
    bury(disk, 1)
    assert [there(disk, version, number) for number in (0, 1, 65)] == [[], [], [0, 1, 2, 3]]
    assert spoken_for(disk) - empty == MIB
    bury(disk, 1)
    assert there(disk, version, 65) == []
    assert spoken_for(disk) == empty
    assert allocated(place / "objects") == 0
    keep(disk, version, data, [3])
    disk.keep([part(version, data, 65, 0, 4)])
    disk.forget(version)
    assert spoken_for(disk) == empty
    assert checked(disk, caches, place) == []


def test_a_damaged_part_is_forgotten_alone(caches: CacheMaker, place: Path) -> None:
    """`fsck` finds it, and who forgets it gives its room back; what the chunk had before is not believed again."""
    data = pattern(2 * MIB)
    version = version_of("k", data)
    disk = caches.open()
    empty = spoken_for(disk)
    disk.keep([part(version, data, 0, 9, 16), part(version, data, 1, 0, 3)])
    [file] = [path for path in (place / "objects").rglob("*") if path.is_file()]
    with file.open("r+b") as written:
        written.seek(CHUNK_SIZE + BLOCK_SIZE)
        written.write(b"\0")
    assert checked(disk, caches, place) == ["k: chunk 1, of which a part is here, is damaged"]
    disk = caches.open()
    disk.discard(version, 1)
    assert [there(disk, version, number) for number in range(2)] == [[*range(9, 16)], []]
    assert spoken_for(disk) - empty == MIB
    keep(disk, version, data, [1])
    disk.discard(version, 1)
    assert there(disk, version, 1) == []
    disk.keep([part(version, data, 1, 4, 5)])
    assert there(disk, version, 1) == [4]
    assert checked(disk, caches, place) == []


def test_a_write_that_fails_leaves_the_parts_before_it(
    caches: CacheMaker, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not counted is cleared; a part that was there is not, though its chunk was to be written."""
    data = pattern(2 * MIB)
    version = version_of("k", data)
    disk = caches.open()
    disk.keep([part(version, data, 0, 9, 16)])
    used = spoken_for(disk)

    monkeypatch.setattr(ToWrite, "write", no_space)
    with pytest.raises(CacheUnavailable, match="No space left"):
        keep(disk, version, data, range(2))
    monkeypatch.undo()
    assert there(disk, version, 0) == [*range(9, 16)]
    assert spoken_for(disk) == used
    assert checked(disk, caches, place) == []


def test_a_power_failure_does_not_cost_parts(caches: CacheMaker) -> None:
    """What files may take, as it is compared after one, has room for them."""
    data = pattern(3 * MIB)
    version = version_of("k", data)
    disk = caches.open()
    keep(disk, version, data, [0])
    disk.keep([part(version, data, 1, 0, 15), part(version, data, 2, 1, 2)])
    assert list(entries(disk.index).values()) == [3 * MIB]


def test_parts_alone_can_be_dropped(caches: CacheMaker) -> None:
    """`lazyfs evict` sees an object of which no chunk is whole, and says so when it cannot go now."""
    data = pattern(2 * MIB)
    version = version_of("k", data)
    disk = caches.open()
    empty = spoken_for(disk)
    disk.keep([part(version, data, 0, 9, 16)])
    assert holds(disk.index, version.object_id)
    assert not holds(disk.index, version_of("other", data).object_id)
    run = Run(version.object_id, disk.index.generation(version), 1, 2)
    assert disk.index.claim(77, [run], MIB, 64 * MIB)
    assert disk.drop([version.object_id]) == (0, 1)
    disk.index.settle(77, [])
    assert disk.drop([version.object_id]) == (MIB, 0)
    assert not holds(disk.index, version.object_id)
    assert spoken_for(disk) == empty


def test_a_damaged_record_frees_no_more_than_it_says(caches: CacheMaker) -> None:
    """One that is not sound may have anything among its checksums."""
    data = pattern(MIB)
    version = version_of("k", data)
    disk = caches.open()
    keep(disk, version, data, [0])
    key = segment_key(version.object_id, 0)
    with disk.index.change() as (txn, tables):
        value = bytes(txn.get(key, db=tables.segments) or b"")
        txn.put(key, value[: HEAD.size] + ABSENT * ((len(value) - HEAD.size) // 8), db=tables.segments)
    assert disk.drop([version.object_id]) == (MIB, 0)


# ---- for readers


async def alone(cache: ChunkCache, version: ObjectVersion, start: int, stop: int) -> bytes:
    """A read of which nothing beside its bytes is wanted."""
    return b"".join(await cache.wait(version, start, stop, alone=True))


@asynccontextmanager
async def on_its_way(
    store: MemoryStore, disk: Disk, version: ObjectVersion, start: int
) -> AsyncIterator[tuple[ChunkCache, Callable[[], None]]]:
    """A cache while a touch of 1 MiB from `start` on waits for its bytes, and what lets them come."""
    valve = Valve()
    store.valve = lambda call: valve
    async with caching(store, disk) as cache, trio.open_nursery() as nursery:
        nursery.start_soon(alone, cache, version, start, start + MIB)
        await trio.testing.wait_all_tasks_blocked()
        yield cache, valve.open
        valve.open()


async def test_only_blocks_are_fetched_once(caches: CacheMaker) -> None:
    """One GET for the blocks of both chunks; what is on disk of them is not fetched again, before or behind; and by the
    next daemon nothing is."""
    store, disk = MemoryStore(), caches.open()
    data = pattern(4 * MIB)
    version = store.put("k", data)
    touch = MIB - 512 * KIB + 4096
    async with caching(store, disk) as cache:
        assert await alone(cache, version, touch, touch + MIB) == data[touch : touch + MIB]
        assert store.gets() == [(512 * KIB, MIB + 576 * KIB)]
        await cache.writer.settled()
        again = touch + 256 * KIB
        assert await alone(cache, version, again, again + MIB) == data[again : again + MIB]
        assert store.gets()[1:] == [(MIB + 576 * KIB, MIB + 832 * KIB)]
        await cache.writer.settled()
        before = touch - 256 * KIB
        assert await alone(cache, version, before, before + MIB) == data[before : before + MIB]
        assert store.gets()[2:] == [(256 * KIB, 512 * KIB)]
        assert cache.statistics().misses == 4
    async with caching(store, disk) as cache:
        for start in (touch, again, before):
            assert await alone(cache, version, start, start + MIB) == data[start : start + MIB]
        assert bytes(await cache.read(version, 600 * KIB, 604 * KIB)) == data[600 * KIB : 604 * KIB]
        assert len(store.gets()) == 3
        assert cache.statistics().disk_hits == 7


async def test_whoever_wants_the_chunk_has_it_fetched_whole(caches: CacheMaker) -> None:
    """Also while a part of it is on its way, which he waits for, and does not take for the chunk."""
    store, disk = MemoryStore(), caches.open()
    data = pattern(3 * MIB)
    version = store.put("k", data)
    valve = Valve()
    store.valve = lambda call: valve
    found: dict[str, bytes] = {}

    async def reader(name: str, start: int, stop: int, only: bool) -> None:
        found[name] = b"".join(await cache.wait(version, start, stop, alone=only))

    async with caching(store, disk) as cache, trio.open_nursery() as nursery:
        nursery.start_soon(reader, "touch", 500 * KIB, 1524 * KIB, True)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(reader, "chunk", 0, MIB, False)
        await trio.testing.wait_all_tasks_blocked()
        assert store.gets() == [(448 * KIB, 1536 * KIB)]
        valve.open()
    assert found == {"touch": data[500 * KIB : 1524 * KIB], "chunk": data[:MIB]}
    assert store.gets() == [(448 * KIB, 1536 * KIB), (0, MIB)]
    assert chunk_on(disk, version, 0) == data[:MIB]
    assert there(disk, version, 1) == [*range(8)]


async def test_a_stream_plans_again_what_comes_in_part_only(caches: CacheMaker) -> None:
    """What is set on its way ends before a chunk of which only a part is, and is told to."""
    store, disk = MemoryStore(), caches.open()
    version = store.put("k", pattern(4 * MIB))
    async with on_its_way(store, disk, version, 1536 * KIB) as (cache, _):
        assert cache.start(version, 0, 4 * MIB, demand=0) == MIB
        assert cache.start(version, 2 * MIB, 4 * MIB, demand=0) == 2 * MIB
    async with caching(store, disk) as cache:
        assert cache.start(version, 0, 4 * MIB, demand=0) == 4 * MIB


async def test_a_part_that_fails_is_an_error_and_leaves_nothing(caches: CacheMaker) -> None:
    """For who waits for it and for who waits for a chunk of it; what had come of it is kept."""
    store, disk = MemoryStore(), caches.open()
    version = store.put("k", pattern(2 * MIB))
    store.fault = in_turn(Fault(ObjectChanged("k"), after=700 * KIB))
    async with caching(store, disk) as cache:
        with pytest.raises(ObjectChanged):
            await alone(cache, version, 512 * KIB, 1536 * KIB)
        await cache.writer.settled()
        assert [len(there(disk, version, number)) for number in range(2)] == [8, 0]


async def test_a_reader_that_goes_away_leaves_its_part(caches: CacheMaker) -> None:
    """It comes, is kept, and holds no memory."""
    store, disk = MemoryStore(), caches.open()
    data = pattern(2 * MIB)
    version = store.put("k", data)
    valve = Valve()
    store.valve = lambda call: valve
    async with caching(store, disk) as cache:
        with trio.move_on_after(0):
            await alone(cache, version, 512 * KIB, 1536 * KIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alone, cache, version, 512 * KIB, 1536 * KIB)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        valve.open()
    assert [len(there(disk, version, number)) for number in range(2)] == [8, 8]
    assert len(store.gets()) == 1


async def test_damaged_blocks_are_fetched_again(caches: CacheMaker, place: Path) -> None:
    """As chunks then, and counted; the damaged part is forgotten."""
    store, disk = MemoryStore(), caches.open()
    data = pattern(2 * MIB)
    version = store.put("k", data)
    async with caching(store, disk) as cache:
        await alone(cache, version, 512 * KIB, 1536 * KIB)
    [file] = [path for path in (place / "objects").rglob("*") if path.is_file()]
    with file.open("r+b") as written:
        written.seek(CHUNK_SIZE + BLOCK_SIZE)
        written.write(bytes(byte ^ 1 for byte in data[CHUNK_SIZE + BLOCK_SIZE :][:1]))
    async with caching(store, disk) as cache:
        assert await alone(cache, version, 512 * KIB, 1536 * KIB) == data[512 * KIB : 1536 * KIB]
        assert cache.statistics().corrupt == 1
        assert sorted(store.gets()[1:]) == [(0, MIB), (MIB, 2 * MIB)]
        assert await alone(cache, version, 512 * KIB, 1536 * KIB) == data[512 * KIB : 1536 * KIB]
        assert len(store.gets()) == 3


async def test_without_memory_chunks_are_brought(caches: CacheMaker) -> None:
    """A touch is served all the same, with the least memory there is."""
    store, disk = MemoryStore(), caches.open()
    data = pattern(6 * MIB)
    version = store.put("k", data)
    found: dict[int, bytes] = {}

    async def reader(cache: ChunkCache, start: int) -> None:
        found[start] = await alone(cache, version, start, start + MIB)

    async with caching(store, disk, memory=2 * MIB) as cache, trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(reader, cache, number * MIB + 512 * KIB)
    assert len(found) == 5
    assert all(data[start : start + MIB] == bytes_ for start, bytes_ in found.items())


@pytest.mark.parametrize("while_the_disk_forgets", [False, True])
async def test_what_is_forgotten_takes_its_parts_along(
    caches: CacheMaker, monkeypatch: pytest.MonkeyPatch, while_the_disk_forgets: bool
) -> None:
    """Those on their way too, also if they come just then: a version whose bytes are wrong has none of them on disk."""
    store, disk = MemoryStore(), caches.open()
    version = store.put("k", pattern(2 * MIB))
    async with on_its_way(store, disk, version, 512 * KIB) as (cache, come):
        forget = disk.forget

        async def arrive() -> None:
            come()
            while cache.flying:
                await trio.lowlevel.checkpoint()

        def forgets(one: ObjectVersion) -> bool:
            gone = forget(one)
            trio.from_thread.run(arrive)
            return gone

        if while_the_disk_forgets:
            monkeypatch.setattr(disk, "forget", forgets)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.forget, version)
            if not while_the_disk_forgets:
                await trio.testing.wait_all_tasks_blocked()
                come()
    assert [there(disk, version, number) for number in range(2)] == [[], []]


async def test_a_piece_counts_as_lent_until_the_end(caches: CacheMaker) -> None:
    """It is pinned until then: an origin that stalls in the second chunk has no more than its share."""
    store, disk = MemoryStore(), caches.open()
    version = store.put("k", pattern(2 * MIB))
    valve = Valve()
    store.valve = lambda call: valve
    async with caching(store, disk, memory=8 * MIB) as cache, trio.open_nursery() as nursery:
        flights = cache._flights
        nursery.start_soon(alone, cache, version, 512 * KIB, 1536 * KIB)
        await trio.testing.wait_all_tasks_blocked()
        valve.open(512 * KIB)
        await trio.testing.wait_all_tasks_blocked()
        flight = flights.get((version.object_id, 1))
        assert flight is not None
        assert flight.landed == 1
        assert flights._shares.room(version.origin) == 8 - 2
        valve.open()
    assert flights._shares.room(version.origin) == 8


async def test_parts_are_not_taken_for_chunks_as_they_pass(caches: CacheMaker) -> None:
    """Who is told of each chunk that came, to compare the whole object, hears of those only."""
    store, disk = MemoryStore(), caches.open()
    version = store.put("k", pattern(3 * MIB))
    passed: list[int] = []
    async with caching(store, disk) as cache:
        cache.writer.on_fresh = lambda verified: passed.append(verified.number)
        await alone(cache, version, 512 * KIB, 1536 * KIB)
        assert passed == []
        await cache.writer.settled()
        await alone(cache, version, 1600 * KIB, 2600 * KIB)
        assert passed == []
        await cache.read(version, 0, 1)
        assert passed == [0]


async def test_copies_that_wait_for_the_disk_are_few(caches: CacheMaker) -> None:
    """Bytes that came are copies beside the memory's budget while others are read from disk."""
    store, disk = MemoryStore(), caches.open()
    data = pattern(2 * MIB)
    version = store.put("k", data)
    found: list[bytes] = []

    async def reader(cache: ChunkCache) -> None:
        found.append(await alone(cache, version, 768 * KIB, 1792 * KIB))

    async with caching(store, disk) as cache:
        await alone(cache, version, 512 * KIB, 1536 * KIB)
        await cache.writer.settled()
        copies = cache._copies[version.origin]
        async with trio.open_nursery() as nursery:
            taken = copies.value
            for _ in range(taken):
                await copies.acquire()
            nursery.start_soon(reader, cache)
            await trio.testing.wait_all_tasks_blocked()
            assert len(store.gets()) == 2
            assert copies.statistics().tasks_waiting == 1
            for _ in range(taken):
                copies.release()
    assert found == [data[768 * KIB : 1792 * KIB]]


# ---- when


def touches(made: Streams, count: int) -> list[bool]:
    """Reads of a MiB around places far apart, each answered before the next; which are to be brought alone."""
    return [made.observe(at * 16 * MIB + 300 * KIB, at * 16 * MIB + 300 * KIB + MIB).alone for at in order(count)]


def order(count: int) -> list[int]:
    """Numbers without equal steps between them."""
    return [at * at + 3 for at in range(count)]


def test_touches_are_brought_alone_once_nothing_came_of_some() -> None:
    """And not again, from the moment that somebody goes on, before as many have come to nothing."""
    made = Streams(64 * GIB, Budget(GIB))
    assert touches(made, 9) == [at >= ALONE - 1 for at in range(9)]
    start = 40 * GIB
    made.observe(start, start + MIB)
    assert made.observe(start + MIB, start + 2 * MIB).ranges
    assert touches(made, 4 + ALONE)[:ALONE] == [False] * (ALONE - 1) + [True]


def test_many_that_begin_side_by_side_are_no_touches() -> None:
    """They wait for their first answers; and what lies in one chunk is its chunk, as ever."""
    made = Streams(64 * GIB, Budget(GIB))
    for at in order(32):
        assert not made.observe(at * 16 * MIB + 300 * KIB, at * 16 * MIB + 300 * KIB + MIB).alone
        made.waiting += 1
    made.waiting = 0
    assert made.observe(50 * GIB + 5, 50 * GIB + MIB + 5).alone
    assert not made.observe(60 * GIB, 60 * GIB + MIB).alone


def test_neighbours_by_chance_are_not_read_ahead_of() -> None:
    """What is read around a touch begins where what was read around an earlier one ends."""
    made = Streams(64 * GIB, Budget(GIB))
    touches(made, 12)
    first = order(12)[2] * 16 * MIB + 300 * KIB + MIB
    plan = made.observe(first, first + 900 * KIB)
    assert plan.alone
    assert plan.touch
