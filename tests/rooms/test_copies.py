"""Tensors that are copied out of a mapping one after another, from their last page down as much as from their first one
up: one reader, with one window ahead of him."""

from collections.abc import Iterator
from itertools import pairwise

import pytest

from lazyfs.objects import GIB, KIB, MIB, align_down, chunk_range
from lazyfs.reading.meeting import pass_over, reach
from lazyfs.reading.plans import NOTHING
from lazyfs.reading.runs import Run
from lazyfs.reading.streams import Streams
from lazyfs.reading.table import MOST_STREAMS, Table
from lazyfs.reading.windows import LARGEST_WINDOW, STEP, Budget
from lazyfs.reading.young import Young

PAGE = 4 * KIB
AROUND = 128
"""Pages that the kernel reads before one that is touched, and from it on."""

SIZE = 2 * GIB


class Mapped:
    """The reads of who copies tensors out of a mapping, as a kernel sends them that keeps every page: it reads half a
    MiB to either side of a page that is touched, but for what it has."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._has = bytearray(size // PAGE)

    def touch(self, page: int) -> Iterator[tuple[int, int]]:
        """The read for this page, if one is sent."""
        if not self._has[page]:
            start = self._has.rfind(1, max(0, page - AROUND), page) + 1 or max(0, page - AROUND)
            stop = self._has.find(1, page, page + AROUND)
            stop = min(len(self._has), page + AROUND) if stop < 0 else stop
            self._has[start:stop] = b"\1" * (stop - start)
            yield start * PAGE, stop * PAGE

    def copy(self, begin: int, end: int, *, down: bool) -> Iterator[tuple[int, int]]:
        """The reads for a tensor: memcpy loads its end first, then its beginning, then goes through it."""
        first, last = begin // PAGE, (end - 1) // PAGE
        yield from self.touch(last)
        yield from self.touch(first)
        look = self._has.rfind if down else self._has.find
        while (page := look(0, first, last + 1)) >= 0:
            yield from self.touch(page)


def copied(made: Streams, borders: list[int], turns: str) -> tuple[list[int], int]:
    """The chunks that are planned while the tensors between these borders are copied, each as often as it is, and the
    most streams that something is planned ahead of."""
    planned: list[int] = []
    most, mapped = 0, Mapped(SIZE)
    for number, (begin, end) in enumerate(pairwise(borders)):
        for start, stop in mapped.copy(begin, end, down=turns == "down" or (turns == "by turns" and number % 2 == 0)):
            for part in made.observe(start, stop).ranges:
                planned += chunk_range(*part)
            most = max(most, made.ahead()[0])
    return planned, most


@pytest.mark.parametrize(("budget", "turns"), [(GIB, "down"), (GIB, "up"), (GIB, "by turns"), (16 * MIB, "up")])
@pytest.mark.parametrize("length", [6 * MIB, 28 * MIB, 100 * MIB + 20 * KIB])
def test_tensors_that_are_copied_one_after_another_are_one_stream(length: int, turns: str, budget: int) -> None:
    """Each end that is touched lies in its plan, and so does what is read down from there. Nothing is planned again but
    the last 4 MiB of those, which count as jumped over, and the ends in front of a small window."""
    made = Streams(SIZE, Budget(budget))
    borders = [64 * KIB, *range(64 * KIB + length, SIZE, length)]
    made.tensors.know([*borders, SIZE])
    planned, most = copied(made, borders, turns)
    assert most == 1
    assert made.latest.low == 0
    assert made.latest.high >= borders[-1] - MIB, "all but the end, which was touched first"
    assert made.latest.window == min(LARGEST_WINDOW, budget)
    assert set(planned) >= set(range(borders[-1] // MIB))
    assert len(planned) - len(set(planned)) <= 3 * len(borders)
    ahead = align_down(max(0, made.latest.high + made.latest.window - SIZE), STEP)
    assert made.beyond == (ahead if made.latest.high >= made.latest.promised else 0)


def test_where_nobody_knows_the_tensors_what_lies_in_the_plan_is_left_to_its_reader() -> None:
    """Once one of them was copied upwards."""
    made = Streams(SIZE, Budget(GIB))
    borders = list(range(64 * KIB, SIZE, 28 * MIB))
    planned, most = copied(made, borders, "by turns")
    assert most == 2, "the first one, downwards"
    assert made.latest.window == LARGEST_WINDOW
    assert len(planned) - len(set(planned)) <= 3 * len(borders)


def test_who_reads_down_ahead_of_a_reader_is_met() -> None:
    """Until then both are where they are, and nothing more is brought for either."""
    made = Streams(SIZE, Budget(GIB))
    for start in range(0, 16 * MIB, MIB):
        made.observe(start, start + MIB)
    ahead = made.ahead()
    for start in range(60 * MIB, 17 * MIB, -MIB):
        assert made.observe(start, start + MIB) is NOTHING
        assert made.ahead() == ahead
    assert made.observe(17 * MIB, 18 * MIB) is NOTHING
    plan = made.observe(16 * MIB, 17 * MIB)
    assert made.latest.high == 61 * MIB
    assert plan.ranges == ((ahead[1] + 16 * MIB, 61 * MIB + LARGEST_WINDOW - 5 * MIB),)


def test_who_reads_down_where_nothing_is_planned_any_more_has_it_planned() -> None:
    """The reader went elsewhere, and what was planned for him was given up."""
    made = Streams(SIZE, Budget(GIB))
    for start in range(0, 16 * MIB, MIB):
        made.observe(start, start + MIB)
    assert made.observe(60 * MIB, 61 * MIB) is NOTHING
    assert made.observe(59 * MIB, 60 * MIB) is NOTHING
    for start in range(GIB, GIB + 40 * MIB, MIB):
        made.observe(start, start + MIB)
    assert made.ahead()[0] == 1
    plan = made.observe(58 * MIB, 59 * MIB)
    assert plan.ranges[:2] == ((58 * MIB, 59 * MIB), (57 * MIB, 58 * MIB))
    assert made.ahead()[0] == 2


def test_a_gap_that_the_kernel_has_is_no_gap() -> None:
    """What it read around the first page of a tensor reaches into the one before."""
    made = Streams(SIZE, Budget(GIB))
    for start in range(0, 16 * MIB, MIB):
        made.observe(start, start + MIB)
    for start in range(60 * MIB, 17 * MIB, -MIB):
        made.observe(start, start + MIB)
    made.observe(16 * MIB + 256 * KIB, 18 * MIB)
    assert made.latest.high == 61 * MIB


def test_touches_where_somebody_will_read_say_nothing_of_touches_elsewhere() -> None:
    """However many, who begins elsewhere is taken to go on with his second read."""
    made = Streams(SIZE, Budget(GIB))
    for start in range(0, 32 * MIB, MIB):
        made.observe(start, start + MIB)
    for number in range(60):
        assert made.observe((37 + 3 * number) * MIB + 4 * KIB, (38 + 3 * number) * MIB) is NOTHING
    assert not made.observe(GIB + 512 * KIB, GIB + 1536 * KIB).alone
    assert made.observe(GIB + 1536 * KIB, GIB + 2560 * KIB).ranges == ((GIB + 2 * MIB, GIB + 11 * MIB),)


def test_a_run_that_goes_through_a_tensor_keeps_what_it_has() -> None:
    """Its window, and what was planned."""
    need = 79 * MIB, 81 * MIB
    run = Run(low=0, high=50 * MIB, frontier=60 * MIB, step=1, window=64 * MIB)
    assert run.through(80 * MIB, need, 256 * MIB, leading=False) == ((60 * MIB, 79 * MIB),)
    assert (run.window, run.frontier, run.promised) == (64 * MIB, 81 * MIB, 80 * MIB)
    run = Run(low=0, high=50 * MIB, frontier=60 * MIB, step=1, window=8 * MIB)
    assert run.through(80 * MIB, need, 8 * MIB, leading=False) == ()
    assert (run.window, run.frontier) == (8 * MIB, 60 * MIB)


def by_ranks(made: Streams, borders: list[int], ranks: int) -> tuple[list[int], int, int]:
    """The chunks that are planned while as many ranks take turns copying their parts of each tensor, each as often as
    it is; how many of them were given up; and the most streams at once."""

    def rank(number: int) -> Iterator[tuple[int, int]]:
        for begin, end in pairwise(borders):
            part = (end - begin) // ranks
            yield from mapped.copy(begin + number * part, begin + (number + 1) * part, down=False)

    mapped = Mapped(SIZE)
    readers = [rank(number) for number in range(ranks)]
    planned: list[int] = []
    most = dropped = 0
    while readers:
        for reader in list(readers):
            read = next(reader, None)
            if read is None:
                readers.remove(reader)
                continue
            plan = made.observe(*read)
            dropped += sum(len(chunk_range(*part)) for part in plan.dropped)
            for part in plan.ranges:
                planned += chunk_range(*part)
            most = max(most, made.ahead()[0])
    return planned, dropped, most


@pytest.mark.parametrize(
    ("length", "ranks"), [(6 * MIB, 2), (28 * MIB, 2), (28 * MIB, 4), (100 * MIB, 2), (100 * MIB, 4)]
)
def test_ranks_that_copy_their_parts_of_tensors_are_one_stream_in_the_end(length: int, ranks: int) -> None:
    """While one reads his part, the next one is another stream; where he ends they are the same, and what that has
    ahead is there for all. Nothing is given up, and all streams that are left are those of the last tensor."""
    made = Streams(SIZE, Budget(GIB))
    borders = [64 * KIB, *range(64 * KIB + length, SIZE, length)]
    made.tensors.know([*borders, SIZE])
    planned, dropped, most = by_ranks(made, borders, ranks)
    assert dropped == 0
    assert most <= ranks + 1
    assert set(planned) >= set(range(borders[-1] // MIB))
    assert made.latest.low == 0
    assert made.latest.window == LARGEST_WINDOW
    assert made.ahead()[0] <= 2


def test_what_joins_has_all_that_both_had() -> None:
    """Two readers, of whom one gets to where the other began, and had begun before: one stream, which knows what the
    second one has planned, and plans what it still lacks of its own."""
    made = Streams(SIZE, Budget(GIB))
    for start in range(0, 8 * MIB, MIB):
        made.observe(start, start + MIB)
        made.observe(start + 100 * MIB, start + 101 * MIB)
    (first, second) = sorted(made._table.active, key=lambda run: run.low)
    assert (first.high, second.low, second.high) == (8 * MIB, 100 * MIB, 108 * MIB)
    for start in range(8 * MIB, 100 * MIB, MIB):
        assert made.observe(start, start + MIB).run in (first, None)
        assert made.observe(start + 100 * MIB, start + 101 * MIB).run in (second, first, None)
    assert made.ahead()[0] == 1
    assert made.latest is first
    assert (first.low, first.high) == (0, 200 * MIB)
    assert first.frontier >= second.frontier
    assert made.observe(200 * MIB, 201 * MIB).run in (first, None)
    assert first.high == 201 * MIB


def test_what_was_read_before_does_not_join() -> None:
    """Blocks are read upwards, and the next one lies below: nobody goes on behind the last."""
    made = Streams(SIZE, Budget(GIB))
    for block in (600, 500):
        for start in range(block * MIB, (block + 100) * MIB, MIB):
            made.observe(start, start + MIB)
    assert made.latest.high == 600 * MIB
    assert made.latest.low == 500 * MIB


def test_a_run_that_jumps_at_equal_steps_goes_on_if_most_of_it_was_read() -> None:
    """What it jumps over may be others' part; its window is not given up for a walk."""
    made = Streams(SIZE, Budget(GIB))
    for start in range(0, 64 * MIB, MIB):
        made.observe(start, start + MIB)
    run = made.latest
    for start in range(66 * MIB, 90 * MIB, 3 * MIB):
        assert made.observe(start, start + MIB).dropped == ()
        assert made.latest is run
    assert run.window == LARGEST_WINDOW


