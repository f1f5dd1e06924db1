"""Who uses a version, and who may bring or remove it: the locks of `records.py`, as one cache object holds them.

A version that this object gave is held shared, once, until it is dropped. Must not know how versions are brought. Safe
for threads; what waits is for a loop.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import AsyncIterator

import trio

from lazyfs.errors import Corrupt, UsageError
from lazyfs.models.names import ModelVersion
from lazyfs.models.shelf import Shelf

LOOK = 0.05
"""Seconds between two looks at whether somebody else has brought what is waited for."""


class Leases:
    """The versions that one object uses."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._lock = threading.Lock()
        self._held: dict[ModelVersion, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def take(self, of: ModelVersion) -> bool:
        """Whether the version is here and, from now on, in use. Blocks."""
        with self._lock:
            if of in self._held and self._shelf.whole(of):
                self._shelf.records.touch(self._shelf.name(of))
                return True
        self.drop(of)
        descriptor = self._shelf.lease(of)
        if descriptor is None:
            return False
        with self._lock:
            if of in self._held:
                os.close(descriptor)  # another thread was quicker
            else:
                self._held[of] = descriptor
        return True

    def drop(self, of: ModelVersion) -> None:
        """It is in use by this object no longer."""
        with self._lock:
            descriptor = self._held.pop(of, None)
        if descriptor is not None:
            os.close(descriptor)

    def drop_all(self) -> None:
        """None is."""
        with self._lock:
            held, self._held = self._held, {}
        for descriptor in held.values():
            os.close(descriptor)

    def alone_at_once(self, of: ModelVersion) -> int:
        """A descriptor that holds the version's lock alone until it is closed; `UsageError` if somebody has it."""
        self.drop(of)
        lock = self._shelf.records.lock(self._shelf.name(of), alone=True)
        if lock is None:
            raise UsageError(f"{of} is in use by another process or cache object; end or release that first")
        return lock

    @contextlib.asynccontextmanager
    async def alone(self, of: ModelVersion) -> AsyncIterator[bool]:
        """Inside, nobody else brings, removes or uses the version, if this gives True; False if it is here by now."""
        name = self._shelf.name(of)
        while (lock := self._shelf.records.lock(name, alone=True)) is None:
            if await trio.to_thread.run_sync(self._shelf.whole, of):
                break
            if (shared := self._shelf.records.lock(name, alone=False)) is not None:
                # Nobody brings it and nobody removes it, but somebody uses it.
                os.close(shared)
                if await trio.to_thread.run_sync(self._damaged, of):
                    raise Corrupt(
                        f"files of {of} in the cache are missing or cut short, and another process uses them; end "
                        "that, and get it again"
                    )
            await trio.sleep(LOOK)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                os.close(lock)

    @contextlib.asynccontextmanager
    async def cold_start(self, place: str, most: int) -> AsyncIterator[None]:
        """Inside, no more than `most` versions are brought from a bucket at a time, by all who share this disk."""
        names = [hashlib.sha256(f"cold start {number} of {place}".encode()).hexdigest()[:32] for number in range(most)]
        while True:
            locks = (self._shelf.records.lock(name, alone=True) for name in names)
            lock = next((lock for lock in locks if lock is not None), None)
            if lock is not None:
                break
            await trio.sleep(LOOK)
        try:
            yield
        finally:
            os.close(lock)

    def _damaged(self, of: ModelVersion) -> bool:
        record = self._shelf.records.get(self._shelf.name(of))
        return record is not None and record.here and not self._shelf.whole(of)
