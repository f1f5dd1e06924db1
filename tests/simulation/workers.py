"""Workers without threads: a blocking step takes some time of the simulated clock, and is done at one moment of it.

They keep the promises of `lazyfs.cache.threads.Workers`: reads side by side, writes one after another, both waited for;
a touch that is cancelled runs to its end all the same.
"""

import random
from collections.abc import Callable
from typing import Any, TypeVar

import trio

from lazyfs.cache.threads import DISK_THREADS

T = TypeVar("T")


class SimulatedWorkers:
    """`latency` is about the seconds that a step takes; a share `quick` of the touches takes none. `nursery` runs the
    others."""

    def __init__(self, *, dice: random.Random, latency: float, quick: float, nursery: trio.Nursery) -> None:
        self._dice = dice
        self._share = quick
        self._latency = latency
        self._nursery = nursery
        self._readers = trio.CapacityLimiter(DISK_THREADS)
        self._writer = trio.CapacityLimiter(1)
        self._looker = trio.Lock()

    async def touch(self, function: Callable[..., T], *args: Any) -> T:
        """See `Workers.touch`."""
        return self.here(function, *args) if self.quick else await self._aside(function, args)

    @property
    def quick(self) -> bool:
        """See `Workers.quick`; now this, now that."""
        return self._dice.random() < self._share

    def here(self, function: Callable[..., T], *args: Any) -> T:
        """See `Workers.here`."""
        return function(*args)

    async def _aside(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        """In a task of its own, which goes on whoever is cancelled."""
        found: list[Any] = []
        done = trio.Event()

        async def step() -> None:
            try:
                found.append(await self._step(function, args))
            except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
                found.extend((None, error))
            done.set()

        self._nursery.start_soon(step)
        await done.wait()
        if len(found) > 1:
            raise found[1]
        result: T = found[0]
        return result

    async def read(self, function: Callable[..., T], *args: Any) -> T:
        """See `Workers.read`."""
        await self._readers.acquire()
        try:
            return await self._step(function, args)
        finally:
            self._readers.release()

    async def write(self, function: Callable[..., T], *args: Any) -> T:
        """See `Workers.write`."""
        await self._writer.acquire()
        try:
            return await self._step(function, args)
        finally:
            self._writer.release()

    async def look(self, function: Callable[..., T], *args: Any) -> T:
        """See `Workers.look`."""
        await self._looker.acquire()
        try:
            return await self._aside(function, args)
        finally:
            self._looker.release()

    async def _step(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        with trio.CancelScope(shield=True):
            await trio.sleep(self._latency * self._dice.random())
            try:
                found = function(*args)
            finally:
                await trio.sleep(self._latency * self._dice.random())
        return found
