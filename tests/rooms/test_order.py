"""What is wanted first is asked for first, whichever way round trio runs the tasks that are ready together."""

import itertools

import pytest
import trio
import trio.testing

from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.memory import Memory
from lazyfs.objects import MIB
from lazyfs.stores.fetch import PatientStore
from lazyfs.stores.inorder import in_order
from tests.rooms.building import CacheMaker, pattern
from tests.rooms.memory_store import MemoryStore, Valve

CHUNKS = 12


@pytest.fixture(params=["as they come", "the other way round"], autouse=True)
def turned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """trio takes a batch of ready tasks from its end, and turns it round before that when it draws less than a half;
    pytest-trio has it shuffle them instead (trio/_core/_run.py)."""
    drawn = {"as they come": 0.0, "the other way round": 1.0}[request.param]
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", False)
    monkeypatch.setattr(trio._core._run._r, "random", lambda: drawn)


async def test_trio_turns_tasks_round(request: pytest.FixtureRequest) -> None:
    """Else the tests here would hold nothing."""
    began: list[int] = []

    async def task(number: int) -> None:
        began.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(CHUNKS):
            nursery.start_soon(task, number)
    other = "the other way round" in request.node.name
    assert began == (list(reversed(range(CHUNKS))) if other else list(range(CHUNKS)))


async def test_the_beginning_of_a_window_is_sent_first(caches: CacheMaker) -> None:
    """As many GETs as there are connections for read-ahead, then each of the others as one has ended."""
    inner = MemoryStore()
    version = inner.put("k", pattern(CHUNKS * MIB))
    valves = [Valve() for _ in range(CHUNKS)]
    inner.valve = lambda call: valves[call.start // MIB]
    async with trio.open_nursery() as nursery:
        store = PatientStore(inner, connections=4, retry_budget=10.0)
        cache = ChunkCache(
            store=store, disk=caches.open(), memory=Memory(64 * MIB), nursery=nursery, span_size=MIB, ways=4
        )
        assert cache.start(version, 0, CHUNKS * MIB, demand=0) == CHUNKS * MIB
        for ended in range(CHUNKS):
            await trio.testing.wait_all_tasks_blocked()
            assert [start // MIB for start, _ in inner.gets()] == list(range(min(ended + 3, CHUNKS)))
            valves[ended].open()


async def test_who_comes_first_is_let_in_first() -> None:
    """While there are places, and when there are none."""
    limiter, coming = in_order(4), itertools.count()
    entered: list[int] = []

    async def task() -> None:
        number = next(coming)
        await limiter.acquire_on_behalf_of(number)
        entered.append(number)

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(task)
        await trio.testing.wait_all_tasks_blocked()
        assert entered == [0, 1, 2, 3]
        for number in (0, 1):
            limiter.release_on_behalf_of(number)
            await trio.testing.wait_all_tasks_blocked()
    assert entered == [0, 1, 2, 3, 4, 5]
