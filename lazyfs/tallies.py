"""Counts of how often, and how long: plain numbers that cost a step next to nothing, read when somebody asks.

Pure. Must not know who counts or who reads; who reads takes a copy (`state`), also from another thread: a copy may be
of the moment before a count that is under way, and is never wrong in shape.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

QUICK = (10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 10e-3, 50e-3, 250e-3, 1.0, 5.0, 30.0)
"""Seconds: upper ends of the buckets for what may be answered from memory."""

SLOW = (1e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
"""Seconds: upper ends of the buckets for what goes over the network or waits for the disk."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A copy of a `Tally`: `counts` of durations up to each of `bounds` and not up to the one before; the last is of
    those above all. `total` is their sum in seconds."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """How many durations."""
        return sum(self.counts)


def together(spreads: Sequence[Spread]) -> Spread:
    """The sum of one or more that have the same bounds."""
    columns = zip(*(one.counts for one in spreads), strict=True)
    return Spread(spreads[0].bounds, tuple(map(sum, columns)), sum(one.total for one in spreads))


class Tally:
    """Durations in buckets. One thread at a time adds to it."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds` ascend, in seconds."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, seconds: float) -> None:
        """One more duration; 0.3 us."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._total += seconds

    def state(self) -> Spread:
        """A copy."""
        return Spread(self._bounds, tuple(self._counts), self._total)
