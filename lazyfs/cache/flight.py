"""One flight: adjacent chunks on their way into lent slots of memory, or blocks of such, and who waits for them.

Must not know how bytes come, nor who else is on its way; `flights.py` does.
"""

import trio

from lazyfs.cache.memory import Chunk, Key
from lazyfs.errors import AccessDenied, Dropped, LazyfsError, NotFound, ObjectChanged
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

    `sums` are the checksums of the chunks that are complete, in order: a worker thread appends, the loop reads. They
    land when somebody looks for one of them, when the loop is told, and at the end.

    One of a `part` brings adjacent blocks from `block` of its first chunk on. What landed, its `pieces`, is pinned
    until the end, when who waits for `done` finds all of it in `came`. A piece that is not all of its chunk is kept
    aside, for no other reader: whoever waits for such a chunk looks again.
    """

    __slots__ = (
        "block", "came", "claim", "done", "error", "first", "landed", "lent_to", "over", "part", "pieces", "slots",
        "stop", "sums", "version", "views", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        version: ObjectVersion,
        span: range,
        slots: list[int],
        views: list[memoryview],
        claim: Claim,
        lent_to: str,
        block: int | None = None,
    ) -> None:
        self.version = version
        self.lent_to = lent_to
        self.part, self.block = block is not None, block or 0
        self.pieces: list[tuple[Key, Chunk]] = []
        self.came: bytes | None = None
        self.done = trio.Event()
        self.first, self.stop = span.start, span.stop
        self.slots = slots
        self.views = views
        self.claim = claim
        self.sums: list[bytes] = []
        self.landed = 0
        self.over = False
        self.waiting: dict[int, Waiting] = {}
        self.error: LazyfsError | None = None

    def error_for(self, version: ObjectVersion) -> LazyfsError | None:
        """What it came to for somebody who waits for this version; None if that is to be asked for again: it was given
        up, or another origin was refused, whose key, credentials or time this one does not have."""
        refused = isinstance(self.error, AccessDenied | NotFound | ObjectChanged)
        another = refused and self.version.origin != version.origin
        return None if another or isinstance(self.error, Dropped) else self.error


def aside(version: ObjectVersion, number: int) -> Key:
    """Where in memory a part of a chunk is until it is written: no reader looks there."""
    return version.object_id, -1 - number
