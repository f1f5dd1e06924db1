"""Listings that outlive the daemon: a mount within the TTL of the last one asks nothing, and an outage empties nothing.

Its job: answer from the index while a listing is fresh, ask the store when it is not, and go on with an old one when
the store cannot be asked. An error is never an empty listing; only the store's own word that the bucket is gone passes.
"""

import hashlib
import json
import logging
import math
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from lazyfs.cache.disk import Disk
from lazyfs.errors import NotFound, StoreError
from lazyfs.objects import Listing, ObjectInfo

log = logging.getLogger(__name__)

SHORT_PATIENCE = 10.0
"""Seconds to ask for a listing when an old one is at hand."""

STALE_FOR = 30.0
"""Seconds for which an old listing is used again before the store is asked once more."""


LONGEST = 64 * 1024 * 1024
"""Bytes of a listing's JSON: some 500,000 objects of one directory. A longer one is not kept, and not read: what is
compressed may be a thousand times as long when it is not."""


class ListPrefix(Protocol):
    """How the store is asked: `fetch.PatientStore.list`."""

    async def __call__(self, prefix: str, *, budget: float | None = None) -> Listing:
        """The listing, asking for `budget` seconds at most (None: the usual patience)."""
        ...


class Listings:
    """Listings of one bucket (`place`), believed for `ttl` seconds. `clock` is wall time, for they outlive the
    process."""

    def __init__(
        self,
        *,
        place: str,
        list_prefix: ListPrefix,
        disk: Disk,
        in_writer: Callable[..., Awaitable[object]],
        ttl: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._place = place
        self._list = list_prefix
        self._disk = disk
        self._in_writer = in_writer
        self._ttl = ttl
        self._clock = clock
        self.patience: float | None = None
        """Seconds to ask for a listing that has no predecessor; None: as long as a reader would."""

    def age(self, listing: Listing) -> float:
        """Seconds since the listing was asked for; never less than 0, whatever the clock did."""
        return max(0.0, self._clock() - listing.listed_at)

    async def list(self, prefix: str, doubted: bool = False) -> Listing:
        """The listing of `prefix`, fresh if that can be had. A `doubted` one is asked for before its time."""
        key = hashlib.sha256(f"{self._place}|{prefix}".encode("utf-8", "surrogatepass")).digest()[:16]
        kept = unpack(self._disk.listing(key))
        if kept is not None and (kept.prefix != prefix or kept.listed_at > self._clock()):
            kept = None
        if kept is not None and self.age(kept) < self._ttl and not doubted:
            return kept
        try:
            listing = await self._list(prefix, budget=self.patience if kept is None else SHORT_PATIENCE)
        except NotFound:
            raise
        except StoreError as error:
            if kept is None:
                raise
            log.warning("cannot list %r, going on with the listing of %.0f s ago: %s", prefix, self.age(kept), error)
            return replace(kept, listed_at=self._clock() - self._ttl + STALE_FOR)
        packed = pack(listing)
        if packed is not None:
            await self._in_writer(self._disk.put_listing, key, packed)
        return listing


def pack(listing: Listing) -> bytes | None:
    """A listing as bytes; None for one that is too long to be kept."""
    objects = [(o.key, o.etag, o.size, o.mtime_ns, o.storage_class) for o in listing.objects]
    text = json.dumps([listing.prefix, listing.listed_at, listing.prefixes, objects])
    return zlib.compress(text.encode("ascii"), 1) if len(text) <= LONGEST else None


def unpack(packed: bytes | None) -> Listing | None:
    """The listing, or None for anything that is not one."""
    if packed is None:
        return None
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(packed, LONGEST)
        if not unpacking.eof:
            return None
        prefix, listed_at, prefixes, objects = json.loads(text)
        infos = tuple(ObjectInfo(str(k), str(e), int(s), int(m), str(c)) for k, e, s, m, c in objects)
        found = Listing(str(prefix), infos, tuple(map(str, prefixes)), float(listed_at))
    except (zlib.error, ValueError, TypeError, OverflowError, RecursionError):
        return None
    # A time that is no number would never be too old.
    possible = math.isfinite(found.listed_at) and all(info.possible for info in found.objects)
    return found if possible else None