def test_a_read_that_was_not_planned_is_when_its_run_joins_another() -> None:
    """Its plan was cut, since memory was short."""
    young = Young()
    table = Table(Budget(GIB), young)
    other = Run(11 * MIB, 20 * MIB, 40 * MIB, step=1, window=8 * MIB, last=9, promised=30 * MIB, hole=MIB)
    run = Run(0, 10 * MIB, 9 * MIB, step=1, window=8 * MIB, begun=5, promised=12 * MIB, hole=2 * MIB)
    for each in (other, run):
        table.to_front(each)
    need = 10 * MIB, 11 * MIB
    assert reach(run, 11 * MIB, need, SIZE, young, table) == [need]
    assert (run.low, run.high, run.frontier) == (0, 20 * MIB, 40 * MIB)
    assert (run.promised, run.hole) == (30 * MIB, 3 * MIB)
    assert list(table.active) == [run]
    assert reach(run, 20 * MIB, (19 * MIB, 20 * MIB), SIZE, young, table) == []


def test_a_run_is_found_where_it_began_and_forgotten_with_it() -> None:
    """However many there are."""
    table = Table(Budget(GIB), Young())
    run = Run(low=MIB, high=4 * MIB, frontier=4 * MIB, step=1, window=MIB, last=3)
    table.to_front(run)
    assert table.take(2 * MIB, 0) is None
    assert table.take(MIB, 3) is None, "it had no read since"
    assert table.take(MIB, 2) is run
    assert len(table) == 0
    assert table.take(MIB, 2) is None
    made = Streams(SIZE, Budget(GIB))
    for number in range(2 * MOST_STREAMS):
        for part in range(2):
            start = (4 * number * 997 % 2000 + part) * MIB
            made.observe(start, start + MIB)
    assert len(made._table._lows) <= len(made._table) <= MOST_STREAMS + 1


