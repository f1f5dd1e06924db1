"""Patience around a store: what is asked again and from where, how long, and who may ask at all. Time is a fake."""

import random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.errors import AccessDenied, Dropped, NotFound, ObjectChanged, StoreError, Unreachable
from lazyfs.objects import KIB, MIB
from lazyfs.stores.base import Claim
from lazyfs.stores.endpoint import FIRST_PAUSE, LONGEST_PAUSE
from tests.rooms.bench import BROKEN, DATA, Bench
from tests.rooms.memory_store import PIECE_SIZE, Call, Fault, in_turn


async def test_a_broken_body_is_resumed_where_it_broke(autojump_clock: MockClock) -> None:
    """Three breaks, four requests, each from the first byte that is missing; no byte is asked for twice."""
    bench = Bench()
    start, stop = 100, 100 + MIB
    bench.faults = in_turn(Fault(BROKEN, 5), Fault(BROKEN, 300 * KIB), Fault(BROKEN), None)
    assert await bench.read(start, stop) == DATA[start:stop]
    resumed = start + 5 + 300 * KIB
    assert bench.inner.gets() == [(start, stop), (start + 5, stop), (resumed, stop), (resumed, stop)]
    found = bench.store.statistics()
    assert (found.get_requests, found.retries, found.bytes_received, found.demand_bytes) == (4, 3, MIB, MIB)
    bench.idle()


async def test_a_failure_after_the_last_byte_is_none(autojump_clock: MockClock) -> None:
    """All that was wanted is here, so nothing is asked again: an empty range cannot even be written."""
    bench = Bench()
    bench.faults = in_turn(Fault(BROKEN, 100))
    assert await bench.read(0, 100) == DATA[:100]
    assert bench.inner.gets() == [(0, 100)]
    bench.idle()


async def test_pauses_grow_to_a_limit_and_are_spread(autojump_clock: MockClock) -> None:
    """Each pause lies between a half and the whole of a step that doubles from the first to the longest."""
    bench = Bench()
    bench.faults = in_turn(*[Fault(BROKEN)] * 12)
    await bench.read()
    pauses = [after - before for before, after in zip(bench.times, bench.times[1:], strict=False)]
    steps = [min(FIRST_PAUSE * 2**n, LONGEST_PAUSE) for n in range(12)]
    assert all(step / 2 - 1e-6 <= pause <= step + 1e-6 for pause, step in zip(pauses, steps, strict=True))
    shares = [pause / step for pause, step in zip(pauses, steps, strict=True)]
    assert max(shares) - min(shares) > 0.2


async def test_two_readers_do_not_ask_again_in_step(autojump_clock: MockClock) -> None:
    """With other dice, other pauses; with the same, the same."""
    waited = []
    for seed in (1, 2, 1):
        bench = Bench(seed=seed)
        bench.faults = in_turn(*[Fault(BROKEN)] * 4)
        started = trio.current_time()
        await bench.read()
        waited.append(round(trio.current_time() - started, 6))
    assert waited[0] != waited[1]
    assert waited[0] == waited[2]


async def test_patience_ends_with_everything_that_is_known(autojump_clock: MockClock) -> None:
    """Within the budget, naming key, range, attempts and the last cause."""
    bench = Bench(retry_budget=60)
    bench.faults = lambda call: Fault(BROKEN)
    started = trio.current_time()
    with pytest.raises(Unreachable) as caught:
        await bench.read(100, 300)
    assert 60 - LONGEST_PAUSE <= trio.current_time() - started <= 60
    attempts = len(bench.inner.gets())
    assert attempts > 6
    assert str(caught.value) == f"read 'k' bytes 100-299: {attempts} attempts failed, the last with broken"
    assert caught.value.__cause__ is BROKEN
    assert bench.store.statistics().retries == attempts - 1
    bench.idle()


async def test_no_patience_is_one_attempt(autojump_clock: MockClock) -> None:
    bench = Bench(retry_budget=0)
    bench.faults = lambda call: Fault(BROKEN)
    with pytest.raises(Unreachable, match="1 attempts"):
        await bench.read()
    assert len(bench.times) == 1


