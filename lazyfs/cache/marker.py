"""Making marks of chunks that are touched on disk, while nobody reads.

A touch of a chunk without marks reads a block of 64 KiB; with them the pages that it wants, in four fifths of the
time. They are not made when a chunk comes: with one for 16 KiB a cold GiB took 5 % longer, for these are 48 more times
at which a thread lets go of the interpreter and waits for it, and with pieces so small that it does not, 13 %. Most
models are never touched at random; one that is will be again.

Must not know what marks are. Loop thread only; what it has done is a step like those of the writer.
"""

import logging
from collections.abc import Callable, Sequence

import trio

from lazyfs.cache.quiet import Quiet
from lazyfs.cache.threads import Workers
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import SEGMENT_CHUNKS, ObjectVersion

log = logging.getLogger(__name__)

TOGETHER = 16
"""Chunks read and marked before anybody looks whether there was a read: some 20 ms of an NVMe disk."""

MOST = 4096
"""Chunks remembered; those of the segment that was touched first are forgotten."""


class Marker:
    """The chunks of one cache that are to be marked. `mark` marks several of one segment, and blocks; `reads` is as
    for `Quiet`."""

    def __init__(
        self, *, mark: Callable[[ObjectVersion, Sequence[int]], None], workers: Workers, reads: Callable[[], int]
    ) -> None:
        self._mark = mark
        self._workers = workers
        self._reads = reads
        # By segment, for the marks of one are one record.
        self._pending: dict[tuple[ObjectVersion, int], set[int]] = {}
        self._count = 0
        self._wanted = trio.Event()

    def __len__(self) -> int:
        """How many wait, those that are being marked included."""
        return self._count

    def touched(self, version: ObjectVersion, number: int) -> None:
        """A chunk on disk that has no marks was touched."""
        numbers = self._pending.setdefault((version, number // SEGMENT_CHUNKS), set())
        self._count += number not in numbers
        numbers.add(number)
        while self._count > MOST:
            self._forget(*next(iter(self._pending.items())))
        self._wanted.set()

    async def run(self) -> None:
        """Mark what was touched, whenever nobody reads. It sleeps while there is nothing to mark."""
        while True:
            await self._wanted.wait()
            quiet = Quiet(self._reads)
            while self._pending:
                await quiet.wait()
                await self._some()
            self._wanted = trio.Event()

    async def _some(self) -> None:
        key = next(iter(self._pending))
        numbers = sorted(self._pending[key])[:TOGETHER]
        try:
            await self._workers.write(self._mark, key[0], numbers)
        except Exception as error:
            # Whatever it is, marks are not worth a mount; and what fails for one batch does so for the next.
            expected = isinstance(error, CacheUnavailable | OSError)
            log.log(logging.DEBUG if expected else logging.ERROR, "no marks were made", exc_info=error)
            self._pending.clear()
            self._count = 0
        else:
            self._forget(key, set(numbers))

    def _forget(self, key: tuple[ObjectVersion, int], numbers: set[int]) -> None:
        """These chunks of a segment do not wait any more."""
        left = self._pending.get(key, set())
        self._count -= len(left & numbers)
        left -= numbers
        if not left:
            self._pending.pop(key, None)
