"""lazyfs beside other filesystems over S3, on the same server and with the same programs (R11, R13).

A peer that is not installed is named and left out; one that fails at something is named with what it said, and is
measured in the rest.
"""

import contextlib
import statistics
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from scripts.benchmarks.daemon import Cpu
from scripts.benchmarks.models import check
from scripts.benchmarks.peers import PEERS, Peer, S3fs
from scripts.benchmarks.results import Line, at_least, at_most
from scripts.benchmarks.rows import Row, in_turns
from scripts.benchmarks.stage import FAR, FILE, MIB, MODEL, PLAIN, SHAPED, Shape, Stage, WrongBytes
from scripts.benchmarks.touches import check_pages
from scripts.benchmarks.walks import PROCESSES

COLD_TOUCHES = 64
WARM_TOUCHES = 2000
EARLIER = 100
"""Seeds of touches that are not measured."""

PATIENCE = 180.0
"""Seconds for one program on a peer: it may hang, and the run shall end."""

Figures = dict[str, float]
"""What one measurement found, by the name of the figure; those in `FIGURES`."""

FIGURES: dict[str, tuple[str, str, bool]] = {
    "R1 plain": ("cold sequential read, plain", "GB/s", True),
    "R1 shaped": ("cold sequential read, shaped", "GB/s", True),
    "R3": ("read after a remount, from the disk", "GB/s", True),
    "R4": (f"{PROCESSES} processes map and walk a cold file, {FAR.name}", "GB/s", True),
    "R5": ("safetensors load, cold, shaped", "s", False),
    "R8 time": (f"{COLD_TOUCHES} random 4 KiB touches, cold, shaped: all", "s", False),
    "R8 fetched": ("  fetched for them", "MiB", False),
    "R13": (f"{WARM_TOUCHES} random 4 KiB touches, warm, from the disk", "/s", True),
    "first byte": ("open to first byte, cold, shaped", "ms", False),
    "memory": ("most resident memory in these", "MiB", False),
}
"""Words, unit, and whether more is better."""


class Mount(Protocol):
    """What is known of any mount."""

    path: Path
    sampled: int

    def cpu(self) -> Cpu: ...


