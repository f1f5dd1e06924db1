"""The one small Protocol that every origin of bytes speaks, and the claim a read carries through it.

Must not know chunks, the cache or the kernel. Everything here is called from the trio loop, except `arrived`.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from lazyfs.objects import Checksums, Listing, ObjectInfo, ObjectVersion, Stretch

Arrived = Callable[[int], None]
"""`arrived(count)`: the first `count` bytes of a read are in their buffers for good.

Called any number of times with growing counts, with 0 when an answer has begun, the last with all of it, possibly from
a worker thread and possibly after the read was cancelled. It must be quick and must not raise.
"""


class Claim:
    """How much a read matters, which may change while it waits.

    A claim is urgent (a reader waits) or not (read-ahead), and belongs to a lane: lanes share what there is of
    connections evenly, whatever each has queued. `urge()` makes it urgent for good, also while it is queued;
    `drop()` gives it up if it has not been sent yet. Loop thread only.

    `few` says that somebody waits for a few bytes of it by themselves: from what is received next on `arrived` tells of
    little at a time, where the store can do that. Its threads look at that, and at `urgent`.

    `sever` is set by the store while a request is under way, where it can do that, from whatever thread: it breaks the
    request off, which then fails as `Transient` with what arrived still good.
    """

    __slots__ = ("dropped", "few", "lane", "on_change", "sever", "urgent")

    def __init__(self, *, urgent: bool, lane: Hashable = None) -> None:
        self.urgent = urgent
        self.lane = lane
        self.dropped = self.few = False
        self.on_change: Callable[[], None] | None = None
        self.sever: Callable[[], None] | None = None

    def urge(self) -> None:
        """A reader waits for this now."""
        if not self.urgent:
            self.urgent = True
            self._changed()

    def drop(self) -> None:
        """Nobody wants this any more. No effect once it was sent, or on an urgent claim."""
        if not self.urgent and not self.dropped:
            self.dropped = True
            self._changed()

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()


class Reads(Protocol):
    """Where bytes of versions come from. Raises only `errors.StoreError` and its kinds."""

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """Fill `into`, in order, with the bytes of `version` from `start` on, exactly, or raise.

        The buffers together must not reach past the version's size. `ObjectChanged` when the key no longer holds this
        version: bytes of another version are never delivered. After an error, what `arrived` counted is still good.
        A read is not left before it no longer writes to `into`, so the buffers may be reused as soon as it is over;
        only a loop that is shutting down for good cancels one.
        """
        ...


class Store(Reads, Protocol):
    """An origin of bytes, and of what there is of them."""

    async def list(self, prefix: str) -> Listing:
        """The complete listing right below `prefix` (empty, or ending in `/`), every page of it, or an error."""
        ...

    async def stretch(self, prefix: str, after: str) -> Stretch:
        """What is below `prefix` at any depth, after the key `after`, which need not be one: as much as one request
        brings."""
        ...

    async def total_size(self, prefix: str) -> int:
        """Bytes of all objects below `prefix`, at any depth; of a great many, those of the first ones."""
        ...

    async def stat(self, key: str) -> ObjectInfo:
        """One object as it is now; `NotFound` if the store says with authority that it is not there."""
        ...

    async def checksums(self, version: ObjectVersion) -> Checksums:
        """What the store keeps of all bytes of a version, empty if nothing; checksums of parts do not count.
        `ObjectChanged` when the key no longer holds this version."""
        ...
