"""The sources of one mount: for each its store, what is known of its listings, and what to say of it.

Its job: put together what a source has of its own. What sources share (memory, disk, index, the tree) is not known
here but by its name.
"""

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import trio

from lazyfs import errors
from lazyfs.archives.directories import Directories
from lazyfs.archives.library import Library
from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.disk import Disk
from lazyfs.cache.listings import Listings
from lazyfs.config import Config, SourceConfig
from lazyfs.filesystem.nodes import Branch, File, side_by_side
from lazyfs.filesystem.tree import Tree
from lazyfs.models.trees import Manifests, Trees
from lazyfs.moments import seconds_of
from lazyfs.objects import CHUNK_SIZE, Listing, ObjectVersion
from lazyfs.service.engines import s3_store
from lazyfs.stores.base import Store
from lazyfs.stores.fetch import PatientStore
from lazyfs.stores.gate import Bound
from lazyfs.stores.several import Stores
from lazyfs.stores.traffic import Traffic
from lazyfs.stores.versions import VersionedStore

log = logging.getLogger(__name__)

CHECK_PATIENCE = 10.0
"""Seconds for which the first request may fail before the mount is given up."""

LONGEST_TTL = 10 * 365 * 86400.0
"""Seconds: what `indefinite` comes to. Infinity less the age of a listing of unknown age is not a number."""


def stores_of(
    sources: Sequence[SourceConfig], *, watched: Callable[[Store], Store], traffic: Traffic | None = None
) -> Stores:
    """A store for each source; sources of one bucket as of one time with the same settings have the same one, and so
    one patience; those that name the same endpoint have one bound on connections, the largest of theirs. `watched` is
    put around what asks, `traffic` counts the requests of all. `SetupError` says which source has settings that cannot
    be used."""
    most: Counter[str] = Counter()
    for one in sources:
        if (url := one.config.endpoint_url) is not None:
            most[url] = max(most[url], one.config.max_connections)
    bounds = {url: Bound(connections) for url, connections in most.items()}
    made: dict[tuple[object, ...], tuple[PatientStore, VersionedStore]] = {}
    for one in sources:
        key = _asked_alike(one)
        if key not in made:
            try:
                s3 = s3_store(one.config, one.source, traffic)
            except errors.SetupError as error:
                raise errors.SetupError(f"{_which(one)}{error}") from None
            store = PatientStore(
                watched(s3),
                connections=one.config.max_connections,
                retry_budget=one.config.retry_budget,
                # AWS has a host for each bucket, which is an endpoint of its own.
                bound=bounds[one.config.endpoint_url] if one.config.endpoint_url is not None else None,
            )
            made[key] = store, s3
    found = {one.name: made[_asked_alike(one)] for one in sources}
    return Stores(
        {name: store for name, (store, _) in found.items()}, versions={name: s3 for name, (_, s3) in found.items()}
    )


def _asked_alike(one: SourceConfig) -> tuple[object, ...]:
    # The time is that of the source, which its URL may name or an option.
    own = [f.name for f in dataclasses.fields(Config) if f.metadata["per_source"] and f.name != "version_at"]
    return one.source.listing_place, *(getattr(one.config, name) for name in own)


def _which(one: SourceConfig) -> str:
    """How a sentence about a source begins."""
    return f"source {one.name!r}: " if one.name else ""


