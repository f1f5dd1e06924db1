"""Making marks of chunks that are touched on disk, while nobody reads.

A touch of a chunk without marks reads a block of 64 KiB; with them the pages that it wants, in three quarters of the
time. They are not made when a chunk comes: with one for 16 KiB a cold GiB took 5 % longer, for these are 48 more times
at which a thread lets go of the interpreter and waits for it, and with pieces so small that it does not, 13 %. Most
models are never touched at random; one that is will be again.

Must not know what marks are. Loop thread only; what it has done is a step like those of the writer.
"""

import logging
from collections.abc import Callable, Sequence
from itertools import islice

import trio

from lazyfs.cache.threads import Workers
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import ObjectVersion

log = logging.getLogger(__name__)

PAUSE = 0.25
"""Seconds without a read after which nobody is taken to read."""

TOGETHER = 16
"""Chunks read and marked before anybody looks whether there was a read: some 20 ms of an NVMe disk."""

MOST = 4096
"""Chunks remembered; those that were touched first are forgotten."""


class Marker:
    """The chunks of one cache that are to be marked. `mark` marks several of one version, and blocks; `reads` is a
    number that changes with each read."""

    def __init__(
        self, *, mark: Callable[[ObjectVersion, Sequence[int]], None], workers: Workers, reads: Callable[[], int]
    ) -> None:
        self._mark = mark
        self._workers = workers
        self._reads = reads
        self._pending: dict[tuple[ObjectVersion, int], None] = {}
        self._wanted = trio.Event()

    def __len__(self) -> int:
        """How many wait, those that are being marked included."""
        return len(self._pending)

    def touched(self, version: ObjectVersion, number: int) -> None:
        """A chunk on disk that has no marks was touched."""
        self._pending[version, number] = None
        if len(self._pending) > MOST:
            del self._pending[next(iter(self._pending))]
        self._wanted.set()

    async def run(self) -> None:
        """Mark what was touched, whenever nobody reads. It sleeps while there is nothing to mark."""
        while True:
            await self._wanted.wait()
            before = -1
            while self._pending:
                if before != self._reads():
                    before = self._reads()
                    await trio.sleep(PAUSE)
                else:
                    await self._some()
            self._wanted = trio.Event()

    async def _some(self) -> None:
        version = next(iter(self._pending))[0]
        keys = list(islice((key for key in self._pending if key[0] == version), TOGETHER))
        try:
            await self._workers.write(self._mark, version, sorted(number for _, number in keys))
        except CacheUnavailable as error:
            log.debug("no marks were made: %s", error)
        for key in keys:
            self._pending.pop(key, None)
