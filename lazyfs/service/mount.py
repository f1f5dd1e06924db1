"""One running mount: the rooms put together, in one nursery, from start to end.

Its job: build every room from the configuration, prove that the mount answers, say so, and end in order: unmount, write
what is queued, close the index. What a room does inside is not known here.
"""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

import trio

from lazyfs import __version__, errors
from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.directory import CacheDirectory
from lazyfs.cache.disk import Disk
from lazyfs.cache.listings import Listings
from lazyfs.cache.memory import Memory
from lazyfs.config import Config
from lazyfs.filesystem.files import OpenFiles
from lazyfs.filesystem.fuse import Operations, Session
from lazyfs.filesystem.options import mount_options
from lazyfs.filesystem.tree import File, Tree
from lazyfs.objects import Source
from lazyfs.reading.streams import Budget
from lazyfs.service import machine, mounts
from lazyfs.service.engines import s3_store
from lazyfs.service.notify import notify
from lazyfs.stores.fetch import PatientStore

log = logging.getLogger(__name__)

CHECK_PATIENCE = 10.0
"""Seconds for which the first request may fail before the mount is given up."""

LONGEST_TTL = 10 * 365 * 86400.0
"""Seconds: what `indefinite` comes to. Infinity less the age of a listing of unknown age is not a number."""

GRACE = 10.0
"""Seconds for an orderly end; after that the process ends without: libfuse before 3.18 can hang in a lazy unmount."""

LAST_READS = 2.0
"""Seconds that an end waits for reads under way; their readers get an error after that, as mapped ones SIGBUS."""

READ_AHEAD_SHARE = 0.7
"""Of the memory budget, for bytes read ahead; the rest is for demand and for chunks waiting to be written."""


COPIES_SHARE = 1 / 16
"""Of the memory budget, for reads that lie in two chunks and are copied while they wait for the second: 32 mapped
readers had 35 MiB of those, and the daemon 4 MiB more than its budget and 120 MiB."""


def default_cache_dir() -> Path:
    """Where the cache is when nobody says."""
    if os.geteuid() == 0:
        return Path("/var/cache/lazyfs")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lazyfs"