@pytest.mark.parametrize(
    "error", [NotFound("n"), AccessDenied("a"), ObjectChanged("o"), StoreError("s"), Unreachable("u")], ids=repr
)
async def test_what_asking_again_cannot_mend(autojump_clock: MockClock, error: StoreError) -> None:
    """Passes as it is, at once, for every kind of request; also after a failure that could be mended."""
    bench = Bench()
    bench.faults = lambda call: Fault(error)
    started = trio.current_time()
    asked = (
        bench.read,
        lambda: bench.store.list(""),
        lambda: bench.store.stat("k"),
        lambda: bench.store.total_size(""),
    )
    for ask in asked:
        with pytest.raises(StoreError) as caught:
            await ask()
        assert caught.value is error
    assert trio.current_time() == started
    bench.faults = in_turn(Fault(BROKEN, 10), Fault(error))
    with pytest.raises(type(error)):
        await bench.read()
    bench.idle()


async def test_listings_and_heads_are_asked_again(autojump_clock: MockClock) -> None:
    """And counted, each of its kind; a listing may have less patience than a read."""
    bench = Bench()
    for ask in (lambda: bench.store.list(""), lambda: bench.store.total_size(""), lambda: bench.store.stat("k")):
        bench.faults = in_turn(Fault(BROKEN), Fault(BROKEN))
        await ask()
    found = bench.store.statistics()
    assert (found.list_requests, found.head_requests, found.get_requests, found.retries) == (6, 3, 0, 6)
    bench.faults = lambda call: Fault(BROKEN)
    started = trio.current_time()
    with pytest.raises(Unreachable, match="list 'a/'"):
        await bench.store.list("a/", budget=2.0)
    assert trio.current_time() - started <= 2.0


async def test_a_claim_dropped_before_it_came_is_never_sent() -> None:
    bench = Bench()
    claim = Claim(urgent=False)
    claim.drop()
    with pytest.raises(Dropped):
        await bench.read(claim=claim)
    assert bench.inner.calls == []
    bench.idle()


async def test_a_pause_holds_no_place(autojump_clock: MockClock) -> None:
    """While one read waits to ask again, another has its place."""
    bench = Bench(connections=1)
    bench.faults = in_turn(Fault(BROKEN), None, None)
    order: list[str] = []

    async def read(name: str) -> None:
        await bench.read()
        order.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, "first")
        await wait_all_tasks_blocked()
        nursery.start_soon(read, "second")
    assert order == ["second", "first"]
    bench.idle()


async def test_cancelled_in_a_pause(autojump_clock: MockClock) -> None:
    """Nothing is held then, and nothing is asked after."""
    bench = Bench(connections=1)
    bench.faults = lambda call: Fault(BROKEN)
    with trio.move_on_after(5) as scope:
        await bench.read()
    asked = len(bench.times)
    await trio.sleep(60)
    assert scope.cancelled_caught
    assert len(bench.times) == asked > 1
    bench.idle()


async def test_bytes_count_as_demand_when_a_reader_waits() -> None:
    """Read-ahead that arrives is received and is no demand."""
    bench = Bench()
    await bench.read(0, PIECE_SIZE, claim=Claim(urgent=False))
    await bench.read(0, 100, claim=Claim(urgent=True))
    found = bench.store.statistics()
    assert (found.bytes_received, found.demand_bytes, found.retries) == (PIECE_SIZE + 100, 100, 0)


async def test_many_reads_with_many_failures_are_all_right(autojump_clock: MockClock) -> None:
    """Two hundred reads through three places, every third request broken somewhere: exact bytes, and idle after."""
    bench = Bench(connections=3)
    dice = random.Random(5)

    def fault(call: Call) -> Fault | None:
        length = call.stop - call.start
        return Fault(BROKEN, dice.randrange(length)) if dice.random() < 0.3 else None

    bench.faults = fault

    async def read(start: int) -> None:
        assert await bench.read(start, start + 5000, claim=Claim(urgent=start % 2 == 0)) == DATA[start : start + 5000]

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(read, number * 3001)
    assert bench.inner.most_active <= 3
    assert bench.store.statistics().bytes_received == 200 * 5000
    bench.idle()
