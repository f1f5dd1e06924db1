"""Streams: runs, their windows, the budget, and what is given up. The walks are in test_walks.py."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.objects import CHUNK_SIZE, GIB, KIB, MIB, align_down, align_up
from lazyfs.reading.plans import Plan
from lazyfs.reading.runs import Run
from lazyfs.reading.streams import LATELY, Streams
from lazyfs.reading.table import LEFT
from lazyfs.reading.windows import LARGEST_WINDOW, STEP, Budget
from lazyfs.reading.young import MOST_YOUNG, Young

SIZE = 4 * GIB


def streams(size: int = SIZE, budget: int = GIB) -> Streams:
    """The streams of one inode, with read-ahead for all it may want."""
    return Streams(size, Budget(budget))


def span(plan: Plan) -> tuple[int, int] | None:
    """The one range that a plan brings, in MiB; None for nothing."""
    if not plan.ranges:
        return None
    [(start, stop)] = plan.ranges
    return start // MIB, -(-stop // MIB)


def walk(made: Streams, start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """The spans planned for reads of `size` bytes one after another."""
    found = (span(made.observe(offset, min(offset + size, stop))) for offset in range(start, stop, size))
    return [one for one in found if one is not None]


def test_a_sequential_walk_plans_each_byte_once() -> None:
    """The spans of a walk adjoin: nothing is planned twice, and nothing is left out."""
    plans = walk(streams(GIB), 0, GIB, MIB)
    assert plans[0][0] == 0
    assert plans[-1][1] == GIB // MIB
    assert all(before[1] == after[0] for before, after in pairwise(plans))


def test_a_large_window_moves_by_whole_steps() -> None:
    """Once the window is large, a plan is a whole number of GETs, not the MiB that was just read."""
    plans = walk(streams(), 0, GIB, MIB)
    large = [plan for plan in plans if plan[0] > 64]
    assert large
    assert all(start % (STEP // MIB) == 0 and stop % (STEP // MIB) == 0 for start, stop in large)


def test_a_window_has_an_end() -> None:
    """However long the walk, no more than the largest window is ahead of it."""
    made = streams()
    for offset in range(0, 2 * GIB, MIB):
        plan = made.observe(offset, offset + MIB)
        assert all(stop <= align_up(offset + MIB + LARGEST_WINDOW) for _, stop in plan.ranges)


def test_who_reads_pieces_of_one_size_here_and_there_has_no_more_planned() -> None:
    """Experts of a model of which nobody knows the inside, say: after three of them what comes next is taken to be as
    long, and is planned as soon as it is a run; who reads on after all has a window again."""
    made = streams()
    experts = [number * 12 * MIB for number in (250, 30, 170, 90, 301, 10)]
    plans = [walk(made, start, start + 12 * MIB, MIB) for start in experts]
    for start, found in zip(experts[3:], plans[3:], strict=True):
        first = start // MIB
        assert found == [(first, first + 1), (first + 1, first + 12)]
    assert all(found[-1][1] > start // MIB + 40 for start, found in zip(experts[:3], plans[:3], strict=True))
    begin = 330 * 12 * MIB
    longer = walk(made, begin, begin + 30 * MIB, MIB)
    assert longer[:2] == [(begin // MIB, begin // MIB + 1), (begin // MIB + 1, begin // MIB + 12)]
    assert longer[-1][1] >= begin // MIB + 30 + 8 * 12


def test_pieces_of_different_sizes_are_taken_to_be_like_the_longest_of_the_last() -> None:
    """So that the next one is planned at once, and not much more than it; one that is very long teaches nothing."""
    made = streams(16 * GIB)
    sizes = [6, 14, 9, 11, 5, 100, 7, 8]
    found = [walk(made, n * GIB, n * GIB + size * MIB, MIB) for n, size in enumerate(sizes)]
    planned = [plans[-1][1] - n * 1024 for n, plans in enumerate(found)]
    assert planned[3:5] == [14, 14]
    assert planned[6] > 50
    assert planned[7] > 60, "the long one is still among the last three"


def test_a_touch_costs_its_chunk() -> None:
    """4 KiB anywhere brings one chunk and nothing ahead."""
    made = streams()
    for offset in (0, 700 * MIB + 12 * KIB, 3 * GIB + 5 * KIB * 100, 90 * MIB):
        plan = made.observe(offset, offset + 4 * KIB)
        assert plan.ranges == ((align_down(offset), align_up(offset + 4 * KIB)),)


def test_reads_out_of_order_are_one_run() -> None:
    """The kernel's read-ahead hands over neighbouring reads in any order."""
    made = streams()
    for offset in (0, MIB, 3 * MIB, 2 * MIB, 5 * MIB, 4 * MIB):
        made.observe(offset, offset + MIB)
    assert len(made) == 1


