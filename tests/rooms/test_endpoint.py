"""One state for all who ask an endpoint: how it gives way, how it holds newcomers back, how it ends. Time is a fake."""

import pytest
import trio
from trio.testing import MockClock

from lazyfs.errors import NotFound, Transient, Unreachable
from lazyfs.objects import KIB, MIB
from lazyfs.stores.base import Claim
from lazyfs.stores.endpoint import LONGEST_PAUSE, SPREAD
from lazyfs.stores.fetch import PROGRESS
from lazyfs.stores.pace import STALL
from tests.rooms.bench import BROKEN, DATA, Bench
from tests.rooms.memory_store import Fault, Valve, in_turn

SLOW_DOWN = Transient("SlowDown", slow_down=True)


async def read_all(bench: Bench, count: int) -> None:
    """So many reads at once, of different bytes, each right."""

    async def one(number: int) -> None:
        assert await bench.read(number * 10, number * 10 + 10) == DATA[number * 10 : number * 10 + 10]

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)


async def test_slow_down_halves_what_may_be_under_way_and_it_grows_back(autojump_clock: MockClock) -> None:
    """Eight that are refused at once are one word; each round that works gives one place back."""
    bench = Bench(connections=8)
    bench.faults = in_turn(*[Fault(SLOW_DOWN)] * 8)
    await read_all(bench, 8)
    assert bench.store.statistics().slow_downs == 8
    places = [bench.store.statistics().connections]
    assert places == [5], "4, and one more after the first four that worked"
    for _ in range(5 + 6 + 7):
        await bench.read()
        places.append(bench.store.statistics().connections)
    assert places == sorted(places)
    assert places[-1] == 8
    await read_all(bench, 40)
    assert bench.inner.most_active == 8
    bench.idle()


@pytest.mark.parametrize("connections", [1, 2, 5])
async def test_there_is_always_a_place(connections: int, autojump_clock: MockClock) -> None:
    bench = Bench(connections=connections)
    bench.faults = in_turn(*[Fault(SLOW_DOWN)] * 20)
    await bench.read()
    assert bench.store.statistics().connections >= 1
    assert bench.store.statistics().slow_downs == 20
    bench.idle()


async def test_what_is_narrowed_holds(autojump_clock: MockClock) -> None:
    """After SlowDown no more than half is under way, whoever asks."""
    bench = Bench(connections=8)
    bench.faults = in_turn(Fault(SLOW_DOWN))
    await bench.read()
    bench.inner.most_active = 0
    valve = Valve()
    bench.inner.valve = lambda call: valve
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all, bench, 20)
        await trio.sleep(10)  # they are sent one after the other, for a while
        assert bench.inner.active == 4
        valve.open()
    bench.idle()


async def test_newcomers_wait_for_an_endpoint_that_is_down(autojump_clock: MockClock) -> None:
    """Two rounds have failed: who comes now does not ask before the pause is over."""
    bench = Bench()
    bench.faults = lambda call: Fault(BROKEN)
    async with trio.open_nursery() as nursery:

        async def first() -> None:
            with pytest.raises(Unreachable):
                await bench.read(0, 10)
            raise AssertionError("not within ten seconds")

        nursery.start_soon(first)
        await trio.sleep(10)
        bench.faults = lambda call: Fault(BROKEN) if call.start == 0 else None
        failures = len(bench.times)
        last = bench.times[-1]
        assert await bench.read(100, 110) == DATA[100:110]
        asked = next(
            time for time, call in zip(bench.times[failures:], bench.inner.calls[failures:], strict=True) if call.start
        )
        assert asked - last > 1.6, "the seventh pause lasts 3.2 seconds at least"
        nursery.cancel_scope.cancel()
    bench.idle()


async def test_newcomers_have_no_more_patience_than_others(autojump_clock: MockClock) -> None:
    """Waiting for the endpoint counts: whoever comes in an outage gets the error within the budget."""
    bench = Bench(retry_budget=2)
    bench.faults = lambda call: Fault(BROKEN)
    for _ in range(6):
        came = trio.current_time()
        with pytest.raises(Unreachable):
            await bench.read()
        assert trio.current_time() - came <= 2
    bench.idle()


