"""What a mount costs by being there: memory in everything that was measured, and with many files open (R9), and an idle
minute (R12)."""

import time
from collections.abc import Iterator

from scripts.benchmarks.files import make_file
from scripts.benchmarks.results import Line, at_most
from scripts.benchmarks.rows import Row, in_turns
from scripts.benchmarks.stage import FILE, MEMORY_BUDGET, MIB, PLAIN, Stage

BESIDE_BUDGET = 120 * MIB
"""Bytes of the daemon that are not chunks: Python, boto3, threads and buffers of sockets."""


class Resident(Row):
    """The most memory that any daemon of this run had."""

    name = "R9"
    last = True

    def run(self, stage: Stage) -> Iterator[Line]:
        """What the other rows' daemons had; if there were none, that of a cold read."""
        if not stage.peaks:
            stage.prepare_file()
            with stage.fresh(PLAIN) as mount:
                stage.work("read", path=str(mount.path / FILE))
                stage.verify(mount.path / FILE, stage.file)
        most = max(stage.peaks, key=lambda peak: peak.peak)
        sampled = max(peak.sampled for peak in stage.peaks)
        yield Line(
            row=self.name,
            workload=f"resident memory, most of {len(stage.peaks)} mounts / budget + {BESIDE_BUDGET // MIB} MiB",
            unit="MiB",
            ours=[most.peak / MIB],
            theirs=[(MEMORY_BUDGET + BESIDE_BUDGET) / MIB],
            bound=at_most(1),
            note=f"in {most.what}; most seen at 10 Hz: {sampled >> 20} MiB",
        )


OPEN = 500
PIECE = 2 * MIB
"""Files that are open at once, each with so much read of twice as much: together twice the memory budget."""


class OpenFiles(Row):
    """Memory with many files open and partly read, against one open of as many that were read."""

    name = "R9-open"

    def run(self, stage: Stage) -> Iterator[Line]:
        """Each is a mount of its own, and looked at while what is open is open."""
        piece = stage.scratch / "served" / "piece.bin"
        make_file(piece, 2 * PIECE)
        names = [f"many/{number:03}.bin" for number in range(OPEN)]
        for name in names:
            stage.serve(name, piece)
        ours, theirs = in_turns(
            stage.repeat,
            lambda _: self._resident(stage, names, keep=True),
            lambda _: self._resident(stage, names, keep=False),
        )
        yield Line(
            row=self.name,
            workload=f"resident memory, {OPEN} files read in part: all open / one open",
            unit="MiB",
            ours=ours,
            theirs=theirs,
            bound=at_most(1.1),
        )

    def _resident(self, stage: Stage, names: list[str], *, keep: bool) -> float:
        with stage.fresh(PLAIN) as mount:
            paths = [str(mount.path / name) for name in names]
            return float(stage.work("hold", paths=paths, size=PIECE, keep=keep, pid=mount.pid)["resident"]) / MIB


class Idle(Row):
    """A mount that nobody reads."""

    name = "R12"

    def run(self, stage: Stage) -> Iterator[Line]:
        """Requests it sends, and CPU it uses, after it was read once."""
        stage.prepare_file()
        with stage.fresh(PLAIN) as mount:
            stage.work("direct", path=str(mount.path / FILE), size=MIB, span=16 * MIB, count=16)
            mount.settle()
            time.sleep(1)
            stage.requests()
            before, started = mount.cpu(), time.monotonic()
            time.sleep(stage.idle)
            share = (mount.cpu() - before).total / (time.monotonic() - started)
            requests = len(stage.requests())
        yield Line(
            row=self.name, workload=f"requests of an idle mount, {stage.idle:.0f} s", ours=[requests], bound=at_most(0)
        )
        yield Line(
            row=self.name,
            workload=f"CPU of an idle mount, {stage.idle:.0f} s",
            unit="% of a core",
            ours=[share * 100],
            bound=at_most(0.2),
        )