class RunningMount:
    """The rooms of one mount. Built inside the loop; `nursery` runs what lives as long as the mount."""

    def __init__(self, config: Config, source: Source, mountpoint: str, nursery: trio.Nursery) -> None:
        self._config = config
        self.source = source
        self._mountpoint = mountpoint
        self._started = time.time()
        self._kernel = machine.KernelParameters(0, 0, 0)
        self._total: tuple[float, int] | None = None
        ttl = min(config.metadata_ttl, LONGEST_TTL)
        budget = config.memory_budget or machine.default_memory_budget()
        s3 = s3_store(config, source)
        self._budget = budget
        self.store = PatientStore(s3, connections=config.max_connections, retry_budget=config.retry_budget)
        named = Path(config.cache_dir).absolute() if config.cache_dir else None
        directory = CacheDirectory(named or default_cache_dir(), create=named is None)
        self.disk = Disk(directory, max_size=config.max_cache_size, min_free=config.min_free_space)
        self.memory = Memory(int(budget * (1 - COPIES_SHARE)))
        self.chunks = ChunkCache(
            store=self.store,
            disk=self.disk,
            memory=self.memory,
            nursery=nursery,
            span_size=config.read_part_size,
            ways=config.max_connections,
        )
        self.listings = Listings(
            place=source.place,
            list_prefix=self.store.list,
            disk=self.disk,
            in_writer=self.chunks.writer.step,
            ttl=ttl,
        )
        self.tree = Tree(
            place=source.place,
            prefix=source.prefix,
            list_prefix=self.listings.list,
            age=self.listings.age,
            ttl=ttl,
        )
        self.files = OpenFiles(self.chunks, Budget(int(budget * READ_AHEAD_SHARE), self.store.useful))
        self.operations = Operations(
            tree=self.tree,
            files=self.files,
            total_size=self._total_size,
            report=self.report,
            xattrs=self._xattrs,
            negative_ttl=config.negative_metadata_ttl,
            uid=os.geteuid() if config.uid is None else config.uid,
            gid=os.getegid() if config.gid is None else config.gid,
            file_mode=config.file_mode,
            dir_mode=config.dir_mode,
            started_ns=int(self._started) * 10**9,
        )

    async def check(self) -> None:
        """Make sure that the bucket can be listed, by the listing that the root needs anyway; a warm start sends
        nothing. `SetupError` says in one sentence what is wrong."""
        url = self.source.url
        where = f" at {self._config.endpoint_url}" if self._config.endpoint_url else ""
        try:
            # Less patience than a reader has: somebody waits for this command.
            self.listings.patience = CHECK_PATIENCE
            await self.tree.refresh(self.tree.root)
        except errors.NotFound:
            raise errors.SetupError(
                f"there is no bucket {self.source.bucket!r}{where}; check its name and region"
            ) from None
        except errors.AccessDenied as error:
            raise errors.SetupError(f"cannot list {url}{where}: {error}") from None
        except errors.Unreachable as error:
            raise errors.SetupError(
                f"cannot reach {url}{where}; check the endpoint and the network ({error})"
            ) from None
        except errors.StoreError as error:
            raise errors.SetupError(f"cannot list {url}{where}: {error}") from None
        finally:
            self.listings.patience = None
        if not self.tree.root.children:
            log.warning("%s has no objects yet", url)

    def attach(self) -> Session:
        """Mount it."""
        config = self._config
        options = mount_options(
            self.source.url, allow_other=config.allow_other, allow_root=config.allow_root, noexec=config.noexec
        )
        return Session(self.operations, self._mountpoint, options)

    async def prove(self) -> None:
        """Read the mount as a user would: list it through the kernel, and find this process behind it."""

        def read() -> None:
            os.listdir(self._mountpoint)
            if json.loads(mounts.stats_of(self._mountpoint))["pid"] != os.getpid():
                raise OSError("another process answers")

        try:
            await trio.to_thread.run_sync(read, abandon_on_cancel=True)
        except (OSError, TimeoutError) as error:
            raise errors.SetupError(f"mounted at {self._mountpoint}, but it cannot be read: {error}") from None

    def tune(self) -> None:
        """Set the kernel's parameters of the mount."""
        mount = mounts.mounted_at(self._mountpoint)
        if mount is not None:
            self._kernel = machine.tune(
                mount.device,
                read_ahead_kb=self._config.read_ahead_kb,
                max_background=self._config.max_background,
                congestion_threshold=self._config.congestion_threshold,
            )

    async def end(self) -> None:
        """Write what is queued and close the index."""
        with trio.move_on_after(GRACE / 2):
            await self.chunks.writer.flush()
            await self.chunks.writer.flush_touches()
        await self.chunks.writer.close()

    def report(self) -> bytes:
        """What this mount has done so far, as JSON."""
        return json.dumps(
            {
                "version": __version__,
                "pid": os.getpid(),
                "source": self.source.url,
                "mountpoint": self._mountpoint,
                "uptime": round(time.time() - self._started, 3),
                "reads": {"count": self.operations.reads, "bytes": self.operations.read_bytes},
                "failures": self.operations.failures,
                "chunks": asdict(self.chunks.statistics()),
                "store": asdict(self.store.statistics()),
                "memory": {**asdict(self.memory.statistics()), "budget": self._budget},
                "disk": {"used": self.disk.used(), "evicted_bytes": self.disk.evicted_bytes},
                "kernel": asdict(self._kernel),
                "hidden": {reason.value: count for reason, count in self.tree.hidden().items()},
                "open_files": len(self.files),
                "inodes": len(self.tree),
            }
        ).encode()

    def _xattrs(self, file: File) -> dict[str, str]:
        version = file.version
        found = {
            "etag": version.etag,
            "key": version.key,
            "cached_bytes": str(self.chunks.cached_bytes(version)),
            "verified": "none",
        }
        if version.version_id:
            found["version_id"] = version.version_id
        return found

    async def _total_size(self) -> int:
        """Bytes of all objects, asked for at most once in a TTL."""
        now = trio.current_time()
        if self._total is None or now - self._total[0] > self._config.metadata_ttl:
            self._total = (now, await self.store.total_size(self.source.prefix))
        return self._total[1]


