"""A run that gets to where somebody else has read already: the kernel has that, and its reader goes on behind it.

So of several who read parts of what one of them would read as a whole, as the ranks of a tensor-parallel model do, one
run is left, with one window ahead of all. Must not know what is planned for it. Pure.
"""

from lazyfs.reading.runs import Range, Run
from lazyfs.reading.table import Table
from lazyfs.reading.young import Young


def reach(run: Run, stop: int, need: Range, size: int, young: Young, table: Table) -> list[Range]:
    """The run has read up to `stop` and, going upwards, what was read inside its plan from there on: down to there, or
    to the end of the file of `size` bytes. Or what others have read since it began, as a run of their own: then that
    run is forgotten, and what is told is what of the chunks `need` of this read was not planned, for all up to where
    the other one planned counts as planned now.

    A run that ended before this one began is left as it is: blocks that are read upwards, each below the one before,
    would have ever more planned behind the last.
    """
    run.high = max(run.high, stop)
    parts: list[Range] = []
    while run.step > 0:
        read = young.above(run.high)
        if read is not None and read.high <= run.frontier and (read.downs or read.high >= size):
            young.forget(read)
            run.high = read.high
        elif not run.bounded and (other := table.take(run.high, run.begun)) is not None:
            if run.frontier < need[1]:
                parts.append((max(run.frontier, need[0]), need[1]))
            run.join(other)
        else:
            break
    return parts


def pass_over(run: Run, start: int, young: Young) -> None:
    """A read begins at `start`, ahead of the run: if just one read lies between them, inside its plan, that was the
    same reader, who touched the end of a tensor before he came to it. Before, it may be anybody's."""
    touched = young.below(start)
    if touched is not None and touched.low == run.high and start <= run.frontier:
        young.forget(touched)
        run.high = start
