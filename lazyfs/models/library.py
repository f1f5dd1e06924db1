"""Models by name: on this disk, else from a bucket, else from an origin, and kept on the way.

Its job: the order of those places, that many who ask at once fetch once, and the counters. Must not know mounts (it is
told by a function where one has a version) nor configuration.

Concurrency: a loop for each call, any number of threads and processes. A version is brought by who holds its lock
alone; who uses it holds it shared until `release` or `close`, and is not evicted under.
"""

import dataclasses
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import trio

from lazyfs.errors import Corrupt, LazyfsError, NotFound, SetupError, UsageError
from lazyfs.models.bucket import Bucket
from lazyfs.models.copying import copied
from lazyfs.models.download import Download
from lazyfs.models.gathering import LocalFile, digests, gather
from lazyfs.models.leases import Leases
from lazyfs.models.manifest import Manifest, ManifestFile
from lazyfs.models.names import ModelVersion
from lazyfs.models.origins import Origin
from lazyfs.models.shelf import Shelf

T = TypeVar("T")

log = logging.getLogger(__name__)


class OpensBucket(Protocol):
    """Opens the bucket for a job."""

    async def __call__(self, job: Callable[[Bucket], Awaitable[T]], /) -> T:
        """What the job gives."""
        ...


@dataclass(frozen=True, slots=True)
class Model:
    """A version that is known: on this disk at `path` (None: it is not), and whether the bucket has it."""

    model: str
    version: str
    size: int
    files: int
    path: Path | None
    published: bool


@dataclass(frozen=True, slots=True)
class LibraryStatistics:
    """Since the start: `mounted`, `hits` and `misses` of gets, by where the version was; `fetched_bytes` from the
    bucket, `resumed_bytes` that a download which was killed had left; `from_origin` versions; `wrong` files, that did
    not agree with their digests and were fetched again; `evicted_bytes`. Now: `models` and `bytes` on this disk,
    `in_use` by this object."""

    mounted: int
    hits: int
    misses: int
    fetched_bytes: int
    resumed_bytes: int
    from_origin: int
    wrong: int
    evicted_bytes: int
    models: int
    bytes: int
    in_use: int


