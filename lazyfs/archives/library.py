"""The archives of a mount: what is in each, found once and kept, and the bytes of members.

Its job: decide by its first bytes what an object is, list it once, keep that in the chunk cache as an object of its own
(so that bound, checksums, eviction and other daemons count for it), and unpack what is asked for. Must not know names
of directories, S3, or the kernel.

What it costs. Plain tar: the headers, a chunk each, where members are large. gzip: all of the object once, unpacked at
some 170 MiB/s of a core and not kept but for the index; whoever looks into the directory waits for that, and nobody
else does. What passes by then is kept as chunks of the archive, so that members are unpacked from the disk later. zstd:
the same, by frames; one that is a single large frame is unpacked to the disk then, member by member, since a touch
would have to unpack all that is before it.

Concurrency: loop thread only; parsing and unpacking are in threads, one for each archive at a time. Members are read
inside flights, which hold memory for chunks: so nothing on that way waits for such memory, nor for `contents`, which
does, and has locks and threads of its own.
"""

import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import trio

from lazyfs.archives import gz, zst
from lazyfs.archives.contents import Contents, pack, unpack
from lazyfs.archives.members import Damaged, Member, looks_like_tar, members
from lazyfs.archives.names import directory_of, index_version, member_etag
from lazyfs.archives.stored import StoredFile
from lazyfs.errors import Corrupt
from lazyfs.objects import MIB, ObjectVersion

log = logging.getLogger(__name__)

REMEMBERED = 4
"""Archives whose members are in memory: 30 MiB each at most."""
OPEN = 2
"""Archives that are unpacked without reading their index again: 16 MiB each, or 128 at most."""
AT_ONCE = 2
"""Threads that list, and as many that unpack."""
LONGEST_INDEX = gz.LONGEST_INDEX + 32 * MIB

NONE_FOR = 86400.0
"""Seconds for which it is believed that an object is no archive: bytes that came wrong are found wrong later."""

HEADER_PIECE = MIB
"""Bytes read at once where headers may be far apart."""

Fetch = Callable[[ObjectVersion, int, int], Awaitable[bytes | bytearray]]
"""Bytes [start, stop) of a version; raises `StoreError`."""


class Keeps(Protocol):
    """Where what was found of an archive is kept."""

    def note(self, key: bytes) -> bytes | None: ...
    async def put_note(self, key: bytes, note: bytes) -> None: ...
    async def kept(self, version: ObjectVersion) -> bytes | bytearray | None: ...
    async def keep(self, version: ObjectVersion, data: bytes) -> None: ...
    async def bring(self, versions: Sequence[ObjectVersion]) -> None: ...


class Shares(Protocol):
    """Where others leave what they found of an archive, as `contents.pack` gives it, and may have left anything."""

    async def get(self, archive: ObjectVersion) -> bytes | None: ...
    async def put(self, archive: ObjectVersion, packed: bytes) -> None: ...


Unpacked = gz.Unpacked | zst.Unpacked


