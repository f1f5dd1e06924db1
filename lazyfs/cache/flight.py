"""One flight: adjacent chunks on their way into lent slots of memory, or blocks of such, and who waits for them.

Must not know how bytes come, nor who else is on its way; `flights.py` does. Loop thread only, but for `sums` and
`received`, which the threads of the store write.
"""

import trio

from lazyfs.cache.memory import Chunk, Key
from lazyfs.errors import AccessDenied, Dropped, LazyfsError, NotFound, ObjectChanged
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, ObjectVersion
from lazyfs.stores.base import Claim


class Waiting:
    """Who waits for one chunk: `count` readers on `event`; `chunk` is set, and pinned for each of them, if it lands."""

    __slots__ = ("chunk", "count", "event")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.count = 0
        self.chunk: Chunk | None = None


class Few:
    """Who waits for bytes [start, stop) of a chunk and for no more of it: on `event`, for what `came`, if it does."""

    __slots__ = ("came", "event", "number", "start", "stop")

    def __init__(self, number: int, start: int, stop: int) -> None:
        self.number, self.start, self.stop = number, start, stop
        self.event = trio.Event()
        self.came: bytes | None = None


class Flight:
    """Chunks [first, stop) of a version; `landed` of them are in memory; once it is `over` no more will be, and
    `error` says why.

    `sums` are the checksums of the chunks that are complete, in order: a worker thread appends, the loop reads. They
    land when somebody looks for one of them, when the loop is told, and at the end.

    One of a `part` brings adjacent blocks from `block` of its first chunk on. What landed, its `pieces`, is pinned
    until the end, when who waits for `done` finds all of it in `came`. A piece that is not all of its chunk is kept
    aside, for no other reader: whoever waits for such a chunk looks again.

    Who waits for a `few` bytes of a chunk has a copy of them before the rest is here: the bytes `received` count from
    its beginning, and with a `cut` from there on, where its own GET begins; that of what is before has the claim
    `front`. Chunks of which somebody had the end so are `ended`.
    """

    __slots__ = (
        "block", "came", "claim", "cut", "done", "ended", "error", "few", "first", "front", "landed", "lent_to", "over",
        "part", "pieces", "received", "slots", "stop", "sums", "version", "views", "waiting",
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
        self.few: list[Few] = []
        self.cut = 0
        self.front = claim
        self.received = [0, 0]
        self.ended: set[int] = set()
        self.error: LazyfsError | None = None

    async def some(self, number: int, start: int, stop: int) -> bytes | None:
        """Bytes [start, stop) of a chunk that has not landed, as soon as they are here; None if the flight ends without
        them."""
        few = Few(number, start, stop)
        self.few.append(few)
        self.claim.few = self.front.few = True
        self.tell()
        try:
            await few.event.wait()
        finally:
            if few in self.few:
                self.few.remove(few)
        return few.came

    def tell(self) -> None:
        """Give those who wait for a few bytes what is here of them; before a chunk lands, and before `over`."""
        for few in [] if self.over else [*self.few]:
            few.came = self._part(few.number, few.start, few.stop)
            if few.came is not None:
                if few.stop >= self.version.chunk_length(few.number):
                    self.ended.add(few.number)
                self.few.remove(few)
                few.event.set()
        if not self.few and len(self.views) > 1:
            self.claim.few = False  # who goes on in the same chunk will wait for as few

    def _part(self, number: int, start: int, stop: int) -> bytes | None:
        """Bytes [start, stop) of a chunk, if they are received."""
        base = (number - self.first) * CHUNK_SIZE - self.block * BLOCK_SIZE
        low, high = base + start, base + stop
        reach = self.received[0]
        if self.cut and (low >= self.cut or reach == self.cut):
            reach = self.cut + self.received[1]
        if low < 0 or high > reach:
            return None
        skipped = max(0, base)
        return bytes(self.views[number - self.first][low - skipped : high - skipped])

    def error_for(self, version: ObjectVersion) -> LazyfsError | None:
        """What it came to for somebody who waits for this version; None if that is to be asked for again: it was given
        up, or another origin was refused, whose key, credentials or time this one does not have."""
        refused = isinstance(self.error, AccessDenied | NotFound | ObjectChanged)
        another = refused and self.version.origin != version.origin
        return None if another or isinstance(self.error, Dropped) else self.error


def aside(version: ObjectVersion, number: int) -> Key:
    """Where in memory a part of a chunk is until it is written: no reader looks there."""
    return version.object_id, -1 - number
