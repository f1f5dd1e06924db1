"""Listings that outlive the daemon: a mount within the TTL of the last one asks nothing, and an outage empties nothing.

Its job: answer from the index while a listing is fresh, ask the store when it is not, and go on with an old one when
the store cannot be asked. An error is never an empty listing; only the store's own word that the bucket is gone passes.
"""

import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

import trio

from lazyfs.cache.disk import Disk
from lazyfs.cache.packing import pack, pack_total, unpack, unpack_total
from lazyfs.cache.walks import Walks
from lazyfs.errors import NotFound, StoreError
from lazyfs.objects import Listing, Stretch

log = logging.getLogger(__name__)

SHORT_PATIENCE = 10.0
"""Seconds to ask for a listing when an old one is at hand."""

STALE_FOR = 30.0
"""Seconds for which an old listing is used again before the store is asked once more."""


class Lists(Protocol):
    """How the store is asked: `fetch.PatientStore`, for `budget` seconds at most (None: the usual patience)."""

    async def list(self, prefix: str, *, budget: float | None = None) -> Listing:
        """See `base.Store.list`."""
        ...

    async def stretch(self, prefix: str, after: str, *, budget: float | None = None) -> Stretch:
        """See `base.Store.stretch`."""
        ...

    async def total_size(self, prefix: str, *, budget: float | None = None) -> int:
        """See `base.Store.total_size`; `budget` as in `list`."""
        ...


class Listings:
    """Listings of one bucket (`place`) below `root`, believed for `ttl` seconds. `nursery` runs what lies ahead of
    a walk. `clock` is wall time, for they outlive the process."""

    def __init__(
        self,
        *,
        place: str,
        root: str,
        store: Lists,
        disk: Disk,
        in_writer: Callable[..., Awaitable[object]],
        ttl: float,
        nursery: trio.Nursery | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._place = place
        self._root = root
        self._store = store
        self._disk = disk
        self._in_writer = in_writer
        self._ttl = ttl
        self._clock = clock
        # One attempt: what cannot be had so is asked for with patience, directory by directory.
        self._walks = Walks(
            root=root,
            stretch=lambda below, after: store.stretch(below, after, budget=0),
            keep=self._keep,
            children=self._children,
            nursery=nursery,
        )
        self._failed_at = float("-inf")
        self._total: tuple[int, float] | None = None
        self.patience: float | None = None
        """Seconds to ask for a listing that has no predecessor; None: as long as a reader would."""

    def age(self, listing: Listing) -> float:
        """Seconds since the listing was asked for; never less than 0, whatever the clock did."""
        return max(0.0, self._clock() - listing.listed_at)

    async def list(self, prefix: str, doubted: bool = False) -> Listing:
        """The listing of `prefix`, fresh if that can be had. A `doubted` one is asked for before its time."""
        if not doubted and (fresh := self.fresh(prefix)) is not None:
            return fresh
        kept = self._kept(prefix)
        if not doubted:
            if kept is not None and 0 <= self._clock() - self._failed_at < STALE_FOR:
                return self._stale(kept)  # of a walk in an outage, not every directory waits
            found = await self._walks.bring(prefix, self._fresh)
            if found is not None:
                return found
        try:
            listing = await self._store.list(prefix, budget=self.patience if kept is None else SHORT_PATIENCE)
        except NotFound:
            raise
        except StoreError as error:
            if kept is None:
                raise
            log.warning("cannot list %r, going on with the listing of %.0f s ago: %s", prefix, self.age(kept), error)
            self._failed_at = self._clock()
            return self._stale(kept)
        self._failed_at = float("-inf")
        await self.keep(listing)
        return listing

    def fresh(self, prefix: str) -> Listing | None:
        """The listing of `prefix`, if it is kept and young enough that nobody needs to be asked."""
        kept = self._kept(prefix)
        if kept is None or not self._fresh(kept):
            return None
        self._walks.passed(prefix)
        return kept

    async def keep(self, listing: Listing) -> None:
        """This is what is there, as of when it says."""
        self._walks.listed(listing.prefix)
        await self._keep([listing])

    def now(self) -> float:
        """The time that listings are of, seconds since the epoch."""
        return self._clock()

    def walking(self, prefix: str) -> bool:
        """Whether somebody walks over many directories, of which this may be one."""
        return self._walks.walking(prefix)

    def peek(self, prefix: str) -> Listing | None:
        """What is kept of `prefix`, however old; asks nobody. From any thread."""
        return self._kept(prefix)

    async def total_size(self) -> int:
        """Bytes of all objects below the root, or of a great many the first ones; believed as long as a listing."""
        key, now = self._key(b"total", self._root), self._clock()
        self._total = self._total or unpack_total(self._disk.listing(key))
        if self._total is not None and 0 <= now - self._total[1] < self._ttl:
            return self._total[0]
        try:
            size = await self._store.total_size(self._root, budget=SHORT_PATIENCE)
        except StoreError:
            if self._total is None:
                raise
            self._total = (self._total[0], now - self._ttl + STALE_FOR)
            return self._total[0]
        self._total = (size, now)
        await self._in_writer(self._disk.put_listings, {key: pack_total(size, now)})
        return size

    def _kept(self, prefix: str) -> Listing | None:
        """What the index has, unless it is from the future: a clock that was set back makes nothing fresh for years."""
        found = unpack(self._disk.listing(self._key(b"", prefix)))
        return found if found is not None and found.prefix == prefix and found.listed_at <= self._clock() else None

    def _children(self, prefix: str) -> Sequence[str]:
        kept = self._kept(prefix)
        return sorted(kept.prefixes) if kept is not None else ()

    def _fresh(self, listing: Listing) -> bool:
        return self.age(listing) < self._ttl

    def _stale(self, listing: Listing) -> Listing:
        """The same, to be believed for a short while."""
        return replace(listing, listed_at=self._clock() - self._ttl + STALE_FOR)

    async def _keep(self, listings: Sequence[Listing]) -> None:
        """Put them into the index. Packing a large one takes long enough to have it done in the writer's thread."""

        def put() -> None:
            packed = {self._key(b"", listing.prefix): pack(listing) for listing in listings}
            self._disk.put_listings({key: value for key, value in packed.items() if value is not None})

        await self._in_writer(put)

    def _key(self, kind: bytes, prefix: str) -> bytes:
        text = f"{self._place}|{prefix}".encode("utf-8", "surrogatepass")
        return hashlib.sha256(kind + b"\0" + text if kind else text).digest()[:16]
