"""The fast server with one slow GET in so many: a process of its own, `python -m scripts.benchmarks.slowserver`.

Every `EVERY`th GET of an object comes at `RATE` bytes per second, whatever the shape; the count begins at each new
shape. `SlowFastS3` is the parent's handle on it, as `tests.servers.remote.RemoteFastS3` is on the server without.
"""

import argparse
import itertools
import signal

from tests.servers.answers import Answer
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault
from tests.servers.processes import ServerProcess, announce, child_options, exit_on_sigterm
from tests.servers.records import Request
from tests.servers.remote import RemoteFastS3, control

EVERY = 32
RATE = 1e6


class SlowFastS3(RemoteFastS3):
    """The server in a child process, which dies with this one."""

    def __init__(self) -> None:
        self._process = ServerProcess("scripts.benchmarks.slowserver", [])


def main() -> None:
    """Serve until the parent ends, or SIGTERM."""
    child_options(argparse.ArgumentParser(prog="python -m scripts.benchmarks.slowserver"))
    exit_on_sigterm()
    server = FastS3Server()
    count = itertools.count(1)  # its next() is one step of the interpreter: no two connections get the same number

    def fault(request: Request) -> Fault | None:
        return Fault(rate=RATE) if request.kind == "GET" and next(count) % EVERY == 0 else None

    def answer(method: str, name: str, body: bytes) -> Answer:
        nonlocal count
        if name == "shape":
            count = itertools.count(1)
        return control(server, method, name, body)

    server.fault, server.control = fault, answer
    with server:
        announce(url=server.url, ca_bundle=None)
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
