"""The commands of a mount: what `filesystem/control.py` is asked, put together from what the rooms can do.

One entry in `table` for each. Must not know FUSE, nor how a command is typed.
"""

import re
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from lazyfs.cache import catalogue
from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.disk import Disk
from lazyfs.cache.pins import Pin, PinSet, bring_back, drop, load, put
from lazyfs.cache.verifier import Verifier
from lazyfs.cache.warming import Wanted, Warmer
from lazyfs.errors import UsageError
from lazyfs.filesystem.control import Arguments, Command, plain
from lazyfs.filesystem.nodes import Directory, File, Node, parts
from lazyfs.filesystem.tree import Tree
from lazyfs.filesystem.walking import Walk
from lazyfs.service import activity
from lazyfs.service.exports import described
from lazyfs.service.witnesses import StoredDigests
from lazyfs.words import parse_count

GATHERED = 16
"""Warm jobs whose paths are told and that were not started; the oldest is forgotten first."""

LONGEST = 48 * 1024
"""Bytes of keys in one answer that lists pins."""

ALL_OF_IT = "(all of the bucket)"
"""A pin of a bucket without a prefix."""

BUSY = 5
"""Times that files which are being written just now are tried again to be evicted."""


class Commands:
    """The commands of one mount."""

    def __init__(
        self,
        *,
        tree: Tree,
        disk: Disk,
        chunks: ChunkCache,
        verifier: Verifier,
        digests: StoredDigests,
        warmer: Warmer,
        doing: Callable[[], dict[str, Any]],
    ) -> None:
        self._tree = tree
        self._disk = disk
        self._chunks = chunks
        self._verifier = verifier
        self._digests = digests
        self._warmer = warmer
        self._doing = doing
        self._gathered: dict[str, dict[int, Node]] = {}

    def table(self) -> Mapping[str, Command]:
        """All of them, by name."""
        return {
            "verify": Command(plain(self._verify), owners=True, on=File),
            "verifying": Command(plain(self._verifying), on=File),
            "warm": Command(self._gather, owners=True),
            "warm-start": Command(self._warm, owners=True, on=Directory),
            "warming": Command(self._warming, on=Directory),
            "warm-cancel": Command(self._cancel, owners=True, on=Directory),
            "pin": Command(self._pin, owners=True),
            "unpin": Command(self._unpin, owners=True),
            "pins": Command(self._pins, on=Directory),
            "pinned": Command(self._pinned, on=Directory),
            "evict": Command(self._evict, owners=True),
            "export": Command(self._export, on=File),
            "du": Command(self._usage),
            activity.NAME: Command(self._activity, owners=True, on=Directory),
        }

    # ---- verify

    def _verify(self, file: File) -> dict[str, Any]:
        self._digests.note(file)
        return self._verifier.demand(file.version)

    def _verifying(self, file: File) -> dict[str, Any]:
        self._digests.note(file)
        return self._verifier.progress(file.version)

    # ---- warm: `warm:job=J` of each path, then `warm-start:job=J,rate=N` of the root, then `warming:job=J`

    async def _gather(self, node: Node, arguments: Arguments) -> dict[str, Any]:
        job = _job(arguments)
        self._gathered.setdefault(job, {})[node.inode] = node
        while len(self._gathered) > GATHERED:
            del self._gathered[next(iter(self._gathered))]
        return {"job": job}

    async def _warm(self, _: Node, arguments: Arguments) -> dict[str, Any]:
        job = _job(arguments)
        nodes = self._gathered.pop(job, None)
        if nodes is None:
            return self._found(job)
        walk = Walk(self._tree, list(nodes.values()))

        async def source() -> AsyncGenerator[Wanted, None]:
            async for file in walk.files():
                self._digests.note(file)
                yield file.version, lambda file=file: walk.doubt(file)  # type: ignore[misc]

        rate = arguments.get("rate", "")
        if rate and not re.fullmatch(r"[1-9][0-9]{0,17}", rate):
            raise UsageError("a rate is a whole number of bytes a second, from 1; leave it out for none")
        return self._warmer.start(job, source, int(rate) if rate else None).public()

    async def _warming(self, _: Node, arguments: Arguments) -> dict[str, Any]:
        return self._found(_job(arguments))

    def _found(self, job: str) -> dict[str, Any]:
        found = self._warmer.find(job)
        return {} if found is None else found.public()

    async def _cancel(self, _: Node, arguments: Arguments) -> dict[str, Any]:
        return {"cancelled": self._warmer.cancel()}

    # ---- pins

    async def _pin(self, node: Node, _: Arguments) -> dict[str, Any]:
        pins = _pins_of(node)

        def step() -> None:
            with self._disk.index.change() as (txn, tables):
                for pin in pins:
                    put(txn, tables.pins, pin)

        await self._chunks.workers.write(step)
        return {"pinned": len(pins)}

    async def _unpin(self, node: Node, _: Arguments) -> dict[str, Any]:
        pins = _pins_of(node)

        def step() -> tuple[int, PinSet]:
            with self._disk.index.change() as (txn, tables):
                gone = [key for pin in pins for key in drop(txn, tables.pins, pin)]
                left = load(txn, tables.pins)
                if gone:
                    bring_back(txn, tables.lru, tables.objects, left)
            return len(gone), left

        gone, left = await self._chunks.workers.write(step)
        over = next((over for pin in pins if (over := left.over(pin))), None)
        return {"unpinned": gone, "over": over.key if over else None}

    async def _pins(self, node: Node, arguments: Arguments) -> dict[str, Any]:
        """Those of this bucket, from the `after`th on; `more` if these are not all. Where several stand side by side,
        each behind the name of the first one of its bucket."""
        after = parse_count(arguments.get("after", "0"))
        found = await self._chunks.workers.look(catalogue.pins, self._disk.index)
        names: dict[str, str] = {}
        for part in parts(node):
            names.setdefault(_pin_of(part).place, "" if part is node else f"{part.name}: ")
        keys = [
            f"{names[pin.place]}{pin.key or ALL_OF_IT}" if names[pin.place] else pin.key
            for pin in found.all
            if pin.place in names
        ][after:]
        size = taken = 0
        for key in keys:
            size += 6 * len(key) + 8  # as JSON writes what is not ASCII
            if size > LONGEST and taken:
                break
            taken += 1
        return {"pins": keys[:taken], "more": taken < len(keys)}

    async def _pinned(self, node: Node, _: Arguments) -> dict[str, Any]:
        found = await self._chunks.workers.look(catalogue.pinned_bytes, self._disk.index)
        return {"bytes": found}

    # ---- evict

    async def _evict(self, node: Node, arguments: Arguments) -> dict[str, Any]:
        asked, index = _pins_of(node), self._disk.index

        def below(one: catalogue.Known) -> bool:
            return any(pin.covers(one.place, one.key) for pin in asked)

        def find() -> tuple[list[catalogue.Known], int]:
            held = PinSet(()) if arguments.get("pinned") == "1" else catalogue.pins(index)
            under = (one for one in catalogue.known(index) if below(one))
            there = [one for one in under if one.present or catalogue.holds(index, one.object_id)]
            going = [one for one in there if not held.cover(one.place, one.key)]
            return going, len(there) - len(going)

        await self._chunks.writer.settled()
        going, pinned = await self._chunks.workers.look(find)
        files, freed, left = len(going), 0, 0
        for _ in range(BUSY):
            left = 0
            for first in range(0, len(going), 64):
                more, busy = await self._chunks.evict([one.object_id for one in going[first : first + 64]])
                freed, left = freed + more, left + busy
            if not left:
                break
            going = [one for one in going if catalogue.holds(index, one.object_id)]
        return {"freed": freed, "files": files, "pinned": pinned, "busy": left and len(going)}

    # ---- export

    async def _export(self, node: Node, arguments: Arguments) -> dict[str, Any]:
        """With `only=file` where it is, and nothing is asked for that."""
        assert isinstance(node, File)  # noqa: S101 - the table says so
        if arguments.get("only") == "file":
            return {"file": self._disk.path(node.version)}
        self._digests.note(node)
        return await described(
            node.version, disk=self._disk, chunks=self._chunks, verifier=self._verifier, digests=self._digests
        )

    # ---- top

    async def _activity(self, _: Node, arguments: Arguments) -> dict[str, Any]:
        """It names files, which not everybody may see."""
        return self._doing()

    # ---- du

    async def _usage(self, node: Node, arguments: Arguments) -> dict[str, Any]:
        """Of all files at or below the node; with `only=files` of a directory's own."""
        held = await self._chunks.workers.look(catalogue.pins, self._disk.index)
        files = size = cached = pinned = 0
        deep = arguments.get("only") != "files"
        async for file in Walk(self._tree, [node] if deep or parts(node) == [node] else []).files(deep=deep):
            here = self._disk.cached_bytes(file.version) if file.size else 0
            files, size, cached = files + 1, size + file.size, cached + here
            pinned += here if held.cover(file.version.place, file.version.key) else 0
        return {"files": files, "size": size, "cached": cached, "pinned": pinned}


def _job(arguments: Arguments) -> str:
    job = arguments.get("job", "")
    if not 8 <= len(job) <= 64:
        raise UsageError("a job needs a name of 8 to 64 letters or digits: job=NAME")
    return job


def _pin_of(node: Node) -> Pin:
    """The key or prefix that a node stands for."""
    if isinstance(node, File):
        return Pin(node.version.place, node.version.key)
    return Pin(node.place, node.prefix)


def _pins_of(node: Node) -> list[Pin]:
    return [_pin_of(part) for part in parts(node)]
