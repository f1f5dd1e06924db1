"""How fast any daemon could be here: `bare.c`, a filesystem in C that keeps nothing, and `barely.py`, which is the same
in Python, on the same server in turns.

What is left between the first and boto3 is the kernel's: a mount's bytes are copied into the page cache and from there
to the reader, and boto3's are there when they were received. A bound that this program misses, no daemon reaches here.
What is between the two is the interpreter's, and what is between the second and lazyfs is what lazyfs does.
"""

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from lazyfs.config import Config
from scripts.benchmarks.peers import Peer, PeerMount
from scripts.benchmarks.results import Line
from scripts.benchmarks.rows import Measured, Row, in_turns
from scripts.benchmarks.sequential import cold_read, download, rates
from scripts.benchmarks.stage import BUCKET, CONNECTIONS, FILE, MEMORY_BUDGET, PART, PLAIN, SHAPED, Shape, Stage

SOURCE = Path(__file__).with_name("bare.c")


class Bare(Peer):
    """The program, compiled in the scratch directory."""

    program = "bare"

    def __init__(self, stage: Stage) -> None:
        self._where = str(stage.scratch / self.program)
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, timeout=30, check=True
        ).stdout.split()
        command = ["gcc", "-Wall", "-Wextra", "-Werror", "-O2", "-o", self._where, str(SOURCE), *flags, "-lpthread"]
        subprocess.run(command, check=True, timeout=120)

    def arguments(self, stage: Stage, cache: Path) -> tuple[list[str], dict[str, str]]:
        port = stage.server.url.rpartition(":")[2]
        numbers = [str(number) for number in (stage.size, CONNECTIONS, PART, MEMORY_BUDGET)]
        return [port, f"/{BUCKET}/{FILE}", *numbers, FILE, "-f", "-o", "ro", str(stage.mountpoint)], {}


class Barely(Peer):
    """The same in Python."""

    program = "barely"

    def __init__(self) -> None:
        self._where = sys.executable

    def arguments(self, stage: Stage, cache: Path) -> tuple[list[str], dict[str, str]]:
        port = stage.server.url.rpartition(":")[2]
        numbers = [str(number) for number in (stage.size, CONNECTIONS, PART, MEMORY_BUDGET)]
        path = f"/{BUCKET}/{FILE}"
        return ["-m", "scripts.benchmarks.barely", port, path, *numbers, FILE, str(stage.mountpoint)], {}


def tune(mount: PeerMount) -> None:
    """The kernel reads ahead as it does for lazyfs; without rights it stays as it is."""
    number = os.stat(mount.path).st_dev
    device = Path(f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}/read_ahead_kb")
    if os.access(device, os.W_OK):
        device.write_text(str(Config().read_ahead_kb))


def bare_read(stage: Stage, shape: Shape, bare: Peer, *, verify: bool) -> Measured:
    """The file through the program."""
    stage.prepare_file()
    with stage.new_cache() as cache:
        stage.shape(shape)
        with bare.mounted(stage, cache) as mount:
            tune(mount)
            before = mount.cpu()
            found = stage.work("read", path=str(mount.path / FILE))
            used = mount.cpu() - before
            if verify:
                stage.verify(mount.path / FILE, stage.file)
    return Measured(**found, cpu=used.total, user=used.user)


class Least(Row):
    """A cold read through filesystems in C and in Python that do nothing else, against boto3 and against lazyfs."""

    name = "bare"

    def run(self, stage: Stage) -> Iterator[Line]:
        """No bound: it says which bounds can be reached on this machine."""
        if shutil.which("gcc") is None or shutil.which("pkg-config") is None:
            yield Line(row=self.name, workload="a filesystem in C", note="left out: there is no compiler")
            return
        bare, barely = Bare(stage), Barely()
        for shape in (PLAIN, SHAPED):
            least, least_in_python, theirs, ours = in_turns(
                stage.repeat,
                lambda turn, shape=shape: bare_read(stage, shape, bare, verify=turn == 0),  # type: ignore[misc]
                lambda turn, shape=shape: bare_read(stage, shape, barely, verify=turn == 0),  # type: ignore[misc]
                lambda _, shape=shape: download(stage, shape),  # type: ignore[misc]
                lambda _, shape=shape: cold_read(stage, shape),  # type: ignore[misc]
            )
            for language, found in (("C", least), ("Python", least_in_python)):
                for other, of in (("boto3 into memory", theirs), ("lazyfs", ours)):
                    yield Line(
                        row=self.name,
                        workload=f"cold sequential read, {shape.name}, by a filesystem in {language} / {other}",
                        unit="GB/s",
                        ours=rates(found),
                        theirs=rates(of),
                        note=f"its CPU {statistics.median(one.cpu_per_gb for one in found):.2f} s/GB",
                    )
