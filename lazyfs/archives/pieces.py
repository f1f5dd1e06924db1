"""Unpacked bytes in pieces: what can be had at once is unpacked at once, and held for who reads on.

Must not know how it is unpacked. Blocks; one thread at a time.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence

from lazyfs.archives.members import Damaged
from lazyfs.objects import MIB

HELD = 8 * MIB
"""Bytes that are held, at least one piece."""


class Pieces:
    """What an object unpacks to, cut at `cuts`, which ascend from 0 and end with its size. `fill(start, view)` unpacks
    all bytes of a view."""

    def __init__(self, cuts: Sequence[int], fill: Callable[[int, memoryview], None]) -> None:
        self._cuts = cuts
        self._fill = fill
        self._held: OrderedDict[int, bytearray] = OrderedDict()

    def read_into(self, start: int, into: Sequence[memoryview]) -> None:
        """Fill `into` with what is there from `start` on; `Damaged` if there is less."""
        for view in into:
            done = 0
            while done < len(view):
                at = start + done
                number = bisect_right(self._cuts, at) - 1
                if not 0 <= number < len(self._cuts) - 1:
                    raise Damaged(f"unpacks to {self._cuts[-1]} bytes, and has no byte {at}")
                part = memoryview(self._piece(number))[at - self._cuts[number] :][: len(view) - done]
                view[done : done + len(part)] = part
                done += len(part)
            start += len(view)

    def _piece(self, number: int) -> bytearray:
        found = self._held.pop(number, None)
        if found is None:
            size = self._cuts[number + 1] - self._cuts[number]
            while self._held and sum(map(len, self._held.values())) + size > HELD:
                self._held.popitem(last=False)
            found = bytearray(size)
            self._fill(self._cuts[number], memoryview(found))
        self._held[number] = found
        return found
