"""Chunks on disk under a bound: index and object files together, and the order of steps that keeps both honest.

Space is claimed in the index before a byte is written, written, then counted as present; eviction forgets in the index,
clears the disk, then gives the space back. A kill between any two steps leaves a record from which the next start
finishes, without a scan. The cache is advice: every failure is a `CacheUnavailable`, counted by the caller.

Why no lock on an object file while holes are punched in it: a reader that meets a hole finds a wrong checksum, asks the
index again, and sees an eviction and no damage; a writer whose file was unlinked finds another generation and counts
nothing. A lock would only spare the first of them a second look.

Concurrency: `kept` and `read` from any thread; the rest from one thread at a time (the writer's), except at start.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from lazyfs.cache.audit import cut_short, verify
from lazyfs.cache.directory import CacheDirectory
from lazyfs.cache.index import Index
from lazyfs.cache.objectfile import ObjectFiles, Scratch
from lazyfs.cache.records import WHOLE_FILE, Kept, Run, Written, disk_size
from lazyfs.cache.sums import block_sums
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, MIB, ObjectVersion

log = logging.getLogger(__name__)

INDEX_SLACK = MIB
"""Room left under the bound for what a commit may add to the index file itself."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A chunk whose bytes are in memory, to be kept. `sums` are its block checksums."""

    version: ObjectVersion
    number: int
    view: memoryview
    sums: bytes


