"""Listings of published versions, taken from their manifests: one GET for a whole tree, and no LIST below its top.

Its job: stand before the listings of one source. A directory in which a listing shows a manifest is a version; what is
below it is listed out of the manifest, which is as young as that listing. A source that may itself be one version is
asked for its manifest first, so that it can be mounted by who may not list the bucket.

Why no other directory is asked for its manifest first: a LIST is one request, too, says as much of one directory, and
most directories are no version. Why not where somebody walks over many directories: stretches of keys bring a thousand
for a request (`cache.walks`).

What is in a manifest is believed for as long as reads find what it says. One that is found wrong, damaged or too large
is told of once, and what is below it is listed as everything else. Must not know the kernel. Loop thread only.
"""

import contextlib
import logging
from bisect import bisect_left
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lazyfs.cache.listings import STALE_FOR
from lazyfs.cache.walks import ancestors
from lazyfs.errors import AccessDenied, Corrupt, LazyfsError, NotFound, StoreError, UsageError
from lazyfs.models.manifest import LARGEST, Manifest, unpack
from lazyfs.models.names import MANIFEST, ModelVersion
from lazyfs.objects import Checksums, Listing, ObjectInfo, ObjectVersion

log = logging.getLogger(__name__)

REMEMBERED = 16
"""Manifests in memory; one of a thousand files takes half a MiB."""


MOST_TOPS = 4096
"""Versions of which is known that they are some, and what was found of their manifests."""


class Lists(Protocol):
    """Listings of a source; see `cache.listings.Listings`."""

    async def list(self, prefix: str, doubted: bool = False) -> Listing: ...
    def fresh(self, prefix: str) -> Listing | None: ...
    def now(self) -> float: ...
    def walking(self, prefix: str) -> bool: ...
    async def keep(self, listing: Listing) -> None: ...


@dataclass(slots=True)
class Version:
    """A manifest, by what is asked of it."""

    prefix: str
    listings: dict[str, tuple[list[ObjectInfo], list[str]]]
    checksums: dict[tuple[str, str], Checksums]
    """By key and ETag."""


def by_directory(manifest: Manifest, prefix: str) -> Version:
    """What each directory of a version holds, sorted as S3 sorts it."""
    objects: defaultdict[str, list[ObjectInfo]] = defaultdict(list)
    folders: defaultdict[str, set[str]] = defaultdict(set)
    checksums = {}
    for file in manifest.files:
        key = prefix + file.path
        folder = key[: key.rfind("/") + 1]
        objects[folder].append(ObjectInfo(key, file.etag, file.size, file.modified * 10**9))
        checksums[key, file.etag] = file.checksums
        while folder != prefix:
            above = folder[: folder.rfind("/", 0, -1) + 1]
            folders[above].add(folder)
            folder = above
    names = {prefix, *objects, *folders}
    found = {name: (sorted(objects[name], key=lambda info: info.key), sorted(folders[name])) for name in names}
    return Version(prefix, found, checksums)


class Manifests:
    """The manifests that a mount has read, of all its sources. `read` gives all bytes of a version, which is small."""

    def __init__(self, read: Callable[[ObjectVersion], Awaitable[bytes]]) -> None:
        self._read = read
        self._known: OrderedDict[bytes, Version | None] = OrderedDict()

    async def get(self, version: ObjectVersion) -> Version | None:
        """What the manifest says that is this object; None, with a warning once, if it is none. `StoreError` if it
        cannot be had."""
        known = self._known.get(version.object_id, ...)
        if known is ...:
            known = await self._load(version)
            self._known[version.object_id] = known
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(version.object_id)
        return known

    async def _load(self, version: ObjectVersion) -> Version | None:
        prefix = version.key.removesuffix(MANIFEST)
        of = version_at(prefix)
        if of is None:
            return None
        try:
            if version.size > LARGEST:
                raise Corrupt(f"the manifest of {of} has {version.size} bytes, more than one can have")  # noqa: TRY301
            return by_directory(unpack(await self._read(version), of), prefix)
        except Corrupt as error:
            log.warning("%s; until then its directories are listed, and its digests are S3's", error)
            return None


def version_at(prefix: str) -> ModelVersion | None:
    """The version that a prefix may be; None for one that is none."""
    model, _, name = prefix.rstrip("/").rpartition("/")
    try:
        return ModelVersion(model, name)
    except UsageError:
        return None


