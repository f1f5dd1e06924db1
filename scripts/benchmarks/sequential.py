"""Reading one file from its first byte to its last: cold (R1), from the page cache (R2), from the disk (R3), what that
fetches (R7), and cold from a server of which some connections are slow."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.benchmarks.results import Line, at_least, at_most
from scripts.benchmarks.rows import Measured, Row, in_turns
from scripts.benchmarks.stage import (
    BUCKET,
    CONNECTIONS,
    FILE,
    PART,
    PLAIN,
    SHAPED,
    SLOW,
    TLS,
    TLS_SHAPED,
    Shape,
    Stage,
)

READERS = 8


def cold_read(stage: Stage, shape: Shape, *, verify: bool = False) -> Measured:
    """The file through a mount that has nothing; `verify`: and all its bytes are right."""
    stage.prepare_file()
    with stage.fresh(shape) as mount:
        before = mount.cpu()
        found = stage.work("read", path=str(mount.path / FILE))
        unkept = mount.settle()["chunks"]["unkept"]
        used = mount.cpu() - before
        fetched = stage.fetched()
        if verify:
            stage.verify(mount.path / FILE, stage.file)
    return Measured(**found, fetched=fetched, cpu=used.total, user=used.user, unkept=unkept)


def read(stage: Stage, path: Path) -> Measured:
    """The file at this path, once."""
    return Measured(**stage.work("read", path=str(path)))


def download(stage: Stage, shape: Shape) -> Measured:
    """The object by boto3 into memory, with as many connections and ranges of the same size."""
    stage.prepare_file()
    stage.shape(shape)
    wanted = {"bucket": BUCKET, "key": FILE, "size": stage.size, "connections": CONNECTIONS, "part": PART}
    return Measured(**stage.work("download", endpoint=stage.endpoint, **wanted))


def rates(measured: Sequence[Measured]) -> list[float]:
    """GB/s of each."""
    return [one.rate for one in measured]


def cpu_note(measured: Sequence[Measured]) -> str:
    """The daemon's CPU seconds for 10^9 bytes, and how many of them outside the kernel."""
    total = statistics.median(one.cpu_per_gb for one in measured)
    user = statistics.median(one.user / one.bytes * 1e9 for one in measured)
    return f"daemon {total:.2f} CPU s/GB, {user:.2f} of it user"


class Cold(Row):
    """A file that nobody has read, against boto3 downloading it into memory with as many connections."""

    name = "R1"
    shapes = ((PLAIN, 0.8), (SHAPED, 0.95))

    def run(self, stage: Stage) -> Iterator[Line]:
        """Two servers: as fast as it can be, and as S3 is."""
        for shape, least in self.shapes:
            yield from self._pairs(stage, shape, least)

    def _pairs(self, stage: Stage, shape: Shape, least: float) -> Iterator[Line]:
        ours, theirs = in_turns(
            stage.repeat,
            lambda turn: cold_read(stage, shape, verify=turn == 0),
            lambda _: download(stage, shape),
        )
        unkept = ", ".join(str(one.unkept) for one in ours)
        yield Line(
            row=self.name,
            workload=f"cold sequential read, {shape.name} / boto3 into memory",
            unit="GB/s",
            ours=rates(ours),
            theirs=rates(theirs),
            bound=at_least(least),
            note=f"chunks not kept on disk: {unkept} of {stage.size >> 20}",
        )
        yield Line(
            row=self.name,
            workload=f"  its CPU, {shape.name}: daemon / boto3's process",
            unit="s/GB",
            ours=[one.cpu_per_gb for one in ours],
            theirs=[one.cpu_per_gb for one in theirs],
            note=cpu_note(ours),
        )


class ColdTls(Cold):
    """The same over TLS, boto3 too."""

    name = "R1-TLS"
    shapes = ((TLS, 0.8), (TLS_SHAPED, 0.95))


