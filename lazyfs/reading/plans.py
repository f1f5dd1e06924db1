"""What a reader is told: which bytes to bring, in which order, and which not to bother with any more.

Must not know how that was found out. Pure.
"""

from dataclasses import dataclass

from lazyfs.objects import align_down
from lazyfs.reading.runs import Range, Run, Stride


@dataclass(slots=True, eq=False)
class Plan:
    """What to bring for one read: `ranges`, chunk-aligned except at the end of the file, in the order of wanting.

    The first holds what the read itself needs, unless that was planned before. `dropped` was planned for somebody who
    went elsewhere: what waits in a queue of it need not be sent, and it comes before `ranges`. The first `others`
    ranges are not what the run goes on with.
    """

    ranges: tuple[Range, ...] = ()
    dropped: tuple[Range, ...] = ()
    run: Run | None = None
    stride: Stride | None = None
    size: int = 0
    others: int = 0
    alone: bool = False
    """A touch of a file in which nothing came of many, so that nothing beside its bytes is wanted."""

    @property
    def touch(self) -> bool:
        """Whether the read goes on with nothing, so that more of its chunk need not be wanted."""
        return self.stride is None and self.run is not None and not self.run.step

    def reached(self, place: int, offset: int) -> None:
        """Of range number `place` only bytes before `offset` are here or coming, and nothing of those after it. They
        are planned again when there is room."""
        start, stop = self.ranges[place]
        if self.stride is not None:
            self.stride.cut(start, self.size)
        if self.run is not None and not (self.stride and place):
            if place < self.others:
                start = offset = align_down(self.run.high)
            self.run.cut(start, stop, offset)


NOTHING = Plan()
"""All of it was planned before. One for all reads: making another would cost as much as the rest of a read."""
