"""Many keys: 100,000 in one prefix (L1), and 100,000 in 10,000 prefixes (L2). `ls`, `find` and `ls -l` on a mount that
has nothing, and again after a remount: seconds, requests, and memory of the daemon; beside rclone and s3fs.

A peer gets one turn and `PATIENCE` for each command, because what takes us seconds may take it an hour.
"""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scripts.benchmarks.peers import PEERS, Peer
from scripts.benchmarks.results import Bound, Line, at_most
from scripts.benchmarks.rows import Row
from scripts.benchmarks.stage import BUCKET, MIB, PLAIN, Stage

MANY, FEW = 100_000, 10_000
"""Keys, and those of a quick run."""
LINE = b"\n"
IN_EACH = 10
"""Keys of a prefix, where there are many."""
PATIENCE = 120.0
"""Seconds for one command on a peer."""

COMMANDS = {"ls": ["ls"], "find": ["find", "-type", "f"], "ls -l": ["ls", "-lR"]}
BOUNDS: dict[tuple[str, str], Bound] = {("find", "first"): at_most(20), ("find", "after a remount"): at_most(3)}
"""Seconds for 100,000 keys."""
PER_MANY = 60.0
"""MiB of memory for 100,000 entries, directories included."""


@dataclass(frozen=True, slots=True)
class Walked:
    """What a command took: seconds, requests, and by how many bytes the memory of the mount grew."""

    seconds: float
    requests: int
    memory: int


class Mount(Protocol):
    """What is known of any mount."""

    path: Path

    def resident(self) -> int: ...


class Listings(Row):
    """`prefix` is where the keys are in the bucket."""

    prefix = ""
    words = ""

    def keys(self, count: int) -> list[str]:
        """So many, without the prefix."""
        raise NotImplementedError

    def run(self, stage: Stage) -> Iterator[Line]:
        """Ours with every repetition, each with a new cache; then the peers once."""
        stage.shape(PLAIN)
        count = MANY if stage.repeat > 1 else FEW
        stage.server.fill(BUCKET, [f"{self.prefix}/{key}" for key in self.keys(count)], "weights")
        peers = [peer() for peer in PEERS]
        for name, command in COMMANDS.items():
            ours = [self._walk(stage, None, command, count) for _ in range(stage.repeat)]
            for place, when in enumerate(("first", "after a remount")):
                found = [one[place] for one in ours]
                bound = BOUNDS.get((name, when)) if count == MANY else None
                yield self._line(f"{name} {self.words.format(count)}, {when}", found, bound=bound)
            if name == "find":
                yield Line(
                    row=self.name,
                    workload="  resident memory for it",
                    unit="MiB",
                    ours=[walked.memory / MIB for one in ours for walked in one],
                    bound=at_most(PER_MANY * len(entries(self.keys(count))) / MANY) if count == MANY else None,
                    note=f"{len(entries(self.keys(count))):,} entries",
                )
            for peer in peers:
                if not peer.installed:
                    yield Line(row=self.name, workload=f"{peer.program}: not installed, left out")
                    continue
                try:
                    theirs = self._walk(stage, peer, command, count)
                except Exception as error:  # noqa: BLE001 - whatever a peer cannot do, the rest goes on
                    yield Line(row=self.name, workload=f"  {name} / {peer.program}: it failed", note=f"{error!s:.150}")
                    continue
                for place, when in enumerate(("first", "after a remount")):
                    found = [one[place] for one in ours]
                    yield self._line(f"  {when} / {peer.program}", found, theirs[place])

    def _line(
        self, workload: str, ours: Sequence[Walked], other: Walked | None = None, *, bound: Bound | None = None
    ) -> Line:
        requests = f"{max(one.requests for one in ours)} requests"
        return Line(
            row=self.name,
            workload=workload,
            unit="s",
            ours=[one.seconds for one in ours],
            theirs=[other.seconds] if other else [],
            bound=at_most(1) if other else bound,
            note=f"{requests} / {other.requests}, {other.memory // MIB} MiB" if other else requests,
        )

    def _walk(self, stage: Stage, peer: Peer | None, command: Sequence[str], count: int) -> list[Walked]:
        """On a mount that has nothing, and on one after it, with the same cache."""
        found = []
        with stage.new_cache() as cache:
            for _ in range(2):
                mounted: AbstractContextManager[Mount] = (
                    peer.mounted(stage, cache) if peer else stage.mounted(cache, "--metadata-ttl=1h")
                )
                with mounted as mount:
                    before = at_rest(mount)
                    stage.requests()
                    started = time.perf_counter()
                    said = subprocess.run(
                        [command[0], str(mount.path / self.prefix), *command[1:]],
                        stdout=subprocess.PIPE,
                        timeout=PATIENCE,
                        check=True,
                    ).stdout
                    seconds = time.perf_counter() - started
                    if said.count(LINE) < len({key.split("/")[0] for key in self.keys(count)}):
                        raise RuntimeError(f"{' '.join(command)} said {said.count(LINE)} lines for {count} keys")
                    found.append(Walked(seconds, len(stage.requests()), mount.resident() - before))
        return found


def entries(keys: Sequence[str]) -> set[str]:
    """The paths of files and directories."""
    return {*keys, *(key.rpartition("/")[0] for key in keys)} - {""}


def at_rest(mount: Mount) -> int:
    """Bytes of memory once it no longer grows: ours is made ready for chunks after the start."""
    seen, now = -1, mount.resident()
    while now != seen:
        time.sleep(0.3)
        seen, now = now, mount.resident()
    return now


class Flat(Listings):
    """All keys in one prefix."""

    name = "L1"
    prefix = "flat"
    words = "of {:,} keys in one prefix"

    def keys(self, count: int) -> list[str]:
        """As the shards of a large model are named."""
        return [f"model-{number:06}-of-{count:06}.safetensors" for number in range(count)]


class Deep(Listings):
    """Ten keys in each of many prefixes."""

    name = "L2"
    prefix = "deep"
    words = "of {:,} keys, ten in a prefix"

    def keys(self, count: int) -> list[str]:
        """As a hub of small models has them."""
        return [f"model-{number // IN_EACH:05}/part-{number % IN_EACH}.safetensors" for number in range(count)]