class PageCache(Row):
    """The second read of a mount, which the kernel answers by itself."""

    name = "R2"

    def run(self, stage: Stage) -> Iterator[Line]:
        """Both files are in the page cache."""
        stage.prepare_file()
        with stage.fresh(PLAIN) as mount:
            read(stage, mount.path / FILE)
            mount.settle()
            stage.verify(mount.path / FILE, stage.file)
            reads = mount.stats()["reads"]["count"]
            ours, theirs = in_turns(
                stage.repeat, lambda _: read(stage, mount.path / FILE), lambda _: read(stage, stage.file)
            )
            reads = mount.stats()["reads"]["count"] - reads
        yield Line(
            row=self.name,
            workload="second read / native read, both from the page cache",
            unit="GB/s",
            ours=rates(ours),
            theirs=rates(theirs),
            bound=at_least(0.95),
            note=f"{reads} reads reached the daemon",
        )


class Disk(Row):
    """A new mount of an old cache, nothing in the page cache."""

    name = "R3"

    def run(self, stage: Stage) -> Iterator[Line]:
        """The file comes from the object file in the cache directory, verified, against the served file itself."""
        stage.prepare_file()
        with stage.new_cache() as cache:
            stage.shape(PLAIN)
            for _ in range(2):  # what a disk that could not follow has left out comes the second time
                with stage.mounted(cache) as mount:
                    read(stage, mount.path / FILE)
                    mount.settle()
            ours, theirs = in_turns(
                stage.repeat, lambda turn: self._warm(stage, cache, turn), lambda _: self._native(stage)
            )
        fetched = ", ".join(f"{one.fetched >> 20} MiB" for one in ours)
        yield Line(
            row=self.name,
            workload="read after a remount / native read, both from the disk",
            unit="GB/s",
            ours=rates(ours),
            theirs=rates(theirs),
            bound=at_least(0.8),
            note=f"{cpu_note(ours)}; fetched {fetched}",
        )

    def _warm(self, stage: Stage, cache: Path, turn: int) -> Measured:
        with stage.mounted(cache) as mount:
            stage.drop_caches()
            stage.requests()
            before = mount.cpu()
            found = stage.work("read", path=str(mount.path / FILE))
            used = mount.cpu() - before
            fetched = stage.fetched()
            if turn == 0:
                stage.verify(mount.path / FILE, stage.file)
        return Measured(**found, fetched=fetched, cpu=used.total, user=used.user)

    def _native(self, stage: Stage) -> Measured:
        stage.drop_caches()
        return read(stage, stage.file)


class Fetched(Row):
    """Each byte crosses the network once, however many read it."""

    name = "R7"

    def run(self, stage: Stage) -> Iterator[Line]:
        """One reader, then several at once of one cold file."""
        for readers in (1, READERS):
            yield Line(
                row=self.name,
                workload=f"fetched / bytes of the file, {readers} reader{'s' if readers > 1 else ''}",
                unit="MiB",
                ours=[self._fetched(stage, readers, turn) for turn in range(stage.repeat)],
                theirs=[stage.size / 2**20],
                bound=at_most(1.01),
            )

    def _fetched(self, stage: Stage, readers: int, turn: int) -> float:
        stage.prepare_file()
        with stage.fresh(PLAIN) as mount:
            stage.work_together(readers, "read", path=str(mount.path / FILE))
            mount.settle()
            fetched = stage.fetched()
            if turn == 0:
                stage.verify(mount.path / FILE, stage.file)
        return fetched / 2**20


class SlowConnections(Row):
    """A cold read from a server of which some answers are slow, against the same server without those."""

    name = "slow"

    def run(self, stage: Stage) -> Iterator[Line]:
        """No bound: it informs. Without help, a slow answer holds the reader for 8 s, and with it for a moment."""
        ours, theirs = in_turns(
            stage.repeat,
            lambda turn: cold_read(stage, SLOW, verify=turn == 0),
            lambda _: cold_read(stage, SHAPED),
        )
        yield Line(
            row=self.name,
            workload=f"cold sequential read, shaped, {SLOW.name} / none slow",
            unit="s",
            ours=[one.seconds for one in ours],
            theirs=[one.seconds for one in theirs],
            note=f"fetched {statistics.median(one.excess for one in ours):.2f} x the file",
        )
