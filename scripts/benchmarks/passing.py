"""Warm files that the kernel reads by itself (`--passthrough`): R3, R2 and R13 once more, and one row beside s3fs."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.benchmarks.beside import WARM_TOUCHES, Side, touches
from scripts.benchmarks.daemon import SETTLE_TIMEOUT, Mounted
from scripts.benchmarks.peers import S3fs
from scripts.benchmarks.results import Line, at_least
from scripts.benchmarks.rows import Measured, Row, in_turns
from scripts.benchmarks.sequential import rates, read
from scripts.benchmarks.stage import FILE, PLAIN, Stage

PASSING = "--passthrough"


def fill(stage: Stage, cache: Path) -> None:
    """All of the file is in the cache, and was looked at."""
    with stage.mounted(cache) as mount:
        path = mount.path / FILE
        read(stage, path)
        mount.settle()
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while os.getxattr(path, "user.lazyfs.verified") == b"no":
            if time.monotonic() > deadline:
                raise TimeoutError("the file was not looked at")
            time.sleep(0.05)


class Passing(Row):
    """The kernel reads the cache's own file."""

    name = "passthrough"

    def run(self, stage: Stage) -> Iterator[Line]:
        """In turns with the served file itself, and s3fs where it is installed."""
        stage.prepare_file()
        stage.shape(PLAIN)
        peer = S3fs()
        with contextlib.ExitStack() as caches:
            cache = caches.enter_context(stage.new_cache())
            fill(stage, cache)
            ours, theirs = in_turns(stage.repeat, lambda _: self._ours(stage, cache), lambda _: self._native(stage))
            yield self._line("read after a remount / native read, both from the disk", ours, theirs, 0, 0.8)
            yield self._line("the next read / native read, both from the page cache", ours, theirs, 1, 0.95)
            side = Side(stage, peer)
            kept = caches.enter_context(stage.new_cache(f"cache-{side.name}")) if peer.installed else None
            if kept:
                with side.mounted(kept) as mount:
                    stage.work("read", path=str(mount.path / FILE))
            passed, daemon, beside = in_turns(
                stage.repeat,
                lambda turn: self._touch(stage, cache, turn, PASSING),
                lambda turn: self._touch(stage, cache, turn),
                lambda turn: self._touch_peer(stage, side, kept, turn),
            )
        words = f"{WARM_TOUCHES} random 4 KiB touches, warm, page cache dropped"
        yield Line(row=self.name, workload=f"{words} / through the daemon", unit="/s", ours=passed, theirs=daemon)
        if kept:
            yield Line(
                row=self.name,
                workload=f"{words} / s3fs",
                unit="/s",
                ours=passed,
                theirs=[rate for rate in beside if rate],
                bound=at_least(1),
            )

    def _line(
        self, words: str, ours: list[list[Measured]], theirs: list[list[Measured]], at: int, bound: float
    ) -> Line:
        mine, native = ([each[at] for each in side] for side in (ours, theirs))
        return Line(
            row=self.name, workload=words, unit="GB/s", ours=rates(mine), theirs=rates(native), bound=at_least(bound)
        )

    def _ours(self, stage: Stage, cache: Path) -> list[Measured]:
        with stage.mounted(cache, PASSING) as mount:
            stage.drop_caches()
            found = [read(stage, mount.path / FILE), read(stage, mount.path / FILE)]
            _passed(mount)
        return found

    def _native(self, stage: Stage) -> list[Measured]:
        stage.drop_caches()
        return [read(stage, stage.file), read(stage, stage.file)]

    def _touch(self, stage: Stage, cache: Path, turn: int, *more: str) -> float:
        with stage.mounted(cache, *more) as mount:
            stage.drop_caches()
            found = touches(stage, mount.path / FILE, WARM_TOUCHES, turn)
            if more:
                _passed(mount)
        return WARM_TOUCHES / float(sum(found["seconds"]))

    def _touch_peer(self, stage: Stage, side: Side, cache: Path | None, turn: int) -> float:
        if cache is None:
            return 0.0
        with side.mounted(cache) as mount:
            stage.drop_caches()
            found = touches(stage, mount.path / FILE, WARM_TOUCHES, turn)
        return WARM_TOUCHES / float(sum(found["seconds"]))


def _passed(mount: Mounted) -> None:
    """Make sure that it was the kernel that read."""
    stats = mount.stats()
    if stats["reads"]["count"] or not stats["passthrough"]["opens"]:
        raise RuntimeError(f"the daemon read it: {stats['passthrough']['unable']}")
