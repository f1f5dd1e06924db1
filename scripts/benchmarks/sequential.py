"""Reading one file from its first byte to its last: cold (R1), from the page cache (R2), from the disk (R3), and what
that fetches (R7)."""

from collections.abc import Iterator

from scripts.benchmarks.daemon import Cpu
from scripts.benchmarks.results import Line, at_least, at_most
from scripts.benchmarks.rows import Row
from scripts.benchmarks.stage import BUCKET, CONNECTIONS, FILE, PART, PLAIN, SHAPED, Shape, Stage

READERS = 8


def _rate(measured: dict[str, float]) -> float:
    """GB/s."""
    return measured["bytes"] / measured["seconds"] / 1e9


class Cold(Row):
    """A file that nobody has read, against boto3 downloading it into memory with as many connections."""

    name = "R1"

    def run(self, stage: Stage) -> Iterator[Line]:
        """Two servers: as fast as it can be, and as S3 is."""
        yield from self._pairs(stage, PLAIN, 0.8)
        yield from self._pairs(stage, SHAPED, 0.95)

    def _pairs(self, stage: Stage, shape: Shape, least: float) -> Iterator[Line]:
        ours: list[float] = []
        theirs: list[float] = []
        used: list[Cpu] = []
        their_cpu: list[float] = []
        unkept = []
        for turn in range(stage.repeat):
            stage.prepare_file()
            with stage.fresh(shape) as mount:
                before = mount.cpu()
                ours.append(_rate(stage.work("read", path=str(mount.path / FILE))))
                unkept.append(mount.settle()["chunks"]["unkept"])
                used.append(mount.cpu() - before)
                if turn == 0:
                    stage.verify(mount.path / FILE, stage.file)
            stage.prepare_file()
            got = stage.work(
                "download",
                endpoint=stage.endpoint,
                bucket=BUCKET,
                key=FILE,
                size=stage.size,
                connections=CONNECTIONS,
                part=PART,
            )
            theirs.append(_rate(got))
            their_cpu.append(got["cpu"])
        yield Line(
            row=self.name,
            workload=f"cold sequential read, {shape.name} / boto3 into memory",
            unit="GB/s",
            ours=ours,
            theirs=theirs,
            bound=at_least(least),
            note=f"chunks not kept on disk: {', '.join(map(str, unkept))} of {stage.size >> 20}",
        )
        size = stage.size / 1e9
        yield Line(
            row=self.name,
            workload=f"  its CPU, {shape.name}: daemon / boto3's process",
            unit="s/GB",
            ours=[cpu.total / size for cpu in used],
            theirs=[cpu / size for cpu in their_cpu],
            note=f"user {min(cpu.user for cpu in used) / size:.2f}, system {min(c.system for c in used) / size:.2f}",
        )


class PageCache(Row):
    """The second read of a mount, which the kernel answers by itself."""

    name = "R2"

    def run(self, stage: Stage) -> Iterator[Line]:
        """Both files are in the page cache."""
        stage.prepare_file()
        ours, theirs = [], []
        with stage.fresh(PLAIN) as mount:
            stage.work("read", path=str(mount.path / FILE))
            mount.settle()
            stage.verify(mount.path / FILE, stage.file)
            reads = mount.stats()["reads"]["count"]
            for _ in range(stage.repeat):
                ours.append(_rate(stage.work("read", path=str(mount.path / FILE))))
                theirs.append(_rate(stage.work("read", path=str(stage.file))))
            reads = mount.stats()["reads"]["count"] - reads
        yield Line(
            row=self.name,
            workload="second read / native read, both from the page cache",
            unit="GB/s",
            ours=ours,
            theirs=theirs,
            bound=at_least(0.95),
            note=f"{reads} reads reached the daemon",
        )


class Disk(Row):
    """A new mount of an old cache, nothing in the page cache."""

    name = "R3"

    def run(self, stage: Stage) -> Iterator[Line]:
        """The file comes from the object file in the cache directory, verified, against the served file itself."""
        stage.prepare_file()
        ours, theirs, fetched = [], [], []
        used: list[Cpu] = []
        with stage.new_cache() as cache:
            stage.shape(PLAIN)
            with stage.mounted(cache) as mount:
                stage.work("read", path=str(mount.path / FILE))
                mount.settle()
            for turn in range(stage.repeat):
                with stage.mounted(cache) as mount:
                    stage.drop_caches()
                    stage.requests()
                    before = mount.cpu()
                    ours.append(_rate(stage.work("read", path=str(mount.path / FILE))))
                    used.append(mount.cpu() - before)
                    fetched.append(stage.fetched())
                    if turn == 0:
                        stage.verify(mount.path / FILE, stage.file)
                stage.drop_caches()
                theirs.append(_rate(stage.work("read", path=str(stage.file))))
        yield Line(
            row=self.name,
            workload="read after a remount / native read, both from the disk",
            unit="GB/s",
            ours=ours,
            theirs=theirs,
            bound=at_least(0.8),
            note=f"daemon {min(cpu.total for cpu in used) / stage.size * 1e9:.2f} CPU s/GB; "
            f"fetched {', '.join(f'{count >> 20} MiB' for count in fetched)}",
        )


class Fetched(Row):
    """Each byte crosses the network once, however many read it."""

    name = "R7"

    def run(self, stage: Stage) -> Iterator[Line]:
        """One reader, then several at once of one cold file."""
        for readers in (1, READERS):
            fetched = []
            for turn in range(stage.repeat):
                stage.prepare_file()
                with stage.fresh(PLAIN) as mount:
                    stage.work_together(readers, "read", path=str(mount.path / FILE))
                    mount.settle()
                    fetched.append(stage.fetched() / 2**20)
                    if turn == 0:
                        stage.verify(mount.path / FILE, stage.file)
            yield Line(
                row=self.name,
                workload=f"fetched / bytes of the file, {readers} reader{'s' if readers > 1 else ''}",
                unit="MiB",
                ours=fetched,
                theirs=[stage.size / 2**20],
                bound=at_most(1.01),
            )
