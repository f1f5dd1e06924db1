"""Who says what an object of this mount must come to: S3 itself, or a file of digests beside it.

Must not know what becomes of the answers. Loop thread only.
"""

from collections import OrderedDict

from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.verdicts import Expected
from lazyfs.filesystem.nodes import File
from lazyfs.filesystem.sidecars import beside, is_sidecar, sha256_in
from lazyfs.objects import Checksums, ObjectVersion
from lazyfs.stores.several import Stores

MOST_FILES = 4096
"""Opened files that are remembered, so that the names beside them can be looked up when all of one is here."""


class StoredDigests:
    """The witnesses of one mount; see `cache.verifier.Witnesses`."""

    def __init__(self, store: Stores, chunks: ChunkCache) -> None:
        self._store = store
        self._chunks = chunks
        self._files: OrderedDict[bytes, File] = OrderedDict()

    def note(self, file: File) -> None:
        """This file stands for its version."""
        self._files[file.version.object_id] = file
        self._files.move_to_end(file.version.object_id)
        if len(self._files) > MOST_FILES:
            self._files.popitem(last=False)

    def witness(self, version: ObjectVersion) -> str:
        """See `Witnesses.witness`."""
        found = self._beside(version)
        return "s3" if found is None else f"{found.version.key} {found.version.etag}"

    async def expected(self, version: ObjectVersion) -> Expected:
        """See `Witnesses.expected`: one HEAD, and what is beside it, read through the cache."""
        file = self._files.get(version.object_id)
        if file is not None and is_sidecar(file.name):
            return Expected(Checksums(), quiet=True)
        witness, sidecar = self.witness(version), self._beside(version)
        stored = await self._store.checksums(version)
        if file is None or sidecar is None:
            return Expected(stored)
        self.note(sidecar)
        text = bytes(await self._chunks.read(sidecar.version, 0, sidecar.version.size))
        # What was published with the object goes before what S3 computed of what was uploaded.
        sha256 = sha256_in(text, file.name) or stored.sha256
        return Expected(Checksums(sha256, stored.crc64nvme), witness)

    def _beside(self, version: ObjectVersion) -> File | None:
        file = self._files.get(version.object_id)
        return None if file is None or is_sidecar(file.name) else beside(file)