async def test_the_first_answer_ends_every_pause(autojump_clock: MockClock) -> None:
    """Twenty readers are in pauses of seconds when the server is back: one finds out, and the others follow at once."""
    bench = Bench(connections=32)
    bench.faults = lambda call: Fault(BROKEN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all, bench, 20)
        await trio.sleep(60)
        bench.faults = in_turn()
        asked = len(bench.times)
    after = bench.times[asked:]
    assert len(after) == 20
    assert after[-1] - after[0] <= SPREAD + 1e-6
    assert after[0] - 60 <= LONGEST_PAUSE
    assert len(set(after)) > 10, "spread by chance, not all at once"
    bench.idle()


async def test_an_outage_is_asked_about_seldom(autojump_clock: MockClock) -> None:
    """A minute of it costs each of 20 readers as many requests as pauses fit in, and not more."""
    bench = Bench(connections=32)
    bench.faults = lambda call: Fault(BROKEN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all, bench, 20)
        await trio.sleep(60)
        asked = len(bench.times)
        bench.faults = in_turn()
    assert asked <= 20 * 18
    bench.idle()


async def test_one_read_that_fails_holds_nobody_else(autojump_clock: MockClock) -> None:
    """Among others that work it is not the endpoint."""
    bench = Bench(connections=32)
    bench.faults = lambda call: Fault(BROKEN) if call.start == 0 else None
    waited: list[float] = []
    async with trio.open_nursery() as nursery:

        async def failing() -> None:
            with pytest.raises(Unreachable):
                await bench.read(0, 10)
            nursery.cancel_scope.cancel()

        nursery.start_soon(failing)
        while True:
            await trio.sleep(1)
            came = trio.current_time()
            await bench.read(100, 110)
            waited.append(trio.current_time() - came)
    assert len(waited) > 200
    # Between two of its failures nothing else may have worked, when they come closer than the others do.
    assert sum(seconds > 0 for seconds in waited) <= 2
    failures = [call for call in bench.inner.calls if call.start == 0]
    assert len(failures) < 60, "and its own pauses grow all the same"
    bench.idle()


async def test_an_answer_that_refuses_is_an_answer(autojump_clock: MockClock) -> None:
    bench = Bench()
    bench.faults = in_turn(Fault(SLOW_DOWN), Fault(NotFound("gone")))
    with pytest.raises(NotFound):
        await bench.read()
    assert not bench.store._endpoint.down


async def test_patience_begins_anew_with_every_piece(autojump_clock: MockClock) -> None:
    """A network that breaks every connection after some bytes and is away for 40 s each time is slow, and not gone: a
    budget of 60 s is no bound on the whole."""
    bench = Bench(retry_budget=60)
    down_until = 0.0

    def fault(call: object) -> Fault | None:
        nonlocal down_until
        if trio.current_time() < down_until:
            return Fault(BROKEN)
        down_until = trio.current_time() + 40
        return Fault(BROKEN, PROGRESS * 4)

    bench.faults = fault
    assert await bench.read(0, 2 * MIB) == DATA
    assert trio.current_time() > 4 * 60
    bench.idle()


async def test_a_few_bytes_are_no_progress(autojump_clock: MockClock) -> None:
    bench = Bench(retry_budget=60)
    bench.faults = lambda call: Fault(BROKEN, 1 * KIB)
    with pytest.raises(Unreachable):
        await bench.read(0, 2 * MIB)
    assert trio.current_time() <= 60


async def test_a_trickle_is_broken_off(autojump_clock: MockClock) -> None:
    """Next to nothing for a while is as good as silence; what came is kept, and the read goes on elsewhere."""
    bench = Bench()
    held, free = Valve(), Valve()
    held.open(PROGRESS // 2)
    free.open()
    valves = iter([held, free])
    given: dict[int, Valve] = {}
    bench.inner.valve = lambda call: given.get(len(bench.inner.calls)) or given.setdefault(
        len(bench.inner.calls), next(valves)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.store.watch)
        assert await bench.read(0, MIB, claim=Claim(urgent=True)) == DATA[:MIB]
        nursery.cancel_scope.cancel()
    assert STALL <= trio.current_time() <= STALL + 2
    found = bench.store.statistics()
    assert (found.get_requests, found.retries, found.restarts) == (2, 1, 0)
    bench.idle()
