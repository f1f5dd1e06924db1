"""Strided walks: where runs begin, and whether beginnings lie at equal distances.

Its job: remember where the latest runs of an inode began, find four (for walkers among others: five) that are one
constant step apart, and know where the next elements of the walks that were found must begin. Must not know windows or
plans. Pure; time is counted in beginnings.

Why so many: with three, touches at random places look like walks now and then. With four in a row of beginnings, or
five among others, 400,000 touches at random pages of 1 GiB held none, 100,000 at random whole MiB of 4 GiB none, and
as many of 1 GiB, where chance has most to offer, 87.
"""

from collections import OrderedDict
from itertools import islice

from lazyfs.objects import KIB, MIB
from lazyfs.reading.runs import Run, Stride

RECENT = 96
"""Beginnings remembered: five of each of 16 readers that take turns, and some."""

PREVIOUS = 24
"""Of those, in which the previous element of a walk is looked for: the last of each of 16 readers that take turns, and
some. Looking at all cost a touch at a random place 15 us of its 200."""

FARTHEST = 512 * MIB
"""No step is longer."""

DRIFT = 8 * KIB
"""A step that is no multiple of a page moves by a page now and then."""

MOST_STRIDES = 64
"""Walks at once in an inode; the one idle for longest is forgotten."""

PATIENCE = 4
"""A walk is broken when so many beginnings for each walk there is went by without one of its own."""

_CELL = 16
"""Beginnings are looked up by pieces of 64 KiB. One that drifts across a border is found a step later."""


class Strides:
    """The strided walks of one inode."""

    def __init__(self) -> None:
        self._recent: OrderedDict[int, Run] = OrderedDict()
        self._expected: dict[int, Stride] = {}
        self._strides: OrderedDict[Stride, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._strides)

    @property
    def remembered(self) -> int:
        """Beginnings that may be steps of a walk."""
        return len(self._recent)

    def expected(self, start: int) -> tuple[Stride, int] | None:
        """The walk that goes on with a run that begins at `start`, and how many elements that is after its last."""
        stride = self._expected.get(start >> _CELL)
        if stride is None:
            return None
        number = stride.number(start, DRIFT)
        return (stride, number) if number else None

    def go_on(self, stride: Stride, start: int, number: int, birth: int) -> None:
        """The walk is at `start` now, `number` elements further."""
        stride.at = start
        stride.planned = max(0, stride.planned - number)
        stride.birth = birth
        self._strides.move_to_end(stride)
        self._expect(stride)

    def add(self, stride: Stride, birth: int) -> Stride | None:
        """One more walk; the one that it pushes out, if any."""
        stride.birth = birth
        self._strides[stride] = None
        self._expect(stride)
        return self._oldest() if len(self._strides) > MOST_STRIDES else None

    def broken(self, birth: int) -> Stride | None:
        """A walk that had no element for long, forgotten now."""
        if not self._strides:
            return None
        oldest = next(iter(self._strides))
        return self._oldest() if birth - oldest.birth > PATIENCE * (len(self._strides) + 1) else None

    def all(self) -> list[Stride]:
        """Every walk there is."""
        return list(self._strides)

    def detect(self, run: Run) -> list[Run] | None:
        """Note that `run` begins; the elements of the walk that it is the last of, in order, when there is one."""
        recent, start = self._recent, run.low
        latest, found = islice(reversed(recent.values()), PREVIOUS), None
        # Where the one before would lie; nearly always nothing does.
        for other in [other for other in latest if (2 * other.element - start) >> _CELL in recent]:
            if 2 * DRIFT < abs(start - other.element) <= FARTHEST:
                third = recent[(2 * other.element - start) >> _CELL]
                if third.birth < other.birth:
                    found = self._chain(run, other, third, 4 if other is next(reversed(recent.values())) else 5)
                    if found is not None:
                        break
        recent[start >> _CELL] = run
        recent.move_to_end(start >> _CELL)
        if len(recent) > RECENT:
            recent.popitem(last=False)
        return found

    def _chain(self, run: Run, other: Run, third: Run, most: int) -> list[Run] | None:
        """The elements that end with these three, if they are equal steps and enough of them."""
        chain = [run, other]
        step = run.low - other.element
        following: Run | None = third
        while following is not None:
            drift = following.element - (chain[-1].element - step)
            # An element is read before the next one begins; where it is not, these are readers side by side.
            if abs(drift) > DRIFT or following.last >= chain[-1].begun or chain[-1].last >= chain[-2].begun:
                return None
            if chain[-1].birth - following.birth > 1:
                most = 5
            chain.append(following)
            if len(chain) == most:
                return chain[::-1]
            following = self._recent.get((following.element - step) >> _CELL)
        return None

    def _expect(self, stride: Stride) -> None:
        """The next three elements may be the next to come: outstanding reads pass each other."""
        for cell in stride.cells:
            if self._expected.get(cell) is stride:
                del self._expected[cell]
        cells: set[int] = set()
        for number in (1, 2, 3):
            near = stride.at + number * stride.step
            cells.add((near - DRIFT) >> _CELL)
            cells.add((near + DRIFT) >> _CELL)
        stride.cells = sorted(cells)
        for cell in stride.cells:
            self._expected[cell] = stride

    def _oldest(self) -> Stride:
        stride, _ = self._strides.popitem(last=False)
        for cell in stride.cells:
            if self._expected.get(cell) is stride:
                del self._expected[cell]
        return stride
