"""A quick way into a thread and back, for steps that take less time than trio's own way to one.

`trio.to_thread.run_sync` costs 0.1 ms of CPU and more for its limiter, context and outcome; reading and verifying a
block of 64 KiB takes as long. Must not know what is run.

Concurrency: `run` on the loop; the threads are daemons and end with the process. What is cancelled runs to its end, and
its result is dropped.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import trio

T = TypeVar("T")


class Threads:
    """`count` threads that wait for work, started when there is some."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], list[Any], trio.Event]] = queue.SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        self._started = False

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """The result of the function, or what it raised."""
        if not self._started:
            self._started = True
            for number in range(self._count):
                threading.Thread(target=self._loop, name=f"{self._name} {number}", daemon=True).start()
        found: list[Any] = []
        done = trio.Event()
        self._work.put((lambda: function(*args), found, done))
        await done.wait()
        if len(found) > 1:
            raise found[1]
        result: T = found[0]
        return result

    def _loop(self) -> None:
        while True:
            step, found, done = self._work.get()
            try:
                found.append(step())
            except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
                found += [None, error]
            try:
                self._token.run_sync_soon(done.set)
            except trio.RunFinishedError:
                return
