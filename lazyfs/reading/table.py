"""The runs of one inode: found by where they go on, and ordered by how long they are idle.

Its job: find the run near a read without a look at every run, and say which runs were left. Must not know how runs
begin or how much is planned ahead of them. Pure; time is counted in reads.
Invariants: a run is in exactly one of `active` (something may be planned ahead of it) and `resting`; it is in the
table of places once, and all but the front one where it goes on.
"""

from collections import OrderedDict
from collections.abc import Sequence

from lazyfs.objects import MIB, align_up
from lazyfs.reading.runs import Range, Run
from lazyfs.reading.windows import SLACK, Budget
from lazyfs.reading.young import Young

MOST_STREAMS = 256
"""Runs remembered for one inode; the one idle for longest is forgotten."""

LEFT = 8
"""A run is left when so many reads for each active run went by without one of its own. Its queued read-ahead is given
up, which costs no more than asking again: of 16 that take turns by chance one is idle for so
long with a probability of 0.03 %."""

KEPT = 512 * MIB
"""Of what a run read the kernel is taken to keep so much; a long one began long ago."""

_REGION = 23
"""Runs are looked up in the 8 MiB where they are and those to either side, which is SLACK and a read at least."""

NOBODY = Run(low=-1, high=-1, frontier=-1)
"""The front run when there is none; no read goes on with it."""


class Table:
    """The runs of one inode. `front` had the latest read."""

    def __init__(self, budget: Budget, young: Young) -> None:
        """`young` are those that read ahead of a run, inside of what was planned for it."""
        self.front = NOBODY
        self._young = young
        self.active: OrderedDict[Run, None] = OrderedDict()
        self._resting: OrderedDict[Run, None] = OrderedDict()
        self._places: dict[int, list[Run]] = {}
        self._lows: dict[int, Run] = {}
        self._budget = budget

    def __len__(self) -> int:
        return len(self.active) + len(self._resting)

    def find(self, start: int, stop: int) -> Run | None:
        """The nearest run that goes on with a read of [start, stop)."""
        front = self.front
        nearest, best = None, SLACK + 1
        if front is not NOBODY:
            # The table has it where it was when it became the front.
            distance = front.distance(start, stop)
            if distance < best:
                nearest, best = front, distance
        region = start >> _REGION
        for place in (region, region - 1, region + 1):
            for run in self._places.get(place, ()):
                distance = run.distance(start, stop)
                if distance < best:
                    nearest, best = run, distance
        return nearest

    def planned(self, start: int, stop: int) -> Run | None:
        """The run upwards that has planned all of [start, stop), and has not got there."""
        front = self.front
        if front.step > 0 and front.planned(start) >= stop:
            return front
        return next((run for run in self.active if run.step > 0 and run.planned(start) >= stop), None)

    def reader(self, start: int, stop: int) -> Run | None:
        """The run upwards that has got to somewhere from `start` to `stop`."""
        runs = (self.front, *self.active)
        return next((run for run in runs if run.step > 0 and not run.bounded and start <= run.high <= stop), None)

    def passed(self, chain: Sequence[Run]) -> bool:
        """Whether a run upwards goes past these beginnings, and reads what lies between them: all but the last lie
        behind it, and it had a read since the first."""
        low, high = min(run.low for run in chain[:-1]), max(run.element for run in chain[:-1])
        runs = [run for run in (self.front, *self.active) if run.step > 0 and run.last > chain[0].begun]
        return any(run.low <= low and high <= run.high for run in runs)

    def read_by_others(self, run: Run, start: int, stop: int, since: int) -> list[Range]:
        """What runs upwards that had a read since the inode's read `since` have planned, or were the last to read, from
        `start` on: to whole chunks, ascending, and nothing after `stop`."""
        found = [
            (align_up(max(other.low, other.high - KEPT)), min(other.frontier, stop))
            for other in (*self.active, *self._resting)
            if other.high > start and other.step > 0 and other is not run and other.last >= since
        ]
        return sorted((low, high) for low, high in found if start <= low < high)

    def to_front(self, run: Run) -> None:
        """The run had the latest read. It counts as active from when it has a window."""
        front = self.front
        if run is not front:
            if front is not NOBODY:
                self._index(front)
            self.front = run
            if run.place < 0:
                self._index(run)
                if run.step > 0:  # of which that never changes
                    self._lows[run.low] = run
        if not run.window:
            self._resting[run] = None
            self._resting.move_to_end(run)
            if len(self._resting) > MOST_STREAMS:
                self._forget(next(iter(self._resting)))
            return
        if run in self._resting:
            del self._resting[run]
        self.active[run] = None
        self.active.move_to_end(run)

    def left(self, reads: int) -> tuple[Range, ...]:
        """The read-ahead, given up, of runs that were left while others went on, as of the inode's read `reads`."""
        active = self.active
        dropped: list[Range] = []
        while len(active) > 1:
            oldest = next(iter(active))
            if reads - oldest.last <= LEFT * len(active) and len(active) <= MOST_STREAMS:
                break
            dropped += self.rest(oldest)
        return tuple(dropped)

    def rest(self, run: Run) -> list[Range]:
        """Count no more on what was planned ahead of the run; the part of it that no other run counts on."""
        parts = run.unread()
        self._budget.forget(id(run))
        self.active.pop(run, None)
        self._resting[run] = None
        self._resting.move_to_end(run)
        run.rest()
        taken = [
            (other.low, other.frontier) if other.step > 0 else (other.frontier, other.high) for other in self.active
        ]
        taken += self._young.parts() if parts else []
        for low, high in taken:
            parts = [
                *((start, min(stop, low)) for start, stop in parts),
                *((max(start, high), stop) for start, stop in parts),
            ]
            parts = [part for part in parts if part[0] < part[1]]
        if run.window and sum(stop - start for start, stop in parts) > run.window // 2:
            self._budget.abandoned()
        if len(self._resting) > MOST_STREAMS:
            self._forget(next(iter(self._resting)))
        return parts

    def close(self) -> list[Range]:
        """Forget all; what was planned ahead and not reached."""
        unread: list[Range] = []
        while self.active:
            unread += self.rest(next(iter(self.active)))
        for run in self._resting:
            self._budget.forget(id(run))
        self._resting.clear()
        self._places.clear()
        self._lows.clear()
        self.front = NOBODY
        return unread

    def take(self, low: int, since: int) -> Run | None:
        """The run upwards that began here and had a read after the inode's read `since`: another one has got there, and
        it is forgotten."""
        found = self._lows.get(low)
        if found is None or found.bounded or found.last <= since:
            return None
        self._forget(found)
        if found is self.front:
            self.front = NOBODY
        return found

    def _forget(self, run: Run) -> None:
        self.active.pop(run, None)
        self._resting.pop(run, None)
        self._budget.forget(id(run))
        self._unindex(run)
        if self._lows.get(run.low) is run:
            del self._lows[run.low]

    def _index(self, run: Run) -> None:
        place = (run.high if run.step > 0 else run.low) >> _REGION
        if place != run.place:
            self._unindex(run)
            run.place = place
            self._places.setdefault(place, []).append(run)

    def _unindex(self, run: Run) -> None:
        there = self._places.get(run.place)
        if there is not None and run in there:
            there.remove(run)
            if not there:
                del self._places[run.place]
        run.place = -1
