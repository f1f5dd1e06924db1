"""What the machine allows: memory limits, and the kernel's parameters of a mount. Reads and writes /proc, /sys,
cgroups."""

import contextlib
import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lazyfs.objects import GIB, MIB

log = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """Where the cache is when nobody says."""
    if os.geteuid() == 0:
        return Path("/var/cache/lazyfs")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lazyfs"


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes of memory this process may use: the least of the machine's and of every cgroup above it (v2 and v1).

    `root` is where /proc and /sys are.
    """
    limit = 1 << 62
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            limit = int(line.split()[1]) * 1024
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limit = min(limit, _least(root / "sys/fs/cgroup", path, "memory.max"))
        elif "memory" in controllers.split(","):
            limit = min(limit, _least(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes"))
    return limit


def _least(root: Path, path: str, name: str) -> int:
    """The least limit from a cgroup up to the root; a parent slice counts as much as the cgroup itself."""
    limit = 1 << 62
    group = root / path.lstrip("/")
    while True:
        text = _text(group / name).strip()
        if text.isdigit():
            limit = min(limit, int(text))
        if group == root or root not in group.parents:
            return limit
        group = group.parent


def default_memory_budget() -> int:
    """A sixteenth of the limit, between 64 MiB and 1 GiB, in whole MiB."""
    return max(64 * MIB, min(GIB, memory_limit() // 16)) // MIB * MIB


@dataclass(frozen=True, slots=True)
class KernelParameters:
    """What the kernel uses for a mount now; 0 where it cannot be read. `shard_read_ahead_kb`: see `FileReadAhead`."""

    read_ahead_kb: int
    max_background: int
    congestion_threshold: int
    shard_read_ahead_kb: int = 0


class FileReadAhead:
    """How much the kernel reads ahead in files that are opened from now on: what the mount has, and at least `shard_kb`
    KiB in those that somebody is taken to read through.

    A file keeps what its mount had when it was opened, for the kernel looks after the filesystem's own open was
    answered (fs/open.c, do_dentry_open). So more of it costs nothing where files are touched here and there: around a
    touch of a mapped file as much is read as ahead of who goes on. Another open that is answered at the same moment may
    have its value instead; either is good for reading. Four shards of 500 MiB took 1.97 s with 16 MiB in all but the
    first, and 2.16 with 1 (medians of four in turns): the kernel then asks for more than one MiB at a time, and in
    order, however a tensor is copied.
    """

    def __init__(self, device: str, shard_kb: int, root: Path = Path("/")) -> None:
        """`device` is the mount's major:minor; `root` is where /sys is."""
        self._place = root / "sys/class/bdi" / device / "read_ahead_kb"
        self.shard_kb = shard_kb if os.access(self._place, os.W_OK) else 0
        """0 where rights do not allow to set it."""
        self._usual = self._raised = ""

    def next_open(self, *, through: bool) -> None:
        """The next file that is opened will be read `through`, or not. Does nothing where rights do not allow, and
        leaves what somebody has set meanwhile."""
        if not self.shard_kb or not (through or self._raised):
            return
        with contextlib.suppress(OSError, ValueError):
            now = self._place.read_text().strip()
            if through and now != self._raised:
                self._usual = now
                self._place.write_text(str(max(int(now), self.shard_kb)))
                self._raised = self._place.read_text().strip()
            elif not through:
                if now == self._raised:
                    self._place.write_text(self._usual)
                self._raised = ""


def tune(
    device: str, *, read_ahead_kb: int, max_background: int, congestion_threshold: int | None = None
) -> KernelParameters:
    """Set the parameters of the mount with this major:minor where rights allow, and say what was reached.

    pyfuse3 cannot set them when it mounts. 32 mapped readers at 50 ms: 15 MB/s with the kernel's own values, 134 with
    max_background 128, 519 with 1 MiB of read-ahead on top. More read-ahead makes no request larger: they stay at 256
    pages, whatever fs.fuse.max_pages_limit says, because libfuse 3.14 asks for no more; see `FileReadAhead`. A larger
    max_background makes nothing faster, but what waits for an endpoint that is down counts, and at 128 stopped the
    reads of everything else.
    """
    threshold = max(1, max_background * 3 // 4) if congestion_threshold is None else congestion_threshold
    with _fusectl() as connections:
        wanted = [
            (Path("/sys/class/bdi") / device / "read_ahead_kb", read_ahead_kb),
            (connections / device.split(":")[1] / "max_background", max_background),
            (connections / device.split(":")[1] / "congestion_threshold", threshold),
        ]
        lacking, refused = [], []
        for path, value in wanted:
            try:
                path.write_text(str(value))
            except (PermissionError, FileNotFoundError):
                lacking.append(path.name)
            except OSError as error:
                refused.append(f"{path.name} {value} ({error.strerror})")
        reached = [_text(path).strip() for path, _ in wanted]
    if lacking:
        log.warning("cannot set %s of the mount, which takes root: reads will be slower", ", ".join(lacking))
    if refused:
        log.warning("the kernel does not take %s: `lazyfs status` shows what it uses", ", ".join(refused))
    return KernelParameters(*(int(text) if text.isdigit() else 0 for text in reached))


@contextlib.contextmanager
def _fusectl() -> Iterator[Path]:
    """The control filesystem of FUSE. systemd mounts it; where nobody did, as in containers, root has it for a
    moment."""
    usual = Path("/sys/fs/fuse/connections")
    if os.geteuid() != 0 or any(usual.iterdir()):
        yield usual
        return
    with tempfile.TemporaryDirectory(prefix="lazyfs-fusectl-") as place:
        mounted = subprocess.run(["mount", "-t", "fusectl", "fusectl", place], capture_output=True, check=False)
        try:
            yield Path(place) if mounted.returncode == 0 else usual
        finally:
            if mounted.returncode == 0:
                subprocess.run(["umount", place], capture_output=True, check=False)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