class Trees:
    """The listings of one source, `place`, below `root`."""

    def __init__(
        self,
        lists: Lists,
        manifests: Manifests,
        *,
        place: str,
        root: str,
        origin: str,
        stat: Callable[[str], Awaitable[ObjectInfo]] | None,
    ) -> None:
        """`stat` tells what is under a key now; None where it cannot, as in a source of another time."""
        self._lists = lists
        self._manifests = manifests
        self._place = place
        self._root = root
        self._origin = origin
        self._stat = stat
        self._tops: OrderedDict[str, ObjectInfo] = OrderedDict()
        # Keys of manifests, with the ETag of which it was found, and whether that is to be believed.
        self._found: OrderedDict[str, tuple[str, bool]] = OrderedDict()
        self._failed_at = float("-inf")

    async def list(self, prefix: str, doubted: bool = False) -> Listing:
        """The listing of a directory, as `cache.listings.Listings` gives it, or out of a manifest."""
        found = None if doubted else self._lists.fresh(prefix)
        if found is None:
            found = await self._from_manifest(prefix, doubted)
        if found is None:
            found = await self._lists.list(prefix, doubted)
        self._note(prefix, found)
        return found

    def _note(self, prefix: str, listing: Listing) -> None:
        """Remember whether a version begins here."""
        key, objects = prefix + MANIFEST, listing.objects
        at = bisect_left(range(len(objects)), key, key=lambda number: objects[number].key)
        manifest = objects[at] if at < len(objects) and objects[at].key == key else None
        self._tops.pop(prefix, None)
        if manifest is not None:
            self._tops[prefix] = manifest
            if len(self._tops) > MOST_TOPS:
                self._tops.popitem(last=False)

    async def _from_manifest(self, prefix: str, doubted: bool) -> Listing | None:
        """None if no manifest speaks of the directory, or it is not to be believed."""
        if prefix == self._root:
            return await self._root_from_manifest(doubted)
        top = next((above for above in ancestors(prefix) if above in self._tops), None)
        if top is None or (self._lists.walking(prefix) and not doubted):
            return None
        above = await self.list(top)
        info = self._tops.get(top)
        if info is None or not self._believed(info, doubted):
            return None
        return await self._derived(info, prefix, above.listed_at, above.objects)

    async def _root_from_manifest(self, doubted: bool) -> Listing | None:
        """The source as one version, if it is one. Only S3's word that it is not, or that one may not know, ends the
        question."""
        key = self._root + MANIFEST
        asked = self._lists.now()
        if self._stat is None or version_at(self._root) is None or 0 <= asked - self._failed_at < STALE_FOR:
            return None
        try:
            info = await self._stat(key)
        except (NotFound, AccessDenied):
            return None
        except StoreError as error:
            # Of a walk in an outage, not every directory waits for that.
            self._failed_at = self._lists.now()
            log.debug("%r cannot be asked for now: %s", key, error)
            return None
        self._failed_at = float("-inf")
        if not self._believed(info, doubted):
            return None
        return await self._derived(info, self._root, asked, ())

    def _believed(self, info: ObjectInfo, doubted: bool) -> bool:
        """Whether what a manifest says may be taken for what is there; `doubted`: something was found to be
        otherwise."""
        believed = self._verdict(info) is not False
        if doubted and believed:
            self._judge(info, believed=False)
            log.warning("%r does not say what is there now: its directories are listed; publish it again", info.key)
        return believed and not doubted

    def _verdict(self, info: ObjectInfo) -> bool | None:
        """Whether this very manifest is to be believed; None if that is not known."""
        etag, believed = self._found.get(info.key, ("", False))
        return believed if etag == info.etag else None

    def _judge(self, info: ObjectInfo, *, believed: bool) -> None:
        self._found.pop(info.key, None)
        self._found[info.key] = info.etag, believed
        if len(self._found) > MOST_TOPS:
            self._found.popitem(last=False)

    async def _agrees(self, info: ObjectInfo, version: Version, listed: Sequence[ObjectInfo]) -> bool:
        """Whether what is `listed` at the top of a version, or S3's word about its largest file, is as its manifest
        says. In a bucket that was copied, the same bytes have other ETags, and reads would fail for want of those."""
        if self._verdict(info):
            return True
        said = {one.key: one for objects, _ in version.listings.values() for one in objects}
        there = [one for one in listed if one.key in said]
        if not there and self._stat is not None and said:
            with contextlib.suppress(NotFound):
                there = [await self._stat(max(said.values(), key=lambda one: one.size).key)]
        same = bool(there) and all((one.etag, one.size) == (said[one.key].etag, said[one.key].size) for one in there)
        self._judge(info, believed=same)
        if not same:
            log.info("%r names other objects than there are, as in a bucket that was copied: it is listed", info.key)
        return same

    async def _derived(
        self, info: ObjectInfo, prefix: str, listed_at: float, listed: Sequence[ObjectInfo]
    ) -> Listing | None:
        try:
            version = await self._manifests.get(
                ObjectVersion(self._place, info.key, info.etag, info.size, info.version_id, self._origin)
            )
            if version is None or not await self._agrees(info, version, listed):
                return None
        except LazyfsError as error:
            log.debug("%r cannot be read now: %s", info.key, error)
            return None
        objects, folders = version.listings.get(prefix, ([], []))
        if prefix == version.prefix:
            objects = sorted([*objects, info], key=lambda one: one.key)
        listing = Listing(prefix, tuple(objects), tuple(folders), listed_at)
        await self._lists.keep(listing)
        return listing
