"""A mount made by the real command, and its daemon seen from outside: CPU, memory, counters, end.

Must not know what is read, nor anything of lazyfs that a user does not see.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTLE_TIMEOUT = 120.0
"""Seconds for what is on its way, into memory or onto the disk, to arrive."""


class MountFailed(Exception):
    """The command failed; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """Seconds of CPU that a process has used, in its own code and in the kernel's."""

    user: float
    system: float

    def __sub__(self, other: "Cpu") -> "Cpu":
        return Cpu(self.user - other.user, self.system - other.system)

    @property
    def total(self) -> float:
        """Both."""
        return self.user + self.system


class Watched:
    """A process. `peak` and `sampled` are the most bytes of memory it had: what the kernel noted (VmHWM), and what was
    seen ten times a second."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak = self.sampled = 0
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def cpu(self) -> Cpu:
        """CPU used so far, to 10 ms (proc(5): fields 14 and 15 of stat)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        tick = os.sysconf("SC_CLK_TCK")
        return Cpu(int(fields[11]) / tick, int(fields[12]) / tick)

    def resident(self) -> int:
        """Bytes of memory now; 0 if the process is gone."""
        return self._look()

    def stop_watching(self) -> bool:
        """Look once more, and never again. Whether this was the first time."""
        if self._ended.is_set():
            return False
        self._look()
        self._ended.set()
        self._sampler.join()
        return True

    def _sample(self) -> None:
        while not self._ended.wait(0.1):
            self._look()

    def _look(self) -> int:
        try:
            text = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return 0
        fields = {line.split(":")[0]: line.split() for line in text.splitlines() if line.startswith(("VmHWM", "VmRSS"))}
        if "VmHWM" not in fields:
            return 0
        now = int(fields["VmRSS"][1]) * 1024
        self.peak = max(self.peak, int(fields["VmHWM"][1]) * 1024)
        self.sampled = max(self.sampled, now)
        return now


class Mounted(Watched):
    """`lazyfs mount` in the background, ready."""

    def __init__(self, source: str, path: Path, options: Sequence[str], env: Mapping[str, str]) -> None:
        """Mount; `MountFailed` if that does not work. `ready_after`: seconds that the command took."""
        self.path = path
        self._env = env
        started = time.perf_counter()
        self._lazyfs("mount", *options, "--", source, str(path))
        self.ready_after = time.perf_counter() - started
        super().__init__(int(self.stats()["pid"]))

    def _lazyfs(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "lazyfs", *arguments]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=90, check=False)
        if done.returncode != 0:
            raise MountFailed(f"lazyfs {arguments[0]}: {done.stderr.strip() or done.returncode}")

    def stats(self) -> dict[str, Any]:
        """What the daemon counted so far."""
        return dict(json.loads(os.getxattr(self.path, "user.lazyfs.stats")))

    def settle(self) -> dict[str, Any]:
        """Wait until nothing is on its way into memory or onto the disk, or waits for nobody to read; the counters."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while (found := self.stats())["memory"]["lent"] or found["memory"]["pinned"] or found["chunks"]["unmarked"]:
            if time.monotonic() > deadline:
                raise MountFailed(f"after {SETTLE_TIMEOUT:.0f} s, bytes are still on their way: {found['memory']}")
            time.sleep(0.02)
        return found

    def unmount(self) -> None:
        """Unmount and wait for the daemon's end; by force if the command does not manage. Nothing the second time."""
        if not self.stop_watching():
            return
        try:
            self._lazyfs("unmount", str(self.path))
        except (MountFailed, subprocess.TimeoutExpired):
            subprocess.run(["fusermount3", "-uz", "--", str(self.path)], capture_output=True, timeout=30, check=False)
            raise
