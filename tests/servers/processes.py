"""Servers in processes of their own: started as `python -m`, ready when they say so, gone when their parent
is.

The rule between the two sides: the child prints one line of JSON on standard output when it is ready, runs
until SIGTERM, and, with `--until-stdin-closes`, ends as well when its standard input does. The parent holds
the other end of that pipe and never writes to it, so the kernel closes it whatever becomes of the parent,
SIGKILL included.
"""

import argparse
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

ROOT = Path(__file__).resolve().parents[2]
"""The directory from which `python -m tests.servers...` works."""

_STDIN_OPTION = "--until-stdin-closes"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ServerFailed(Exception):
    """A server ended before it was ready, or did not become ready.

    The text has the end of what it printed.
    """


class ServerProcess:
    """A child process that is one server. Not safe for threads."""

    def __init__(self, module: str, arguments: Sequence[str], *, ready_timeout: float = 60.0) -> None:
        """Start `python -m module` and wait until it is ready, at most `ready_timeout` seconds, else
        ServerFailed.
        """
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        command = [sys.executable, "-m", module, *arguments, _STDIN_OPTION]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        try:
            self.ready = self._wait_ready(module, time.monotonic() + ready_timeout)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._process.pid

    def stop(self, timeout: float = 15.0) -> None:
        """SIGTERM, SIGKILL after `timeout` seconds, and wait. Nothing happens if it was stopped before."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def _wait_ready(self, module: str, deadline: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        line = b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise ServerFailed(f"{module} was not ready in time:\n{self._said()}")
            data = os.read(output, 4096)
            if not data:
                status = self._process.wait(10)
                raise ServerFailed(f"{module} ended with status {status}:\n{self._said()}")
            line += data
        return cast(dict[str, Any], json.loads(line))

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-8000:].decode(errors="replace")


def announce(**facts: Any) -> None:
    """The child's side of being ready."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def exit_on_sigterm() -> None:
    """Make SIGTERM and SIGINT end the main thread by SystemExit, so that `with` and `finally` do the cleaning
    up.
    """

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)


def child_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; if a parent asked for it, end this process when its standard input closes.

    By SIGTERM first, and five seconds later without more ado.
    """
    parser.add_argument(_STDIN_OPTION, action="store_true", dest="child", help="end with standard input")

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        os._exit(1)

    options = parser.parse_args()
    if options.child:
        threading.Thread(target=watch, daemon=True).start()
    return options


def killed_with_parent() -> Callable[[], None]:
    """A `preexec_fn` for children that know nothing of us: SIGKILL when the thread that started them ends.

    prctl(2): it is the thread that counts, not the process. So start them from a main thread.
    """
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it died before the prctl
            os._exit(1)

    return prepare


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free now.

    Another process may take one before it is used; that shows at the bind.
    """
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def listens(port: int) -> bool:
    """Whether something accepts connections at this port of 127.0.0.1."""
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0
