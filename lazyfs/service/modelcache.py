"""`ModelCache`: the models of a bucket by name, from a program; the composition of `models`, and its settings.

Its job: arguments and environment into a library, one call into one loop, and mounts of this machine, in which a
version is at once. Must not import FUSE: it is for machines without it, too.
"""

import dataclasses
import json
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from lazyfs.archives.names import may_be_archive
from lazyfs.config import Config, parse_source
from lazyfs.errors import UsageError
from lazyfs.filesystem.sidecars import is_sidecar
from lazyfs.models.bucket import Bucket
from lazyfs.models.library import Library, LibraryStatistics, Model, OpensBucket
from lazyfs.models.names import MANIFEST, ModelVersion
from lazyfs.models.origins import Origin
from lazyfs.models.places import source_said
from lazyfs.models.shelf import Shelf
from lazyfs.models.unpacked import folder_of
from lazyfs.moments import split_moment
from lazyfs.objects import Source
from lazyfs.service import mounts
from lazyfs.service.buckets import with_models
from lazyfs.service.machine import default_cache_dir
from lazyfs.service.running import to_the_end

T = TypeVar("T")

COLD_STARTS = 4
"""Each has as many connections as `max_connections` says, which is what one machine's network is worth."""

_FAMILIAR = {"cache_dir": "MODEL_CACHE_DIR", "max_cache_size": "MODEL_CACHE_MAX_BYTES"}
"""Names of the environment that other model caches have, for settings of ours."""


def _config(settings: dict[str, Any]) -> Config:
    """Arguments over `LAZYFS_<NAME>` over names of others over defaults. `UsageError` names what is wrong."""
    fields = {field.name: field for field in dataclasses.fields(Config)}
    if unknown := sorted(settings.keys() - fields.keys()):
        raise UsageError(f"there is no setting {unknown[0]!r}; `lazyfs mount --help` lists them")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        given = settings.get(name)
        words = given if isinstance(given, str) else None
        if given is None:
            words = os.environ.get(f"LAZYFS_{name.upper()}") or os.environ.get(_FAMILIAR.get(name, "")) or None
        if words is not None:
            try:
                values[name] = field.metadata["parse"](words)
            except UsageError as error:
                raise UsageError(f"{name}: {error}") from None
        elif given is not None:
            values[name] = given
    return Config(**values)


def _opener(config: Config, source: Source) -> OpensBucket:
    async def bucket(job: Callable[[Bucket], Awaitable[T]], /) -> T:
        return await with_models(config, source, job)

    return bucket


