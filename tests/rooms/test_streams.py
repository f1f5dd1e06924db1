"""Streams: the exact plan for every shape of reading that loaders are known to have."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.objects import CHUNK_SIZE, GIB, KIB, MIB, align_down, align_up
from lazyfs.reading.streams import FIRST_WINDOW, LARGEST_WINDOW, MOST_STREAMS, STEP, Budget, Plan, Streams

SIZE = 4 * GIB


def streams(size: int = SIZE, budget: int = GIB) -> Streams:
    """The streams of one inode, with read-ahead for all it may want."""
    return Streams(size, Budget(budget))


def span(plan: Plan) -> tuple[int, int] | None:
    """What a plan brings, in MiB; None for nothing."""
    return None if plan.start >= plan.stop else (plan.start // MIB, -(-plan.stop // MIB))


def walk(made: Streams, start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """The spans planned for reads of `size` bytes one after another."""
    found = (span(made.observe(offset, min(offset + size, stop))) for offset in range(start, stop, size))
    return [one for one in found if one is not None]


def test_a_sequential_walk_doubles_its_window() -> None:
    """1 MiB alone, then 4 MiB ahead, then twice as much each time a quarter of it was used."""
    plans = walk(streams(), 0, 24 * MIB, MIB)
    assert plans[:6] == [(0, 1), (1, 6), (6, 11), (11, 24), (24, 40), (40, 48)]


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
        assert plan.stop <= align_up(offset + MIB + LARGEST_WINDOW)


def test_a_touch_costs_its_chunk() -> None:
    """4 KiB anywhere brings one chunk and nothing ahead."""
    made = streams()
    for offset in (0, 700 * MIB + 12 * KIB, 3 * GIB + 5 * KIB * 100, 90 * MIB):
        plan = made.observe(offset, offset + 4 * KIB)
        assert (plan.start, plan.stop) == (align_down(offset), align_up(offset + 4 * KIB))


def test_random_touches_bring_no_more_than_a_chunk_each() -> None:
    """A touch that comes near an earlier one is not taken for a run."""
    made = streams()
    offsets = [(number * 7919 * 37 % 4001) * MIB + 512 * KIB for number in range(400)]
    planned = sum(max(0, plan.stop - plan.start) for plan in (made.observe(o, o + 4 * KIB) for o in offsets))
    assert planned <= len(offsets) * CHUNK_SIZE


def test_a_header_and_a_jump() -> None:
    """The length, then the header right behind it: some MiB at most. A tensor far away costs its chunk."""
    made = streams()
    assert span(made.observe(0, 16 * KIB)) == (0, 1)
    assert span(made.observe(16 * KIB, 64 * KIB)) == (1, 1 + FIRST_WINDOW // MIB)
    assert span(made.observe(2 * GIB, 2 * GIB + 128 * KIB)) == (2048, 2049)


def test_interleaved_readers_are_streams_of_their_own() -> None:
    """16 readers through one descriptor, each in its own slice: each gets the plans it would get alone."""
    slice_size = SIZE // 16
    together = streams(budget=16 * GIB)
    plans: dict[int, list[tuple[int, int]]] = {rank: [] for rank in range(16)}
    for step in range(24):
        for rank in range(16):
            start = rank * slice_size + step * MIB
            found = span(together.observe(start, start + MIB))
            if found is not None:
                base = rank * slice_size // MIB
                plans[rank].append((found[0] - base, found[1] - base))
    alone = walk(streams(), 0, 24 * MIB, MIB)
    assert all(plans[rank] == alone for rank in range(16))


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
    assert len(made) == 2


def test_the_end_of_the_file_is_the_end() -> None:
    """No plan reaches past the size, and the last bytes are planned though they are less than a step."""
    size = 10 * MIB + 5
    made = streams(size)
    assert walk(made, 0, size, MIB)[-1] == (6, 11)
    assert made.observe(size - 5, size).stop <= size


def test_a_short_budget_shrinks_every_window() -> None:
    """Windows are at most the budget divided by the runs that are active."""
    made = streams(budget=64 * MIB)
    for step in range(64):
        for reader in range(8):
            start = reader * 512 * MIB + step * MIB
            plan = made.observe(start, start + MIB)
            if step > 16:
                assert plan.stop - (start + MIB) <= 64 * MIB // 8 + CHUNK_SIZE


def test_what_was_not_reached_is_planned_again() -> None:
    """A plan that memory was too short for is taken up where it ended."""
    made = streams()
    made.observe(0, MIB)
    plan = made.observe(MIB, 2 * MIB)
    assert span(plan) == (1, 6)
    plan.reached(3 * MIB)
    assert span(made.observe(2 * MIB, 3 * MIB)) == (3, 11)


def test_the_next_shard_begins_as_the_last_one_ended() -> None:
    """After a file was read to its end, runs of others begin with a quarter of its window, until one is abandoned."""
    budget = Budget(GIB)
    first, second, third = (Streams(256 * MIB, budget) for _ in range(3))
    walk(first, 0, 256 * MIB, MIB)
    assert first.close() == []
    assert walk(second, 0, 2 * MIB, MIB) == [(0, 1), (1, 64)]
    assert second.close() == [(2 * MIB, 64 * MIB)]
    assert walk(third, 0, 2 * MIB, MIB) == [(0, 1), (1, 6)]


def test_runs_are_forgotten_from_the_oldest() -> None:
    """A file touched everywhere does not grow the table without end."""
    made = streams(64 * GIB)
    for number in range(MOST_STREAMS + 50):
        made.observe(number * 64 * MIB, number * 64 * MIB + 4 * KIB)
    assert len(made) == MOST_STREAMS


@given(
    size=st.integers(1, 300 * MIB),
    reads=st.lists(st.tuples(st.integers(0, 300 * MIB), st.integers(1, MIB)), max_size=60),
    budget=st.integers(0, 256 * MIB),
)
def test_every_read_is_planned(size: int, reads: list[tuple[int, int]], budget: int) -> None:
    """Whatever the reads: plans are aligned and inside the file, and each read's bytes have been planned by then."""
    made = streams(size, budget)
    planned: set[int] = set()
    for offset, length in reads:
        start = offset % size
        stop = min(size, start + length)
        plan = made.observe(start, stop)
        if plan.start < plan.stop:
            assert plan.start % CHUNK_SIZE == 0
            assert plan.stop % CHUNK_SIZE == 0 or plan.stop == size
            assert plan.stop <= size
            planned |= set(range(plan.start // CHUNK_SIZE, -(-plan.stop // CHUNK_SIZE)))
        assert planned >= set(range(start // CHUNK_SIZE, -(-stop // CHUNK_SIZE)))