class Origin:
    """One source."""

    def __init__(
        self,
        has: SourceConfig,
        *,
        stores: Stores,
        disk: Disk,
        chunks: ChunkCache,
        manifests: Manifests,
        nursery: trio.Nursery,
        library: Library | None,
    ) -> None:
        self._has = has
        self._store = stores[has.name]
        self._url = has.source.url
        ttl = min(has.config.metadata_ttl, LONGEST_TTL)
        self.listings = Listings(
            place=has.source.listing_place,
            root=has.source.prefix,
            store=self._store,
            disk=disk,
            in_writer=chunks.writer.step,
            ttl=ttl,
            nursery=nursery,
        )
        self._trees = Trees(
            self.listings,
            manifests,
            place=has.source.place,
            root=has.source.prefix,
            origin=has.name,
            # Of another time only a listing knows what was under a key.
            stat=None if has.source.moment else partial(self._store.stat, budget=CHECK_PATIENCE),
        )
        listed = self._trees.list
        if library is not None and has.config.archives:
            place, root = has.source.place, has.source.prefix
            listed = Directories(listed, library, place=place, root=root, origin=has.name).list
        self.branch = Branch(
            place=has.source.place,
            prefix=has.source.prefix,
            list_prefix=listed,
            age=self.listings.age,
            ttl=ttl,
            name=has.name,
            moment=has.source.moment,
        )

    async def check(self, tree: Tree) -> None:
        """Make sure that the bucket can be listed, by the listing that its top needs anyway; a warm start sends
        nothing. `SetupError` says in one sentence what is wrong, and with which source."""
        endpoint = self._has.config.endpoint_url
        where = f" at {endpoint}" if endpoint else ""
        which = _which(self._has)
        top, moment = tree.tops[self._has.name], self._has.source.moment
        if moment and seconds_of(moment) > time.time():
            raise errors.SetupError(
                f"{which}{moment} is still to come; mount {self._url} as of a time that has passed"
            )
        try:
            # Less patience than a reader has: somebody waits for this command.
            self.listings.patience = CHECK_PATIENCE
            await tree.refresh(top)
        except errors.NotFound:
            bucket = self._has.source.bucket
            raise errors.SetupError(
                f"{which}there is no bucket {bucket!r}{where}; check its name and region"
            ) from None
        except errors.AccessDenied as error:
            raise errors.SetupError(f"{which}cannot list {self._url}{where}: {error}") from None
        except errors.Unreachable as error:
            raise errors.SetupError(
                f"{which}cannot reach {self._url}{where}; check the endpoint and the network ({error})"
            ) from None
        except errors.StoreError as error:
            raise errors.SetupError(f"{which}cannot list {self._url}{where}: {error}") from None
        finally:
            self.listings.patience = None
        if not top.children:
            log.warning("%s has no objects yet", self._has.title)

    async def total_size(self, tree: Tree) -> int:
        """Bytes of all its objects, of a great many those of the first ones; of those that were listed, if it does not
        answer."""
        try:
            return await self.listings.total_size()
        except errors.StoreError as error:
            log.warning("statfs knows only what was listed of %s: %s", self._has.title, error)
            return tree.listed_bytes(self._has.name)

    def report(self, tree: Tree) -> dict[str, Any]:
        """What it has done so far. `answers` is null before it was asked for anything; `trouble` is what was wrong the
        last time."""
        trouble = self._store.trouble
        return {
            "name": self._has.name,
            "url": self._url,
            "endpoint_url": self._has.config.endpoint_url or "",
            "answers": None if trouble is None else not trouble,
            "trouble": trouble or "",
            "hidden": {reason.value: count for reason, count in tree.hidden(self._has.name).items()},
            "store": dataclasses.asdict(self._store.statistics()),
        }


class Origins:
    """All sources of a mount, and the branch that they make."""

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        *,
        stores: Stores,
        disk: Disk,
        chunks: ChunkCache,
        nursery: trio.Nursery,
        library: Library | None = None,
    ) -> None:
        self._stores = stores
        self.manifests = Manifests(partial(_whole, chunks))
        """Those of all sources."""
        self._all = [
            Origin(
                one,
                stores=stores,
                disk=disk,
                chunks=chunks,
                manifests=self.manifests,
                nursery=nursery,
                library=library,
            )
            for one in sources
        ]
        alone = len(sources) == 1 and not sources[0].name
        self.branch = self._all[0].branch if alone else side_by_side({o.branch.name: o.branch for o in self._all})
        self.device = sources[0].source.url if alone else "lazyfs"
        """What the mount is called in /proc/mounts. Of several: what a line in fstab has there, so that `mount -a`
        finds it mounted, whatever becomes of the sources."""
        self.title = ", ".join(one.title for one in sources)

    def follow(self, tree: Tree) -> None:
        """From now on, when a store finds that a key holds another version, handles go on with theirs, and who opens
        its name gets what S3 has."""
        self._stores.when_displaced(partial(_displaced, tree))

    async def check(self, tree: Tree) -> None:
        """See `Origin.check`; all at once, and the failure of the first that fails in the order of the sources."""
        failed: dict[int, errors.SetupError] = {}

        async def check(number: int, origin: Origin) -> None:
            try:
                await origin.check(tree)
            except errors.SetupError as error:
                failed[number] = error

        async with trio.open_nursery() as nursery:
            for number, origin in enumerate(self._all):
                nursery.start_soon(check, number, origin)
        if failed:
            raise failed[min(failed)]

    async def total_size(self, tree: Tree) -> int:
        """The sum of all; see `Origin.total_size`."""
        found: list[int] = []

        async def add(origin: Origin) -> None:
            found.append(await origin.total_size(tree))

        async with trio.open_nursery() as nursery:
            for origin in self._all:
                nursery.start_soon(add, origin)
        return sum(found)

    def peek(self, name: str, prefix: str) -> Listing | None:
        """What is kept of the listing of a prefix, in the source of that name; see `Listings.peek`."""
        return next((o.listings.peek(prefix) for o in self._all if o.branch.name == name), None)

    def report(self, tree: Tree) -> list[dict[str, Any]]:
        """See `Origin.report`, in their order."""
        return [origin.report(tree) for origin in self._all]


def _displaced(tree: Tree, version: ObjectVersion) -> None:
    """Every directory that names it is in doubt, of all sources that show the bucket as of the same time."""
    moment = tree.tops[version.origin].branch.moment
    for node in list(tree.nodes()):
        if not isinstance(node, File) or node.parent.branch.moment != moment or node.size != version.size:
            continue
        if node.version == version:
            tree.expire(node)


async def _whole(chunks: ChunkCache, version: ObjectVersion) -> bytes:
    """All bytes of a version, through the cache."""
    found = bytearray()
    while len(found) < version.size:
        found += await chunks.read(version, len(found), min(len(found) + CHUNK_SIZE, version.size))
    return bytes(found)
