"""Room on the disk under a bound: how much there is, who may write into it, and what goes to make more.

Its job: the steps that keep index and object files honest while space changes hands. Space is claimed in the index
before a byte is written; eviction forgets in the index, clears the disk, then gives the space back. A kill between any
two steps leaves a claim or a grave, from which the next daemon that starts or that needs room goes on, without a scan;
`ledger.py` has the rules. Must not know what is written, nor models, for which room is made beside the chunks.

Several daemons share a directory. The disk is cleared by one at a time, which holds a lock that dies with it; nobody
waits for that lock for long, and who does not get it keeps nothing for now.

Concurrency: blocks; `bound` from any thread, the rest from one thread at a time (the writer's), except at start.
"""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator

from lazyfs.cache.answer import Answer
from lazyfs.cache.catalogue import claimed, pinned_bytes, pins
from lazyfs.cache.directory import CacheDirectory
from lazyfs.cache.index import Index
from lazyfs.cache.objectfile import ObjectFiles
from lazyfs.cache.pins import is_apart
from lazyfs.cache.records import Run
from lazyfs.cache.sweep import sweep
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import CHUNK_SIZE, MIB, ObjectVersion

log = logging.getLogger(__name__)

INDEX_SLACK = MIB
"""Room left under the bound for what a commit may add to the index file itself."""

PATIENCE = 1.0
"""Seconds that a start, or a write, waits for another daemon that is clearing the disk. Then a start clears nothing, a
write keeps nothing, and the next writes do not wait at all until the lock was free once."""

FULL_QUIET = 3600.0
"""Seconds between two words in the log about a cache that is full of pins: it is as somebody wanted it."""