def test_a_jump_inside_a_window_is_not_fetched_again() -> None:
    """What one run has planned counts as planned for another that begins inside it."""
    made = streams()
    walk(made, 0, 64 * MIB, MIB)
    inside = 90 * MIB
    assert span(made.observe(inside, inside + MIB)) is None
    assert span(made.observe(inside + MIB, inside + 2 * MIB)) is None
    assert len(made) == 2


def test_the_end_of_the_file_is_the_end() -> None:
    """No plan reaches past the size, and the last bytes are planned though they are less than a step."""
    size = 10 * MIB + 5
    made = streams(size)
    assert walk(made, 0, size, MIB) == [(0, 1), (1, 11)]


def test_a_short_budget_shrinks_every_window() -> None:
    """Windows are at most the budget divided by the runs that are active."""
    made = streams(budget=64 * MIB)
    for step in range(64):
        for reader in range(8):
            start = reader * 512 * MIB + step * MIB
            plan = made.observe(start, start + MIB)
            if step > 16:
                assert all(stop - (start + MIB) <= 64 * MIB // 8 + CHUNK_SIZE for _, stop in plan.ranges)


def test_a_window_grows_again_when_others_are_idle() -> None:
    """A run shares the budget with those that read, not with those that did."""
    budget = Budget(64 * MIB)
    one, other = Streams(SIZE, budget), Streams(SIZE, budget)
    walk(one, 0, 64 * MIB, MIB)
    walk(other, 0, 64 * MIB, MIB)
    assert budget.share(0) == 64 * MIB // 3
    for _ in range(600):
        budget.share(0)
    assert budget.share(0) == 64 * MIB


def test_what_was_not_reached_is_planned_again() -> None:
    """A plan that memory was too short for is taken up where it ended."""
    made = streams()
    made.observe(0, MIB)
    plan = made.observe(MIB, 2 * MIB)
    assert span(plan) == (1, 32)
    plan.reached(0, 3 * MIB)
    assert span(made.observe(2 * MIB, 3 * MIB)) == (3, 32)


def test_ranges_that_were_not_reached_are_planned_again_downwards() -> None:
    """Of a backward run, from the range that memory was too short for on down."""
    made = streams()
    for number in (500, 499):
        made.observe(number * MIB, (number + 1) * MIB)
    plan = made.observe(498 * MIB, 499 * MIB)
    assert [stop // MIB for _, stop in plan.ranges[:4]] == [499, 498, 497, 496]
    plan.reached(2, 496 * MIB)
    assert made.observe(497 * MIB, 498 * MIB).ranges[0] == (496 * MIB, 497 * MIB)


def test_elements_that_were_not_reached_are_planned_again() -> None:
    """Of a strided walk, from the element that memory was too short for on."""
    made = streams()
    plans = [made.observe(number * 16 * MIB, number * 16 * MIB + MIB) for number in range(4)]
    assert [start // MIB for start, _ in plans[3].ranges] == [48, 64, 80]
    plans[3].reached(1, 64 * MIB)
    assert [start // MIB for start, _ in made.observe(64 * MIB, 65 * MIB).ranges] == [64, 80, 96, 112, 128]


def test_the_next_shard_begins_as_the_last_one_ended() -> None:
    """After a file was read to its end, runs at the beginning of others have a quarter of its window at least, until
    one is abandoned."""
    budget = Budget(GIB)
    first, second, third = (Streams(256 * MIB, budget) for _ in range(3))
    walk(first, 0, 256 * MIB, MIB)
    assert first.close() == []
    assert walk(second, 0, 2 * MIB, MIB) == [(0, 1), (1, 64)]
    assert second.close() == [(2 * MIB, 64 * MIB)]
    assert walk(third, 0, 2 * MIB, MIB) == [(0, 1), (1, 32)]


def test_the_shard_after_the_first_one_is_begun_in_proportion() -> None:
    """From a quarter on, four times what was read, though the window has room for more; once one was read to its end,
    from an eighth on what the window has."""
    budget = Budget(GIB)
    first, second = Streams(104 * MIB, budget), Streams(104 * MIB, budget)
    walk(first, 0, 25 * MIB, MIB)
    assert first.beyond == 0
    walk(first, 25 * MIB, 26 * MIB, MIB)
    assert (first.latest.window, first.beyond) == (8 * 26 * MIB, 4 * 26 * MIB)
    walk(first, 26 * MIB, 104 * MIB, MIB)
    walk(second, 0, 12 * MIB, MIB)
    assert second.beyond == 0
    walk(second, 12 * MIB, 26 * MIB, MIB)
    assert second.beyond == 128 * MIB
    assert second.latest.high + second.latest.window - 104 * MIB == 130 * MIB


def test_a_header_after_a_shard_wastes_nothing() -> None:
    """What the last shard taught is for runs of a chunk and more, not for a scan over the headers of others."""
    budget = Budget(GIB)
    walk(Streams(256 * MIB, budget), 0, 256 * MIB, MIB)
    assert budget.first_window == 64 * MIB
    for _ in range(8):
        scanned = Streams(256 * MIB, budget)
        plans = [span(scanned.observe(*read)) for read in ((0, 16 * KIB), (16 * KIB, 64 * KIB), (64 * KIB, 192 * KIB))]
        assert plans == [(0, 1), None, None]
        assert scanned.close() == []


def test_the_read_ahead_of_a_run_that_was_left_is_dropped() -> None:
    """Another run went on for LEFT reads for each of the two; what the first had planned is given up, once, and
    planned again when it goes on."""
    made = streams()
    walk(made, 0, 8 * MIB, MIB)
    dropped: list[tuple[int, tuple[tuple[int, int], ...]]] = []
    for number in range(80):
        plan = made.observe(GIB + number * MIB, GIB + (number + 1) * MIB)
        if plan.dropped:
            dropped.append((number, plan.dropped))
    [(number, ranges)] = dropped
    assert LEFT * 2 <= number < LEFT * 3
    assert ranges == ((8 * MIB, 72 * MIB),)
    again = made.observe(8 * MIB, 9 * MIB)
    assert span(again) == (8, 80)
    assert made.close()[-1][0] in {9 * MIB, GIB + 80 * MIB}


def test_what_is_dropped_is_nobody_elses() -> None:
    """A reader that skips a tensor inside its window keeps what is planned behind it; the bytes it skipped go."""
    made = streams()
    walk(made, 0, 16 * MIB, MIB)
    dropped = [made.observe(n * MIB, (n + 1) * MIB).dropped for n in range(60, 140)]
    assert [each for each in dropped if each] == [((16 * MIB, 60 * MIB),)]


def planned(made: Streams, start: int, stop: int) -> set[int]:
    """The MiB that are planned while bytes [start, stop) are read, by reads of 1 MiB."""
    plans = [made.observe(offset, offset + MIB) for offset in range(start, stop, MIB)]
    return {number for plan in plans for low, high in plan.ranges for number in range(low // MIB, high // MIB)}


def test_what_others_have_read_further_on_is_not_read_ahead() -> None:
    """Two walk their slices of a file: the window of the first goes on behind what the second has brought, but for the
    chunk in which both are."""
    made = streams()
    walk(made, 64 * MIB + 512 * KIB, 66 * MIB + 512 * KIB, MIB)
    assert made.ahead() == (1, 8 * MIB + 512 * KIB)
    assert planned(made, 0, 64 * MIB) == {*range(65), *range(75, 320)}


def test_who_asks_for_what_others_have_read_has_it_planned() -> None:
    """The kernel has not kept it: from there on nothing is left out any more."""
    made = streams()
    for begin in (64, 400):
        walk(made, begin * MIB, (begin + 2) * MIB, MIB)
    assert planned(made, 0, 64 * MIB).isdisjoint(range(64, 74))
    assert planned(made, 64 * MIB, 66 * MIB) >= set(range(64, 74))
    assert planned(made, 66 * MIB, 300 * MIB) >= set(range(400, 410))
    made = streams()
    walk(made, 64 * MIB, 66 * MIB, MIB)
    half = MIB // 2
    assert planned(made, half, 63 * MIB + half).isdisjoint(range(64, 74))
    assert planned(made, 63 * MIB + half, 64 * MIB + half) >= set(range(64, 74)), "the end of a read is enough"


def test_what_was_left_out_is_planned_for_nobody_else() -> None:
    """A third one who reads there, or the same reader after a jump, has his own read-ahead."""
    for begin in (80, 72):
        made = streams()
        walk(made, 64 * MIB, 128 * MIB, MIB)
        planned(made, 0, 64 * MIB)
        assert planned(made, begin * MIB, (begin + 3) * MIB) >= set(range(begin, begin + 10))


def test_a_part_of_a_long_run_is_what_it_read_last() -> None:
    """The kernel may not have the rest any more: it is read ahead."""
    made = streams()
    walk(made, 64 * MIB, 1064 * MIB, MIB)
    assert planned(made, 0, 60 * MIB) >= set(range(300))
    assert planned(made, 60 * MIB, 500 * MIB).isdisjoint(range(553, 1064))


def test_what_others_read_long_ago_is_read_ahead() -> None:
    """The kernel may not have it any more."""
    made = streams()
    walk(made, 64 * MIB, 66 * MIB, MIB)
    walk(made, GIB, GIB + (LATELY - 8) * MIB, MIB)
    assert planned(made, 0, 8 * MIB).isdisjoint(range(64, 66))
    made = streams()
    walk(made, 64 * MIB, 66 * MIB, MIB)
    walk(made, GIB, GIB + (LATELY + 8) * MIB, MIB)
    assert planned(made, 0, 8 * MIB) >= set(range(72))


def test_a_strided_walk_that_breaks_is_dropped() -> None:
    """Elements planned ahead are given up when others begin and none of the walk."""
    made = streams()
    for number in range(4):
        made.observe(number * 16 * MIB, number * 16 * MIB + MIB)
    touches = [2000, 3100, 2710, 3333, 2222, 3900, 2555, 3011, 2888, 3777]
    dropped = [made.observe(n * MIB, n * MIB + 4 * KIB).dropped for n in touches]
    assert [each for each in dropped if each] == [((64 * MIB, 65 * MIB), (80 * MIB, 81 * MIB))]
    assert made.close() == []


def test_what_is_planned_and_not_reached_is_told_at_the_end() -> None:
    """Of every kind of walk."""
    made = streams()
    for number in range(4):
        made.observe(number * 16 * MIB, number * 16 * MIB + MIB)
    walk(made, GIB, GIB + 2 * MIB, MIB)
    for number in (3000, 2999, 2998):
        made.observe(number * MIB, (number + 1) * MIB)
    assert sorted(made.close()) == [
        (64 * MIB, 65 * MIB),
        (80 * MIB, 81 * MIB),
        (GIB + 2 * MIB, GIB + 10 * MIB),
        (2986 * MIB, 2998 * MIB),
    ]
    assert len(made) == 0


def test_young_runs_that_end_in_one_place_are_one() -> None:
    """As many as a reader makes of them, who goes through pieces of different sizes that end there: nothing of those
    before is left, where nobody would look for it."""
    young = Young()
    for number in range(1000):
        young.remember(Run(low=10 * MIB - number * KIB, high=10 * MIB, frontier=10 * MIB))
    assert (len(young), len(young._by_low)) == (1, 1)


def test_touches_are_forgotten_from_the_oldest() -> None:
    """A file touched everywhere does not grow the table without end."""
    made = streams(64 * GIB)
    for number in range(MOST_YOUNG + 50):
        offset = (number * 7919 % 16381) * 4 * MIB
        made.observe(offset, offset + 4 * KIB)
    assert len(made) == MOST_YOUNG


@given(
    size=st.integers(1, 300 * MIB),
    reads=st.lists(
        st.tuples(st.integers(0, 300 * MIB) | st.integers(0, 40).map(lambda n: n * MIB // 2), st.integers(1, MIB)),
        max_size=60,
    ),
    budget=st.integers(0, 256 * MIB),
)
def test_every_read_is_planned(size: int, reads: list[tuple[int, int]], budget: int) -> None:
    """Whatever the reads: plans are aligned and inside the file, and each read's bytes have been planned by then."""
    made = streams(size, budget)
    planned: set[int] = set()
    for offset, length in reads:
        start = offset % size
        stop = min(size, start + length)
        for first, last in made.observe(start, stop).ranges:
            assert 0 <= first < last <= size
            assert first % CHUNK_SIZE == 0
            assert last % CHUNK_SIZE == 0 or last == size
            planned |= set(range(first // CHUNK_SIZE, -(-last // CHUNK_SIZE)))
        assert planned >= set(range(start // CHUNK_SIZE, -(-stop // CHUNK_SIZE)))


@pytest.mark.parametrize("around", [2 * MIB, 4 * MIB])
def test_what_a_run_jumped_over_is_its_own_however_far_it_got(around: int) -> None:
    """Who touches the end of a tensor has as much read around that as the kernel reads ahead, in requests of a MiB, and
    more further on; then he comes to what is between, which is no stream of his own."""
    made = Streams(GIB, Budget(256 * MIB))
    for start in range(0, 52 * MIB, MIB):
        made.observe(start, start + MIB)
    for _ in range(2):
        high = made.latest.high
        low = high + 3 * MIB
        frontier = made.latest.frontier
        for start in range(low, low + 2 * around, MIB):
            made.observe(start, start + MIB)
        assert (made.latest.high, len(made)) == (low + 2 * around, 1)
        for start in range(high, low, MIB):
            plan = made.observe(start, start + MIB)
            assert plan.ranges == ((start, start + MIB),)
        assert (len(made), made.ahead()[0]) == (1, 1)
        assert made.latest.hole == 0
        assert made.latest.frontier >= frontier


def test_what_comes_out_of_order_does_not_close_a_gap() -> None:
    """A read behind where the run has got to, but not in the gap; and one at its upper end."""
    run = Run(0, 20 * MIB, 64 * MIB, 1)
    assert not run.fills(23 * MIB, 24 * MIB)
    run.high = 30 * MIB
    assert run.gap == (20 * MIB, 23 * MIB)
    for start, left in ((29, (20, 23)), (22, (20, 22)), (20, (21, 22)), (21, (22, 22))):
        assert run.fills(start * MIB, (start + 1) * MIB)
        assert run.gap == (left[0] * MIB, left[1] * MIB)
