"""Chunks on disk: index and object files together.

Its job: what is asked of the disk cache, and keeping chunks in three steps: room is claimed (`room.py`) before a byte
is written, the bytes are written, then counted as present. The cache is advice: every failure is a `CacheUnavailable`,
counted by the caller.

Why no lock on an object file while holes are punched in it: a reader that meets a hole finds a wrong checksum, asks the
index again, and sees an eviction and no damage.

What a kill can leave beyond what the index knows: nothing of chunks, for what a claim or a grave names is cleared; an
object's record of 100 bytes that has no chunk yet. What a power failure can leave, when the index is older than the
files: files that it does not know, and files with more in them than it knows. `sweep` removes both.

Concurrency: `kept` and `read` from any thread; the rest from one thread at a time (the writer's), except at start.
"""

import logging
import math
import time
from collections.abc import Sequence

from lazyfs.cache import readback
from lazyfs.cache.answer import Answer
from lazyfs.cache.batches import Verified as Verified  # noqa: PLC0414 - others know it from here
from lazyfs.cache.batches import in_runs, size_on_disk
from lazyfs.cache.catalogue import holds, knows, taken, whole
from lazyfs.cache.directory import CacheDirectory, unusable
from lazyfs.cache.index import Index
from lazyfs.cache.objectfile import ObjectFiles, Scratch
from lazyfs.cache.opening import open_index
from lazyfs.cache.records import Kept, Written
from lazyfs.cache.room import INDEX_SLACK, PATIENCE, Room
from lazyfs.cache.verdicts import unpack
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, MIB, ObjectVersion

log = logging.getLogger(__name__)

CLAIMS = 3
"""How often a write claims space while others forget what it writes into."""

TOUCHED = 32
"""Segments whose use is written in one transaction: half a MiB of pages."""

QUIET = 60.0
"""Seconds between two words in the log about a disk that fails."""