class Disk:
    """The disk cache in `directory`. `max_size` bytes with the index (None: no bound of its own); `min_free` is what
    the filesystem keeps free, in bytes or as a share below 1."""

    def __init__(self, directory: CacheDirectory, *, max_size: int | None, min_free: int | float) -> None:
        self._directory = directory
        self._max_size = max_size
        self._min_free = min_free
        self.evicted_bytes = 0
        self._scratch = Scratch()
        try:
            self._index = _open_index(directory)
        except CacheUnavailable as error:
            if len(directory.alive()) > 1:
                raise
            log.warning("the cache index cannot be used and is started anew, cached bytes are fetched again: %s", error)
            directory.set_aside()
            self._index = Index(directory.index)
        self._files = ObjectFiles(directory.objects)
        self._finish()
        directory.clear_aside()
        directory.mark_open()

    def kept(self, object_id: bytes, number: int) -> Kept | None:
        """The record of a chunk on disk; None also when the index fails."""
        try:
            return self._index.kept(object_id, number)
        except CacheUnavailable as error:
            log.error("%s", error)
            return None

    def present(self, object_id: bytes, segment: int) -> int:
        """The presence bits of a segment, its first chunk lowest; 0 also when the index fails."""
        try:
            return self._index.present(object_id, segment)
        except CacheUnavailable as error:
            log.error("%s", error)
            return 0

    def cached_bytes(self, version: ObjectVersion) -> int:
        """Bytes of the version that are on disk, to a chunk."""
        try:
            return min(version.size, self._index.present_chunks(version.object_id) * CHUNK_SIZE)
        except CacheUnavailable:
            return 0

    def listing(self, key: bytes) -> bytes | None:
        """A listing kept under `key`; None also when the index fails."""
        try:
            return self._index.listing(key)
        except CacheUnavailable:
            return None

    def put_listing(self, key: bytes, packed: bytes) -> None:
        """Keep a listing, while there is room for it under the bound. Blocks."""
        if self._index.used() + len(packed) <= self._bound():
            self._index.put_listing(key, packed)

    def used(self) -> int:
        """Bytes of disk spoken for, index included."""
        try:
            return self._index.used()
        except CacheUnavailable:
            return 0

    def read(self, version: ObjectVersion, first: int, kept: Sequence[Kept], into: Sequence[memoryview]) -> list[bool]:
        """Read adjacent chunks from `first` on into their buffers and verify each; says which are right. Blocks."""
        try:
            whole = self._files.read(version.object_id, kept[0].generation, first * CHUNK_SIZE, into)
        except OSError as error:
            log.debug("object file: %s", error)
            return [False] * len(kept)
        return [
            whole and block_sums(view) == one.sums[: _sums_length(view)] for view, one in zip(into, kept, strict=True)
        ]

    def read_part(self, version: ObjectVersion, number: int, kept: Kept, start: int, stop: int) -> bytes | None:
        """Bytes [start, stop) of one chunk, reading and verifying only the blocks they lie in; None if wrong.
        Blocks."""
        low = start - start % BLOCK_SIZE
        high = min(version.chunk_length(number), -(-stop // BLOCK_SIZE) * BLOCK_SIZE)
        view = self._scratch.view(high - low)
        try:
            if not self._files.read(version.object_id, kept.generation, number * CHUNK_SIZE + low, [view]):
                return None
        except OSError as error:
            log.debug("object file: %s", error)
            return None
        at = low // BLOCK_SIZE * 8
        if block_sums(view) != kept.sums[at : at + _sums_length(view)]:
            return None
        return bytes(view[start - low : stop - low])

    def keep(self, chunks: Sequence[Verified]) -> int:
        """Write the chunks and count them as present, making room first; how many were kept. Blocks."""
        generations = {chunk.version.object_id: self._index.generation(chunk.version) for chunk in chunks}
        runs = _runs(chunks, generations)
        size = sum(disk_size(len(chunk.view)) for chunk in chunks)
        if not self._claim([run for run, _ in runs], size):
            if len(chunks) == 1:
                return 0
            half = len(chunks) // 2
            return self.keep(chunks[:half]) + self.keep(chunks[half:])
        if self._strays(runs):
            # Making room took the very object that is written: its file is gone, and a new one has another name.
            self._index.settle(self._directory.daemon, [])
            return self.keep(chunks)
        written: list[Written] = []
        finished = 0
        try:
            for run, members in runs:
                self._files.write(members[0].version, run.generation, run.first, [chunk.view for chunk in members])
                written += [Written(c.version, run.generation, c.number, c.sums) for c in members]
                finished += 1
        except OSError as error:
            self._clear([run for run, _ in runs[finished:]])
            self._index.settle(self._directory.daemon, written)
            raise CacheUnavailable(f"cannot write to the cache: {error}") from error
        self._clear(self._strays(runs))  # another daemon made room meanwhile
        return self._index.settle(self._directory.daemon, written)

    def _strays(self, runs: list[tuple[Run, list[Verified]]]) -> list[Run]:
        """The files, as runs, that the index no longer knows by their generation: what is in them belongs to nobody."""
        return [
            Run(run.object_id, run.generation, 0, WHOLE_FILE)
            for run, members in runs
            if self._index.generation(members[0].version) != run.generation
        ]

    def touch(self, segments: set[tuple[bytes, int]]) -> None:
        """These (object_id, segment) were read. Blocks."""
        self._index.touch(segments)

    def discard(self, version: ObjectVersion, number: int) -> None:
        """Forget one chunk whose bytes on disk are wrong. Blocks."""
        self._dig(self._index.discard(version.object_id, number))

    def close(self) -> None:
        """Flush the index and leave the directory."""
        self._files.close()
        try:
            self._index.close()
        finally:
            self._directory.close()

    def _claim(self, runs: list[Run], size: int) -> bool:
        """Claim space, evicting until there is enough or nothing is left to evict. Not at the price of the whole cache:
        what is more than half of the bound is for the caller to split."""
        if self._max_size is not None and size > max(CHUNK_SIZE, self._max_size // 2):
            return False
        while not self._index.claim(self._directory.daemon, runs, size, self._bound()):
            lacking = self._index.used() + size - self._bound()
            buried = self._index.bury(max(lacking, size))
            if not buried:
                return False
            self._dig(buried)
        return True

    def _bound(self) -> int:
        """What `used` may reach now: the limit set, and what the filesystem can give beyond what it must keep free."""
        found = os.statvfs(self._directory.path)
        total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        min_free = int(self._min_free * total) if isinstance(self._min_free, float) else self._min_free
        bound = self._index.used() + free - min_free
        return (bound if self._max_size is None else min(bound, self._max_size)) - INDEX_SLACK

    def _dig(self, buried: list[Run]) -> None:
        before = self._index.used()
        for run in buried:
            try:
                self._files.clear(run)
            except OSError as error:
                # Not dug: the bytes stay spoken for, and the next start tries again.
                log.error("cannot clear evicted bytes: %s", error)
                continue
            self._index.dug(run)
        self.evicted_bytes += max(0, before - self._index.used())

    def _clear(self, runs: list[Run]) -> None:
        for run in runs:
            try:
                self._files.clear(run)
            except OSError as error:
                log.error("cannot clear a failed write: %s", error)

    def _finish(self) -> None:
        """Finish what killed daemons began: dig their graves, clear what they wrote and never counted."""
        try:
            alive = self._directory.alive()
            graves, claims = self._index.unfinished(alive)
            # A daemon that lives digs its own graves; digging one for it could punch what it has written there since.
            self._dig(graves if alive == {self._directory.daemon} else [])
            for daemon, runs in claims.items():
                for run in runs:
                    missing = [n for n in range(run.first, run.stop) if self._index.kept(run.object_id, n) is None]
                    self._clear([Run(run.object_id, run.generation, n, n + 1) for n in missing])
                self._index.settle(daemon, [])
        except CacheUnavailable as error:
            log.warning("what an earlier daemon left in the cache could not be cleared: %s", error)


def _open_index(directory: CacheDirectory) -> Index:
    if (directory.lost_power() or cut_short(directory.index)) and not verify(directory.index):
        raise CacheUnavailable("it was not written to its end, as when the machine stops, and it does not verify")
    return Index(directory.index)


def _sums_length(view: memoryview) -> int:
    return -(-len(view) // BLOCK_SIZE) * 8


def _runs(chunks: Sequence[Verified], generations: dict[bytes, int]) -> list[tuple[Run, list[Verified]]]:
    """The chunks as runs of adjacent ones, each one write."""
    groups: list[list[Verified]] = []
    for chunk in sorted(chunks, key=lambda c: (c.version.object_id, c.number)):
        last = groups[-1][-1] if groups else None
        if last and last.version == chunk.version and last.number + 1 == chunk.number:
            groups[-1].append(chunk)
        else:
            groups.append([chunk])
    return [
        (Run(g[0].version.object_id, generations[g[0].version.object_id], g[0].number, g[-1].number + 1), g)
        for g in groups
    ]
