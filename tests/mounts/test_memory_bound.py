"""P8, P18: the daemon's memory stays under its bound at every instant of a storm, and an idle mount does nothing."""

import os
import threading
import time
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter
from tests.mounts.reader import Reader
from tests.mounts.test_cache import sum_of
from tests.servers.fast import FastS3Server

FULL = os.environ.get("LAZYFS_TEST_FULL") == "1"
FILES = 4
SIZE = (512 if FULL else 48) * MIB
READERS = 32
BUDGET = 64 * MIB
"""The least that a machine's memory makes it, and the hardest to keep: 137 to 166 MiB resident in 14 runs."""

REST = 120 * MIB
"""What a daemon may have beside its budget: the interpreter, boto3, pyfuse3, LMDB's pages, threads."""

WINDOW = 4.0
"""Seconds for which an idle mount is watched. Counts are looked at, not times: what ticks does so in this time."""


def memory_of(pid: int, name: str) -> int:
    """A line of /proc/PID/status, in bytes."""
    (line,) = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


class Storm:
    """Samples the resident memory of a daemon ten times a second until the end of the block."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.samples: list[int] = []

    def _run(self) -> None:
        while True:
            self.samples.append(memory_of(self._pid, "VmRSS"))
            if self._stop.wait(0.1):
                return

    def __enter__(self) -> "Storm":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def storm(mounter: Mounter, s3: FastS3Server, *options: str) -> tuple[Mount, list[int]]:
    """32 processes map the files and walk a part each, all at once; twice, so that the disk is read as well."""
    data = [pages(number, SIZE) for number in range(1, FILES + 1)]
    for number, content in enumerate(data):
        s3.put("models", f"part-{number}", content)
    mount = mounter.mount(s3, "s3://models", f"--memory-budget={BUDGET}", *options)
    readers = [Reader() for _ in data]
    part = SIZE // (READERS // FILES)
    try:
        with Storm(mount.pid) as samples:
            for _ in range(2):
                for number, reader in enumerate(readers):
                    reader.begin("mapped_parts", str(mount.path / f"part-{number}"), READERS // FILES)
                for content, reader in zip(data, readers, strict=True):
                    found = reader.result()
                    assert found == [sum_of(content[at : at + part])[1] for at in range(0, SIZE, part)]
                    reader.call("tests.mounts.test_memory_bound:drop", str(mount.path))
            mount.settle()
    finally:
        for reader in readers:
            reader.close()
    return mount, samples.samples


def drop(path: str) -> None:
    """Have the kernel forget the pages of the files below a mount, so that the daemon is asked again."""
    for name in os.listdir(path):
        fd = os.open(os.path.join(path, name), os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def test_memory_stays_under_its_bound_in_a_storm(s3: FastS3Server, mounter: Mounter) -> None:
    """Sampled, and by the kernel's own high-water mark, which misses no instant."""
    mount, samples = storm(mounter, s3)
    most = memory_of(mount.pid, "VmHWM")
    assert len(samples) >= 5
    assert max(most, *samples) <= BUDGET + REST, f"{most / MIB:.0f} MiB"
    assert most > BUDGET, "a budget is there to be used"
    stats = mount.stats()
    assert stats["memory"]["slots"] * MIB <= BUDGET
    assert stats["failures"] == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_what_was_read(s3: FastS3Server, mounter: Mounter) -> None:
    """A cache that keeps next to nothing, so that everything is fetched again and again."""
    if not FULL:
        pytest.skip("minutes; scripts/test --full")
    mount, _ = storm(mounter, s3, "--max-cache-size=64MiB")
    assert memory_of(mount.pid, "VmHWM") <= BUDGET + REST


# ---- idle


def work_of(pid: int) -> dict[str, tuple[int, int]]:
    """For each thread: clock ticks of CPU, and how often it was woken (voluntary context switches)."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        status = (task / "status").read_text()
        woken = int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])
        found[task.name] = (int(fields[11]) + int(fields[12]), woken)
    return found


def test_an_idle_mount_does_nothing(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """With a file open and mapped, and a listing that is long too old: no request, next to no CPU, and threads that
    sleep. What ticked ten times a second would show as forty."""
    data = pages(1, 8 * MIB)
    s3.put("models", "weights", data)
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=0s", "--metrics-address=127.0.0.1:0")
    fd = reader.call("open_file", str(mount.path / "weights"))
    reader.call("map_file", fd)
    assert reader.call("peek", fd, len(data), 0) == data
    mount.settle()
    s3.take_log()
    before = work_of(mount.pid)
    time.sleep(WINDOW)
    after = work_of(mount.pid)
    ticks = sum(after[task][0] - before[task][0] for task in after.keys() & before.keys())
    woken = {task: after[task][1] - before[task][1] for task in after.keys() & before.keys()}
    assert s3.log == []
    assert after.keys() <= before.keys(), "no thread is started"
    assert ticks <= 3
    assert sum(woken.values()) <= 12, woken
