"""What a row is, one measurement of reading, and the one way to compare: in turns."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from scripts.benchmarks.results import Line
from scripts.benchmarks.stage import Stage

T = TypeVar("T")


class Row:
    """One promise about speed. `name` is its number; `last` rows look at what the others left."""

    name = ""
    last = False

    def run(self, stage: Stage) -> Iterator[Line]:
        """Measure, and give the lines of the table as they are known. Whatever is raised is a failed row."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One reading: seconds, bytes that were read, bytes that the server sent for it, CPU seconds of whoever fetched
    them (`user` of those outside the kernel), chunks that were not kept on disk."""

    seconds: float
    bytes: int
    fetched: int = 0
    cpu: float = 0.0
    user: float = 0.0
    unkept: int = 0

    @property
    def rate(self) -> float:
        """GB/s."""
        return self.bytes / self.seconds / 1e9

    @property
    def cpu_per_gb(self) -> float:
        """Seconds of CPU for 10^9 bytes."""
        return self.cpu / self.bytes * 1e9

    @property
    def excess(self) -> float:
        """Bytes fetched for each byte that was read."""
        return self.fetched / self.bytes


def in_turns(count: int, *sides: Callable[[int], T]) -> list[list[T]]:
    """Measure A B A B, or A B C A B C: each side once in each of `count` turns, and told which. What each found, in
    order, so that the figures of one turn can be compared: a machine is not as fast now as a minute ago."""
    found: list[list[T]] = [[] for _ in sides]
    for turn in range(count):
        for measure, measured in zip(sides, found, strict=True):
            measured.append(measure(turn))
    return found
