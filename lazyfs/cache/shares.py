"""Who may fill how many slots of memory: an origin that does not answer must leave room for those that do.

Slots on loan to flights come back when the origin answers, which may take the whole patience of its readers. Half of
the memory is divided evenly, as what nobody can take from an origin; the other half is for whoever comes. What comes
from the disk counts as an origin, so that cached bytes are read though nothing answers. Must not know what is in the
slots. Loop thread only.
"""

from collections.abc import Sequence

DISK = "/"
"""The disk, which no origin can be called."""


class Shares:
    """Loans of `slots` slots, by origin. One that is alone may have all."""

    def __init__(self, slots: int, origins: Sequence[str]) -> None:
        self._slots = slots
        self._own = slots // (2 * len(origins) + 2) if len(origins) > 1 else 0
        self._lent = dict.fromkeys([*origins, DISK], 0)

    def room(self, origin: str) -> int:
        """Slots that this origin may still be lent; 0 or more."""
        others = (max(self._own, count) for name, count in self._lent.items() if name != origin)
        return max(0, self._slots - self._lent[origin] - sum(others))

    def take(self, origin: str, count: int) -> None:
        """So many are lent to it."""
        self._lent[origin] += count

    def give(self, origin: str) -> None:
        """One of them is not on loan any more."""
        self._lent[origin] -= 1
