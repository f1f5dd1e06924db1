"""A mount that lives on in the background: start the same command in the foreground, wait until it says ready, leave
it.

A new process and not a fork: LMDB must be opened, and threads started, after any fork.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import click

from lazyfs.errors import SetupError
from lazyfs.service.logs import told
from lazyfs.service.mounts import state_directory

READY = b"ready"


def log_path(mountpoint: str, named: str | None) -> Path:
    """Where the daemon of this mountpoint logs to."""
    if named:
        return Path(named).absolute()
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", mountpoint.strip("/")) or "root"
    return state_directory() / f"{plain}.log"


def start(arguments: list[str], mountpoint: str, log_file: str | None, passed: tuple[int, ...] = ()) -> None:
    """Run `lazyfs mount --foreground ARGUMENTS` as a daemon, returning when it is ready; `passed`: descriptors that it
    inherits. `SetupError` with the daemon's own sentence if it is not."""
    path = log_path(mountpoint, log_file)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SetupError(f"cannot write the log {path}: {error.strerror}; choose another --log-file") from None
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "lazyfs", "mount", "--foreground", f"--ready-fd={writing}", *arguments]
    fds = (writing, *passed)
    daemon = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=fds, start_new_session=True, cwd="/"
    )
    os.close(writing)
    os.close(log)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    if said == READY:
        return
    code = daemon.wait()
    words = said.decode(errors="replace") or f"the daemon ended before it was ready (status {code})"
    raise SetupError(f"{words} [log: {path}]" if not said else words)


def tell(descriptor: int | None, words: bytes) -> None:
    """In the daemon: say to who started it that it is ready, or why not, once."""
    if descriptor is not None:
        with open(descriptor, "wb") as pipe:
            pipe.write(words)


def fail(error: Exception, status: int) -> None:
    """One sentence on stderr, and the exit status."""
    click.echo(told(f"lazyfs: {error}"), err=True)
    raise SystemExit(status)
