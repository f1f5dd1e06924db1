"""The archives of one mount: the library put together with the mount's cache.

Its job: how bytes for it are fetched, and where what it finds is kept. Must not know what an archive is. Loop thread
only.
"""

import logging
from collections.abc import Sequence

from lazyfs.archives.library import Library
from lazyfs.archives.unpacking import Unpacking
from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.disk import Disk
from lazyfs.cache.straight import Straight
from lazyfs.config import SourceConfig
from lazyfs.objects import CHUNK_SIZE, MIB, ObjectVersion
from lazyfs.service.shared_indexes import SharedIndexes
from lazyfs.stores.several import Stores

log = logging.getLogger(__name__)

AHEAD = 32 * MIB
"""Bytes fetched ahead of who goes through an archive."""


class Kept:
    """What is found of archives, in the cache: see `archives.library.Keeps`."""

    def __init__(self, disk: Disk, chunks: ChunkCache, straight: Straight, unpacking: Unpacking) -> None:
        self._disk = disk
        self._chunks = chunks
        self._straight = straight
        self._unpacking = unpacking

    def note(self, key: bytes) -> bytes | None:
        """A few words that were kept under this key."""
        return self._disk.listing(key)

    async def put_note(self, key: bytes, note: bytes) -> None:
        """Keep them, as far as the disk does."""
        await self._chunks.writer.step(self._disk.put_listings, {key: note})

    async def kept(self, version: ObjectVersion) -> bytearray | None:
        """All bytes of what `keep` kept; None if some have gone."""
        found = await self._straight.at_hand(version, 0, version.size)
        if found is not None:
            for number in range(version.chunk_count):
                self._chunks.writer.touch(version, number)
        return found

    async def keep(self, version: ObjectVersion, data: bytes) -> None:
        """Keep these bytes, as far as the disk does."""
        self._unpacking.offered[version.object_id] = data
        try:
            await self._chunks.bring(version, 0, version.size)
        finally:
            del self._unpacking.offered[version.object_id]

    async def bring(self, versions: Sequence[ObjectVersion]) -> None:
        """Have all of these on disk, if half of it is enough for them."""
        size = sum(version.size for version in versions)
        if size > (await self._chunks.writer.step(self._disk.room.capacity) or 0) // 2:
            log.warning(
                "%r is of one frame of zstd that unpacks to %d MiB, too much for half of the cache: each read of it "
                "unpacks what is before; write it with pzstd, or raise --max-cache-size",
                versions[0].key,
                size // MIB,
            )
            return
        for version in versions:
            # One at a time: flights side by side come in any order, and the one behind another unpacks all anew.
            for start in range(0, version.size, CHUNK_SIZE):
                await self._chunks.bring(version, start, min(start + CHUNK_SIZE, version.size))


class Walking:
    """Bytes for who goes through an archive, by way of the chunk cache, some of them ahead."""

    def __init__(self, chunks: ChunkCache) -> None:
        self._chunks = chunks
        self._next: tuple[bytes, int] = b"", 0

    async def fetch(self, version: ObjectVersion, start: int, stop: int) -> bytearray:
        """Bytes [start, stop) of the version."""
        follows = self._next == (version.object_id, start)
        self._next = version.object_id, stop
        if follows:
            self._chunks.start(version, start, min(stop + AHEAD, version.size), demand=stop, lane=version.object_id)
        found = bytearray()
        while (at := start + len(found)) < stop:
            # To the end of a chunk, so that a read is of one.
            found += await self._chunks.read(version, at, min(stop, at - at % CHUNK_SIZE + CHUNK_SIZE))
        return found


def library_of(
    unpacking: Unpacking,
    stores: Stores,
    disk: Disk,
    chunks: ChunkCache,
    sources: Sequence[SourceConfig],
) -> Library:
    """The library of a mount, with `unpacking`, the store of its chunk cache, told of it."""
    # As of another time a bucket is read and not written.
    sharing = {one.name: one for one in sources if one.config.share_archive_indexes and not one.source.moment}
    straight = Straight(store=stores, disk=disk, held=chunks.held, workers=chunks.workers)
    unpacking.here = straight
    unpacking.library = Library(
        walk=Walking(chunks).fetch,
        straight=straight.read,
        keeps=Kept(disk, chunks, straight, unpacking),
        shares=SharedIndexes(stores, sharing) if sharing else None,
    )
    return unpacking.library