class Disk:
    """The disk cache in `directory`. `max_size` bytes with the index (None: no bound of its own); `min_free` is what
    the filesystem keeps free, in bytes or as a share below 1."""

    def __init__(self, directory: CacheDirectory, *, max_size: int | None, min_free: int | float) -> None:
        self._directory = directory
        self._quiet_until = -math.inf
        self._scratch = Scratch()
        self._closed = False
        self.lower = ""
        """Where the lower layer is that this cache is over, if it is over one."""
        self.failures = 0
        """How often the index could not be read, or the disk not cleared."""
        try:
            with directory.alone(PATIENCE) as alone:
                torn = directory.lost_power()
                self._index = open_index(directory, others=not alone or directory.alive() != {directory.daemon})
                self._files = ObjectFiles(directory.objects)
                self.room = Room(
                    directory, self._index, self._files, max_size=max_size, min_free=min_free, failed=self._failed
                )
                if alone:
                    self.room.start(torn)
                directory.mark_open()
        except OSError as error:
            raise unusable(directory.path, error) from error
        directory.clear_aside()

    def kept(self, object_id: bytes, number: int, *, partly: bool = False) -> Kept | None:
        """The record of a chunk on disk, or, `partly`, of one of which only some blocks may be; None also when the
        index fails."""
        try:
            return self._index.kept(object_id, number, partly=partly)
        except CacheUnavailable as error:
            self._failed(error)
            return None

    def present(self, object_id: bytes, segment: int) -> int:
        """The presence bits of a segment, its first chunk lowest; 0 also when the index fails."""
        try:
            return self._index.present(object_id, segment)
        except CacheUnavailable as error:
            self._failed(error)
            return 0

    def cached_chunks(self, version: ObjectVersion) -> int:
        """Chunks of the version that are on disk; 0 also when the index fails."""
        try:
            return self._index.present_chunks(version.object_id)
        except CacheUnavailable:
            return 0

    def cached_bytes(self, version: ObjectVersion) -> int:
        """Bytes of the version that are on disk, to a chunk."""
        return min(version.size, self.cached_chunks(version) * CHUNK_SIZE)

    def taken(self, version: ObjectVersion) -> int:
        """Bytes that the version takes here, chunks that are here in part included; 0 also when the index fails."""
        try:
            return taken(self._index, version.object_id)
        except CacheUnavailable:
            return 0

    def listing(self, key: bytes) -> bytes | None:
        """A listing kept under `key`; None also when the index fails."""
        try:
            return self._index.listing(key)
        except CacheUnavailable:
            return None

    def verdict(self, object_id: bytes) -> bytes | None:
        """What was found of an object as a whole; None also when the index fails."""
        try:
            return self._index.verdict(object_id)
        except CacheUnavailable:
            return None

    def put_verdict(self, object_id: bytes, packed: bytes) -> None:
        """Keep what was found of an object as a whole. Blocks."""
        self._index.put_verdict(object_id, packed)

    def generation(self, version: ObjectVersion) -> int | None:
        """The generation of the version's object file, if all of its chunks are on disk."""
        try:
            return self._index.complete(version)
        except CacheUnavailable:
            return None

    def forget(self, version: ObjectVersion) -> bool:
        """Drop everything that is kept of a version; False while somebody writes it. Blocks."""
        object_id = version.object_id
        self._index.bury_object(object_id)
        if holds(self._index, object_id):
            self.room.tidy()  # who writes it may be dead
            self._index.bury_object(object_id)
        self.room.clear()
        return not holds(self._index, object_id)

    def drop(self, objects: Sequence[bytes]) -> tuple[int, int]:
        """Forget these objects and give their space back: how many bytes, and of how many objects nothing could go,
        for they are being written, or lent. Blocks."""
        freed = [self._index.bury_object(object_id, self._files.is_lent) for object_id in objects]
        self.room.clear()
        left = [one for one, size in zip(objects, freed, strict=True) if not size and holds(self._index, one)]
        return sum(freed), len(left)

    def lend(self, version: ObjectVersion, generation: int) -> int | None:
        """See `ObjectFiles.lend`; of the file of this generation, if all of the version is in it: where it has holes
        nothing would tell its reader."""
        if not self._is_whole(version, generation):
            return None
        return self._files.lend(version.object_id, generation, version.size)

    def _is_whole(self, version: ObjectVersion, generation: int) -> bool:
        """Whether all of the version is in the file of this generation, whatever was counted; False also when the index
        fails."""
        try:
            return whole(self._index, version.object_id, generation)
        except CacheUnavailable as error:
            self._failed(error)
            return False

    def path(self, version: ObjectVersion) -> str:
        """Where the version's object file is, if all of its chunks are in it; else empty."""
        generation = self.generation(version)
        if generation is None or not version.size or not self._is_whole(version, generation):
            return ""
        return str(self._files.path(version.object_id, generation))

    @property
    def index(self) -> Index:
        """For who looks at all of it. It raises `CacheUnavailable`."""
        return self._index

    def put_listings(self, packed: dict[bytes, bytes]) -> None:
        """Keep listings, while there is room for them under the bound. Blocks."""
        if self._index.used() + sum(map(len, packed.values())) <= self.room.bound():
            self._index.put_listings(packed)

    def used(self) -> int:
        """Bytes of disk spoken for, index included."""
        try:
            return self._index.used()
        except CacheUnavailable:
            return 0

    def read(self, version: ObjectVersion, first: int, kept: Sequence[Kept], into: Sequence[memoryview]) -> list[bool]:
        """Read adjacent chunks from `first` on into their buffers and verify each; says which are right. Blocks."""
        return readback.read(self._files, version, first, kept, into)

    def read_part(self, version: ObjectVersion, number: int, kept: Kept, start: int, stop: int) -> bytes | None:
        """Bytes [start, stop) of one chunk, reading and verifying no more than their blocks; None if wrong. Blocks."""
        return readback.read_part(self._files, self._scratch, version, number, kept, start, stop)

    def mark(self, version: ObjectVersion, numbers: Sequence[int]) -> None:
        """Make marks of those of these chunks, of one segment, that are here whole, while there is room. Blocks."""
        if self._index.used() + MIB <= self.room.bound():
            kept = {number: self._index.kept(version.object_id, number) for number in numbers}
            self._index.put_marks(version.object_id, readback.marks(self._files, self._scratch, version, kept))

    def below(self, version: ObjectVersion) -> int:
        """Bytes of the version, to a chunk, that are in a lower layer and take no room here."""
        return 0

    def keep(self, chunks: Sequence[Verified]) -> int:
        """Write the chunks and count them as present, making room first; how many were kept. Blocks."""
        return self._keep(chunks, CLAIMS, [])

    def _keep(self, chunks: Sequence[Verified], attempts: int, refused: list[int]) -> int:
        """`refused`: sizes of chunks for which there was no room, each by itself; what is as large is not tried."""
        versions = {chunk.version.object_id: chunk.version for chunk in chunks}
        # Looked at first. Where one that is known goes to make room, its generation is not used again: who has the old
        # file of that name open would take the new one for damaged.
        fresh = [version for object_id, version in versions.items() if not knows(self._index, object_id)]
        generations = {object_id: self._index.generation(version) for object_id, version in versions.items()}
        runs = in_runs(chunks, generations)
        size = sum(map(size_on_disk, chunks))
        answer = self.room.claim([run for run, _ in runs], size, fresh)
        if answer is Answer.STALE and attempts > 1:
            # Making room took the very object that is written; its next file has another name.
            return self._keep(chunks, attempts - 1, refused)
        if answer is Answer.NO_ROOM and len(chunks) > 1:
            half = len(chunks) // 2
            kept = self._keep(chunks[:half], attempts, refused)
            rest = [one for one in chunks[half:] if not refused or size_on_disk(one) < min(refused)]
            return kept + (self._keep(rest, attempts, refused) if rest else 0)
        if answer is Answer.NO_ROOM:
            refused.append(size)
        if answer is Answer.BLOCKED:
            graves = self._index.graves()
            free = [c for run, members in runs if not any(run.overlaps(grave) for grave in graves) for c in members]
            return self._keep(free, attempts, refused) if 0 < len(free) < len(chunks) else 0
        if not answer:
            return 0
        written: list[Written] = []
        file, of = None, b""
        try:
            for run, members in runs:
                if file is None or run.object_id != of:  # one is open at a time: runs are in order of objects
                    file, of = self._files.to_write(members[0].version, run.generation), run.object_id
                offset = run.first * CHUNK_SIZE + members[0].block * BLOCK_SIZE
                file.write(offset, [chunk.view for chunk in members])
                written += [Written(c.version, run.generation, c.number, c.sums, c.block) for c in members]
        except OSError as error:
            self._index.settle(self._directory.daemon, written)
            self.room.clear()
            raise CacheUnavailable(f"cannot write to the cache: {error}") from error
        return self._index.settle(self._directory.daemon, written)

    def touch(self, segments: set[tuple[bytes, int]]) -> None:
        """These (object_id, segment) were read. Some at a time, so that a commit writes on the pages that the one
        before has left. The index never gets smaller: where it grew by that and there is no more room for it, the rest
        is left out. Where it did not, uses cost nothing, and are what tells who goes when there is no room. Blocks."""
        left, size = list(segments), self._index.own_size()
        while left:
            self._index.touch(left[-TOUCHED:])
            del left[-TOUCHED:]
            before, size = size, self._index.own_size()
            if size > before and self._index.used() > self.room.bound() + INDEX_SLACK // 2:
                return

    def discard(self, version: ObjectVersion, number: int) -> None:
        """Forget one chunk whose bytes on disk are wrong, and that all of the version agreed with its digest: what is
        fetched in its place was not compared. Blocks."""
        self._open_again(version)
        if not self._index.discard(version.object_id, number):
            self.room.tidy()  # who writes it may be dead
            self._index.discard(version.object_id, number)
        self.room.clear()

    def _open_again(self, version: ObjectVersion) -> None:
        found = unpack(self._index.verdict(version.object_id))
        if found is not None and not found.wrong:
            self._index.put_verdict(version.object_id, b"")

    def close(self) -> None:
        """Flush the index and leave the directory. Whoever still asks for something is told that it is not there."""
        self._closed = True
        self._files.close()
        try:
            self._index.close()
        finally:
            self._directory.close()

    def _failed(self, error: object) -> None:
        """Count a failure of the disk, and say so once in a while."""
        if self._closed:
            return
        self.failures += 1
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET
            log.error("%s", error)
