"""When nobody reads: for what costs a processor, and may be done later.

Must not know what waits. Loop thread only.
"""

import math
from collections.abc import Callable

import trio

PAUSE = 0.25
"""Seconds without a read after which nobody is taken to read."""


class Quiet:
    """For one that waits. `reads` is a number that changes with each read."""

    def __init__(self, reads: Callable[[], int]) -> None:
        self._reads = reads
        self._seen = -1

    async def wait(self, most: float = math.inf, unless: Callable[[], bool] = lambda: False) -> None:
        """Return once nobody has read for a while, after `most` seconds, or when `unless` says so, which is asked each
        time that somebody might have begun to read. At once if nobody has read since it returned for that."""
        until = trio.current_time() + most
        while self._seen != (seen := self._reads()) and not unless() and trio.current_time() < until:
            self._seen = seen
            await trio.sleep(PAUSE)