class Side:
    """lazyfs, or a peer: what can be mounted at the stage's mountpoint, with a cache directory."""

    def __init__(self, stage: Stage, peer: Peer | None = None) -> None:
        self.stage = stage
        self.peer = peer
        self.name = peer.program if peer else "lazyfs"
        self.memory = 0

    @contextlib.contextmanager
    def mounted(self, cache: Path) -> Iterator[Mount]:
        """A mount of the bucket, on the present server."""
        made: AbstractContextManager[Mount] = (
            self.peer.mounted(self.stage, cache) if self.peer else self.stage.mounted(cache)
        )
        with made as mount:
            # Names are looked up before anything is timed, as they are in a program that lists its model first.
            assert (mount.path / FILE).stat().st_size == self.stage.size
            self.stage.requests()
            yield mount
        self.memory = max(self.memory, mount.sampled)

    @contextlib.contextmanager
    def fresh(self, shape: Shape) -> Iterator[Mount]:
        """One that has nothing, of a server of this shape."""
        with self.stage.new_cache(f"cache-{self.name}") as cache:
            self.stage.shape(shape)
            with self.mounted(cache) as mount:
                yield mount

    # ---- what is measured

    def read(self, shape: Shape, figure: str) -> Figures:
        """R1."""
        self.stage.prepare_file()
        with self.fresh(shape) as mount:
            return {figure: self._rate(self.stage.work("read", path=str(mount.path / FILE)))}

    def warm(self, turn: int) -> Figures:
        """R1 plain to fill the cache, then R3 and R13 from it, each with nothing in the page cache."""
        stage = self.stage
        stage.prepare_file()
        stage.shape(PLAIN)
        with stage.new_cache(f"cache-{self.name}") as cache:
            with self.mounted(cache) as mount:
                path = mount.path / FILE
                cold = self._rate(stage.work("read", path=str(path)))
                self.settle(mount)
                if turn == 0:
                    stage.verify(path, stage.file)
                self.touch_before(mount, turn)
            with self.mounted(cache) as mount:
                stage.drop_caches()
                disk = self._rate(stage.work("read", path=str(path)))
                stage.drop_caches()
                found = touches(stage, path, WARM_TOUCHES, turn)
        return {"R1 plain": cold, "R3": disk, "R13": WARM_TOUCHES / sum(found["seconds"])}

    def walk(self) -> Figures:
        """R4."""
        stage = self.stage
        stage.prepare_file()
        with self.fresh(FAR) as mount:
            found = stage.work("slices", path=str(mount.path / FILE), readers=PROCESSES)
        if found["sums"] != stage.work("slices", path=str(stage.file), readers=PROCESSES)["sums"]:
            raise WrongBytes(f"{self.name}: the walk found other bytes than the file has")
        return {"R4": self._rate(found)}

    def load(self) -> Figures:
        """R5."""
        stage = self.stage
        stage.prepare_model()
        with self.fresh(SHAPED) as mount:
            loaded = stage.work("load", directory=str(mount.path / MODEL))
        check(stage, loaded)
        return {"R5": loaded["seconds"]}

    def touch(self, turn: int) -> Figures:
        """R8. What is fetched counts until the mount is gone, for a peer may not be done when the touches are."""
        self.stage.prepare_file()
        with self.fresh(SHAPED) as mount:
            found = touches(self.stage, mount.path / FILE, COLD_TOUCHES, turn)
        return {"R8 time": sum(found["seconds"]), "R8 fetched": self.stage.fetched() / MIB}

    def first(self) -> Figures:
        """Open to first byte."""
        stage = self.stage
        stage.prepare_file()
        with self.fresh(SHAPED) as mount:
            found = stage.work("first", path=str(mount.path / FILE))
        with stage.file.open("rb") as file:
            if zlib.crc32(file.read(4096)) != found["sum"]:
                raise WrongBytes(f"{self.name}: the first page is wrong")
        return {"first byte": found["seconds"] * 1000}

    def _rate(self, found: dict[str, Any]) -> float:
        if found["bytes"] != self.stage.size:
            raise WrongBytes(f"{self.name}: {found['bytes']} bytes of {self.stage.size}")
        return float(found["bytes"]) / float(found["seconds"]) / 1e9

    def touch_before(self, mount: Mount, turn: int) -> None:
        """The file was touched at other places before: lazyfs prepares for more of that when nobody reads."""
        self.stage.drop_caches()
        touches(self.stage, mount.path / FILE, WARM_TOUCHES, EARLIER + turn)
        self.settle(mount)

    def settle(self, mount: Mount) -> None:
        """Wait until nothing is on its way, where that can be asked."""
        if hasattr(mount, "settle"):
            mount.settle()


def touches(stage: Stage, path: Path, count: int, seed: int) -> dict[str, Any]:
    """One byte of each of so many random pages of the mapped file, with MADV_RANDOM; the pages are right."""
    found = stage.work("touch", path=str(path), count=count, seed=seed, advice="MADV_RANDOM")
    check_pages(stage, found["pages"], found["sums"])
    return found


