"""Tensors that are copied out of a mapping one after another, from their last page down as much as from their first one
up: one reader, with one window ahead of him."""

from collections.abc import Iterator
from itertools import pairwise

import pytest

from lazyfs.objects import GIB, KIB, MIB, align_down, chunk_range
from lazyfs.reading.plans import NOTHING
from lazyfs.reading.runs import Run
from lazyfs.reading.streams import Streams
from lazyfs.reading.windows import LARGEST_WINDOW, STEP, Budget

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
    assert made.latest.high >= borders[-1]
    assert made.latest.window == min(LARGEST_WINDOW, budget)
    assert set(planned) >= set(range(borders[-1] // MIB))
    assert len(planned) - len(set(planned)) <= 3 * len(borders)
    assert made.beyond == align_down(max(0, made.latest.high + made.latest.window - SIZE), STEP)


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
    assert run.through(80 * MIB, need, 256 * MIB) == ((60 * MIB, 79 * MIB),)
    assert (run.window, run.frontier, run.promised) == (64 * MIB, 81 * MIB, 80 * MIB)
    run = Run(low=0, high=50 * MIB, frontier=60 * MIB, step=1, window=8 * MIB)
    assert run.through(80 * MIB, need, 8 * MIB) == ()
    assert (run.window, run.frontier) == (8 * MIB, 60 * MIB)
