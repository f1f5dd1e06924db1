"""Real mounts for tests: the real command in a process with a hard time limit, and an end that leaves nothing behind.

Its job: start `lazyfs mount`, know when it is ready, end it in every way there is, and say afterwards what its log
should not have held. Must not know what is read.

A daemon started here ends with an alarm of its own (`LIFETIME`) and with the process that started it, so that no reader
waits for ever for a mount that is stuck: the kernel gives ENOTCONN once the daemon is gone.
"""

import contextlib
import ctypes
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.mounts.daemon_logs import unannounced
from tests.servers.clients import S3Endpoint
from tests.servers.processes import killed_with_parent

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "lazyfs"]
READY_TIMEOUT = 60.0
LIFETIME = 110
"""Seconds after which a daemon is ended by its own alarm: less than the 120 of a test."""
END_TIMEOUT = 20.0
"""Seconds for an end; lazyfs itself gives up an orderly one after 10."""

class MountFailed(Exception):
    """A mount that should have become ready did not; the text is what it logged."""


def wait_until(condition: Callable[[], T | None], what: str, timeout: float = 20.0) -> T:
    """What `condition` gives as soon as that is true; AssertionError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"after {timeout:.0f} s still not: {what}"
        time.sleep(0.01)


def outlive_moment() -> None:
    """Let a TTL of 0 pass: a listing is good for the millisecond in which it came, in the kernel for two ticks."""
    time.sleep(0.02)


def mountinfo(path: Path) -> list[str]:
    """The fields of the topmost mount at `path` in /proc/self/mountinfo; empty if there is none."""
    found: list[str] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(path):
            found = fields
    return found


def is_mounted(path: Path) -> bool:
    """Whether anything, dead or alive, is mounted at `path`."""
    return bool(mountinfo(path))


def environment(home: Path, server: S3Endpoint | None, **more: str) -> dict[str, str]:
    """An environment in which nothing of the machine's own settings is left; `server` gives the credentials."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH", "TMPDIR") if name in os.environ}
    home.mkdir(exist_ok=True)
    kept |= {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "XDG_CACHE_HOME": str(home / "cache")}
    kept |= {"AWS_EC2_METADATA_DISABLED": "true", "PYTHONDONTWRITEBYTECODE": "1"}
    kept |= {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
    # A test whose disk is nearly full is to fail for what it tries, not because the cache leaves 5 % of it free.
    kept["LAZYFS_MIN_FREE_SPACE"] = "0"
    if server is not None:
        kept |= {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
    return kept | more


def run(
    arguments: Sequence[str | Path], env: Mapping[str, str], *, timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """`lazyfs ARGUMENTS`, to its end."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def force_away(path: Path) -> None:
    """Take every mount at `path` away, used or dead."""
    for _ in range(8):
        if not is_mounted(path):
            return
        subprocess.run(["fusermount3", "-uz", "--", str(path)], capture_output=True, timeout=30, check=False)


def _limits() -> Callable[[], None]:
    """What a daemon does before it starts: die with its parent, and after its lifetime."""
    with_parent, libc = killed_with_parent(), ctypes.CDLL(None)

    def prepare() -> None:
        with_parent()
        libc.alarm(LIFETIME)

    return prepare


class Mount:
    """One `lazyfs mount --foreground`, ready. `expect`: patterns of the lines that its log may hold."""

    def __init__(
        self,
        source: str,
        path: Path,
        *,
        cache: Path,
        log: Path,
        options: Sequence[str],
        env: Mapping[str, str],
        expect: Sequence[str],
    ) -> None:
        self.source = source
        self.path = path
        self.cache = cache
        self.log = log
        self.expect = list(expect)
        self.killed = False
        command = [*COMMAND, "mount", "--foreground", f"--cache-dir={cache}", *options, "--", source, str(path)]
        name = f"lazyfs-test-{secrets.token_hex(8)}"
        started = time.monotonic()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, log.open("ab") as stderr:
            channel.bind("\0" + name)
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**env, "NOTIFY_SOCKET": "@" + name},
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                preexec_fn=_limits(),  # noqa: PLW1509 (it only calls libc)
            )
            self._wait_ready(channel, started + READY_TIMEOUT)
        self.ready_after = time.monotonic() - started

    def _wait_ready(self, channel: socket.socket, deadline: float) -> None:
        ended = os.pidfd_open(self.process.pid)
        try:
            while True:
                readable, _, _ = select.select([channel.fileno(), ended], [], [], max(0.0, deadline - time.monotonic()))
                if channel.fileno() in readable and b"READY=1" in channel.recv(4096):
                    return
                if ended in readable or not readable:
                    self.close()
                    raise MountFailed(f"not ready, status {self.process.poll()}:\n{self.logged()}")
        finally:
            os.close(ended)

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self.process.pid

    def stats(self) -> dict[str, Any]:
        """What the daemon counted so far."""
        return dict(json.loads(os.getxattr(self.path, "user.lazyfs.stats")))

    def logged(self) -> str:
        """The log so far."""
        return self.log.read_text(errors="replace")

    def settle(self) -> dict[str, Any]:
        """Wait until nothing is on its way into memory or onto the disk, and no object is being verified, which asks
        the store; the counters then."""

        def quiet() -> dict[str, Any] | None:
            found = self.stats()
            waits = found["memory"]["lent"], found["memory"]["pinned"], found["verified"]["under_way"]
            return None if any(waits) else found

        return wait_until(quiet, "nothing on its way")

    def signal(self, number: int) -> int:
        """Send a signal and wait for the end; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(END_TIMEOUT)

    def unmount(self) -> int:
        """Unmount, which the kernel refuses while something is open, and wait for the end; the exit status."""
        command = ["fusermount3", "-u", "--", str(self.path)]

        def away() -> bool:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            # A `lazyfs status` of a test beside this one looks at every mount, which is busy for that moment.
            assert done.returncode == 0 or "busy" in done.stderr, done.stderr
            return done.returncode == 0

        wait_until(away, "nothing has the mount open", timeout=5.0)
        return self.process.wait(END_TIMEOUT)

    def kill(self, *, clear: bool = True) -> None:
        """SIGKILL. `clear`: take the dead mount away as well."""
        self.killed = True
        self.process.kill()
        self.process.wait(END_TIMEOUT)
        if clear:
            force_away(self.path)

    def close(self) -> list[str]:
        """End it whatever its state; what was not as it should be."""
        problems = []
        if self.process.poll() is None:
            with contextlib.suppress(subprocess.SubprocessError):
                subprocess.run(["fusermount3", "-u", "--", str(self.path)], capture_output=True, timeout=15, check=True)
            force_away(self.path)
            if self.process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(END_TIMEOUT)
            if self.process.poll() is None:
                problems.append(f"the daemon of {self.path} did not end")
                self.kill()
        force_away(self.path)
        if self.process.returncode != 0 and not self.killed:
            problems.append(f"the daemon of {self.path} ended with status {self.process.returncode}")
        return problems + [f"in its log: {line}" for line in unannounced(self.logged(), self.expect)]


class Mounter:
    """All mounts of one test, in one directory. `end` asserts that none did what it should not."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.mounts: list[Mount] = []
        self.places: list[Path] = []
        self._logs: list[tuple[Path, Sequence[str]]] = []

    def place(self, name: str = "mnt") -> Path:
        """An empty directory to mount on, taken away from whatever is mounted there at the end."""
        path = self.work / name
        path.mkdir(exist_ok=True)
        if path not in self.places:
            self.places.append(path)
        return path

    def cache(self, name: str = "cache") -> Path:
        """A cache directory."""
        path = self.work / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def options(self, server: S3Endpoint) -> list[str]:
        """The options that every mount of `server` needs."""
        return [f"--endpoint-url={server.url}", f"--region={server.region}", "--memory-budget=128MiB"]

    def mount(
        self,
        server: S3Endpoint,
        source: str,
        *options: str,
        cache: Path | None = None,
        at: Path | None = None,
        expect: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Mount:
        """Mount `source` and return when it is ready. Later options win over the usual ones."""
        mount = Mount(
            source,
            at or self.place(),
            cache=cache or self.cache(),
            log=self.work / f"log-{len(self.mounts)}",
            options=[*self.options(server), *options],
            env=env or environment(self.work / "home", server),
            expect=expect,
        )
        self.mounts.append(mount)
        return mount

    def watch_log(self, log: Path, expect: Sequence[str] = ()) -> Path:
        """Look at this log as well at the end."""
        self._logs.append((log, expect))
        return log

    def end(self) -> None:
        """End all mounts, then AssertionError with everything that was wrong."""
        problems = [problem for mount in reversed(self.mounts) for problem in mount.close()]
        for path in self.places:
            with contextlib.suppress(OSError, ValueError, KeyError):
                if is_mounted(path):
                    pid = json.loads(os.getxattr(path, "user.lazyfs.stats"))["pid"]
                    force_away(path)
                    descriptor = os.pidfd_open(pid)
                    if not select.select([descriptor], [], [], END_TIMEOUT)[0]:
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                        problems.append(f"the daemon of {path} did not end")
                    os.close(descriptor)
            force_away(path)
        for log, expect in self._logs:
            if log.exists():
                problems += [f"in {log.name}: {line}" for line in unannounced(log.read_text(), expect)]
        assert not problems, "\n".join(problems)