class Beside(Row):
    """lazyfs beside rclone and s3fs, in all that they can do, too."""

    name = "R11"

    def __init__(self, peers: Sequence[type[Peer]] = PEERS) -> None:
        self._peers = peers

    def run(self, stage: Stage) -> Iterator[Line]:
        """A B C A B C for each thing that is measured. One line for each figure and peer."""
        peers = [peer() for peer in self._peers]
        for peer in peers:
            if not peer.installed:
                yield Line(row=self.name, workload=f"{peer.program}: not installed, left out")
        sides = [Side(stage), *(Side(stage, peer) for peer in peers if peer.installed)]
        if len(sides) == 1:
            return
        measures: list[Callable[[Side, int], Figures]] = [
            lambda side, turn: side.warm(turn),
            lambda side, _: side.read(SHAPED, "R1 shaped"),
            lambda side, _: side.walk(),
            lambda side, _: side.load(),
            lambda side, turn: side.touch(turn),
            lambda side, _: side.first(),
        ]
        patience, stage.patience = stage.patience, PATIENCE
        try:
            for measure in measures:
                yield from self._lines(stage, sides, measure)
        finally:
            stage.patience = patience
        mounted = [side for side in sides if side.memory]
        yield from self._compare(mounted, [[{"memory": side.memory / MIB}] for side in mounted])

    def _lines(self, stage: Stage, sides: list[Side], measure: Callable[[Side, int], Figures]) -> Iterator[Line]:
        failed: dict[str, str] = {}

        def guarded(side: Side, turn: int) -> Figures:
            if side.name in failed:
                return {}
            try:
                return measure(side, turn)
            except Exception as error:
                if side.peer is None:
                    raise
                failed[side.name] = f"{type(error).__name__}: {error}"
                return {}

        found = in_turns(stage.repeat, *(lambda turn, side=side: guarded(side, turn) for side in sides))
        yield from self._compare(
            [side for side in sides if side.name not in failed],
            [one for side, one in zip(sides, found, strict=True) if side.name not in failed],
        )
        for name, why in failed.items():
            yield Line(row=self.name, workload=f"{', '.join(found[0][0])} / {name}: it failed", note=why)

    def _compare(self, sides: list[Side], found: list[list[Figures]]) -> Iterator[Line]:
        ours = found[0]
        for name in ours[0]:
            words, unit, more = FIGURES[name]
            for side, theirs in list(zip(sides, found, strict=True))[1:]:
                yield Line(
                    row=self.name,
                    workload=f"{words} / {side.name}",
                    unit=unit,
                    ours=[one[name] for one in ours],
                    theirs=[one[name] for one in theirs],
                    bound=at_least(1) if more else at_most(1),
                    note=f"{side.name} {side.peer.version}" if name == "memory" and side.peer else "",
                )


class WarmTouches(Row):
    """Small reads of what is on disk, page cache dropped, against s3fs doing the same."""

    name = "R13"

    def run(self, stage: Stage) -> Iterator[Line]:
        """Both have the whole file in their caches, and are mounted anew for each turn."""
        peer = S3fs()
        stage.prepare_file()
        stage.shape(PLAIN)
        sides = [Side(stage), *([Side(stage, peer)] if peer.installed else [])]
        with contextlib.ExitStack() as caches:
            kept = [caches.enter_context(stage.new_cache(f"cache-{side.name}")) for side in sides]
            for side, cache in zip(sides, kept, strict=True):
                # What a slow disk could not follow was not kept, and is by the second reading.
                for turn in range(2):
                    with side.mounted(cache) as mount:
                        stage.drop_caches()
                        stage.work("read", path=str(mount.path / FILE))
                        side.settle(mount)
                        side.touch_before(mount, turn)
            found = in_turns(
                stage.repeat,
                *(
                    lambda turn, side=side, cache=cache: self._touch(stage, side, cache, turn)
                    for side, cache in zip(sides, kept, strict=True)
                ),
            )
        yield Line(
            row=self.name,
            workload=f"{WARM_TOUCHES} random 4 KiB touches, warm, page cache dropped / s3fs",
            unit="/s",
            ours=[one["rate"] for one in found[0]],
            theirs=[one["rate"] for one in found[1]] if len(found) > 1 else [],
            bound=at_least(0.5) if len(found) > 1 else None,
            note=", ".join(
                [
                    f"median {statistics.median(one['middle'] for one in found[0]):.0f} us",
                    f"99 in 100 within {statistics.median(one['slow'] for one in found[0]):.0f} us",
                    f"fetched {max(one['fetched'] for one in found[0]):.0f} MiB",
                    *([] if peer.installed else ["s3fs is not installed"]),
                ]
            ),
        )

    def _touch(self, stage: Stage, side: Side, cache: Path, turn: int) -> Figures:
        with side.mounted(cache) as mount:
            stage.drop_caches()
            found = touches(stage, mount.path / FILE, WARM_TOUCHES, turn)
        seconds = found["seconds"]
        return {
            "rate": len(seconds) / sum(seconds),
            "middle": statistics.median(seconds) * 1e6,
            "slow": statistics.quantiles(seconds, n=100)[-1] * 1e6,
            "fetched": stage.fetched() / MIB,
        }