class Room:
    """The room of one cache directory. `max_size` bytes with the index (None: no bound of its own); `min_free` is what
    the filesystem keeps free, in bytes or as a share below 1. `failed` is told of what could not be cleared."""

    def __init__(
        self,
        directory: CacheDirectory,
        index: Index,
        files: ObjectFiles,
        *,
        max_size: int | None,
        min_free: int | float,
        failed: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._index = index
        self._files = files
        self._max_size = max_size
        self._min_free = min_free
        self._failed = failed
        self._patience = PATIENCE
        self._full_again = -math.inf
        self.evicted_bytes = 0

    # ---- how much there is

    def bound(self) -> int:
        """What `Index.used` may reach now: the limit set, and what the filesystem can give beyond what it must keep
        free."""
        bound = self._index.used() + self._free()
        return (bound if self._max_size is None else min(bound, self._max_size - self._beside())) - INDEX_SLACK

    def capacity(self) -> int:
        """Bytes that chunks may take in all, if everything that is there went."""
        return self.bound() - self._index.own_size()

    def lacking(self, size: int, have: int) -> int:
        """How many bytes there are too few for `size` more beside the chunks, of which `have` are on the disk already;
        0 or less if they fit."""
        lacking = size - have - self._free()
        if self._max_size is not None:
            lacking = max(lacking, self._index.used() + self._beside() + size - self._max_size)
        return lacking + INDEX_SLACK

    def chunks_size(self) -> int:
        """Bytes that would be free if all chunks went that are not pinned, as far as nobody is writing them."""
        return max(0, self._index.used() - self._index.own_size() - pinned_bytes(self._index))

    def oldest_use(self) -> int | None:
        """Nanoseconds since the epoch of the use of chunks that is longest ago, of what is not pinned; None if nothing
        is."""
        with self._index.look() as (txn, tables), txn.cursor(tables.lru) as cursor:
            entry = bytes(cursor.key()) if cursor.first() else b""
        return int.from_bytes(entry[:8], "big") if entry and not is_apart(entry) else None

    def _free(self) -> int:
        """What the filesystem can give beyond what it must keep free, and what other daemons are about to write; below
        0 where it has less."""
        found = os.statvfs(self._directory.path)
        total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        min_free = int(self._min_free * total) if isinstance(self._min_free, float) else self._min_free
        return free - min_free - claimed(self._index, self._directory.daemon)

    def _beside(self) -> int:
        """Bytes of the limit that are not the index's: caches set aside, and models."""
        return self._directory.aside_size() + self._directory.models_size()

    # ---- making more

    def claim(self, runs: list[Run], size: int, versions: Iterable[ObjectVersion]) -> Answer:
        """Claim `size` bytes for what will be written into `runs`, of these versions, evicting until there are enough
        or nothing is left to evict. Not at the price of the whole cache: what is more than half of the limit is for the
        caller to split."""
        if self._max_size is not None and size > max(CHUNK_SIZE, self._max_size // 2):
            return Answer.NO_ROOM
        answer = self._index.claim(self._directory.daemon, runs, size, self.bound(), versions)
        if answer in (Answer.GRANTED, Answer.STALE):
            return answer
        with self._alone() as alone:
            # Whoever was clearing may have made room for this claim too, so it is asked again before anything goes.
            cleared = alone and self._tidy()
            while True:
                answer = self._index.claim(self._directory.daemon, runs, size, self.bound(), versions)
                if answer is not Answer.NO_ROOM:
                    return answer
                if not cleared:
                    return Answer.BLOCKED
                lacking = self._index.used() + size - self.bound()
                # No more: the next to go may be what somebody reads.
                if not self._bury(max(lacking, 1)):
                    self._say_full()
                    return answer
                cleared = self._dig()

    def evict(self, size: int) -> int:
        """Have chunks of so many bytes gone, the least recently used first; how many went, 0 if none can now."""
        self._patience = PATIENCE
        with self._alone() as alone:
            if not alone or not self._tidy():
                return 0
            freed = self._bury(size)
            return freed if self._dig() else 0

    def clear(self) -> None:
        """Clear what was forgotten, unless somebody else does."""
        with self._alone() as alone:
            if alone:
                self._dig()

    def tidy(self) -> None:
        """Finish what killed daemons began, unless somebody else does: nothing that is claimed can be forgotten."""
        with self._alone() as alone:
            if alone:
                self._tidy()

    def start(self, torn: bool) -> None:
        """What a daemon that starts does, with the lock of the directory held, about what earlier ones left. `torn`:
        the machine lost its power since, so that the files may have more than the index knows."""
        try:
            self._tidy()
            if torn:
                sweep(self._index, self._files)
                self._dig()
        except (CacheUnavailable, OSError) as error:
            log.warning("what an earlier daemon left in the cache could not be cleared: %s", error)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """As `CacheDirectory.alone`. Who once waited in vain waits no more."""
        with self._directory.alone(self._patience) as alone:
            self._patience = PATIENCE if alone else 0.0
            yield alone

    def _bury(self, size: int) -> int:
        freed = self._index.bury(size, self._files.is_lent)
        self.evicted_bytes += freed
        return freed

    def _dig(self) -> bool:
        """Clear what every grave names, with the lock held; False if some of it could not be cleared. What is lent
        stays for now, and spoken for."""
        dug, failed = [], False
        for run in self._index.graves():
            try:
                self._files.clear(run)
                dug.append(run)
            except BlockingIOError:
                log.debug("an evicted object file is still read, and is cleared later")
            except OSError as error:
                # The bytes stay spoken for, and whoever needs room or starts tries again.
                self._failed(f"cannot clear evicted bytes: {error}")
                failed = True
        if dug:
            self._index.dug(dug)
        return not failed

    def _tidy(self) -> bool:
        """Finish, with the lock held, what killed daemons began, and what this one could not finish; as `_dig`."""
        others = self._directory.alive() - {self._directory.daemon}
        for daemon in self._index.claims().keys() - others:
            self._index.settle(daemon, [])
        return self._dig()

    def _say_full(self) -> None:
        """Say once in a long while that pins leave no room."""
        if time.monotonic() >= self._full_again and pins(self._index):
            self._full_again = time.monotonic() + FULL_QUIET
            log.warning("the cache is full of what is pinned: reads are not kept; unpin some or raise --max-cache-size")
