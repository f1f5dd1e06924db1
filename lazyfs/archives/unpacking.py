"""A store around a store that gives the bytes of members of archives.

A member of a plain tar is a range of the archive's object, asked for as such; of others it is unpacked from an index.
Must not know listings. Loop thread only.
"""

from collections.abc import Sequence
from typing import Protocol

from lazyfs.archives.library import Library
from lazyfs.archives.names import is_index, is_ours, place_of
from lazyfs.errors import Corrupt, NotFound
from lazyfs.objects import Checksums, ObjectVersion
from lazyfs.stores.base import Arrived, Claim, Reads


class AtHand(Protocol):
    """See `cache.straight.Straight.at_hand`."""

    async def at_hand(self, version: ObjectVersion, start: int, stop: int) -> bytearray | None: ...


class Store(Reads, Protocol):
    """What is asked of the store inside."""

    async def checksums(self, version: ObjectVersion) -> Checksums: ...


class Unpacking:
    """What is no member is the inner store's. `library` and `here` are set when there is a cache to work with."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.library: Library | None = None
        self.here: AtHand | None = None
        self.offered: dict[bytes, bytes] = {}
        """Bytes of indexes that are about to be kept, by their object ids."""

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """See `base.Reads.read`."""
        if self.library is None or not is_ours(version):
            await self._inner.read(version, start, into, arrived, claim)
        elif is_index(version):
            offered = self.offered.get(version.object_id)
            if offered is None:
                raise NotFound(f"the list of {version.key!r} is not kept any more")
            _fill(into, memoryview(offered)[start:])
            arrived(sum(map(len, into)))
        else:
            await self._read_member(version, start, into, arrived, claim)

    async def _read_member(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        found, size = place_of(version), sum(map(len, into))
        if found is None or self.library is None:
            await self._inner.read(version, start, into, arrived, claim)
            return
        archive, start = found.archive, found.start + start
        if found.kind != "tar":
            await self.library.unpack(archive, start, into)
            arrived(size)
            return
        if start + size > archive.size:
            raise Corrupt(f"{version.key!r} ends after its archive")
        # Small members lie in chunks that were read for their headers.
        here = None if self.here is None else await self.here.at_hand(archive, start, start + size)
        if here is None:
            await self._inner.read(archive, start, into, arrived, claim)
        else:
            _fill(into, memoryview(here))
            arrived(size)

    async def checksums(self, version: ObjectVersion) -> Checksums:
        """See `base.Store.checksums`; nobody has any of a member."""
        if self.library is not None and is_ours(version):
            return Checksums()
        return await self._inner.checksums(version)


def _fill(into: Sequence[memoryview], data: memoryview) -> None:
    for view in into:
        view[:] = data[: len(view)]
        data = data[len(view) :]