class Library:
    """`walk` fetches and keeps, for one after the other; `straight` may be used inside a flight. `clock` is
    wall time, seconds."""

    def __init__(
        self,
        *,
        walk: Fetch,
        straight: Fetch,
        keeps: Keeps,
        shares: Shares | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._walk = walk
        self._straight = straight
        self._keeps = keeps
        self._shares = shares
        self._clock = clock
        self._known: OrderedDict[bytes, Contents | None] = OrderedDict()
        self._open: OrderedDict[bytes, Unpacked] = OrderedDict()
        self._locks: dict[bytes, trio.Lock] = {}
        self._listing = trio.CapacityLimiter(AT_ONCE)
        self._unpacking = trio.CapacityLimiter(AT_ONCE)

    async def contents(self, archive: ObjectVersion) -> Contents | None:
        """What is in it; None for what is no archive or cannot be shown, with a warning when that is found. Raises what
        fetching raises. Never inside a flight."""
        which = archive.object_id
        async with _Turn(self._locks, b"listing" + which):
            found = self._known.get(which, ...)
            if found is ...:
                whole = await self._whole(archive, self._walk, self._listing)
                # Places are large, and their own library has them.
                found = whole and replace(whole, places=b"")
            self._known[which] = found
            self._known.move_to_end(which)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            return found

    async def _whole(self, archive: ObjectVersion, fetch: Fetch, threads: trio.CapacityLimiter) -> Contents | None:
        loaded = await self._load(archive, threads)
        if loaded is not ...:
            return cast("Contents | None", loaded)
        return await self._make(archive, fetch, threads)

    async def _load(self, archive: ObjectVersion, threads: trio.CapacityLimiter) -> Any:
        """What is kept of it; ... if nothing is."""
        note = _said(self._keeps.note(_key(archive)))
        if note.get("none") and 0 <= self._clock() - note["at"] < NONE_FOR:
            return None
        size = int(note.get("size", 0))
        if not 0 < size <= LONGEST_INDEX:
            return ...
        packed = await self._keeps.kept(index_version(archive, size))
        if packed is None:
            return ...
        try:
            return await trio.to_thread.run_sync(unpack, bytes(packed), limiter=threads)
        except Damaged as error:
            log.warning("what is kept of the archive %r %s; it is listed again", archive.key, error)
            return ...

    async def _make(self, archive: ObjectVersion, fetch: Fetch, threads: trio.CapacityLimiter) -> Contents | None:
        shared = await self._shared(archive, threads) if fetch is self._walk else None
        try:
            packed = shared or await self._listed(archive, fetch, threads)
            found = unpack(packed)
        except Damaged as error:
            # Once a day for a version: the note outlives the process.
            log.warning("%r %s: its directory shows nothing, the file stays as it is", archive.key, error)
            await self._keeps.put_note(_key(archive), json.dumps({"none": str(error), "at": self._clock()}).encode())
            return None
        if found.members.hidden:
            log.info("%r: %d names in it are not shown", archive.key, found.members.hidden)
        if found.kind != "tar" and archive.object_id not in self._open:
            # Perhaps nothing of it can be kept.
            self._remember(archive, await self._opened(archive, found, threads))
        if fetch is self._walk:
            if found.kind == "zst" and zst.solid(found.places):
                # Once, in order: later a touch would unpack all that is before it.
                in_order = sorted(found.members.files.items(), key=lambda one: one[1].start)
                await self._keeps.bring([_version(archive, found.kind, path, one) for path, one in in_order])
            await self._keeps.keep(index_version(archive, len(packed)), packed)
            await self._keeps.put_note(_key(archive), json.dumps({"size": len(packed)}).encode())
            if self._shares is not None and shared is None:
                await self._shares.put(archive, packed)
        return found

    async def _listed(self, archive: ObjectVersion, fetch: Fetch, threads: trio.CapacityLimiter) -> bytes:
        return await trio.to_thread.run_sync(_listed, archive, _blocking(fetch, archive), limiter=threads)

    async def _shared(self, archive: ObjectVersion, threads: trio.CapacityLimiter) -> bytes | None:
        """What somebody else has left, if unpacking can begin where it says."""
        packed = None if self._shares is None else await self._shares.get(archive)
        if packed is None:
            return None
        try:
            found = await trio.to_thread.run_sync(unpack, packed, limiter=threads)
            if found.kind != "tar":
                self._remember(archive, await self._opened(archive, found, threads))
            return packed
        except Damaged as error:
            log.warning("what somebody has found of the archive %r %s; it is listed here", archive.key, error)
            return None

    async def unpack(self, archive: ObjectVersion, start: int, into: Sequence[memoryview]) -> None:
        """Fill `into` with what a compressed archive unpacks to, from `start` on. May be called in a flight. `Corrupt`
        if they cannot be had; raises what fetching raises."""
        async with _Turn(self._locks, b"unpacking" + archive.object_id):
            try:
                unpacked = self._open.get(archive.object_id)
                if unpacked is None:
                    found = await self._whole(archive, self._straight, self._unpacking)
                    if found is None or found.kind == "tar":
                        raise Damaged("cannot be unpacked")  # noqa: TRY301
                    unpacked = await self._opened(archive, found, self._unpacking)
                self._remember(archive, unpacked)
                # Once begun it is waited for: it writes to buffers of others.
                await trio.to_thread.run_sync(unpacked.read_into, start, into, limiter=self._unpacking)
            except Damaged as error:
                self._open.pop(archive.object_id, None)
                raise Corrupt(f"{archive.key!r} {error}") from None

    async def _opened(self, archive: ObjectVersion, found: Contents, threads: trio.CapacityLimiter) -> Unpacked:
        fetch = _blocking(self._straight, archive)
        return await trio.to_thread.run_sync(_opened, archive, fetch, found, limiter=threads)

    def _remember(self, archive: ObjectVersion, unpacked: Unpacked) -> None:
        self._open[archive.object_id] = unpacked
        self._open.move_to_end(archive.object_id)
        while len(self._open) > OPEN:
            self._open.popitem(last=False)


class _Turn:
    """A lock that is forgotten when nobody wants it."""

    def __init__(self, locks: dict[bytes, trio.Lock], which: bytes) -> None:
        self._locks = locks
        self._which = which

    async def __aenter__(self) -> None:
        self._lock = self._locks.setdefault(self._which, trio.Lock())
        await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        if not self._lock.statistics().tasks_waiting:
            self._locks.pop(self._which, None)
        self._lock.release()


# ---- in threads


def _blocking(fetch: Fetch, archive: ObjectVersion) -> Callable[[int, int], bytes | bytearray]:
    """The same for a thread of trio's."""

    def fetched(start: int, stop: int) -> bytes | bytearray:
        return trio.from_thread.run(fetch, archive, start, stop)

    return fetched


def _listed(archive: ObjectVersion, fetch: Callable[[int, int], bytes | bytearray]) -> bytes:
    """All that is kept of an archive, packed. `Damaged` if it is none."""
    head = bytes(fetch(0, min(512, archive.size))) if archive.size else b""
    kind = "gz" if head.startswith(gz.MAGIC) else "zst" if zst.may_begin(head) else "tar"
    if kind != "tar":
        unpacked = _UNPACKED[kind](StoredFile(archive.size, fetch), archive.size)
        places = unpacked.index_all()
        unpacked.seek(0)
        if not looks_like_tar(unpacked.read(512)):
            raise Damaged("holds no tar archive")
        unpacked.seek(0)
        return pack(Contents(kind, members(unpacked, whole=True), places))
    if looks_like_tar(head):
        return pack(Contents("tar", members(StoredFile(archive.size, fetch, piece=HEADER_PIECE))))
    raise Damaged("is no archive by its first bytes")


def _opened(archive: ObjectVersion, fetch: Callable[[int, int], bytes | bytearray], found: Contents) -> Unpacked:
    return _UNPACKED[found.kind](StoredFile(archive.size, fetch), archive.size, found.places)


_UNPACKED: dict[str, type[gz.Unpacked] | type[zst.Unpacked]] = {"gz": gz.Unpacked, "zst": zst.Unpacked}


def _version(archive: ObjectVersion, kind: str, path: str, member: Member) -> ObjectVersion:
    etag = member_etag(archive, kind, member.start)
    return ObjectVersion(archive.place, directory_of(archive.key) + path, etag, member.size, "", archive.origin)


# ---- notes


def _key(archive: ObjectVersion) -> bytes:
    return hashlib.sha256(b"archive\0" + archive.object_id).digest()[:16]


def _said(note: bytes | None) -> dict[str, Any]:
    """What a note says; empty for none, and for what is none."""
    try:
        found = json.loads(note) if note and len(note) < 4096 else {}
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or not all(isinstance(found.get(name, 0), int | float) for name in ("size", "at")):
        return {}
    return {"size": 0, "at": 0, **found}
