"""How steps that block are run off the loop, and a quick way there for those that take less time than trio's own.

`trio.to_thread.run_sync` costs 0.1 ms of CPU and more for its limiter, context and outcome; reading and verifying a
block of 64 KiB takes as long. Must not know what is run.

Concurrency: called on the loop; the quick threads are daemons and end with the process. What is cancelled in a
touch or a look runs to its end, and its result is dropped; reads and writes are waited for, whoever is cancelled, for
they use buffers of others.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import trio

T = TypeVar("T")

DISK_THREADS = 4
"""Reads from the disk under way at once, of several chunks each, and as many touches."""

QUICK = 0.3e-3
"""Seconds that a touch may take, on average of the last ones, to be done on the loop itself. A thread and back costs
the interpreter 0.2 ms, in which the loop serves nobody either; a block of 64 KiB from an NVMe disk takes 0.1 ms."""

LATEST = 1 / 8
"""Share of the latest touch in the average, so that a disk that begins to stall has one chance to hold up the loop."""


class Workers(Protocol):
    """Who runs the blocking steps of a cache. Each gives the function's result, or raises what it raised."""

    @property
    def quick(self) -> bool:
        """Whether a touch takes so little time that it is done where it is asked for: then `here` may be called."""
        ...

    def here(self, function: Callable[..., T], *args: Any) -> T:
        """A touch, done here and now."""
        ...

    async def touch(self, function: Callable[..., T], *args: Any) -> T:
        """A step of about 0.1 ms that writes to no buffer of others; not waited for when cancelled."""
        ...

    async def read(self, function: Callable[..., T], *args: Any) -> T:
        """A step that fills buffers, several side by side. Once begun it is waited for."""
        ...

    async def write(self, function: Callable[..., T], *args: Any) -> T:
        """A step that changes the disk cache, one after another in the order in which they were asked for. Once begun
        it is waited for."""
        ...

    async def look(self, function: Callable[..., T], *args: Any) -> T:
        """A step that takes long and writes to no buffer of others, one at a time; not waited for when cancelled."""
        ...


class DiskThreads:
    """Threads for the steps of one cache. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._touches = Threads(DISK_THREADS, "small reads")
        self._readers = trio.CapacityLimiter(DISK_THREADS)
        self._writers = trio.CapacityLimiter(1)
        self._lookers = trio.CapacityLimiter(1)
        self._usual = 0.0

    async def touch(self, function: Callable[..., T], *args: Any) -> T:
        """See `Workers.touch`. Here and now while the disk is quick, else in a thread."""
        if self.quick:
            return self.here(function, *args)
        return await self._touches.run(self.here, function, *args)

    @property
    def quick(self) -> bool:
        """See `Workers.quick`."""
        return self._usual < QUICK

    def here(self, function: Callable[..., T], *args: Any) -> T:
        """See `Workers.here`; also what a thread runs."""
        started = self._clock()
        try:
            return function(*args)
        finally:
            self._usual += (self._clock() - started - self._usual) * LATEST

    async def read(self, function: Callable[..., T], *args: Any) -> T:
        """See `Workers.read`."""
        return await trio.to_thread.run_sync(function, *args, limiter=self._readers)

    async def write(self, function: Callable[..., T], *args: Any) -> T:
        """See `Workers.write`."""
        return await trio.to_thread.run_sync(function, *args, limiter=self._writers)

    async def look(self, function: Callable[..., T], *args: Any) -> T:
        """See `Workers.look`."""
        return await trio.to_thread.run_sync(function, *args, limiter=self._lookers, abandon_on_cancel=True)


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
