"""One run of reads: how far it has got, in which direction, and how far ahead of it is planned.

Must not know other runs, or how a read was found to belong to this one. Pure. Offsets are bytes.
Invariants of a forward run: every chunk from `low` to `frontier` was planned, by it or, where it is `skipped`, by
others; of a backward one, from `frontier` to `high`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from lazyfs.objects import CHUNK_SIZE, align_down, align_up
from lazyfs.reading.windows import BEGIN_WINDOW, BESIDE_FIRST, GROWTH, PAST_HEADER, SLACK, STEP, SURE, SURE_GROWTH

Range = tuple[int, int]
"""Bytes [start, stop), chunk-aligned except at the end of the file."""


@dataclass(slots=True, eq=False)
class Run:
    """Reads that cover [low, high). `step` is 1 upwards, -1 downwards, 0 while it may still be a touch or two."""

    low: int
    high: int
    frontier: int
    step: int = 0
    begun: int = 0
    """The read it began with, counted in reads of the inode; `last` is its last."""
    last: int = 0
    birth: int = 0
    """Counted in beginnings of runs of the inode."""
    ups: int = 0
    downs: int = 0
    window: int = 0
    expect: int = 0
    """Its length, as far as others let us guess; 0 for no guess."""
    bounded: bool = False
    """It is an element of a strided walk: nothing is planned past `expect` until it is twice as long."""
    hole: int = 0
    """Bytes that it jumped over and that did not come yet."""
    gap: Range = (0, 0)
    """What it jumped over last, as far as that did not come yet."""
    element: int = 0
    """Where it went on after its last jump, and `jump` the distance from the one before, `jumps` times the same."""
    jump: int = 0
    jumps: int = 0
    promised: int = 0
    """The end of the last tensor that was taken to be read whole."""
    awaited: int = 0
    """The end of the first tensor of a first file, if that is copied; see BESIDE_FIRST."""
    place: int = -1
    """Where the table of streams has it."""
    skipped: Range = (0, 0)
    """What it left out of its plans, for others read it lately: the kernel has that, and a reader who gets there asks
    for none of it."""
    skips: bool = True
    """False once somebody asked for some of that all the same."""

    def distance(self, start: int, stop: int) -> int:
        """How far this read is from where the run goes on; SLACK + 1 if it does not belong to it."""
        if self.step < 0:
            return abs(stop - self.low) if stop <= self.high else SLACK + 1
        if start < self.low or (self.bounded and start != self.high and start >= self.low + self.expect):
            return SLACK + 1
        return 0 if self.gap[0] <= start < self.gap[1] else abs(start - self.high)

    def fills(self, start: int, stop: int) -> bool:
        """Note a read of this run that does not begin where it had got to: whether it was jumped over before. However
        far behind, it is the same reader's: who touches the end of a tensor and comes to its beginning then has as much
        read around the end as the kernel reads ahead. With 4 MiB of that, four shards of 500 MiB took 2.4 s while such
        a read began a run of its own, and 2.0 since."""
        if self.step < 0 or start >= self.high:
            self.gap = (self.high, start) if start > self.high else self.gap
            return False
        self.hole = max(0, self.hole - (stop - start))
        low, high = self.gap
        if low <= start < high:
            self.gap = (low, start) if low < start and stop >= high else (stop, max(stop, high))
        return True

    def upwards(self, start: int, stop: int, largest: int, size: int, sure: int = 0) -> Range | None:
        """What to bring for the read [start, stop) of a forward run: from the frontier to the end of the window, once
        that is a step or half the window. `sure`: bytes from `high` on that will be read, whatever was read before."""
        if self.skipped[1]:
            self._look_at_skipped(start, stop)
        length = self.high - self.low - self.hole
        if length <= self.expect or (self.bounded and length <= 2 * self.expect):
            window, target = 0, align_up(max(self.high, self.low + self.expect))
        else:
            window = (GROWTH if length < SURE else SURE_GROWTH) * length
            if length >= PAST_HEADER and not self.low:
                window = max(window, BEGIN_WINDOW)
            window = min(max(window, self.window, sure), largest)
            if self.high < self.awaited:
                window = min(window, self.awaited - self.high + BESIDE_FIRST)
            self.window = window
            target = align_up(self.high + window)
            if window >= 2 * STEP:
                target = align_down(target, STEP)
        frontier = self.frontier
        if frontier >= stop and target - frontier < min(STEP, max(window // 2, 1)) and target < size:
            return None
        target = min(size, max(target, align_up(stop)))
        if target <= frontier:
            return None
        self.frontier = target
        return max(align_down(start), frontier) if frontier < stop else frontier, target

    def through(self, end: int, need: Range, largest: int, *, leading: bool) -> tuple[Range, ...]:
        """What to bring for a run at the beginning of a tensor that will be read up to `end`, beside the chunks `need`
        of its last bytes, which are brought anyway. `leading`: nobody has anything of the model yet."""
        self.promised = end
        self.awaited = end if leading else 0
        self.window = max(self.window, min(end - self.high, largest))
        first, target = self.frontier, min(align_down(self.high + self.window), need[0])
        self.frontier = need[1] if target == need[0] else max(first, target)
        return ((first, target),) if first < target else ()

    def join(self, other: "Run") -> None:
        """It has got to where the other one began, which went on from there."""
        self.high, self.frontier = max(self.high, other.high), max(self.frontier, other.frontier)
        self.hole += other.hole
        self.promised = max(self.promised, other.promised)
        low, high = other.skipped
        if high:
            self.skipped = min(self.skipped[0] or low, low), max(self.skipped[1], high)

    def skip(self, part: Range, others: Iterable[Range]) -> tuple[Range, ...]:
        """Of what is to be brought the pieces that none of the `others` has, which are ascending."""
        start, stop = part
        found: list[Range] = []
        for low, high in others:
            if start < low:
                found.append((start, low))
            if start < high:
                self.skipped = min(self.skipped[0] or low, low), max(self.skipped[1], high)
                start = high
        return (*found, (start, stop)) if start < stop else tuple(found)

    def planned(self, start: int) -> int:
        """Up to where all from `start` on, which is ahead of it, was planned for this run: `start` if nothing was."""
        low, high = self.skipped
        if low <= start < high or not self.high <= start < self.frontier:
            return start
        return low if start < low else self.frontier

    def _look_at_skipped(self, start: int, stop: int) -> None:
        """A read of [start, stop): if some of it was left out, that is planned from there on. The kernel asks only for
        what it has not."""
        low, high = self.skipped
        if low < stop:
            if start < high:
                self.frontier, self.skips = min(self.frontier, max(low, align_down(start))), False
            self.skipped = (0, 0)

    def downwards(self, largest: int) -> list[Range]:
        """What to bring for a read of a backward run, in the order of wanting: down to the end of the window, in steps
        of a chunk at first, for a GET brings its last byte last, and in whole steps further on."""
        self.window = min(max(self.window, GROWTH * (self.high - self.low)), largest)
        target = align_down(max(0, self.low - self.window), STEP if self.window >= 2 * STEP else CHUNK_SIZE)
        need = align_down(self.low)
        if self.frontier <= need and (self.frontier - target < min(STEP, self.window // 2) and target):
            return []
        found: list[Range] = []
        stop = self.frontier
        target = min(target, need)
        while stop > target:
            unit = CHUNK_SIZE if need - stop < STEP else STEP
            start = max(target, align_down(stop - 1, unit))
            found.append((start, stop))
            stop = start
        self.frontier = min(self.frontier, target)
        return found

    def cut(self, start: int, stop: int, offset: int) -> None:
        """Of [start, stop) only bytes before `offset` are here or coming, and of what was planned after it nothing."""
        if self.step < 0:
            self.frontier = max(self.frontier, stop)
        else:
            self.frontier = min(self.frontier, max(offset, start))

    def unread(self) -> list[Range]:
        """What was planned ahead and not reached."""
        if self.step < 0:
            return [(self.frontier, self.low)] if self.frontier < self.low else []
        return [(self.high, self.frontier)] if self.step and self.high < self.frontier else []

    def rest(self) -> None:
        """What was planned ahead is not counted on any more."""
        self.frontier = (
            max(self.frontier, align_down(self.low)) if self.step < 0 else min(self.frontier, align_up(self.high))
        )


class Stride:
    """A walk of equal steps: elements of `length` bytes, one every `step` bytes (downwards when negative).

    `at` is where the element lies that is read now; `planned` says how many after it are planned.
    """

    __slots__ = ("at", "birth", "cells", "length", "planned", "step", "window")

    def __init__(self, at: int, step: int, length: int) -> None:
        self.at = at
        self.step = step
        self.length = length
        self.planned = 0
        self.window = 1
        self.birth = 0
        self.cells: list[int] = []

    def number(self, start: int, near: int) -> int:
        """Which element after the current one begins within `near` bytes of `start`; 0 for none."""
        number = (start - self.at + self.step // 2) // self.step
        return number if number > 0 and abs(start - self.at - number * self.step) <= near else 0

    def ahead(self, largest: int, size: int) -> list[Range]:
        """What to bring of the elements in the window, in the order of the walk; the window is then twice as wide."""
        cost = align_up(self.length) + CHUNK_SIZE
        self.window = max(1, min(self.window * 2, largest // cost))
        found: list[Range] = []
        for number in range(self.planned + 1, self.window + 1):
            part = self._chunks(number, size)
            if part is None:
                break
            before = self._chunks(number - 1, size)
            start, stop = part
            if before is not None:
                start, stop = (max(start, before[1]), stop) if self.step > 0 else (start, min(stop, before[0]))
            if start < stop:
                found.append((start, stop))
            self.planned = number
        return found

    def covers(self, number: int, part: Range) -> bool:
        """Whether these chunks of that element are planned."""
        start = self.at + number * self.step
        return number <= self.planned and align_down(start) <= part[0] and part[1] <= align_up(start + self.length)

    def _chunks(self, number: int, size: int) -> Range | None:
        start = self.at + number * self.step
        if start < 0 or start >= size:
            return None
        return align_down(start), min(size, align_up(start + self.length))

    def cut(self, start: int, size: int) -> None:
        """From the range that begins at `start` on nothing is coming."""
        for number in range(1, self.planned + 1):
            part = self._chunks(number, size)
            if part is not None and part[0] <= start < part[1]:
                self.planned = number - 1
                return

    def unread(self, size: int) -> list[Range]:
        """What was planned ahead and not reached."""
        parts = (self._chunks(number, size) for number in range(1, self.planned + 1))
        return [part for part in parts if part is not None]
