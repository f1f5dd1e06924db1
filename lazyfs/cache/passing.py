"""Checksums of chunks as they came from the store, so that an object is judged as a whole though the disk did not keep
all of it, or no longer has it.

Must not know what is judged. Loop thread only. Invariant: at most MOST chunks are remembered.
"""

from collections import OrderedDict

from lazyfs.cache.disk import Disk, Verified
from lazyfs.objects import SEGMENT_CHUNKS, ObjectVersion

MOST = 32768
"""Chunks remembered, 32 GiB of objects that are on their way, in 9 MiB of memory. What is judged is forgotten; where
there is more on its way, the object that has waited for longest is."""


class Passing:
    """What came, by version, until it is judged."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._sums: OrderedDict[bytes, dict[int, bytes]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def note(self, verified: Verified) -> None:
        """This chunk came."""
        mine = self._sums.setdefault(verified.version.object_id, {})
        if verified.number not in mine:
            self._count += 1
        mine[verified.number] = verified.sums
        while self._count > MOST:
            _, oldest = self._sums.popitem(last=False)
            self._count -= len(oldest)

    def sums(self, version: ObjectVersion) -> dict[int, bytes]:
        """The block checksums of the version's chunks that came, by number."""
        return self._sums.get(version.object_id, {})

    def forget(self, version: ObjectVersion) -> None:
        """Forget what came of a version."""
        self._count -= len(self._sums.pop(version.object_id, {}))

    def complete(self, version: ObjectVersion) -> bool:
        """Whether every chunk of the version is on disk or came."""
        if self._disk.generation(version) is not None:
            return True
        passed = self.sums(version)
        if len(passed) == version.chunk_count:
            return True
        if self._disk.cached_chunks(version) + len(passed) < version.chunk_count:
            return False
        for first in range(0, version.chunk_count, SEGMENT_CHUNKS):
            present = self._disk.present(version.object_id, first // SEGMENT_CHUNKS)
            for number in range(first, min(first + SEGMENT_CHUNKS, version.chunk_count)):
                if not present >> number % SEGMENT_CHUNKS & 1 and number not in passed:
                    return False
        return True
