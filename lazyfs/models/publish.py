"""A version written to a bucket, so that a reader sees all of it or nothing; and removed, likewise.

The order is what makes it so. First the files, then the digests beside them, then the manifest. To remove, or to
replace, the manifest goes first. What is there already, and is the same by the SHA-256 in its metadata, is not sent
again: so a publication that was broken off goes on when it is run again, on whatever machine.

Digests are written as one `SHA256SUMS` for each directory, and not as a `.sha256` for each file: a mount's verifier
reads either, `sha256sum -c` reads this one, and beside a hundred shards are two objects and not a hundred.

Must not know local disks but for reading what is published. Loop thread only; digests are made in threads.
"""

import datetime
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import trio

from lazyfs.errors import ObjectChanged, StoreError, UsageError
from lazyfs.filesystem.sidecars import LISTS, SUFFIX, is_sidecar, sha256_in
from lazyfs.models.catalogue import Catalogue
from lazyfs.models.gathering import LocalFile, digests
from lazyfs.models.manifest import Manifest, ManifestFile, pack
from lazyfs.models.names import LONGEST_KEY, MANIFEST, ModelVersion
from lazyfs.objects import MIB, Checksums, ObjectInfo
from lazyfs.stores.together import together
from lazyfs.stores.upload import Uploader

SUMS = LISTS[0]

FILES_AT_ONCE = 8
"""Files of which digests are made, or that are uploaded, at a time; their parts share the uploader's connections."""

DIGESTS_AT_ONCE = 4
"""Each reads a file at a GB/s or more and keeps a core busy."""

LARGEST_SIDECAR = 4 * MIB

Told = Callable[[int], None]
"""Told of bytes of which digests are made, and again when they are in the bucket: twice the size in the end."""


@dataclass(frozen=True, slots=True)
class Published:
    """What came of it. `sent_bytes` crossed the network now, the rest was there already."""

    manifest: Manifest
    sent_bytes: int