def test_elements_of_a_file_that_was_read_before_are_a_walk() -> None:
    """The kernel has dropped it; what a run read before the walk began says nothing."""
    made = Streams(SIZE, Budget(GIB))
    for start in range(0, SIZE, MIB):
        made.observe(start, start + MIB)
    starts = range(4 * MIB, SIZE - 16 * MIB, 8 * MIB)
    plans = [made.observe(start, start + 64 * KIB) for start in starts]
    assert all(plan.stride is not None or not plan.ranges for plan in plans[3:])
    assert sum(bool(plan.ranges) for plan in plans[3:]) > 5


def test_what_was_given_up_is_not_passed_over() -> None:
    """Somebody read down to where the run had got to, but what lay between is planned no more."""
    made = Streams(SIZE, Budget(GIB))
    for start in range(0, 32 * MIB, MIB):
        made.observe(start, start + MIB)
    for start in range(280 * MIB, 32 * MIB, -MIB):
        assert made.observe(start, start + MIB) is NOTHING
    run = made.latest
    run.rest()
    plan = made.observe(32 * MIB, 33 * MIB)
    assert sum(stop - start for start, stop in plan.ranges) <= LARGEST_WINDOW + MIB


def test_what_was_read_down_is_not_given_up() -> None:
    """Nor does it count as planned in vain."""
    budget = Budget(GIB)
    made = Streams(SIZE, budget)
    budget.finished(LARGEST_WINDOW)
    for start in range(0, 16 * MIB, MIB):
        made.observe(start, start + MIB)
    frontier = made.latest.frontier
    for start in range(frontier - 2 * MIB, 23 * MIB, -MIB):
        made.observe(start, start + MIB)
    dropped: list[tuple[int, int]] = []
    for start in range(GIB, GIB + 40 * MIB, MIB):
        dropped += made.observe(start, start + MIB).dropped
    assert dropped == [(16 * MIB, 24 * MIB), (frontier - MIB, frontier)]
    assert budget.first_window == LARGEST_WINDOW // 4