class AsyncModelCache:
    """Models by name and version, for trio; see `ModelCache`, whose methods these are."""

    def __init__(
        self,
        source: str | None = None,
        *,
        origin: Origin | None = None,
        use_mounts: bool = True,
        cold_starts: int = COLD_STARTS,
        unpack: bool = True,
        **settings: Any,
    ) -> None:
        """See `ModelCache`. Blocks for some milliseconds; sends nothing."""
        if cold_starts < 1:
            raise UsageError("cold_starts must be at least 1: a version that is not here has to be brought")
        config = _config(settings)
        where = source_said(source, os.environ, config)
        if where is None and origin is None:
            raise UsageError(
                "where the models are is not said; give a source, s3://bucket/prefix/, set LAZYFS_SOURCE or "
                "MODEL_CACHE_S3_BUCKET, or give an origin"
            )

        self._library = Library(
            shelf=Shelf(
                Path(config.cache_dir).expanduser().absolute() if config.cache_dir else default_cache_dir(),
                source=where,
                max_size=config.max_cache_size,
                min_free=config.min_free_space,
                create=True,
            ),
            bucket=None if where is None else _opener(config, where),
            origin=origin,
            mounted=lambda of: in_a_mount(where, of, unpacked=unpack) if use_mounts and where is not None else None,
            connections=config.max_connections,
            cold_starts=cold_starts,
            unpack=unpack,
        )

    async def get(self, model: str, version: str) -> Path:
        """See `ModelCache.get`."""
        return await self._library.get(ModelVersion(model, version))

    async def put(self, model: str, version: str, path: str | Path, *, force: bool = False) -> Path:
        """See `ModelCache.put`."""
        return await self._library.put(ModelVersion(model, version), Path(path), force=force)

    async def evict(self, model: str, version: str, *, from_bucket: bool = False) -> int:
        """See `ModelCache.evict`."""
        return await self._library.evict(ModelVersion(model, version), from_bucket=from_bucket)

    async def verify(self, model: str, version: str) -> None:
        """See `ModelCache.verify`."""
        await self._library.verify(ModelVersion(model, version))

    async def list(self) -> list[Model]:
        """See `ModelCache.list`."""
        return await self._library.models()

    def release(self, model: str, version: str) -> None:
        """See `ModelCache.release`."""
        self._library.release(ModelVersion(model, version))

    def stats(self) -> LibraryStatistics:
        """See `ModelCache.stats`."""
        return self._library.statistics()

    def metrics(self) -> str:
        """See `ModelCache.metrics`."""
        from lazyfs.service import metrics  # noqa: PLC0415 - its library takes a while to import

        return metrics.page(metrics.of_models(self.stats()), "text/plain")[1].decode()

    def close(self) -> None:
        """See `ModelCache.close`."""
        self._library.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ModelCache:
    """Models by name and version: on this disk, else from the bucket, else from an origin.

        with ModelCache("s3://models/llm/", max_cache_size="200GiB") as cache:
            path = cache.get("llama-3-8b", "v1")

    Safe for threads, and any number of processes may share a cache directory: one fetches, the others wait. What `get`
    gave is not evicted until `release`, `close`, or the end of the process. Every failure is a
    `lazyfs.errors.LazyfsError` whose text is one sentence. Not to be called from within a trio loop:
    `lazyfs.aio.ModelCache` is for that.
    """

    def __init__(
        self,
        source: str | None = None,
        *,
        origin: Origin | None = None,
        use_mounts: bool = True,
        cold_starts: int = COLD_STARTS,
        unpack: bool = True,
        **settings: Any,
    ) -> None:
        """`source`: s3://bucket/prefix/; default: LAZYFS_SOURCE or MODEL_CACHE_S3_BUCKET. `origin`: where a version is
        brought from that the bucket does not have, and then published there. `use_mounts`: give the path in a mount of
        the source, where this machine has one. `cold_starts`: most versions that are brought from the bucket at a time,
        by all processes that share the cache directory; the others wait for their turn. `unpack`: of a version that is
        one archive (.tar, .tar.gz, .tgz, .tar.zst, .tzst), give the directory with what is in it.

        `settings` are those of a mount, by name, as text or value: `cache_dir` (or MODEL_CACHE_DIR), `max_cache_size`
        (or MODEL_CACHE_MAX_BYTES), `endpoint_url` and so on; each is also LAZYFS_<NAME> in the environment.
        `UsageError` and `SetupError` say what is wrong with them.
        """
        self._cache = AsyncModelCache(
            source, origin=origin, use_mounts=use_mounts, cold_starts=cold_starts, unpack=unpack, **settings
        )

    def get(self, model: str, version: str) -> Path:
        """The directory with the version's files. At once where a mount or this disk has it; else it is fetched, in
        parallel ranges, room is made for it, and every file is compared with its digests before it is handed out.

        `NotFound` if nobody has it, `NoRoom` if it does not fit, `Corrupt` if its bytes are wrong also when fetched
        again, other `StoreError`s when the bucket does not answer for as long as `retry_budget`. A version never
        changes: one that was replaced in the bucket is had after `evict`.
        """
        of = ModelVersion(model, version)
        found = self._cache._library.at_hand(of)
        return found if found is not None else to_the_end(lambda: self._cache.get(model, version))

    def put(self, model: str, version: str, path: str | Path, *, force: bool = False) -> Path:
        """Publish a file or directory as this version, and keep a copy here, whose directory this is. `UsageError` if
        the version is there already and `force` does not say to replace it."""
        return to_the_end(lambda: self._cache.put(model, version, path, force=force))

    def evict(self, model: str, version: str, *, from_bucket: bool = False) -> int:
        """Remove the copy on this disk; bytes that went. With `from_bucket` the version in the bucket, for everybody.
        `UsageError` while another process, or another cache object, uses it."""
        return to_the_end(lambda: self._cache.evict(model, version, from_bucket=from_bucket))

    def verify(self, model: str, version: str) -> None:
        """Read all bytes of the copy on this disk, as they were published, and compare them with their digests:
        `Corrupt` names the file that is wrong, and the next `get` fetches the version anew. Of a version that was
        unpacked that is its archive; what came out of it is not read again."""
        to_the_end(lambda: self._cache.verify(model, version))

    def list(self) -> list[Model]:
        """All versions that this disk or the bucket has."""
        return to_the_end(self._cache.list)

    def release(self, model: str, version: str) -> None:
        """This object no longer uses the version, which may be evicted from now on."""
        self._cache.release(model, version)

    def stats(self) -> LibraryStatistics:
        """Counters of this object, and what is on the disk now."""
        return self._cache.stats()

    def metrics(self) -> str:
        """`stats` as Prometheus reads them."""
        return self._cache.metrics()

    def close(self) -> None:
        """Release everything. The object may be used again."""
        self._cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def in_a_mount(source: Source, of: ModelVersion, *, unpacked: bool) -> Path | None:
    """Where a mount of this machine shows the whole version; None if none does, or does not answer. `unpacked`: of one
    that is an archive, as the directory with what is in it, or not at all."""
    wanted = of.prefix(source.prefix)
    for mount in reversed(mounts.mounts()):
        # Of several sources, mountinfo names none.
        of_another = mount.source.startswith("s3://") and not mount.source.startswith(f"s3://{source.bucket}")
        if mount.fstype != mounts.FSTYPE or of_another:
            continue
        try:
            reported = json.loads(mounts.stats_of(mount.mountpoint))["sources"]
            for name, shown in [(one["name"], _shown(one)) for one in reported]:
                path = Path(mount.mountpoint, name, wanted.removeprefix(shown.prefix))
                same = shown.listing_place == source.listing_place and wanted.startswith(shown.prefix)
                whole = same and _key_of(path / MANIFEST) == wanted + MANIFEST
                if whole and (found := mounts.bounded(partial(_shown_as, path, unpacked), seconds=30.0)) is not None:
                    return found
        except (OSError, TimeoutError, ValueError, KeyError, TypeError, UsageError):
            continue
    return None


def _shown_as(path: Path, unpacked: bool) -> Path | None:
    """The version's directory; that of its archive, if it is one and is to be unpacked; None if that is not shown."""
    names = {name for name in os.listdir(path) if name != MANIFEST and not is_sidecar(name)}
    archive = min(names, default="")
    if not unpacked or not may_be_archive(archive) or names - {archive, folder_of(archive)}:
        return path
    folder = path / folder_of(archive)
    return folder if folder.is_dir() and os.listdir(folder) else None


def _shown(reported: dict[str, Any]) -> Source:
    """A source as a mount reports it."""
    plain, moment = split_moment(reported["url"])
    bucket, prefix = parse_source(plain)
    # The endpoint too: two may have a bucket of a name.
    return Source(bucket, prefix, reported["endpoint_url"], moment)


def _key_of(path: Path) -> str:
    """The key of a file in a mount; empty if it is not there: of a manifest, while its version is on its way, or going.
    OSError or TimeoutError if the mount does not answer."""
    try:
        return os.fsdecode(mounts.bounded(partial(os.getxattr, path, "user.lazyfs.key"), seconds=5.0))
    except FileNotFoundError:
        return ""
