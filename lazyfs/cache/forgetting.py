"""Forgetting a version whole: in memory, on disk, and what is on its way.

Must not know why. Loop thread only.
"""

from collections.abc import Awaitable, Callable

import trio

from lazyfs.cache.disk import Disk
from lazyfs.cache.flights import Flights
from lazyfs.cache.memory import Memory
from lazyfs.cache.writer import Writer
from lazyfs.objects import ObjectVersion

FORGET_AGAIN = 8
"""Times that a disk which does not forget is asked again, after pauses that double from 0.1 s: 25 s in all. It does not
while it fails, and while another daemon is writing the version."""


async def forget(
    version: ObjectVersion,
    *,
    disk: Disk,
    memory: Memory,
    writer: Writer,
    flights: Flights,
    landing: Callable[[], Awaitable[None]],
) -> None:
    """Drop everything of a version; `landing` returns when a flight may have ended. What is on its way may be older
    than the wish. A disk that does not forget is asked again for a while, for what stays there would be taken for
    fetched again. Costs nothing for what is not here, however large the object."""
    object_id = version.object_id
    pauses = [0.1 * 2**number for number in range(FORGET_AGAIN)]
    while True:
        await writer.settled()  # what waits to be written is pinned, and would be on disk after this
        gone = await writer.step(disk.forget, version)
        left = memory.forget_objects({object_id})
        if any(flights.get((object_id, number)) for number in flights.numbers(object_id)):
            await landing()
        elif not gone and pauses:
            await trio.sleep(pauses.pop(0))
        elif not left:
            return