def test_an_end_for_which_memory_is_short_leaves_what_was_planned_before() -> None:
    """Of the run that is to go on through its tensor; and the rest of that is planned with the next read."""
    made = Streams(SIZE, Budget(8 * MIB))
    made.tensors.know([64 * KIB, *range(28 * MIB, SIZE, 28 * MIB)])
    for start in range(0, 280 * MIB, MIB):
        made.observe(start, start + MIB)
    run = made.latest
    plan = made.observe(308 * MIB - 512 * KIB - 4 * KIB, 308 * MIB + 512 * KIB - 4 * KIB)
    assert plan.run is run
    plan.reached(0, plan.ranges[0][0])
    assert run.frontier == run.high == 280 * MIB
    assert made.observe(280 * MIB, 281 * MIB).ranges[0][0] == 280 * MIB


def test_a_touch_ahead_is_passed_over_by_who_goes_on_behind_it() -> None:
    """Until then nobody knows whose it was; and it was not jumped over."""
    made = Streams(SIZE, Budget(GIB))
    for start in range(0, 32 * MIB, MIB):
        made.observe(start, start + MIB)
    assert made.observe(40 * MIB, 41 * MIB) is NOTHING
    for start in range(32 * MIB, 40 * MIB, MIB):
        made.observe(start, start + MIB)
    assert made.latest.high == 40 * MIB
    made.observe(41 * MIB, 42 * MIB)
    assert (made.latest.high, made.latest.hole) == (42 * MIB, 0)


def test_who_touched_the_end_of_a_file_and_gets_there_has_read_it() -> None:
    """Nobody goes on behind it."""
    made = Streams(64 * MIB, Budget(GIB))
    for start in range(0, 32 * MIB, MIB):
        made.observe(start, start + MIB)
    made.observe(64 * MIB - 512 * KIB, 64 * MIB)
    for start in range(32 * MIB, 63 * MIB, MIB):
        made.observe(start, start + MIB)
        assert not made.finished
    made.observe(63 * MIB, 64 * MIB - 512 * KIB)
    assert made.finished


def test_a_touch_that_is_not_planned_any_more_is_not_passed_over() -> None:
    """What the run plans next begins where its plan was cut."""
    young = Young()
    for frontier, high in ((9 * MIB, 8 * MIB), (10 * MIB, 10 * MIB)):
        young.remember(Run(8 * MIB, 10 * MIB, 10 * MIB))
        run = Run(0, 8 * MIB, frontier, step=1)
        pass_over(run, 10 * MIB, young)
        assert run.high == high
