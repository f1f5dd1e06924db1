"""Patience around a store: what is asked again and from where, how long, and who may ask at all. Time is a fake."""

import random
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.errors import AccessDenied, Dropped, NotFound, ObjectChanged, StoreError, Transient, Unreachable
from lazyfs.objects import KIB, MIB
from lazyfs.stores.base import Claim
from lazyfs.stores.fetch import FIRST_PAUSE, LONGEST_PAUSE, Gate, PatientStore
from tests.rooms.building import pattern
from tests.rooms.memory_store import PIECE_SIZE, Call, Fault, MemoryStore, Valve, in_turn

DATA = pattern(2 * MIB)
BROKEN = Transient("broken")


class Bench:
    """A patient store around one in memory, with one object, and the times at which it was asked."""

    def __init__(self, *, connections: int = 4, retry_budget: float = 300.0, seed: int = 1) -> None:
        self.inner = MemoryStore()
        self.version = self.inner.put("k", DATA)
        self.times: list[float] = []
        self.faults: Callable[[Call], Fault | None] = in_turn()
        self.inner.fault = self._asked
        self.store = PatientStore(
            self.inner, connections=connections, retry_budget=retry_budget, rng=random.Random(seed)
        )

    def _asked(self, call: Call) -> Fault | None:
        self.times.append(trio.current_time())
        return self.faults(call)

    async def read(self, start: int = 0, stop: int = 100, *, claim: Claim | None = None) -> bytes:
        """The bytes of a range, through two buffers."""
        buffer = bytearray(stop - start)
        view = memoryview(buffer)
        middle = len(view) // 3
        counts: list[int] = []
        claim = claim or Claim(urgent=True)
        await self.store.read(self.version, start, [view[:middle], view[middle:]], counts.append, claim)
        assert counts == sorted(counts)
        assert counts[-1] == len(buffer)
        return bytes(buffer)

    def idle(self) -> None:
        """Nothing is under way and nobody waits: what every test must leave behind."""
        assert self.store._gate.in_use == 0
        assert not self.store._gate._waiting
        assert self.inner.active == 0


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


class Crowd:
    """Reads at a store that holds them, so that who is let in, and when, is seen in its calls."""

    def __init__(self, nursery: trio.Nursery, connections: int) -> None:
        self.bench = Bench(connections=connections)
        self.valves: dict[int, Valve] = {}
        self.ended: dict[int, str] = {}
        self.claims: dict[int, Claim] = {}
        self.scopes: dict[int, trio.CancelScope] = {}
        self.bench.inner.valve = lambda call: self.valves.setdefault(call.start, Valve())
        self._nursery = nursery

    async def come(self, name: int, *, urgent: bool) -> None:
        """A read of ten bytes at offset `name`, and everything has settled."""
        self.claims[name] = Claim(urgent=urgent)
        self.scopes[name] = trio.CancelScope()
        self._nursery.start_soon(self._read, name)
        await wait_all_tasks_blocked()

    async def _read(self, name: int) -> None:
        with self.scopes[name]:
            try:
                data = await self.bench.read(name, name + 10, claim=self.claims[name])
                self.ended[name] = "right" if data == DATA[name : name + 10] else "wrong"
            except Dropped:
                self.ended[name] = "dropped"
        if self.scopes[name].cancelled_caught:
            self.ended[name] = "cancelled"

    async def serve(self, name: int) -> None:
        """Let one read that is under way end."""
        self.valves.setdefault(name, Valve()).open()
        await wait_all_tasks_blocked()

    def sent(self) -> list[int]:
        """The reads that were sent, in order."""
        return [start for start, _ in self.bench.inner.gets()]


async def test_demand_passes_read_ahead_that_waits() -> None:
    """Whoever waits for bytes is next, however many guesses came before; guesses go in their order."""
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, 1)
        await crowd.come(10, urgent=False)
        for name in (20, 30):
            await crowd.come(name, urgent=False)
        for name in (40, 50):
            await crowd.come(name, urgent=True)
        assert crowd.sent() == [10]
        for name in (10, 40, 50, 20, 30):
            await crowd.serve(name)
        assert crowd.sent() == [10, 40, 50, 20, 30]
    crowd.bench.idle()


