"""Other filesystems over S3, mounted on the same server: rclone and s3fs, tuned as their own documentation advises.

Must not know what is read. A peer runs in the foreground as a child of this process and dies with it; all that it is
asked has a time limit, and whatever becomes of it, nothing stays mounted.
"""

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.benchmarks.daemon import MountFailed, Watched
from scripts.benchmarks.stage import BUCKET, CONNECTIONS, PART, Stage
from tests.servers.processes import killed_with_parent

MOUNT_TIMEOUT = 30.0
END_TIMEOUT = 60.0
"""Seconds for a peer to be ready, and to end when it was unmounted."""

STREAMS = 4
"""Of rclone for one file. 8 of them took 18 GB of memory for random touches."""


class PeerMount(Watched):
    """A peer that is mounted."""

    def __init__(self, pid: int, path: Path) -> None:
        self.path = path
        super().__init__(pid)


class Peer:
    """One of them. `program`: its command; the Debian package has the same name. `tell_version`: what to ask it."""

    program = ""
    tell_version = "--version"

    def __init__(self) -> None:
        self._where = shutil.which(self.program)

    @property
    def installed(self) -> bool:
        """Whether it can be measured here."""
        return self._where is not None

    @property
    def version(self) -> str:
        """Its number."""
        found = re.search(r"\d+(\.\d+)+", self.said(self.tell_version))
        return found[0] if found else "?"

    def said(self, *arguments: str) -> str:
        """What the program prints for these arguments."""
        if self._where is None:
            raise MountFailed(f"{self.program} is not installed")
        done = subprocess.run([self._where, *arguments], capture_output=True, text=True, timeout=30, check=False)
        return done.stdout

    def arguments(self, stage: Stage, cache: Path) -> tuple[list[str], dict[str, str]]:
        """How to mount the bucket at the stage's mountpoint in the foreground: arguments and environment."""
        raise NotImplementedError

    @contextlib.contextmanager
    def mounted(self, stage: Stage, cache: Path) -> Iterator[PeerMount]:
        """A mount of the bucket with this cache directory. `MountFailed`, with the end of what it said."""
        arguments, env = self.arguments(stage, cache)
        log = stage.scratch / f"{self.program}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [self._where or self.program, *arguments],
                env=stage.environment() | env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=killed_with_parent(),  # noqa: PLW1509 (it only calls libc)
            )
        mount = PeerMount(process.pid, stage.mountpoint)
        try:
            deadline = time.monotonic() + MOUNT_TIMEOUT
            while not _is_mounted(stage.mountpoint):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise MountFailed(f"{self.program}: {' '.join(log.read_text(errors='replace').split())[-200:]}")
                time.sleep(0.02)
            yield mount
        finally:
            mount.stop_watching()
            _end(process, stage.mountpoint)


def _is_mounted(path: Path) -> bool:
    """From the kernel's table: asking the mount itself could wait for ever."""
    return any(line.split()[1] == str(path) for line in Path("/proc/self/mounts").read_text().splitlines())


def _end(process: subprocess.Popen[bytes], path: Path) -> None:
    """Unmount, wait for the end; if either takes too long, kill first and unmount then."""
    if _is_mounted(path):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(["fusermount3", "-u", "--", str(path)], capture_output=True, timeout=30, check=False)
    else:
        process.terminate()
    if not _is_mounted(path):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT)
    if process.poll() is None:
        process.kill()
        process.wait(END_TIMEOUT)
    if _is_mounted(path):
        subprocess.run(["fusermount3", "-uz", "--", str(path)], capture_output=True, timeout=30, check=False)


class Rclone(Peer):
    """`--vfs-cache-mode full`. Fingerprints and times that cost no HEAD, as it advises for S3; where this version can
    fetch a file by several streams (1.68 and newer), `STREAMS` of them with our size of GET."""

    program = "rclone"

    def arguments(self, stage: Stage, cache: Path) -> tuple[list[str], dict[str, str]]:
        server = stage.server
        streams = [f"--vfs-read-chunk-streams={STREAMS}", f"--vfs-read-chunk-size={PART}B"]
        arguments = [
            "mount",
            f"bench:{BUCKET}",
            str(stage.mountpoint),
            "--config=",  # none at all: the remote is in the environment
            "--read-only",
            "--vfs-cache-mode=full",
            f"--cache-dir={cache}",
            "--vfs-cache-max-size=100G",
            "--vfs-fast-fingerprint",
            "--use-server-modtime",
            "--dir-cache-time=1h",
            "--attr-timeout=1h",
            *(streams if "--vfs-read-chunk-streams" in self.said("mount", "--help") else []),
        ]
        remote = {
            "type": "s3",
            "provider": "Other",
            "access_key_id": server.access_key,
            "secret_access_key": server.secret_key,
            "endpoint": server.url,
            "region": server.region,
            "force_path_style": "true",
        }
        return arguments, {f"RCLONE_CONFIG_BENCH_{name.upper()}": value for name, value in remote.items()}


class S3fs(Peer):
    """`use_cache` and `kernel_cache`, with our number of connections and size of GET."""

    program = "s3fs"

    def arguments(self, stage: Stage, cache: Path) -> tuple[list[str], dict[str, str]]:
        server = stage.server
        password = stage.scratch / "s3fs-password"
        password.touch(mode=0o600)
        # It takes a colon for a separator, and our server any key.
        password.write_text(f"{server.access_key.replace(':', '-')}:{server.secret_key}\n")
        options = [
            f"url={server.url}",
            f"endpoint={server.region}",
            "use_path_request_style",
            f"passwd_file={password}",
            "ro",
            f"use_cache={cache}",
            "kernel_cache",
            f"parallel_count={CONNECTIONS}",
            f"multipart_size={PART >> 20}",
            "umask=0022",
        ]
        if re.search(r"^\s+compat_dir\b", self.said("--help"), re.MULTILINE):  # directories that no object stands for
            options.append("compat_dir")
        return [BUCKET, str(stage.mountpoint), "-f", *(word for option in options for word in ("-o", option))], {}


PEERS: tuple[type[Peer], ...] = (Rclone, S3fs)
