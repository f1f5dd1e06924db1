"""Checksums of chunks as they came from the store, so that an object is judged as a whole though the disk did not keep
all of it, or no longer has it.

Must not know what is judged. Loop thread only. Invariant: at most MOST chunks are remembered.
"""

from collections import OrderedDict
from itertools import chain

from lazyfs.cache.disk import Disk, Verified
from lazyfs.objects import SEGMENT_CHUNKS, ObjectVersion

MOST = 32768
"""Chunks remembered, 32 GiB of objects that are on their way, in 9 MiB of memory. What is judged is forgotten; where
there is more on its way, the object that has waited for longest is."""


class _Came:
    """Of one version: the block checksums of chunks that came, by number, and a chunk that was missing when somebody
    looked last."""

    __slots__ = ("missing", "sums")

    def __init__(self) -> None:
        self.sums: dict[int, bytes] = {}
        self.missing = 0


class Passing:
    """What came, by version, until it is judged."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._came: OrderedDict[bytes, _Came] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def note(self, verified: Verified) -> None:
        """This chunk came."""
        object_id = verified.version.object_id
        mine = self._came.get(object_id)
        if mine is None:
            mine = self._came[object_id] = _Came()
        if verified.number not in mine.sums:
            self._count += 1
        mine.sums[verified.number] = verified.sums
        while self._count > MOST:
            _, oldest = self._came.popitem(last=False)
            self._count -= len(oldest.sums)

    def sums(self, version: ObjectVersion) -> dict[int, bytes]:
        """The block checksums of the version's chunks that came, by number."""
        mine = self._came.get(version.object_id)
        return {} if mine is None else mine.sums

    def forget(self, version: ObjectVersion) -> None:
        """Forget what came of a version."""
        mine = self._came.pop(version.object_id, None)
        self._count -= 0 if mine is None else len(mine.sums)

    def complete(self, version: ObjectVersion) -> bool:
        """Whether every chunk of the version is on disk or came.

        Asked each time that some were written, so it looks first at the chunk that was missing the last time, and goes
        on from there: what is read in order is looked at once, however large it is, and once more when it is whole.
        """
        if self._disk.generation(version) is not None:
            return True
        mine = self._came.get(version.object_id) or _Came()
        if len(mine.sums) == version.chunk_count:
            return True
        segment, present = -1, 0
        for number in chain(range(mine.missing, version.chunk_count), range(mine.missing)):
            if number in mine.sums:
                continue
            if number // SEGMENT_CHUNKS != segment:
                segment = number // SEGMENT_CHUNKS
                present = self._disk.present(version.object_id, segment)
            if not present >> number % SEGMENT_CHUNKS & 1:
                mine.missing = number
                return False
        return True
