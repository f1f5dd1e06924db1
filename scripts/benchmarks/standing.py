"""What a mount costs by being there: memory in everything that was measured (R9), and an idle minute (R12)."""

import time
from collections.abc import Iterator

from scripts.benchmarks.results import Line, at_most
from scripts.benchmarks.rows import Row
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
