"""The gate in front of a store: who is let in, in which order, and that a place is never lost."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.errors import Dropped
from lazyfs.stores.base import Claim
from lazyfs.stores.gate import Bound, Gate, reserve_of
from lazyfs.stores.tempo import Tempo
from tests.rooms.bench import DATA, Bench
from tests.rooms.memory_store import Valve


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

    async def come(self, name: int, *, urgent: bool, lane: str = "") -> None:
        """A read of ten bytes at offset `name`, and everything has settled."""
        self.claims[name] = Claim(urgent=urgent, lane=lane)
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


async def test_lanes_share_evenly() -> None:
    """One that has queued much does not make another wait: whoever holds fewer places is next."""
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, 4)
        for name in (10, 20, 30, 40, 50):
            await crowd.come(name, urgent=False, lane="greedy")
        for name in (60, 70, 80):
            await crowd.come(name, urgent=False, lane="late")
        assert crowd.sent() == [10, 20, 30]
        for name in (10, 20, 30, 60, 40, 70, 50, 80):
            await crowd.serve(name)
        assert crowd.sent() == [10, 20, 30, 60, 40, 50, 70, 80]
    crowd.bench.idle()


@pytest.mark.parametrize(("places", "reserve"), [(1, 0), (2, 1), (8, 1), (32, 4), (64, 8)])
async def test_the_reserve_is_an_eighth(places: int, reserve: int) -> None:
    """But never all there is: with one place only, read-ahead uses it too."""
    assert reserve_of(places) == reserve
    assert let_in(Gate(places), urgent=False) == places - reserve


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
    first = Claim(urgent=True)
    await gate.enter(first)
    entered: list[int] = []
    scopes = [trio.CancelScope(), trio.CancelScope()]

    async def enter(number: int) -> None:
        with scopes[number]:
            claim = Claim(urgent=True)
            await gate.enter(claim)
            entered.append(number)
            gate.leave(claim)

    async with trio.open_nursery() as nursery:
        for number in (0, 1):
            nursery.start_soon(enter, number)
            await wait_all_tasks_blocked()
        scopes[0].cancel()
        gate.leave(first)
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


# ---- several who ask one endpoint


def let_in(gate: Gate, *, urgent: bool = True, count: int = 99) -> int:
    """How many more reads are let in at once, of so many that come; they stay."""
    found = 0
    while found < count:
        asking = gate.enter(Claim(urgent=urgent))
        try:
            asking.send(None)
        except StopIteration:
            found += 1
        else:
            with pytest.raises(GeneratorExit):
                asking.throw(GeneratorExit())
            break
    return found


def leave(gate: Gate, count: int = 1) -> None:
    """So many reads end."""
    for _ in range(count):
        gate.leave(Claim(urgent=True))


async def test_several_have_one_bound_and_each_a_part_that_no_other_takes() -> None:
    """One whose reads are never answered may hold all places but one of each that is idle, and lets go of a part of
    them to who comes; of who has come, nobody takes that part."""
    bound = Bound(32)
    dead, living = Gate(32, bound), Gate(32, bound)
    assert let_in(dead) == 31
    assert let_in(living) == 1
    leave(dead, 7)
    assert let_in(dead) == 0
    assert let_in(living) == 7
    leave(living, 8)
    assert let_in(dead) == 7
    several = Bound(32)
    gates = [Gate(32, several) for _ in range(4)]
    assert [let_in(gate) for gate in gates] == [29, 1, 1, 1]


@pytest.mark.parametrize(("most", "places"), [((32, 32), 31), ((4, 32), 4), ((32,), 32)])
async def test_demand_has_a_reserve_of_what_is_left_to_its_own(most: tuple[int, ...], places: int) -> None:
    """Read-ahead of a source leaves an eighth of the places that the source may have, and not of all there are."""
    bound = Bound(max(most))
    gate, *_ = [Gate(one, bound) for one in most]
    ahead = places - max(1, places // 8)
    assert let_in(gate, urgent=False) == ahead
    assert let_in(gate) == places - ahead


async def test_an_endpoint_that_takes_one_at_a_time_is_asked_by_all() -> None:
    """In turn: a part of one place is none, and nobody is shut out."""
    bound = Bound(1)
    gates = [Gate(1, bound) for _ in range(3)]
    for gate in gates:
        assert let_in(gate) == 1
        assert [let_in(one) for one in gates] == [0, 0, 0]
        leave(gate)


async def test_a_place_that_comes_back_goes_to_who_waits_at_another_gate() -> None:
    """Where the one that had it may have no more, or has nobody who waits."""
    bound = Bound(4)
    busy, other = Gate(4, bound), Gate(4, bound)
    assert (let_in(busy), let_in(other)) == (3, 1)
    order: list[str] = []

    async def come(name: str, gate: Gate) -> None:
        await gate.enter(Claim(urgent=True))
        order.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come, "other", other)
        await wait_all_tasks_blocked()
        assert order == []
        leave(busy)
        await wait_all_tasks_blocked()
        assert order == ["other"]
        nursery.start_soon(come, "busy", busy)
        await wait_all_tasks_blocked()
        assert order == ["other"]
        leave(other)
    assert order == ["other", "busy"]


async def test_what_is_refused_to_one_narrows_no_other() -> None:
    """A bucket that is asked too often is that one's affair."""
    bound = Bound(32)
    one, two = Gate(32, bound), Gate(32, bound)
    for _ in range(5):
        one.narrow()
    assert (let_in(one), let_in(two)) == (1, 31)