class Publisher:
    """Writes versions below the catalogue's prefix."""

    def __init__(self, catalogue: Catalogue, uploader: Uploader) -> None:
        self._catalogue = catalogue
        self._uploader = uploader
        self._root = catalogue.source.prefix

    async def publish(
        self,
        of: ModelVersion,
        files: Sequence[LocalFile],
        *,
        force: bool = False,
        max_size: int | None = None,
        told: Told = lambda _: None,
    ) -> Published:
        """Publish these files. `UsageError` if the version is there already and `force` does not say to replace it, and
        for everything else that is not to be published."""
        self._check_present()
        self._check(of, files, max_size)
        prefix = of.prefix(self._root)
        there = await self._catalogue.objects(of)
        if MANIFEST in there and not force:
            raise UsageError(
                f"{of} is published already, and who loads it relies on it; publish another version, or replace it "
                "with --force"
            )
        if (other := await self._catalogue.around(of)) is not None:
            raise UsageError(f"{of} and {other}, which is published, would be one in the other; use another name")
        sums = _sums_of(files)
        strange = sorted(there.keys() - {file.name for file in files} - sums - {MANIFEST})
        if strange and not force:
            raise UsageError(
                f"{self._catalogue.source.url} holds {len(strange)} objects below {of} that are none of the files to "
                f"publish, such as {strange[0]!r}; remove them, publish another version, or remove them with --force"
            )
        if MANIFEST in there:
            await self._uploader.delete([prefix + MANIFEST])
        sent = self._uploader.sent_bytes
        found = await self._send(prefix, files, there, told)
        await self._uploader.delete([prefix + name for name in strange])
        for folder in sums:
            await self._put_sums(prefix, folder, found)
        created = datetime.datetime.now(datetime.UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"
        manifest = Manifest(of, found, created)
        await self._put_manifest(prefix + MANIFEST, manifest)
        return Published(manifest, self._uploader.sent_bytes - sent)

    async def remove(self, of: ModelVersion) -> int:
        """Remove a version, the manifest first; how many objects there were. What is left of one whose publication was
        broken off goes as well."""
        self._check_present()
        prefix = of.prefix(self._root)
        there = await self._catalogue.objects(of)
        if (other := await self._catalogue.around(of)) is not None:
            raise UsageError(f"{other} is published and its files are among those of {of}; remove that first")
        await self._uploader.delete([prefix + MANIFEST])
        await self._uploader.delete(prefix + name for name in there if name != MANIFEST)
        abandoned = await self._uploader.abandon(prefix)
        if not there and not abandoned:
            raise UsageError(f"{of} is not in {self._catalogue.source.url}; `lazyfs ls` lists what is")
        return len(there)

    def _check_present(self) -> None:
        if moment := self._catalogue.source.moment:
            raise UsageError(f"what was there at {moment} cannot be changed; leave --version-at out")

    def _check(self, of: ModelVersion, files: Sequence[LocalFile], max_size: int | None) -> None:
        size = sum(file.size for file in files)
        if max_size is not None and size > max_size:
            raise UsageError(f"{of} has {size} bytes, more than the {max_size} that --max-size allows")
        for file in files:
            if len((of.prefix(self._root) + file.name).encode()) > LONGEST_KEY:
                raise UsageError(f"{file.path} cannot be published: its key would be too long for S3; shorten its path")

    async def _send(
        self, prefix: str, files: Sequence[LocalFile], there: dict[str, ObjectInfo], told: Told
    ) -> list[ManifestFile]:
        """All files, sent or found to be there; in their order."""
        found: dict[str, ManifestFile] = {}
        limiter = trio.CapacityLimiter(DIGESTS_AT_ONCE)
        given = await trio.to_thread.run_sync(_given_digests, files)

        async def one(file: LocalFile) -> None:
            checksums = await _digests(file, limiter, told)
            if (stated := given.get(file.name, checksums.sha256)) != checksums.sha256:
                raise UsageError(
                    f"{file.path} has the SHA-256 {checksums.sha256}, and the digest beside it says {stated}; fetch "
                    "the file again, or correct the digest"
                )
            etag, key = "", prefix + file.name
            if (info := there.get(file.name)) is not None and info.size == file.size:
                stored = await self._uploader.stored(key)
                if stored is not None and (stored.size, stored.sha256) == (file.size, checksums.sha256):
                    etag = stored.etag
                    told(file.size)
            if not etag:
                etag = await self._uploader.upload(key, file.path, file.size, checksums, told)
            if not file.unchanged():
                raise StoreError(f"{file.path} changed while it was uploaded; publish it when nothing writes to it")
            crc, seconds = checksums.crc64nvme or 0, file.mtime_ns // 10**9
            found[file.name] = ManifestFile(file.name, file.size, checksums.sha256, crc, etag, seconds)

        await together((partial(one, file) for file in files), at_once=FILES_AT_ONCE)
        return [found[file.name] for file in files]

    async def _put_sums(self, prefix: str, name: str, files: Sequence[ManifestFile]) -> None:
        folder = str(PurePosixPath(name).parent)
        here = [file for file in files if str(PurePosixPath(file.path).parent) == folder]
        text = "".join(_line(PurePosixPath(file.path).name, file.sha256) for file in here)
        await self._uploader.put(prefix + name, text.encode())

    async def _put_manifest(self, key: str, manifest: Manifest) -> None:
        raw = pack(manifest)
        mark = hashlib.sha256(raw).hexdigest()
        try:
            await self._uploader.put(key, raw, sha256=mark, only_new=True)
        except ObjectChanged:
            # Ours, if the answer to it was lost on the way.
            stored = await self._uploader.stored(key)
            if stored is None or stored.sha256 != mark:
                raise UsageError(
                    f"{manifest.of} was published by somebody else meanwhile; look at it with `lazyfs ls`, and replace "
                    "it with --force if it has to be yours"
                ) from None


def _line(name: str, sha256: str) -> str:
    """As sha256sum writes it; names hold no control characters here."""
    escaped = name.replace("\\", "\\\\")
    return f"{'' if escaped == name else chr(92)}{sha256}  {escaped}\n"


def _sums_of(files: Sequence[LocalFile]) -> set[str]:
    """The SHA256SUMS to write: one for each directory that has none of its own."""
    names = {file.name for file in files}
    folders = {PurePosixPath(name).parent for name in names}
    return {str(folder / SUMS) for folder in folders} - names


def _given_digests(files: Sequence[LocalFile]) -> dict[str, str]:
    """SHA-256 of files, by name, as files beside them say: a digest that does not hold is found before it is published,
    and not by who reads it. Blocks."""
    paths = {file.name: file.path for file in files if file.size <= LARGEST_SIDECAR}
    texts: dict[str, bytes] = {}
    found = {}
    for file in files:
        folder, name = PurePosixPath(file.name).parent, PurePosixPath(file.name).name
        for beside in (file.name + SUFFIX, *(str(folder / one) for one in LISTS)):
            if beside in paths and not is_sidecar(name):
                try:
                    text = texts.setdefault(beside, b"") or Path(paths[beside]).read_bytes()
                except OSError as error:
                    raise StoreError(f"cannot read {paths[beside]}: {error.strerror}") from None
                texts[beside] = text
                if digest := sha256_in(text, name):
                    found[file.name] = digest
                    break
    return found


async def _digests(file: LocalFile, limiter: trio.CapacityLimiter, told: Told) -> Checksums:
    left = False

    def read() -> Checksums:
        try:
            return digests(file.path, stop=lambda: left)
        except OSError as error:
            raise StoreError(f"cannot read {file.path}: {error.strerror}") from None

    try:
        found = await trio.to_thread.run_sync(read, limiter=limiter, abandon_on_cancel=True)
    finally:
        left = True
    told(file.size)
    return found
