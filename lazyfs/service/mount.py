"""One mount: the rooms put together from the configuration, in one nursery.

Its job: build every room, prove that the mount answers, report what it did. What a room does inside is not known here,
nor when the mount begins and ends (`serving.py`).
"""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import trio

from lazyfs import __version__, errors
from lazyfs.archives.unpacking import Unpacking
from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.lending import Lending
from lazyfs.cache.memory import Memory
from lazyfs.cache.verifier import Verifier
from lazyfs.cache.warming import Warmer
from lazyfs.config import Config, SourceConfig
from lazyfs.filesystem import moving
from lazyfs.filesystem.agreement import Agreement
from lazyfs.filesystem.control import Arguments, Command, Control
from lazyfs.filesystem.files import FileState, OpenFiles
from lazyfs.filesystem.fuse import Operations
from lazyfs.filesystem.nodes import Directory, File, Node
from lazyfs.filesystem.options import mount_options
from lazyfs.filesystem.passthrough import Passthrough
from lazyfs.filesystem.session import Session
from lazyfs.filesystem.tree import Tree
from lazyfs.objects import GIB, KIB, ObjectVersion
from lazyfs.reading.streams import Budget
from lazyfs.service import activity, handed, levels, machine, mounts
from lazyfs.service.archives import library_of
from lazyfs.service.commands import Commands
from lazyfs.service.disks import disk_of
from lazyfs.service.loads import Loads
from lazyfs.service.logs import log_level
from lazyfs.service.origins import Origins, stores_of
from lazyfs.service.succession import Predecessor, Successor
from lazyfs.service.watchdog import GRACE
from lazyfs.service.witnesses import NAMES_OF_DIGESTS, StoredDigests
from lazyfs.stores.traffic import Traffic

log = logging.getLogger(__name__)

READ_AHEAD_SHARE = 0.7
"""Of the memory budget, for bytes read ahead; the rest is for demand and for chunks waiting to be written."""


MOST_JOBS = 8
"""Jobs that a report names."""


