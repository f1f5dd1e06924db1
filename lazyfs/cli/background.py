"""A mount that lives on in the background: run the same command in the foreground, as a daemon, wait until it says
ready, leave it.

A fork, since a new process would import anew what this one has: mounts were ready 0.1 to 0.2 s later. LMDB must be
opened, and threads started, after any fork; this one comes before that, in a process that did nothing but read its
arguments.
"""

import contextlib
import fcntl
import os
import re
import sys
from collections.abc import Callable, Iterable
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


def start(
    run: Callable[[list[str]], object],
    arguments: list[str],
    mountpoint: str,
    log_file: str | None,
    passed: tuple[int, ...] = (),
) -> None:
    """Have a daemon `run` the arguments of the command `lazyfs mount --foreground ARGUMENTS`, and return when it is
    ready; `passed`: descriptors that it keeps open. `SetupError` with the daemon's own sentence if it is not ready.

    In the daemon this ends by SystemExit, whatever happens.
    """
    path = log_path(mountpoint, log_file)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SetupError(f"cannot write the log {path}: {error.strerror}; choose another --log-file") from None
    log, reading, writing = map(_out_of_the_way, (log, *os.pipe()))
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    daemon = os.fork()
    if not daemon:
        _detach(log, {writing, *passed})
        # What it would have been started with; whoever serves the mount after it is started with the same.
        sys.argv[1:] = ["mount", "--foreground", f"--ready-fd={writing}", *arguments]
        run(sys.argv[1:])
        raise SystemExit(0)
    os.close(writing)
    os.close(log)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    if said == READY:
        return
    code = os.waitstatus_to_exitcode(os.waitpid(daemon, 0)[1])
    words = said.decode(errors="replace") or f"the daemon ended before it was ready (status {code})"
    raise SetupError(f"{words} [log: {path}]" if not said else words)


def _out_of_the_way(descriptor: int) -> int:
    """The same, where none of the three streams is, in whose place it lies if the command was started without them."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)


def _detach(log: int, kept: Iterable[int]) -> None:
    """In the daemon: a session of its own, no terminal, no descriptor but those that are `kept`, and no directory that
    could not be unmounted for it."""
    os.setsid()
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, its in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, its)
    # None where the command was started without them.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.close(int(name))


def tell(descriptor: int | None, words: bytes) -> None:
    """In the daemon: say to who started it that it is ready, or why not, once."""
    if descriptor is not None:
        with open(descriptor, "wb") as pipe:
            pipe.write(words)


def fail(error: Exception, status: int) -> None:
    """One sentence on stderr, and the exit status."""
    click.echo(told(f"lazyfs: {error}"), err=True)
    raise SystemExit(status)
