"""What reads under way show, and that one which falls behind is restarted from where it is, and only that one."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.objects import KIB, MIB
from lazyfs.reading.windows import Budget
from lazyfs.stores.base import Claim
from lazyfs.stores.fetch import MOST_RESTARTS
from lazyfs.stores.pace import BEHIND, ENOUGH, GAIN, GRACE, LEAST, LEFT, SAMPLES, SOON, Pace, Progress
from tests.rooms.bench import DATA, Bench
from tests.rooms.memory_store import Call, Valve

SIZE = 8 * MIB
SECONDS = 0.125
"""A read of 8 MiB at 30 ms to the first byte and 90 MB/s takes about this long."""


def round_of(pace: Pace, count: int, began: float, seconds: float = SECONDS, size: int = SIZE) -> None:
    """`count` reads that begin and end together."""
    reads = [pace.begin(size, began) for _ in range(count)]
    for read in reads:
        read.done = size
        pace.end(read, began + seconds, whole=True)


def test_nothing_is_known_at_first() -> None:
    """Nor from reads that broke: they say nothing about what the network can do."""
    pace = Pace()
    for turn in range(ENOUGH):
        round_of(pace, 1, turn * SECONDS)
    broken = pace.begin(SIZE, 3.0)
    pace.end(broken, 4.0, whole=False)
    assert pace.useful is None
    round_of(pace, 1, 5.0)
    assert pace.useful is not None


@pytest.mark.parametrize("count", [8, 16, 32])
def test_useful_is_a_multiple_of_what_was_just_enough(count: int) -> None:
    """So many reads side by side kept so much in flight; the next round may find out whether more would pay."""
    pace = Pace()
    for turn in range(3):
        round_of(pace, count, turn * SECONDS)
    assert pace.useful == GAIN * count * SIZE


def test_nothing_is_said_while_the_rate_still_grows() -> None:
    """A window that doubles with each round is not held to what the last round had; once a round brings no more than
    the one before it, that is what the network can do. A network that is faster later on is found out as well."""
    pace = Pace()
    for turn, count in enumerate((1, 2, 4, 8, 16, 32)):
        round_of(pace, count, turn * SECONDS)
        assert pace.useful is None
    for turn in range(6, 12):
        round_of(pace, 32, turn * SECONDS)
    assert pace.useful == GAIN * 32 * SIZE
    round_of(pace, 2 * ENOUGH, 12 * SECONDS, SECONDS / 8)
    assert pace.useful is None
    round_of(pace, 2 * ENOUGH, 13 * SECONDS, SECONDS / 8)
    assert pace.useful == GAIN * 2 * ENOUGH * SIZE


def test_a_near_server_needs_little() -> None:
    """8 MiB in 5 ms, one after another: more in flight would only lie in memory."""
    pace = Pace()
    for turn in range(ENOUGH + 1):
        round_of(pace, 1, turn * 0.005, 0.005)
    assert pace.useful == max(LEAST, GAIN * SIZE)


def test_what_is_long_past_is_forgotten() -> None:
    """The rate is that of the last reads."""
    pace = Pace()
    round_of(pace, 32, 0.0)
    for turn in range(SAMPLES):
        round_of(pace, 1, 10.0 + turn)
    assert pace.useful == max(LEAST, GAIN * SIZE)


def test_small_reads_do_not_make_the_time_of_large_ones() -> None:
    """The time to the first byte is most of theirs."""
    pace = Pace()
    round_of(pace, 32, 0.0)
    round_of(pace, 24, 1.0, seconds=0.03, size=4 * KIB)
    assert pace.useful == GAIN * 32 * SIZE


def under_way(pace: Pace, count: int, done: int = 0) -> list[Progress]:
    """Reads that have got so far, begun at 0."""
    reads = [pace.begin(SIZE, 0.0) for _ in range(count)]
    for read in reads:
        read.done = done
    return reads


LATE = max(GRACE, BEHIND * SECONDS)


def test_behind_is_who_is_slow_while_others_are_not() -> None:
    """Beyond the grace, and several times what reads of its size take."""
    pace = Pace()
    round_of(pace, ENOUGH, -1.0)
    (slow,) = under_way(pace, 1, 100 * KIB)
    assert pace.behind(LATE) == []
    assert pace.behind(LATE + 0.01) == [slow]
    slow.done = SIZE // 2
    assert pace.behind(LATE + 0.01) == [slow]
    slow.done = SIZE - MIB
    assert pace.behind(LATE + 0.01) == [], "it is nearly there, and asking again takes time too"


def test_behind_is_who_has_next_to_nothing_when_later_ones_are_through() -> None:
    """Once the head of its answer is here, it is old enough, its like take no longer, and one was sent after it."""
    pace = Pace()
    round_of(pace, ENOUGH, -1.0)
    (slow,) = under_way(pace, 1)
    slow.done, slow.answered = SIZE // LEFT - 1, True
    soon = max(SOON, SECONDS) + 0.01
    assert soon < GRACE
    assert pace.behind(soon) == [], "it is the last one"
    round_of(pace, 1, 0.005, seconds=0.03, size=MIB)
    assert pace.behind(soon) == [], "that was a small one"
    round_of(pace, 1, 0.005, seconds=0.09)
    assert pace.behind(soon) == [slow]
    assert pace.behind(max(SOON, SECONDS) - 0.01) == []
    slow.done += 1
    assert pace.behind(soon) == [], "it may catch up"
    slow.done, slow.answered = 0, False
    assert pace.behind(soon) == [], "a server wakes up"
    assert pace.behind(GRACE + BEHIND * SECONDS) == [slow]


def test_when_many_are_slow_none_is_behind() -> None:
    """It is the network then, and more requests would not help it."""
    pace = Pace()
    round_of(pace, 32, -10.0)
    slow = under_way(pace, 8)
    assert pace.behind(100.0) == []
    for read in slow[2:]:
        read.began = 99.9
    assert set(pace.behind(100.0)) == set(slow[:2])


def test_small_reads_are_held_to_small_ones() -> None:
    """And where none were alike, to the rate of all."""
    pace = Pace()
    round_of(pace, ENOUGH, -1.0, seconds=0.04, size=MIB)
    (large,) = under_way(pace, 1)
    assert pace.behind(BEHIND * 8 * 0.04 - 0.01) == []
    assert pace.behind(BEHIND * 8 * 0.04 + 0.01) == [large]
    round_of(pace, ENOUGH, -1.0, seconds=2.0)
    assert pace.behind(BEHIND * 2.0 - 0.01) == []


def test_nobody_is_behind_whom_nobody_knows() -> None:
    """Without enough reads that ended, a silence is left to the time-out of the connection."""
    pace = Pace()
    under_way(pace, 1)
    round_of(pace, ENOUGH // 2 - 1, 0.0)
    assert pace.behind(1000.0) == []


class Race:
    """Reads of 64 KiB through a patient store that is watched: all take 10 ms but those in `slow`, whose requests
    wait at valves, one for each."""

    def __init__(self, nursery: trio.Nursery, *slow: int) -> None:
        self.bench = Bench(connections=32)
        self.valves = {name: [Valve() for _ in range(9)] for name in slow}
        self.ended: dict[int, bytes] = {}
        self.nursery = nursery
        self.bench.inner.valve = self._valve
        nursery.start_soon(self.bench.store.watch)

    def _valve(self, call: Call) -> Valve | None:
        turn = sum(stop == call.stop for _, stop in self.bench.inner.gets())
        name = call.stop // (64 * KIB) - 1
        if name not in self.valves:
            self.valves[name] = [Valve()]
            self.nursery.start_soon(self._open_soon, self.valves[name][0])
        return self.valves[name][max(turn, 1) - 1]

    async def _open_soon(self, valve: Valve) -> None:
        await trio.sleep(0.01)
        valve.open()

    async def go(self, *names: int) -> None:
        """Start these reads."""
        for name in names:
            self.nursery.start_soon(self._read, name)
        await wait_all_tasks_blocked()

    async def _read(self, name: int) -> None:
        start = name * 64 * KIB
        self.ended[name] = await self.bench.read(start, start + 64 * KIB, claim=Claim(urgent=False))
        assert self.ended[name] == DATA[start : start + 64 * KIB]

    def restarts(self) -> int:
        """As counted."""
        return self.bench.store.statistics().restarts


async def test_a_read_that_is_behind_goes_on_elsewhere(autojump_clock: MockClock) -> None:
    """Over another connection, from the byte where it was, at once, and it is no failure."""
    async with trio.open_nursery() as nursery:
        race = Race(nursery, 3)
        held, again = race.valves[3][:2]
        held.open(30 * KIB)
        again.open()
        await race.go(3)
        await race.go(10, 11, 12, 13, 14)
        await trio.sleep(0.1)
        assert set(race.ended) == {10, 11, 12, 13, 14}
        await trio.sleep(1)
        assert 3 in race.ended
        gets = [get for get in race.bench.inner.gets() if get[1] == 4 * 64 * KIB]
        assert gets[0] == (3 * 64 * KIB, 4 * 64 * KIB)
        assert len(gets) == 2
        assert gets[1][0] > gets[0][0]
        assert race.restarts() == 1
        assert race.bench.store.statistics().retries == 0
        nursery.cancel_scope.cancel()
    race.bench.idle()


async def test_what_stays_slow_is_waited_for(autojump_clock: MockClock) -> None:
    """After so many restarts it is not the connection: the read goes on and is right in the end."""
    async with trio.open_nursery() as nursery:
        race = Race(nursery, 3)
        for valve in race.valves[3]:
            valve.open(0)
        await race.go(3)
        for turn in range(6):
            await trio.sleep(1)
            await race.go(*range(5 + 4 * turn, 9 + 4 * turn))
        assert race.restarts() == MOST_RESTARTS
        assert 3 not in race.ended
        race.valves[3][MOST_RESTARTS].open()
        await trio.sleep(1)
        assert 3 in race.ended
        nursery.cancel_scope.cancel()
    race.bench.idle()


async def test_nothing_runs_while_nothing_is_read(autojump_clock: MockClock) -> None:
    """The watch sleeps until there is something to watch: an idle mount uses no CPU."""
    async with trio.open_nursery() as nursery:
        race = Race(nursery)
        await race.go(1)
        await trio.sleep(1)
        assert 1 in race.ended
        before = trio.current_time()
        with trio.move_on_after(3600):
            await trio.sleep_forever()
        assert trio.current_time() - before >= 3600
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")
        nursery.cancel_scope.cancel()
    race.bench.idle()


def test_windows_follow_what_pays() -> None:
    """What the store has seen bounds what streams may have ahead, and is shared among them."""
    useful: list[int | None] = [None]
    budget = Budget(256 * MIB, lambda: useful[0])
    assert budget.share(1) == 256 * MIB
    useful[0] = 64 * MIB
    assert budget.share(1) == 64 * MIB
    assert budget.share(2) == 32 * MIB
    for stream in range(3, 33):
        assert budget.share(stream) == max(8 * MIB, 64 * MIB // stream)
    budget = Budget(256 * MIB, lambda: useful[0])
    budget.share(2)
    useful[0] = 1 << 40
    assert budget.share(1) == 128 * MIB