async def test_read_ahead_leaves_places_for_demand() -> None:
    """An eighth of them, and at least one of several: demand does not wait for a guess to end."""
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, 4)
        for name in (10, 20, 30, 40):
            await crowd.come(name, urgent=False)
        assert crowd.sent() == [10, 20, 30]
        await crowd.come(50, urgent=True)
        assert crowd.sent() == [10, 20, 30, 50]
        await crowd.come(60, urgent=True)
        await crowd.serve(50)
        assert crowd.sent() == [10, 20, 30, 50, 60]
        for name in (60, 10, 20, 30, 40):
            await crowd.serve(name)
    assert crowd.bench.inner.most_active == 4
    assert set(crowd.ended.values()) == {"right"}
    crowd.bench.idle()


@pytest.mark.parametrize(("places", "reserve"), [(1, 0), (2, 1), (8, 1), (32, 4), (64, 8)])
def test_the_reserve_is_an_eighth(places: int, reserve: int) -> None:
    """But never all there is: with one place only, read-ahead uses it too."""
    assert Gate(places).reserve == reserve


async def test_a_reader_urges_what_was_queued_as_a_guess() -> None:
    """It is sent at once if a place is kept for demand, and before other guesses in any case."""
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, 2)
        for name in (10, 20, 30, 40):
            await crowd.come(name, urgent=False)
        assert crowd.sent() == [10]
        crowd.claims[30].urge()
        await wait_all_tasks_blocked()
        assert crowd.sent() == [10, 30]
        crowd.claims[40].urge()
        for name in (10, 30, 40, 20):
            await crowd.serve(name)
        assert crowd.sent() == [10, 30, 40, 20]
    crowd.bench.idle()


async def test_what_is_dropped_in_the_queue_is_never_sent() -> None:
    """It ends as `Dropped`; one that was sent, or is urgent, goes on."""
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, 1)
        await crowd.come(10, urgent=False)
        await crowd.come(20, urgent=False)
        await crowd.come(30, urgent=True)
        for claim in crowd.claims.values():
            claim.drop()
        await wait_all_tasks_blocked()
        assert crowd.ended == {20: "dropped"}
        await crowd.serve(10)
        await crowd.serve(30)
        assert crowd.sent() == [10, 30]
    assert crowd.ended == {20: "dropped", 10: "right", 30: "right"}
    crowd.bench.idle()


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


async def test_cancelled_in_the_queue() -> None:
    """It leaves the queue; those behind it are served, and it was never sent."""
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, 1)
        for name in (10, 20, 30):
            await crowd.come(name, urgent=True)
        crowd.scopes[20].cancel()
        await wait_all_tasks_blocked()
        await crowd.serve(10)
        await crowd.serve(30)
        assert crowd.sent() == [10, 30]
    assert crowd.ended[20] == "cancelled"
    crowd.bench.idle()


async def test_cancelled_as_it_is_let_in() -> None:
    """Granted a place and cancelled in the same moment: the place passes to the next in the queue."""
    gate = Gate(1)
    await gate.enter(Claim(urgent=True))
    entered: list[int] = []
    scopes = [trio.CancelScope(), trio.CancelScope()]

    async def enter(number: int) -> None:
        with scopes[number]:
            await gate.enter(Claim(urgent=True))
            entered.append(number)
            gate.leave()

    async with trio.open_nursery() as nursery:
        for number in (0, 1):
            nursery.start_soon(enter, number)
            await wait_all_tasks_blocked()
        scopes[0].cancel()
        gate.leave()
    assert 1 in entered
    assert gate.in_use == 0


async def test_cancelled_while_it_reads() -> None:
    """The place is given back and the next one is sent."""
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, 1)
        for name in (10, 20):
            await crowd.come(name, urgent=True)
        crowd.scopes[10].cancel()
        await wait_all_tasks_blocked()
        assert crowd.sent() == [10, 20]
        await crowd.serve(20)
    assert crowd.ended == {10: "cancelled", 20: "right"}
    crowd.bench.idle()


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
