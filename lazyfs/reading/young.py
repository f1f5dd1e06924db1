"""Young runs: reads with which nothing goes on yet, and the one that a read goes on with, of the last ones.

Must not know when a young run becomes a run. Pure; not thread safe; one loop.
"""

from collections import OrderedDict
from itertools import islice

from lazyfs.reading.runs import Range, Run
from lazyfs.reading.windows import FIRST_SLACK

MOST_YOUNG = 256
"""Young runs remembered; of 256 random pages of 1 GiB, the next touch is beside one once in 500 touches."""

NEIGHBOURS = 16
"""Young runs that a small read may go on with though there is a gap."""


class Young:
    """The young runs of one inode, by where they end, and by where they begin."""

    def __init__(self) -> None:
        self._by_high: OrderedDict[int, Run] = OrderedDict()
        self._by_low: dict[int, Run] = {}

    def __len__(self) -> int:
        return len(self._by_high)

    def neighbour(self, start: int, stop: int) -> Run | None:
        """The one that this read goes on with."""
        found = self._by_high.get(start) or self._by_low.get(stop)
        if found is None and stop - start <= FIRST_SLACK:
            for high in islice(reversed(self._by_high), NEIGHBOURS):
                if 0 < start - high <= FIRST_SLACK:
                    return self._by_high[high]
        return found

    def above(self, offset: int) -> Run | None:
        """The one that begins here."""
        return self._by_low.get(offset)

    def below(self, offset: int) -> Run | None:
        """The one that ends here."""
        return self._by_high.get(offset)

    def parts(self) -> list[Range]:
        """What they have read."""
        return [(run.low, run.high) for run in self._by_high.values()]

    def remember(self, run: Run) -> None:
        """One more, or one that has grown; the oldest may be forgotten, and so is one that ends in the same place."""
        other = self._by_high.get(run.high)
        if other is not None:
            self.forget(other)
        self._by_high[run.high] = run
        self._by_high.move_to_end(run.high)
        self._by_low[run.low] = run
        if len(self._by_high) > MOST_YOUNG:
            self.forget(next(iter(self._by_high.values())))

    def forget(self, run: Run) -> None:
        """One less. Nothing happens if it is not here."""
        if self._by_high.get(run.high) is run:
            del self._by_high[run.high]
        if self._by_low.get(run.low) is run:
            del self._by_low[run.low]

    def clear(self) -> None:
        """None any more."""
        self._by_high.clear()
        self._by_low.clear()
