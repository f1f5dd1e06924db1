"""The tensors of one file, and what a read says of those who will follow it.

Must not know which format told where they lie, or how runs are found. Pure. Offsets are bytes.
"""

from bisect import bisect_right
from collections.abc import Sequence

from lazyfs.objects import KIB, MIB
from lazyfs.reading.runs import Range, Run
from lazyfs.reading.windows import EARLIEST

PAGE = 4 * KIB

TAIL = 256
"""Before it copies many bytes, memcpy loads the last four vectors of them, of 64 bytes at most (glibc 2.36, x86-64:
memmove-vec-unaligned-erms.S). So whoever copies a tensor out of a mapping faults at its end first, and then at its
beginning: with nothing but the end under way, every first tensor waited for one more round trip."""


READ_AROUND = MIB
"""Most bytes that the kernel reads around a page; with fewer than so many left, a tensor was read."""

LEAST_AROUND = 64 * KIB
"""No fewer are read around a page, cut at the end of the file; a read of less is no such fault."""

MOST_UNREAD = 8
"""Tensors whose ends were touched, and of which nobody has read the beginning yet: as many threads that load. One more,
and it is ends that somebody wants."""


class Tensors:
    """Where tensors begin and end, ascending, in a file of `size` bytes. Believed until one that was begun is left
    before its end: then `left`, for a rank that reads its part of each wants no other part."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._borders: Sequence[int] = ()
        self._unread = 0
        self.left = False

    def __bool__(self) -> bool:
        """Whether they are known, and believed."""
        return bool(self._borders)

    def know(self, borders: Sequence[int]) -> None:
        """They lie between these offsets."""
        self._borders = () if self.left else borders

    def went_elsewhere(self, run: Run) -> None:
        """A run has begun, and this one had the read before: if it was in a tensor, that was left."""
        if 0 <= run.high < run.promised - READ_AROUND:
            self._disbelieve()

    def _disbelieve(self) -> None:
        self._borders, self.left = (), True

    def rest(self, run: Run) -> int:
        """Bytes from where the run has got to, to the end of a tensor of which it has read a MiB from the beginning on:
        all of it will be read. Notes that in the run."""
        found = None if run.bounded else self._around(run.high)
        if found is None or run.low > found[0] or run.high < found[0] + EARLIEST:
            return 0
        run.promised = found[1]
        self._unread = 0
        return found[1] - run.high

    def ending(self, start: int, stop: int) -> Range | None:
        """The tensor at whose last bytes somebody faulted, so that the kernel reads [start, stop), as much before the
        page as behind it. At the end of the file it is cut, and does not tell which page that was."""
        if stop - start < LEAST_AROUND:
            return None
        if stop >= self._size:
            found = self._around(self._size - 1)
            return found if found is not None and found[1] > start else None
        page = (start + stop) // 2 // PAGE * PAGE
        found = self._around(page)
        return found if found is not None and found[1] <= page + PAGE + TAIL else None

    def begin(self, tensor: Range) -> int | None:
        """Somebody is about to read this tensor: from where on the kernel may read for its first page. None if too many
        were about to be read."""
        self._unread += 1
        if self._unread > MOST_UNREAD:
            self._disbelieve()
            return None
        return max(0, tensor[0] // PAGE * PAGE - READ_AROUND // 2)

    def _around(self, offset: int) -> Range | None:
        """The tensor that holds this byte."""
        place = bisect_right(self._borders, offset)
        return (self._borders[place - 1], self._borders[place]) if 0 < place < len(self._borders) else None
