"""Who says what an object of this mount must come to: the manifest of its version, a file of digests beside it, or S3
itself.

Must not know what becomes of the answers. Loop thread only.
"""

from collections import OrderedDict
from typing import Protocol

from lazyfs.archives.names import is_ours
from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.verdicts import Expected
from lazyfs.filesystem.nodes import Directory, File
from lazyfs.filesystem.sidecars import LISTS, beside, is_sidecar, sha256_in
from lazyfs.models.names import MANIFEST
from lazyfs.models.trees import Manifests
from lazyfs.objects import Checksums, ObjectVersion

NAMES_OF_DIGESTS = (*LISTS, MANIFEST)
"""Of files that hold the digests of others, besides those that are named after the one they are of."""

MOST_FILES = 4096
"""Opened files that are remembered, so that the names beside them can be looked up when all of one is here."""


class Checks(Protocol):
    """Who has checksums of stored objects."""

    async def checksums(self, version: ObjectVersion) -> Checksums:
        """See `stores.base.Store.checksums`."""
        ...


class StoredDigests:
    """The witnesses of one mount; see `cache.verifier.Witnesses`."""

    def __init__(self, store: Checks, chunks: ChunkCache, manifests: Manifests) -> None:
        self._store = store
        self._chunks = chunks
        self._manifests = manifests
        self._files: OrderedDict[bytes, File] = OrderedDict()

    def note(self, file: File) -> None:
        """This file stands for its version."""
        self._files[file.version.object_id] = file
        self._files.move_to_end(file.version.object_id)
        if len(self._files) > MOST_FILES:
            self._files.popitem(last=False)

    def witness(self, version: ObjectVersion) -> str:
        """See `Witnesses.witness`."""
        file = self._files.get(version.object_id)
        if file is None or is_digests(version):
            return "s3"
        found = _manifest_above(file) or beside(file)
        return "s3" if found is None else _named(found)

    async def expected(self, version: ObjectVersion) -> Expected:
        """See `Witnesses.expected`: what a manifest says of this very version; else one HEAD, and what is beside it.
        Both are read through the cache."""
        if is_digests(version):
            return Expected(Checksums(), quiet=True)
        file, witness = self._files.get(version.object_id), self.witness(version)
        manifest = None if file is None else _manifest_above(file)
        if manifest is not None:
            said = await self._manifests.get(manifest.version)
            found = None if said is None else said.checksums.get((version.key, version.etag))
            if found is not None:
                return Expected(found, witness)
        sidecar = None if file is None else beside(file)
        stored = await self._store.checksums(version)
        if file is None or sidecar is None:
            return Expected(stored, witness, "s3", quiet=is_ours(version))
        text = bytes(await self._chunks.read(sidecar.version, 0, sidecar.version.size))
        # What was published with the object goes before what S3 computed of what was uploaded.
        sha256 = sha256_in(text, file.name)
        return Expected(
            Checksums(sha256 or stored.sha256, stored.crc64nvme), witness, _named(sidecar) if sha256 else "s3"
        )


def _named(file: File) -> str:
    """Which digests, and which version of them."""
    return f"{file.version.key} {file.version.etag}"


def is_digests(version: ObjectVersion) -> bool:
    """Whether it holds digests of others, and nobody expects one of it."""
    name = version.key.rpartition("/")[2]
    return is_sidecar(name) or name == MANIFEST


def _manifest_above(file: File) -> File | None:
    """The manifest of the version that the file is in, as far as listings show one."""
    folder: Directory | None = file.parent
    while folder is not None:
        found = folder.children.get(MANIFEST)
        if isinstance(found, File):
            return found
        folder = folder.parent
    return None
