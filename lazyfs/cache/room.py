"""Room on the disk for what is no chunk: how much there is, and chunks evicted to have more.

Its job: what `models.shelf` needs of a disk cache that mounts may be using at the same time. Must not know models.
Blocks; in one thread at a time.
"""

import os

from lazyfs.cache.catalogue import pinned_bytes
from lazyfs.cache.disk import INDEX_SLACK, PATIENCE, Disk
from lazyfs.cache.pins import is_apart


class Room(Disk):
    """A disk cache that is opened to make room beside it."""

    def lacking(self, size: int, have: int) -> int:
        """How many bytes there are too few for `size` more beside the chunks, of which `have` are on the disk already;
        0 or less if they fit."""
        found = os.statvfs(self._directory.path)
        total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        min_free = int(self._min_free * total) if isinstance(self._min_free, float) else self._min_free
        lacking = size - have - (free - min_free)
        if self._max_size is not None:
            beside = self._directory.aside_size() + self._directory.models_size()
            lacking = max(lacking, self._index.used() + beside + size - self._max_size)
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

    def evict(self, size: int) -> int:
        """Have chunks of so many bytes gone, the least recently used first; how many went, 0 if none can now."""
        self._patience = PATIENCE
        with self._alone() as alone:
            if not alone or not self._tidy():
                return 0
            freed = self._index.bury(size, self._files.is_lent)
            self.evicted_bytes += freed
            return freed if self._dig() else 0
