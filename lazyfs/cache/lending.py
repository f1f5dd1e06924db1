"""Whole object files, lent to somebody who reads them past the index and its checksums: the kernel.

Its job: say which may be lent, and hand out a descriptor. Only a file of which every chunk is on disk and that was
compared with a digest is, or that has none to be compared with; from then on the disk is trusted, as with any file.

Lent is what somebody holds a shared flock on. Eviction, by whatever process, takes no such file, and clears no byte of
one that the index has forgotten meanwhile: its bytes stay spoken for until the last reader closes it. The lock is taken
before the index is asked again, so that a file is either seen to be lent or not lent.

Must not know the kernel. Loop thread only; an open, a lock and two looks into the index take some 50 us, and the look
at all segments 3 us for each.
"""

import os

from lazyfs.cache.disk import Disk
from lazyfs.cache.verifier import Verifier
from lazyfs.cache.writer import Writer
from lazyfs.objects import SEGMENT_CHUNKS, ObjectVersion


class Lending:
    """What may be lent of one cache."""

    def __init__(self, disk: Disk, verifier: Verifier, writer: Writer) -> None:
        self._disk = disk
        self._verifier = verifier
        self._writer = writer

    def lend(self, version: ObjectVersion) -> int | None:
        """A descriptor of the whole object, to be closed by the caller; None if it cannot be lent now. OSError."""
        generation = self._disk.generation(version)
        if generation is None or not version.size or not self._verifier.settled(version):
            return None
        descriptor = self._disk.lend(version, generation)
        if descriptor is not None and self._disk.generation(version) != generation:
            os.close(descriptor)
            return None
        return descriptor

    def returned(self, version: ObjectVersion) -> None:
        """Nobody here reads the object past the index any more; it counts as used until now."""
        for first in range(0, version.chunk_count, SEGMENT_CHUNKS):
            self._writer.touch(version, first)
