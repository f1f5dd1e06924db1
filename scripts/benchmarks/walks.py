"""Reading a cold file in other orders than from front to back: by many mapped processes (R4), and in the walks that
loaders, tensor-parallel ranks and indexes make."""

import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from scripts.benchmarks.files import KIB
from scripts.benchmarks.results import Line, at_least
from scripts.benchmarks.rows import Measured, Row, in_turns
from scripts.benchmarks.sequential import cold_read, cpu_note, rates
from scripts.benchmarks.stage import FAR, FILE, MIB, SHAPED, TLS_FAR, Shape, Stage, WrongBytes

PROCESSES = 32
RANKS = 16
TOUCHES = 100
REACH = 256 * MIB
"""Bytes of the file that a strided walk goes over: enough for its plan to settle, and not minutes."""


class Mapped(Row):
    """Processes that map one cold file and walk different parts of it, against one that reads it through."""

    name = "R4"
    shape = FAR

    def run(self, stage: Stage) -> Iterator[Line]:
        """Far away, so that only what is asked for at the same time is fast; the same server for both."""
        ours, theirs = in_turns(
            stage.repeat,
            lambda _: cold_walk(stage, self.shape, "slices", readers=PROCESSES),
            lambda _: cold_read(stage, self.shape),
        )
        yield Line(
            row=self.name,
            workload=f"{PROCESSES} processes map and walk a cold file, {self.shape.name} / one reads it",
            unit="GB/s",
            ours=rates(ours),
            theirs=rates(theirs),
            bound=at_least(0.8),
            note=f"{cpu_note(ours)}; fetched {ours[0].excess:.2f} x the file",
        )


class MappedTls(Mapped):
    """The same over TLS, for both."""

    name = "R4-TLS"
    shape = TLS_FAR


def cold_walk(stage: Stage, shape: Shape, program: str, **arguments: object) -> Measured:
    """A program of `worker` that gives `sums` reads the file through a mount that has nothing. `WrongBytes` unless it
    finds the same sums in the served file."""
    stage.prepare_file()
    with stage.fresh(shape) as mount:
        before = mount.cpu()
        found = stage.work(program, path=str(mount.path / FILE), **arguments)
        mount.settle()
        used = mount.cpu() - before
        fetched = stage.fetched()
    if found["sums"] != stage.work(program, path=str(stage.file), **arguments)["sums"]:
        raise WrongBytes(f"{FILE}: {program} found other bytes than the file has")
    return Measured(seconds=found["seconds"], bytes=found["bytes"], fetched=fetched, cpu=used.total, user=used.user)


@dataclass(frozen=True, slots=True)
class Walk:
    """The steps of each reader, as `worker.walk` takes them."""

    name: str
    readers: list[list[list[int]]]
    mapped: bool = False


def walks(size: int) -> list[Walk]:
    """Those that are measured, in a file of `size` bytes, a whole number of MiB and at least 64; `REACH` of it at most,
    but the random ones and the jump go everywhere."""
    reach = min(size, REACH)
    rng = random.Random(0)
    touches = [[at, at + 1, 1, 4 * KIB] for at in (rng.randrange(size // 4096) * 4096 for _ in range(TOUCHES))]
    share = reach // RANKS // MIB * MIB
    jump = size // 2
    return [
        Walk("256 KiB of every MiB", [[[0, reach, MIB, 256 * KIB]]]),
        Walk("2 MiB of every 16 MiB", [[[at, at + 2 * MIB, MIB, MIB] for at in range(0, reach - 2 * MIB, 16 * MIB)]]),
        Walk("backward, 1 MiB each", [[[reach - MIB, -1, -MIB, MIB]]]),
        Walk("64 KiB, a jump, 32 MiB", [[[0, 1, 1, 64 * KIB], [jump, jump + 32 * MIB, MIB, MIB]]]),
        Walk(f"{RANKS} ranks, one descriptor", [[[r * share, (r + 1) * share, MIB, MIB]] for r in range(RANKS)]),
        Walk(f"{TOUCHES} x 4 KiB at random, pread", [touches]),
        Walk(f"{TOUCHES} x 4 KiB at random, mapped", [touches], mapped=True),
    ]


class Walks(Row):
    """Cold walks that are not sequential: bytes fetched over bytes used, and how fast. No bound: they inform."""

    name = "walks"

    def run(self, stage: Stage) -> Iterator[Line]:
        """Shaped. The walk is named with what it reads of the file."""
        for walk in walks(stage.size):
            steps = {"readers": walk.readers, "mapped": walk.mapped}
            found = [cold_walk(stage, SHAPED, "walk", **steps) for _ in range(stage.repeat)]
            yield Line(
                row=self.name,
                workload=f"{walk.name}, shaped: fetched / used",
                unit="MiB",
                ours=[one.fetched / MIB for one in found],
                theirs=[found[0].bytes / MIB],
                note=f"{statistics.median(one.rate for one in found) * 1000:.3g} MB/s used",
            )