class Library:
    """The models of one source. `bucket` is None where there is none; `mounted` says where a mount has a version."""

    def __init__(
        self,
        *,
        shelf: Shelf,
        bucket: OpensBucket | None,
        origin: Origin | None,
        mounted: Callable[[ModelVersion], Path | None],
        connections: int,
        cold_starts: int,
        unpack: bool = True,
    ) -> None:
        self.shelf = shelf
        self._bucket = bucket
        self._origin = origin
        self._mounted = mounted
        self._connections = connections
        self._cold_starts = cold_starts
        self._unpack = unpack
        self._lock = threading.Lock()
        self._leases = Leases(shelf)
        self._counts = dict.fromkeys(
            ("mounted", "hits", "misses", "fetched_bytes", "resumed_bytes", "from_origin", "wrong"), 0
        )

    # ---- having

    def at_hand(self, of: ModelVersion) -> Path | None:
        """Where the version is, if that needs no network: in a mount, or on this disk, in use from now on. Blocks."""
        if (path := self._mounted(of)) is not None:
            self._count("mounted")
            return path
        if self._leases.take(of):
            self._count("hits")
            return self.shelf.given(of)
        return None

    async def get(self, of: ModelVersion) -> Path:
        """Where the version's files are. `NotFound` if nobody has it, `NoRoom` if it does not fit, `Corrupt` if its
        bytes are not those that were published, whatever is fetched."""
        if (path := await trio.to_thread.run_sync(self.at_hand, of)) is not None:
            return path
        brought = False
        while True:
            async with self._leases.alone(of) as alone:
                if alone and not await trio.to_thread.run_sync(self.shelf.whole, of):
                    self._count("misses")
                    async with self._leases.cold_start(self.shelf.bucket, self._cold_starts):
                        await self._bring(of)
                    brought = True
            if await trio.to_thread.run_sync(self._leases.take, of):
                if not brought:
                    self._count("hits")  # somebody else has brought it
                return self.shelf.given(of)

    async def put(self, of: ModelVersion, path: Path, *, force: bool = False) -> Path:
        """Publish a file or directory as this version, and keep a copy here. `UsageError` if it is there already."""
        files = await trio.to_thread.run_sync(gather, path)
        lock = self._leases.alone_at_once(of)
        try:
            manifest = None
            if self._bucket is not None:
                done = await self._bucket(lambda bucket: bucket.publisher.publish(of, files, force=force))
                manifest = done.manifest
            elif not force and await trio.to_thread.run_sync(self.shelf.whole, of):
                raise UsageError(f"{of} is in the cache already; use another version, or evict it first")
            await self._keep(of, files, manifest)
        finally:
            os.close(lock)
        return await self.get(of)

    async def evict(self, of: ModelVersion, *, from_bucket: bool = False) -> int:
        """Remove this disk's copy, and with `from_bucket` the bucket's for everybody; bytes that went here.
        `UsageError` while somebody else uses it."""
        lock = self._leases.alone_at_once(of)
        try:
            freed = await trio.to_thread.run_sync(self.shelf.remove, of)
        finally:
            os.close(lock)
        if from_bucket:
            await self._with_bucket(lambda bucket: bucket.publisher.remove(of))
        return freed

    async def models(self) -> list[Model]:
        """All versions that this disk or the bucket has, sorted."""
        here = {record.of: record for record in await trio.to_thread.run_sync(self.shelf.here)}
        there = [] if self._bucket is None else await self._bucket(lambda bucket: bucket.catalogue.versions())
        published = {one.of: one for one in there if not one.problem}
        found = []
        for of in sorted(here.keys() | published.keys()):
            record, listed = here.get(of), published.get(of)
            size = record.manifest.size if record else listed.size if listed else 0
            files = len(record.manifest.files) if record else listed.files if listed else 0
            path = self.shelf.place(of) if record else None
            found.append(Model(of.model, of.version, size, files, path, listed is not None))
        return found

    async def verify(self, of: ModelVersion) -> None:
        """Compare all bytes of this disk's copy with their digests. `Corrupt` says which file is wrong, and then the
        copy is no longer handed out; `NotFound` if it is not here."""
        record = await trio.to_thread.run_sync(self.shelf.records.get, self.shelf.name(of))
        if record is None or not record.here:
            raise NotFound(f"{of} is not in the cache; get it first")
        for file in record.manifest.files:
            path = self.shelf.place(of) / file.path
            try:
                found = await trio.to_thread.run_sync(digests, str(path), abandon_on_cancel=True)
                problem = "" if found == file.checksums else f"the SHA-256 of {path} is {found.sha256}"
            except OSError as error:
                problem = f"{path} cannot be read ({error.strerror})"
            if problem:
                damaged = dataclasses.replace(record, here=False)
                await trio.to_thread.run_sync(self.shelf.records.put, self.shelf.name(of), damaged)
                self._leases.drop(of)
                raise Corrupt(f"{problem}, its manifest says {file.sha256}; get it again, and it is fetched anew")

    def release(self, of: ModelVersion) -> None:
        """This object no longer uses the version: it may be evicted."""
        self._leases.drop(of)

    def close(self) -> None:
        """Release all."""
        self._leases.drop_all()

    def statistics(self) -> LibraryStatistics:
        """A frozen copy of the counters. Blocks."""
        with self._lock:
            counts = dict(self._counts)
        here = self.shelf.here()
        return LibraryStatistics(
            **counts,
            evicted_bytes=self.shelf.evicted_bytes,
            models=len(here),
            bytes=self.shelf.size(),
            in_use=len(self._leases),
        )

    # ---- bringing, with the lock held

    async def _bring(self, of: ModelVersion) -> None:
        if self._bucket is not None and await self._bucket(lambda bucket: self._fetch(of, bucket)):
            return
        if self._origin is not None and await self._from_origin(of, self._origin):
            return
        places = [name for name, one in (("the bucket", self._bucket), ("the origin", self._origin)) if one is not None]
        raise NotFound(f"{of} is in no place that was looked at: this disk, {' and '.join(places) or 'and no other'}")

    async def _fetch(self, of: ModelVersion, bucket: Bucket) -> bool:
        """From the bucket; False if it has no such version."""
        manifest = await bucket.catalogue.manifest(of)
        if manifest is None:
            return False
        there = await bucket.catalogue.objects(of)
        for file in manifest.files:
            if file.path not in there or there[file.path].size != file.size:
                raise Corrupt(
                    f"the manifest of {of} names {file.path!r} with {file.size} bytes, and the bucket has not that; "
                    "publish the version again"
                )
        await trio.to_thread.run_sync(self.shelf.reserve, manifest)
        folder = await trio.to_thread.run_sync(self.shelf.coming, of)
        download = Download(bucket.store, folder, connections=self._connections)
        try:
            # By the listing's ETags, and not the manifest's: those of a bucket that was copied are others.
            await download.bring(
                manifest, {file.path: bucket.catalogue.version(there[file.path]) for file in manifest.files}
            )
        finally:
            self._count("fetched_bytes", download.result.fetched)
            self._count("resumed_bytes", download.result.resumed)
            self._count("wrong", download.result.wrong)
        await self._finish(manifest)
        return True

    async def _from_origin(self, of: ModelVersion, origin: Origin) -> bool:
        """From the origin, and into the bucket; False if it has no such version."""
        into = await trio.to_thread.run_sync(self.shelf.workspace, of)
        found = await trio.to_thread.run_sync(_fetched, origin, of, into)
        if found is None:
            return False
        files = await trio.to_thread.run_sync(gather, found)
        manifest = None
        if self._bucket is not None:
            try:
                done = await self._bucket(lambda bucket: bucket.publisher.publish(of, files))
                manifest = done.manifest
            except LazyfsError as error:
                log.warning("%s came from its origin and could not be published for others: %s", of, error)
        await self._keep(of, files, manifest)
        self._count("from_origin")
        return True

    async def _keep(self, of: ModelVersion, files: Sequence[LocalFile], manifest: Manifest | None) -> None:
        """Copy these files here; `manifest` is made of them if there is none."""
        sizes = manifest or Manifest(of, [ManifestFile(f.name, f.size, "0" * 64, 0) for f in files], "")
        await trio.to_thread.run_sync(self.shelf.reserve, sizes)
        made = await trio.to_thread.run_sync(copied, self.shelf, of, files, manifest)
        await self._finish(made)

    async def _finish(self, manifest: Manifest) -> None:
        unpacked = await trio.to_thread.run_sync(self.shelf.unpack, manifest) if self._unpack else ""
        await trio.to_thread.run_sync(self.shelf.finish, manifest, unpacked)

    async def _with_bucket(self, job: Callable[[Bucket], Awaitable[T]]) -> T:
        if self._bucket is None:
            raise UsageError("this cache has no bucket; give it a source, s3://bucket/prefix/")
        return await self._bucket(job)

    def _count(self, name: str, more: int = 1) -> None:
        with self._lock:
            self._counts[name] += more


def _fetched(origin: Origin, of: ModelVersion, into: Path) -> Path | None:
    """What the origin gives. Anything may come out of one that the user wrote."""
    try:
        return origin.fetch(of.model, of.version, into)
    except LazyfsError:
        raise
    except Exception as error:
        raise SetupError(f"the origin failed at {of}: {type(error).__name__}: {error}") from error
