"""A cache directory filled at the build of an image: no FUSE, no daemon, and a mount that finds all in it.

Its job: bring listings, bytes and verdicts of a source into a cache directory, so that it can be a lower layer
(`cache.lower`). Must not know the kernel, nor who mounts it.
"""

import os
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.directory import CacheDirectory
from lazyfs.cache.disk import Disk
from lazyfs.cache.memory import Memory
from lazyfs.cache.verdicts import NONE
from lazyfs.cache.verifier import Verifier
from lazyfs.cache.warming import Wanted, Warmer, Warming
from lazyfs.config import Config, SourceConfig
from lazyfs.errors import LazyfsError, NoSuchName, NotADirectory, SetupError, UsageError
from lazyfs.filesystem.nodes import File, Node
from lazyfs.filesystem.tree import ROOT, Tree
from lazyfs.filesystem.walking import Walk
from lazyfs.objects import ObjectVersion
from lazyfs.service.machine import default_memory_budget
from lazyfs.service.origins import Origins, stores_of
from lazyfs.service.witnesses import StoredDigests, is_digests

POLL = 0.05
"""Seconds between two words about how far it is."""

Told = Callable[[Warming], None]


@dataclass(slots=True)
class Baked:
    """What is in the layer now: files, their bytes, how many of these were fetched for it, and those files that have no
    digest to be compared with."""

    files: int = 0
    bytes: int = 0
    fetched: int = 0
    without: list[str] = field(default_factory=list)


async def bake(place: Path, config: Config, source: SourceConfig, paths: Sequence[str], told: Told) -> Baked:
    """Fill the directory `place` with the files at and below these paths of the source, all of it
    without one. `UsageError` for a path that is not there, `SetupError` if not all of it came or some of it is wrong,
    `StoreError` if it cannot be listed; what came stays, so that it goes on when it is called again."""
    os.umask(0o077)
    disk = Disk(
        CacheDirectory(place, create=True),
        max_size=config.max_cache_size,
        min_free=config.min_free_space,
    )
    found: list[Baked] = []
    failure: LazyfsError | None = None
    try:
        async with trio.open_nursery() as nursery:
            baking = _Baking(config, source, disk, nursery)
            try:
                found.append(await baking.run(paths, told))
            except LazyfsError as error:
                failure = error
            await baking.end()
            nursery.cancel_scope.cancel()
    finally:
        disk.close()
    if failure is not None:
        raise failure
    return found[0]


class _Baking:
    def __init__(self, config: Config, source: SourceConfig, disk: Disk, nursery: trio.Nursery) -> None:
        self._store = stores_of([source], watched=lambda store: store)
        self._disk = disk
        memory = Memory(config.memory_budget or default_memory_budget())
        self._chunks = ChunkCache(
            store=self._store,
            disk=disk,
            memory=memory,
            nursery=nursery,
            span_size=config.read_part_size,
            ways=source.config.max_connections,
        )
        self._origins = Origins([source], stores=self._store, disk=disk, chunks=self._chunks, nursery=nursery)
        self._tree = Tree(self._origins.branch)
        self._origins.follow(self._tree)
        self._digests = StoredDigests(self._store, self._chunks, self._origins.manifests)
        self._verifier = Verifier(
            chunks=self._chunks,
            disk=disk,
            witnesses=self._digests,
            nursery=nursery,
            spoiled=self._tree.spoil,
            automatic=config.verify_objects == "auto",
            patience=0,  # nobody reads, and all of it is waited for
        )
        self._checked = config.verify_objects == "auto"
        self._warmer = Warmer(
            chunks=self._chunks,
            disk=disk,
            nursery=nursery,
            slots=memory.slots,
            open_now=list,
            opened=self._verifier.opened,
        )
        nursery.start_soon(self._chunks.writer.run)
        nursery.start_soon(self._store.watch)

    async def run(self, paths: Sequence[str], told: Told) -> Baked:
        await self._origins.check(self._tree)
        nodes = [await self._node(path) for path in paths] or [self._tree.root]
        walk = Walk(self._tree, nodes)

        async def source() -> AsyncGenerator[Wanted, None]:
            async for file in walk.files():
                self._digests.note(file)
                yield file.version, lambda file=file: walk.doubt(file)  # type: ignore[misc]

        job = self._warmer.start("bake", source)
        while not job.ended.is_set():
            told(job)
            with trio.move_on_after(POLL):
                await job.ended.wait()
        told(job)
        if job.outcome != "warm":
            raise SetupError(f"{job.words or 'not all of it came'}; what came stays, so run it again")
        baked = Baked(fetched=job.fetched)
        async for file in walk.files():
            baked.files += 1
            baked.bytes += file.size
            if self._checked and file.size and await self._held(file) == NONE and not is_digests(file.version):
                baked.without.append(file.version.key)
        await self._origins.total_size(self._tree)
        return baked

    async def _node(self, path: str) -> Node:
        node: Node = self._tree.node(ROOT)
        for name in filter(None, path.split("/")):
            try:
                node = await self._tree.lookup(node.inode, name)
            except (NoSuchName, NotADirectory):
                raise UsageError(
                    f"there is no {path} in {self._origins.device}; name paths as a mount shows them"
                ) from None
        return node

    async def _held(self, file: File) -> str:
        """Which digest held; `SetupError` if none did."""
        version: ObjectVersion = file.version
        self._digests.note(file)
        if not self._verifier.settled(version):
            self._verifier.demand(version)
            while (job := self._verifier.progress(version)) and job["step"] != "done":  # noqa: ASYNC110 - as `verify`
                await trio.sleep(POLL)
            if not self._verifier.settled(version):
                raise SetupError(f"{job.get('words') or f'{version.key!r} cannot be verified'}")
        verdict = self._verifier.verdict(version)
        return NONE if verdict is None else verdict.held

    async def end(self) -> None:
        """Have everything on disk that was to be."""
        self._warmer.cancel()
        await self._chunks.writer.flush()
        await self._chunks.writer.flush_touches()


def opened_to_all(place: Path) -> None:
    """Let every user read the layer, as everybody may who has the image; nobody else writes it. OSError."""
    for folder, _, names in os.walk(place):
        os.chmod(folder, 0o755)  # noqa: S103 - which is what was asked for
        for name in names:
            os.chmod(os.path.join(folder, name), 0o644)
