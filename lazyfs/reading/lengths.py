"""How long the runs of one inode were, and what that says of the next one.

Must not know where they lay. Pure.
"""

from collections import deque

from lazyfs.objects import MIB

REMEMBERED = 4 * MIB
"""When a run ended after at most so much, the next one is first expected to end likewise."""

ALIKE = 3
LONGEST_ALIKE = 64 * MIB
"""When so many ended one after the other, each after at most so much, the next one is first expected to be as long as
the longest of them: who reads experts of 12 MiB here and there had six times as much fetched."""


class Lengths:
    """Of the last runs that ended before another began."""

    def __init__(self) -> None:
        self._last: deque[int] = deque(maxlen=ALIKE)

    def after(self, length: int, *, anything: bool) -> int:
        """How long the next run will be at first sight, when the one before ended after `length` bytes; 0 for no guess.
        `anything`: nothing else is known of how the file is read."""
        self._last.append(length)
        longest = max(self._last)
        if length <= REMEMBERED:
            return length
        return longest if len(self._last) == ALIKE and longest <= LONGEST_ALIKE and anything else 0
