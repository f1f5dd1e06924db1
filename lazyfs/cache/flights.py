"""A flight: adjacent chunks on their way into lent slots of memory, and who waits for each. State only; `chunks.py`
moves it."""

from dataclasses import dataclass

import trio

from lazyfs.cache.memory import Chunk
from lazyfs.errors import LazyfsError
from lazyfs.objects import ObjectVersion
from lazyfs.stores.base import Claim


class Waiting:
    """Who waits for one chunk: `count` readers on `event`; `chunk` is set, and pinned for each of them, if it lands."""

    __slots__ = ("chunk", "count", "event")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.count = 0
        self.chunk: Chunk | None = None


class Flight:
    """Chunks [first, stop) of a version; `landed` of them are in memory; once it is `over` no more will be, and
    `error` says why.

    `sums` are the checksums of the chunks that are complete, in order: a worker thread appends, the loop reads.
    """

    __slots__ = ("claim", "error", "first", "landed", "over", "slots", "stop", "sums", "version", "views", "waiting")

    def __init__(
        self, version: ObjectVersion, span: range, slots: list[int], views: list[memoryview], claim: Claim
    ) -> None:
        self.version = version
        self.first, self.stop = span.start, span.stop
        self.slots = slots
        self.views = views
        self.claim = claim
        self.sums: list[bytes] = []
        self.landed = 0
        self.over = False
        self.waiting: dict[int, Waiting] = {}
        self.error: LazyfsError | None = None


@dataclass(frozen=True, slots=True)
class ChunkStatistics:
    """Chunks since the start. Reads by where they were found; corrupt: wrong on disk; unkept: not written to disk."""

    memory_hits: int
    disk_hits: int
    misses: int
    waits: int
    corrupt: int
    kept: int
    unkept: int