# ---- the tempo after a refusal


async def test_demand_has_the_next_turn(autojump_clock: MockClock) -> None:
    """However much read-ahead waits for its own: one in a second each, from the first, which is at once."""
    tempo = Tempo(32, clock=trio.current_time)
    tempo.rate = 1.0
    began, order = trio.current_time(), list[tuple[str, float]]()

    async def ask(name: str, claim: Claim) -> None:
        await tempo.turn(claim)
        order.append((name, round(trio.current_time() - began, 6)))

    urged = Claim(urgent=False)
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(ask, f"ahead {number}", Claim(urgent=False))
            await wait_all_tasks_blocked()
        nursery.start_soon(ask, "urged", urged)
        await wait_all_tasks_blocked()
        await trio.sleep(0.5)
        nursery.start_soon(ask, "demand", Claim(urgent=True))
        await trio.sleep(1.0)
        urged.urge()
    assert order == [("ahead 0", 0.0), ("demand", 1.0), ("urged", 2.0), ("ahead 1", 3.0), ("ahead 2", 4.0)]


async def test_a_tempo_that_grows_or_ends_is_not_waited_for(autojump_clock: MockClock) -> None:
    """Nobody has a moment that was settled when it was slow."""
    tempo = Tempo(32, clock=trio.current_time)
    tempo.slower()
    tempo.rate = 0.01
    began, ends = trio.current_time(), list[float]()

    async def ask() -> None:
        await tempo.turn(Claim(urgent=False))
        ends.append(round(trio.current_time() - began, 6))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(ask)
        await trio.sleep(2.0)
        tempo.rate = 0.25
        tempo.worked()
        await trio.sleep(2.5)
        tempo._refused = -1000.0  # long ago, and little was asked since
        tempo.worked()
        assert tempo.rate is None
    assert ends[0] == 0.0
    assert 2.0 < ends[1] <= 4.0
    assert ends[2:] == [4.5, 4.5]


async def test_who_is_cancelled_leaves_the_turn_to_the_next(autojump_clock: MockClock) -> None:
    """At the moment at which it would have been his."""
    tempo = Tempo(32, clock=trio.current_time)
    tempo.rate = 1.0
    began = trio.current_time()
    await tempo.turn(Claim(urgent=True))
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(tempo.turn, Claim(urgent=True))
                await wait_all_tasks_blocked()
                nursery.start_soon(tempo.turn, Claim(urgent=False))
                await wait_all_tasks_blocked()
                scope.cancel()
    assert trio.current_time() - began == 1.0


async def test_what_is_dropped_while_it_waits_for_its_turn_is_not_sent(autojump_clock: MockClock) -> None:
    """And has no turn, which who wants something waits for."""
    tempo = Tempo(32, clock=trio.current_time)
    tempo.rate = 1.0
    began = trio.current_time()
    await tempo.turn(Claim(urgent=False))
    claims = [Claim(urgent=False) for _ in range(3)]
    ends: list[str] = []

    async def ask(name: str, claim: Claim) -> None:
        try:
            await tempo.turn(claim)
            ends.append(f"{name} {trio.current_time() - began:g}")
        except Dropped:
            ends.append(f"{name} dropped {trio.current_time() - began:g}")

    async with trio.open_nursery() as nursery:
        for number, claim in enumerate(claims):
            nursery.start_soon(ask, str(number), claim)
            await wait_all_tasks_blocked()
        await trio.sleep(0.5)
        for claim in claims[:2]:
            claim.drop()
    assert [*sorted(ends[:2]), ends[2]] == ["0 dropped 0.5", "1 dropped 0.5", "2 1"]