class RunningMount:
    """The rooms of one mount. Built inside the loop; `nursery` runs what lives as long as the mount."""

    def __init__(
        self,
        config: Config,
        sources: Sequence[SourceConfig],
        mountpoint: str,
        nursery: trio.Nursery,
        descriptor: int | None = None,
    ) -> None:
        self._config = config
        self._handed = descriptor
        self._mountpoint = mountpoint
        self._started = time.time()
        self.predecessor: Predecessor | None = None
        """Who hands the mount over, once it is served."""
        self._kernel = machine.KernelParameters(0, 0, 0)
        self._read_ahead: machine.FileReadAhead | None = None
        budget = config.memory_budget or machine.default_memory_budget()
        self.traffic = Traffic()
        self.budget = budget
        self.metrics_at = ""
        """Where the numbers of this mount can be asked for; empty where they cannot."""
        self.page_at = ""
        """Where a browser finds the page for people, with the key that opens all of it: for who may see names only."""
        self.activity = activity.Activity()
        logging.getLogger("lazyfs").addHandler(self.activity.words)
        self.store = stores_of(sources, watched=self.activity.watched, traffic=self.traffic)
        self.disk = disk_of(config, mountpoint)
        self.memory = Memory(budget)
        unpacking = Unpacking(self.store)
        self.chunks = ChunkCache(
            store=unpacking,
            disk=self.disk,
            memory=self.memory,
            nursery=nursery,
            span_size=config.read_part_size,
            ways=max(one.config.max_connections for one in sources),
            origins=[one.name for one in sources],
        )
        library = None
        if any(one.config.archives for one in sources):
            library = library_of(unpacking, self.store, self.disk, self.chunks, sources)
        self.origins = Origins(
            sources, stores=self.store, disk=self.disk, chunks=self.chunks, nursery=nursery, library=library
        )
        self.tree = Tree(self.origins.branch)
        self.origins.follow(self.tree)
        self.digests = StoredDigests(unpacking, self.chunks, self.origins.manifests)
        self.verifier = Verifier(
            chunks=self.chunks,
            disk=self.disk,
            witnesses=self.digests,
            nursery=nursery,
            spoiled=self.tree.spoil,
            automatic=config.verify_objects == "auto",
        )
        self.loads = Loads(self.disk)
        self.chunks.writer.on_kept = self._kept
        self.files = OpenFiles(
            self.chunks,
            Budget(int(budget * READ_AHEAD_SHARE), self.store.useful),
            began=self.loads.began,
            ended=self._ended,
        )
        self.warmer = Warmer(
            chunks=self.chunks,
            disk=self.disk,
            nursery=nursery,
            slots=self.memory.slots,
            open_now=lambda: [opened.file.version for opened in self.files],
            opened=self.verifier.opened,
        )
        self.commands = Commands(
            tree=self.tree,
            disk=self.disk,
            chunks=self.chunks,
            verifier=self.verifier,
            digests=self.digests,
            warmer=self.warmer,
            doing=self.doing,
        )
        lending = Lending(self.disk, self.verifier, self.chunks.writer)
        self.passthrough = Passthrough(lending.lend, lending.returned) if config.passthrough else None
        self.operations = Operations(
            tree=self.tree,
            files=self.files,
            total_size=lambda: self.origins.total_size(self.tree),
            report=self.report,
            xattrs=self._xattrs,
            control=Control(
                {
                    **self.commands.table(),
                    **levels.TABLE,
                    "upgrade": Command(self._upgrade, owners=True, on=Directory),
                    "upgrading": Command(self._upgrading, on=Directory),
                    "page": Command(self._page, owners=True, on=Directory),
                },
                owner=os.geteuid(),
            ),
            opened=self._opened,
            passthrough=self.passthrough,
            negative_ttl=config.negative_metadata_ttl,
            uid=os.geteuid() if config.uid is None else config.uid,
            gid=os.getegid() if config.gid is None else config.gid,
            file_mode=config.file_mode,
            dir_mode=config.dir_mode,
            started_ns=int(self._started) * 10**9,
        )

    @property
    def is_handed(self) -> bool:
        """Whether somebody else mounted it, and takes it away."""
        return self._handed is not None

    async def check(self) -> None:
        """Make sure that every source can be listed; a warm start sends nothing. `SetupError` says in one sentence what
        is wrong."""
        await self.origins.check(self.tree)

    def attach(self, taken: Agreement | None = None, descriptor: int | None = None) -> Session:
        """Mount it; or serve the mount behind a descriptor that another process served, on these terms."""
        config = self._config
        options = mount_options(
            self.origins.device, allow_other=config.allow_other, allow_root=config.allow_root, noexec=config.noexec
        )
        number = self._handed if descriptor is None else descriptor
        place = self._mountpoint if number is None else f"/dev/fd/{number}"
        session: Session
        unmount = None if self.is_handed else lambda: self._away(session)
        session = Session(self.operations, place, options, taken=taken, unmount=unmount)
        return session

    def _away(self, session: Session) -> None:
        """Take the mount away, also while it is in use, as libfuse does with those that it made."""
        if not handed.is_gone(session.descriptor):
            with contextlib.suppress(errors.SetupError):
                mounts.unmount(self._mountpoint, lazy=True)

    def packed(self) -> dict[str, Any]:
        """What the kernel counts on (`filesystem.moving`)."""
        state = moving.packed(self.tree, self.files, self.operations.calls, self.passthrough, said_in=NAMES_OF_DIGESTS)
        return {**state, "started_ns": self.operations.started_ns}

    async def take_over(self, successor: Successor) -> Session:
        """Serve what another process has served until now."""
        agreement, state = await successor.prepared()
        for file in moving.restore(dict(state), self.tree, self.files, self.operations.calls, self.passthrough):
            self._opened(file)
        self.operations.started_ns = int(state.get("started_ns", self.operations.started_ns))
        return self.attach(agreement, successor.descriptor)

    async def prove(self) -> None:
        """Read the mount as a user would: list it through the kernel, and find this process behind it. One that was
        made elsewhere and cannot be seen from here has been proved as well as can be once the kernel was answered."""
        if self._handed is not None and mounts.mounted_at(self._mountpoint) is None:
            await self.operations.begun.wait()
            log.info("the mount behind /dev/fd/%d is not seen from here; the kernel was answered", self._handed)
            return

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
            shard_kb = min(self._config.shard_read_ahead_kb, self.budget // 8 // KIB)
            self._read_ahead = machine.FileReadAhead(mount.device, shard_kb)
            self._kernel = replace(self._kernel, shard_read_ahead_kb=self._read_ahead.shard_kb)

    async def end(self) -> None:
        """Write what is queued and close the index."""
        self.warmer.cancel()
        with trio.move_on_after(GRACE / 2):
            await self.chunks.writer.flush()
            await self.chunks.writer.flush_touches()
        await self.chunks.writer.close()

    def status(self) -> str:
        """What this mount is doing, in one line for `systemctl status`."""
        fetched, kept = (f"{n / GIB:.1f} GiB" for n in (self.store.statistics().bytes_received, self.disk.used()))
        return (
            f"{self.origins.title} at {self._mountpoint}: fetched {fetched}, {kept} in the cache, "
            f"{len(self.files)} files open, {self.operations.failures} failures"
        )

    def report(self) -> bytes:
        """What this mount has done so far, as JSON."""
        return json.dumps(
            {
                "version": __version__,
                "pid": os.getpid(),
                "python": sys.executable,
                "source": self.origins.device,
                "sources": self.origins.report(self.tree),
                "mountpoint": self._mountpoint,
                "uptime": round(time.time() - self._started, 3),
                "reads": {"count": self.operations.reads, "bytes": self.operations.read_bytes},
                "failures": self.operations.failures,
                "chunks": asdict(self.chunks.statistics()),
                "jobs": self.warmer.running()[:MOST_JOBS],
                "verified": asdict(self.verifier.statistics()),
                "store": asdict(self.store.statistics()),
                "memory": {**asdict(self.memory.statistics()), "budget": self.budget},
                "disk": {
                    "used": self.disk.used(),
                    "evicted_bytes": self.disk.room.evicted_bytes,
                    "lower": self.disk.lower,
                },
                "kernel": asdict(self._kernel),
                "passthrough": asdict(self.passthrough.statistics()) if self.passthrough else None,
                "hidden": {reason.value: count for reason, count in self.tree.hidden().items()},
                "open_files": len(self.files),
                "inodes": len(self.tree),
                "log_level": log_level(),
                "metrics": self.metrics_at,
            }
        ).encode()

    def doing(self) -> dict[str, Any]:
        """What it is doing just now: names of files are in it."""
        counters = {
            "from_store": self.store.statistics().bytes_received,
            "from_disk": self.chunks.disk_bytes,
            "to_readers": self.operations.read_bytes,
        }
        return self.activity.report(counters, self.files.states(), self.chunks.cached_bytes)

    def _xattrs(self, file: File) -> dict[str, str]:
        version = file.version
        self.digests.note(file)
        verdict = self.verifier.verdict(version)
        found = {
            "etag": version.etag,
            "key": version.key,
            "cached_bytes": str(self.chunks.cached_bytes(version)),
            "verified": "no" if verdict is None else "wrong" if verdict.wrong else verdict.held,
        }
        if verdict is not None and verdict.sha256:
            found["sha256"] = verdict.sha256
        if version_id := self.store.version_id(version):
            found["version_id"] = version_id
        if file.storage_class:
            found["storage_class"] = file.storage_class
        return found

    def _opened(self, file: File) -> None:
        if self._read_ahead is not None:
            self._read_ahead.next_open(through=file.inode in self.files.foreseen)
        self.digests.note(file)
        self.loads.opened(file)
        self.verifier.opened(file.version)

    def _ended(self, state: FileState) -> None:
        if self._read_ahead is not None and not self.files.foreseen:
            self._read_ahead.next_open(through=False)
        self.loads.ended(state)

    def _kept(self, version: ObjectVersion) -> None:
        self.loads.kept(version)
        self.verifier.kept(version)

    async def _upgrade(self, _: Node, arguments: Arguments) -> dict[str, Any]:
        if self.predecessor is None:
            raise errors.SetupError("the mount has only begun; try again")
        if self.warmer.running():
            raise errors.SetupError("`lazyfs warm` has a job here, which would end; wait for it, or cancel it")
        return self.predecessor.ask(arguments.get("python", ""))

    async def _upgrading(self, _: Node, arguments: Arguments) -> dict[str, Any]:
        return {} if self.predecessor is None else self.predecessor.progress()

    async def _page(self, _: Node, arguments: Arguments) -> dict[str, Any]:
        """Where a browser sees the names as well, which not everybody may."""
        return {"url": self.page_at}
