"""Small reads: random touches of a cold mapped file (R8), and what a cached read costs at least (floor)."""

import mmap
import statistics
import zlib
from collections.abc import Iterator

from scripts.benchmarks.daemon import Cpu
from scripts.benchmarks.results import Line, at_most
from scripts.benchmarks.rows import Row
from scripts.benchmarks.stage import FILE, MIB, PLAIN, SHAPED, TLS_SHAPED, Stage, WrongBytes

TOUCHES = 200


class Touches(Row):
    """4 KiB at random places of a cold mapped file: what each costs on the network, and how long it takes."""

    name = "R8"
    shape = SHAPED

    def run(self, stage: Stage) -> Iterator[Line]:
        """With the advice that a careful program gives, and without any."""
        for advice, words in (("MADV_RANDOM", "MADV_RANDOM"), ("MADV_NORMAL", "no advice")):
            found = [self._touch(stage, advice, turn) for turn in range(stage.repeat)]
            slow = statistics.median(statistics.quantiles(seconds, n=10)[-1] for seconds, _ in found) * 1000
            yield Line(
                row=self.name,
                workload=f"{TOUCHES} random 4 KiB touches, cold, {self.shape.name}, {words}: fetched per touch",
                unit="MiB",
                ours=[fetched for _, fetched in found],
                theirs=[1],
                bound=at_most(1),
            )
            assert self.shape.connection_rate is not None
            ideal = self.shape.first_byte_delay + MIB / self.shape.connection_rate
            yield Line(
                row=self.name,
                workload=f"  median latency, {words} / first byte + 1 MiB of a connection",
                unit="ms",
                ours=[statistics.median(seconds) * 1000 for seconds, _ in found],
                theirs=[ideal * 1000],
                bound=at_most(1.3),
                note=f"nine in ten within {slow:.0f} ms",
            )

    def _touch(self, stage: Stage, advice: str, turn: int) -> tuple[list[float], float]:
        """Seconds of each touch, and MiB fetched for one."""
        stage.prepare_file()
        with stage.fresh(self.shape) as mount:
            path = str(mount.path / FILE)
            found = stage.work("touch", path=path, count=TOUCHES, seed=turn, advice=advice)
            mount.settle()
            fetched = stage.fetched() / TOUCHES / MIB
        check_pages(stage, found["pages"], found["sums"])
        return found["seconds"], fetched


class TouchesTls(Touches):
    """The same over TLS."""

    name = "R8-TLS"
    shape = TLS_SHAPED


def check_pages(stage: Stage, pages: list[int], sums: list[int]) -> None:
    """`WrongBytes` unless these are the checksums of these pages of the file."""
    with stage.file.open("rb", buffering=0) as file:
        for page, checksum in zip(pages, sums, strict=True):
            file.seek(page * mmap.PAGESIZE)
            if zlib.crc32(file.read(mmap.PAGESIZE)) != checksum:
                raise WrongBytes(f"{FILE}: wrong bytes in page {page}")


class Floor(Row):
    """What the daemon must do for a read whose bytes it has in memory. No bound: it informs.

    O_DIRECT, because then one read(2) is one FUSE READ of just that size, with no page cache and no read-ahead before
    it; letting go of pages by posix_fadvise would leave both in, and the number of requests to the kernel.
    """

    name = "floor"
    span = 8 * MIB

    def run(self, stage: Stage) -> Iterator[Line]:
        """CPU of the daemon for each read, and how long the reader waited."""
        stage.prepare_file()
        sizes = ((4096, "4 KiB", 8000), (MIB, "1 MiB", 2000))
        with stage.fresh(PLAIN) as mount:
            arguments = {"path": str(mount.path / FILE), "span": self.span}
            stage.work("direct", size=MIB, count=500, **arguments)
            mount.settle()
            for size, words, count in sizes:
                used: list[Cpu] = []
                waited, elsewhere, reads = [], 0, 0
                for _ in range(stage.repeat):
                    before, earlier = mount.cpu(), mount.stats()
                    found = stage.work("direct", size=size, count=count, **arguments)
                    used.append(mount.cpu() - before)
                    later = mount.stats()
                    # Not what was fetched: reads that happen to go on with one another have bytes brought ahead.
                    elsewhere += sum(later["chunks"][one] - earlier["chunks"][one] for one in ("waits", "disk_hits"))
                    reads += later["reads"]["count"] - earlier["reads"]["count"]
                    waited.append(statistics.median(found["seconds"]) * 1e6)
                yield Line(
                    row=self.name,
                    workload=f"daemon CPU for a cached {words} read (O_DIRECT) / time the reader waits",
                    unit="us",
                    ours=[cpu.total / count * 1e6 for cpu in used],
                    theirs=waited,
                    note=f"user {min(cpu.user for cpu in used) / count * 1e6:.0f}, "
                    f"system {min(cpu.system for cpu in used) / count * 1e6:.0f}; "
                    f"{reads / count / stage.repeat:.2f} FUSE reads for each"
                    + ("" if not elsewhere else "; NOT all from memory"),
                )
