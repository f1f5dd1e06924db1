"""The models that a bucket holds, below one prefix: which versions there are, and what each is made of.

A version is there when its manifest is. Must not know how anything is written, nor local disks. Loop thread only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from lazyfs.errors import Corrupt, NotFound, ObjectChanged, UsageError
from lazyfs.models.manifest import LARGEST, Manifest, unpack
from lazyfs.models.names import MANIFEST, ModelVersion
from lazyfs.objects import ObjectInfo, ObjectVersion, Source
from lazyfs.stores.base import Claim, Store
from lazyfs.stores.together import together

AT_ONCE = 16
"""Manifests read at a time."""

ATTEMPTS = 3
"""To read a manifest that is replaced meanwhile."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A version that is there. `problem` says why its manifest cannot be read, and then the rest is not known."""

    of: ModelVersion
    files: int = 0
    size: int = 0
    created: str = ""
    problem: str = ""


class Catalogue:
    """The models of a source."""

    def __init__(self, store: Store, source: Source) -> None:
        self._store = store
        self.source = source

    async def manifest(self, of: ModelVersion) -> Manifest | None:
        """What the version is made of; None if it is not there. `Corrupt` for a manifest that is none."""
        key = of.prefix(self.source.prefix) + MANIFEST
        for attempt in range(ATTEMPTS):
            try:
                info = await self._info(key)
                if info.size > LARGEST:
                    raise Corrupt(f"the manifest of {of} has {info.size} bytes, more than one can have")
                return unpack(await self.read(info), of)
            except NotFound:
                return None
            except ObjectChanged:
                if attempt + 1 == ATTEMPTS:
                    raise
        return None

    async def _info(self, key: str) -> ObjectInfo:
        """The object under a key; `NotFound` if there is none. Of another time only a listing knows it."""
        if not self.source.moment:
            return await self._store.stat(key)
        listing = await self._store.list(key[: key.rfind("/") + 1])
        for info in listing.objects:
            if info.key == key:
                return info
        raise NotFound(f"{key!r} was not there at {self.source.moment}")

    async def objects(self, of: ModelVersion) -> dict[str, ObjectInfo]:
        """All objects of a version, by path, whether it is whole or not."""
        prefix = of.prefix(self.source.prefix)
        return {info.key.removeprefix(prefix): info for info in await self._below(prefix)}

    async def versions(self, model: str = "") -> list[Listed]:
        """The versions of a model, or of all, sorted. One LIST for each thousand objects, one HEAD and GET for each
        version."""
        found: list[Listed] = []

        async def look(of: ModelVersion) -> None:
            try:
                manifest = await self.manifest(of)
            except Corrupt as error:
                found.append(Listed(of, problem=str(error)))
                return
            if manifest is not None:
                found.append(Listed(of, len(manifest.files), manifest.size, manifest.created))

        names = await self._names(f"{self.source.prefix}{model}/" if model else self.source.prefix)
        await together((partial(look, of) for of in names), at_once=AT_ONCE)
        return sorted(found, key=lambda one: one.of)

    async def around(self, of: ModelVersion) -> ModelVersion | None:
        """A version whose files would be among those of this one, or this one's among its: the two cannot be both."""
        pieces = of.model.split("/")
        for count in range(2, len(pieces) + 1):
            above = ModelVersion("/".join(pieces[: count - 1]), pieces[count - 1])
            if await self.manifest(above) is not None:
                return above
        for name in await self._names(of.prefix(self.source.prefix)):
            if name != of:
                return name
        return None

    def version(self, info: ObjectInfo) -> ObjectVersion:
        """An object as it is read."""
        return ObjectVersion(self.source.place, info.key, info.etag, info.size, info.version_id)

    async def read(self, info: ObjectInfo) -> bytes:
        """All bytes of a small object."""
        buffer = bytearray(info.size)
        if info.size:
            await self._store.read(self.version(info), 0, [memoryview(buffer)], lambda _: None, Claim(urgent=True))
        return bytes(buffer)

    async def _names(self, prefix: str) -> Sequence[ModelVersion]:
        found = []
        for info in await self._below(prefix):
            key = info.key.removeprefix(self.source.prefix)
            model, _, version = key.removesuffix(f"/{MANIFEST}").rpartition("/")
            if key.endswith(f"/{MANIFEST}") and model:
                try:
                    found.append(ModelVersion(model, version))
                except UsageError:
                    continue  # a key that no version of ours has
        return found

    async def _below(self, prefix: str) -> list[ObjectInfo]:
        found: list[ObjectInfo] = []
        if self.source.moment:  # a page of versions may show nothing of that time, and then not where the next begins
            folders = [prefix]
            while folders:
                listing = await self._store.list(folders.pop())
                found += listing.objects
                folders += listing.prefixes
            return found
        complete, after = False, ""
        while not complete:
            stretch = await self._store.stretch(prefix, after)
            found += stretch.objects
            complete = stretch.complete or not stretch.objects
            after = found[-1].key if found else ""
        return found