async def serve(config: Config, source: Source, mountpoint: str, ready: Callable[[], None]) -> None:
    """Run one mount from start to end, and end the process; `ready` is called once the mount answers.

    `SetupError` if it cannot be started; then nothing is left mounted.
    """
    failure: Exception | None = None
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            try:
                mount = RunningMount(config, source, mountpoint, nursery)
                await _live(mount, mountpoint, nursery, signals, ready)
            except Exception as error:  # noqa: BLE001 - raised again outside, where no nursery wraps it in a group
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _live(
    mount: RunningMount,
    mountpoint: str,
    nursery: trio.Nursery,
    signals: AsyncIterator[int],
    ready: Callable[[], None],
) -> None:
    """From the first request to the end of the process."""
    stop, ended, reads = trio.Event(), trio.Event(), trio.CancelScope()
    nursery.start_soon(_stop_on_signal, signals, stop)
    try:
        await _unless(stop, nursery, mount.check)
        session = mount.attach()
    except BaseException:
        mount.disk.close()
        raise
    try:
        nursery.start_soon(_run_session, session, reads, stop, ended)
        nursery.start_soon(_stop_when_unmounted, session, stop)
        nursery.start_soon(mount.chunks.writer.run)
        nursery.start_soon(mount.store.watch)
        await _unless(stop, nursery, mount.prove)
        # In a thread: it runs programs that may look at every mount, this one included.
        await trio.to_thread.run_sync(mount.tune)
        log.info("%s is mounted at %s", mount.source.url, mountpoint)
        notify("READY=1", f"STATUS={mount.source.url} at {mountpoint}")
        ready()
        threading.Thread(target=mount.memory.populate, name="populate", daemon=True).start()
        await stop.wait()
        notify("STOPPING=1")
        if not ended.is_set():
            _end_by_force()
            session.stop()
            with trio.move_on_after(LAST_READS):
                await ended.wait()
            reads.cancel()
            await ended.wait()
    finally:
        _end_by_force()
        session.close()
    await mount.end()
    log.info("%s is unmounted from %s", mount.source.url, mountpoint)
    # Worker threads may still wait on silent connections, for bytes that have no reader any more.
    logging.shutdown()
    os._exit(0)


async def _run_session(session: Session, reads: trio.CancelScope, stop: trio.Event, ended: trio.Event) -> None:
    try:
        with reads:
            await session.run()
    finally:
        ended.set()
        stop.set()


async def _stop_when_unmounted(session: Session, stop: trio.Event) -> None:
    await session.unmounted()
    stop.set()


async def _stop_on_signal(signals: AsyncIterator[int], stop: trio.Event) -> None:
    async for number in signals:
        log.info("%s: unmounting", signal.Signals(number).name)
        stop.set()
        return


async def _unless(stop: trio.Event, nursery: trio.Nursery, step: Callable[[], Awaitable[None]]) -> None:
    """A step of the start, given up with `SetupError` when `stop` is set."""

    async def give_up() -> None:
        await stop.wait()
        scope.cancel()

    with trio.CancelScope() as scope:
        nursery.start_soon(give_up)
        await step()
    if scope.cancelled_caught:
        raise errors.SetupError("stopped before the mount was ready")


def _end_by_force() -> None:
    """Start the clock outside the loop that ends the process if the orderly end hangs."""
    timer = threading.Timer(GRACE, os._exit, [1])
    timer.daemon = True
    timer.start()
