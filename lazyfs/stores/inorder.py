"""A limit on threads that lets who comes first go first.

trio.CapacityLimiter gives way to other tasks also where a place is free, and trio runs those that wait together in one
order or in the reverse, by chance: of a window's 28 GETs, which reach it in the order of wanting, the first one was
sent last half of the time. Loop thread only.
"""

from typing import cast

import trio


def in_order(places: int) -> trio.CapacityLimiter:
    """A limiter for `trio.to_thread.run_sync`, which asks of one no more than the two methods (its reference says so):
    at most `places` threads at once, started in the order of the calls."""
    return cast(trio.CapacityLimiter, _InOrder(places))


class _InOrder:
    def __init__(self, places: int) -> None:
        self._limiter = trio.CapacityLimiter(places)

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        try:
            self._limiter.acquire_on_behalf_of_nowait(borrower)
        except trio.WouldBlock:
            await self._limiter.acquire_on_behalf_of(borrower)

    def release_on_behalf_of(self, borrower: object) -> None:
        self._limiter.release_on_behalf_of(borrower)
