"""The stores of a mount's sources as one: each version is asked for where it was found.

Must not know what a source is, nor what the bytes are for. Loop thread only.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import trio

from lazyfs.objects import Checksums, ObjectVersion
from lazyfs.stores.base import Arrived, Claim
from lazyfs.stores.fetch import FetchStatistics, PatientStore
from lazyfs.stores.versions import VersionedStore
from lazyfs.tallies import Spread, together


class Stores:
    """Stores by the `origin` of the versions that are theirs; one may stand under several names. Each has a gate,
    connections and patience of its own, so that one in trouble holds up nobody who asks another. `versions` are what
    of them knows of versions, where that is known."""

    def __init__(
        self, by_origin: Mapping[str, PatientStore], versions: Mapping[str, VersionedStore] | None = None
    ) -> None:
        self._by_origin = by_origin
        self._versions = versions or {}
        self._all = list({id(store): store for store in by_origin.values()}.values())

    def __getitem__(self, origin: str) -> PatientStore:
        return self._by_origin[origin]

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """See `base.Reads.read`."""
        await self._by_origin[version.origin].read(version, start, into, arrived, claim)

    async def checksums(self, version: ObjectVersion) -> Checksums:
        """See `base.Store.checksums`."""
        return await self._by_origin[version.origin].checksums(version)

    def version_id(self, version: ObjectVersion) -> str:
        """The id of a version, empty where it is not known."""
        store = self._versions.get(version.origin)
        return version.version_id if store is None else store.version_id(version)

    def when_displaced(self, tell: Callable[[ObjectVersion], None]) -> None:
        """Have `tell` called with a version that its key no longer holds; see `VersionedStore`."""
        for store in self._versions.values():
            store.displaced = tell

    def useful(self) -> int | None:
        """Bytes in flight that keep the networks busy which were used; None while one of them is not known."""
        total = 0
        for store in self._all:
            if store.used:
                size = store.useful()
                if size is None:
                    return None
                total += size
        return total or None

    async def watch(self) -> None:
        """See `PatientStore.watch`, of all."""
        async with trio.open_nursery() as nursery:
            for store in self._all:
                nursery.start_soon(store.watch)

    def gate_waits(self) -> Spread:
        """How long requests waited for a gate, of all."""
        return together([store.gate_waits.state() for store in self._all])

    def statistics(self) -> FetchStatistics:
        """The sums of all."""
        found = [dataclasses.asdict(store.statistics()) for store in self._all]
        return FetchStatistics(**{name: sum(one[name] for one in found) for name in found[0]})
