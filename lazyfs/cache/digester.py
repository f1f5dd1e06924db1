"""The digests that a judgement needs, had by whatever costs least.

Its job: combine checksums, read the object file, or take the chunks one by one as they come, where the disk does not
hold all of the object at once.

Must not know what the digests are compared with. Loop thread only; what takes long is done by the workers.
"""

import hashlib
from dataclasses import dataclass

import trio

from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.digest import Damaged, Hashing, from_sums
from lazyfs.cache.disk import Disk
from lazyfs.cache.passing import Passing
from lazyfs.cache.quiet import Quiet
from lazyfs.cache.sums import block_sums, joined
from lazyfs.cache.verdicts import Expected
from lazyfs.errors import LazyfsError
from lazyfs.objects import CHUNK_SIZE, Checksums, ObjectVersion

PIECE = 16 * CHUNK_SIZE
"""Bytes brought at a time by a job that needs all of an object: some of memory, and no more."""

ROUNDS = 3
"""Attempts to read an object from disk, while it is evicted or found damaged."""


PATIENCE = 30.0
"""Seconds for which a SHA-256 that nobody waits for is put off while somebody reads. On two cores a model of 2 GiB was
used in 4.6 s where it took its 2.3 s of a processor at once, and in 3.6 s where it waited (medians of three)."""

TOGETHER = 32
"""Chunks hashed before anybody looks whether there was a read: some 40 ms of a processor."""


@dataclass(slots=True, eq=False)
class Job:
    """One object being looked at: which step, and how many of its `total` bytes are done in it. `whole`: what is
    missing of it is fetched. `urgent`: somebody waits. `outcome` is a digest's name or NONE, empty with the reason in
    `words`."""

    total: int
    whole: bool
    urgent: bool = False
    step: str = "asking"
    done: int = 0
    outcome: str = ""
    words: str = ""


class Incomplete(LazyfsError):
    """Not all of the object is here."""


class Digester:
    """Makes the digests of versions."""

    def __init__(self, *, chunks: ChunkCache, disk: Disk, passing: Passing, patience: float) -> None:
        self._chunks = chunks
        self._patience = patience
        # One object at a time; those whose turn it is or will be. One that is urgent hurries those before it.
        self._turn = trio.Lock()
        self._waiting: list[Job] = []
        self._disk = disk
        self._passing = passing

    async def digests(self, version: ObjectVersion, expected: Expected, job: Job) -> tuple[Checksums, int | None]:
        """The digests that are needed, and the generation of the object file that they are of: None if not all is on
        disk at once. `Incomplete` if not all of it is here or was, as far as that is enough for what is expected; a job
        that wants it all fetches what is missing."""
        if not version.size:
            return Checksums(hashlib.sha256().hexdigest(), 0), 0
        for _ in range(ROUNDS):
            if job.whole:
                await self._bring(version, job)
            generation = self._disk.generation(version)
            if generation is None:
                break
            job.step, job.done = "verifying", 0
            try:
                found = await self._read(version, expected, job)
            except Damaged as damaged:
                await self._chunks.found_wrong(version, damaged.number, damaged.kept)
                job.whole = True
                continue
            if found is not None and self._disk.generation(version) == generation:
                if not found.sha256 or await self._still(version, found):
                    return found, generation
                continue
            if not job.whole:
                break
        known = expected.checksums
        if job.whole and known.strongest != "crc64nvme":
            return await self._streamed(version, job), None
        if not known.sha256 or known.crc64nvme is not None:
            combined = await self._combined(version)
            if combined is not None:
                return combined, None
            if job.whole:
                return await self._streamed(version, job), None
        raise Incomplete(f"{version.key!r} cannot be verified: not all of it is in the cache")

    async def _read(self, version: ObjectVersion, expected: Expected, job: Job) -> Checksums | None:
        known = expected.checksums
        if not job.whole and not known.sha256:
            return Checksums() if known.crc64nvme is None else await self._combined(version)
        if not job.urgent and known.crc64nvme is not None:
            # Costs nothing, and is not to wait until nobody reads.
            combined = await self._combined(version)
            if combined is None or combined.crc64nvme != known.crc64nvme:
                return combined
        left = False

        def told(done: int) -> None:
            job.done = done

        def urgent() -> bool:
            return any(one.urgent for one in self._waiting)

        quiet, until = Quiet(self._chunks.reads), trio.current_time() + self._patience
        hashing = Hashing(self._disk, version)
        self._waiting.append(job)
        try:
            async with self._turn:
                while (found := hashing.digests) is None:
                    await quiet.wait(until - trio.current_time(), urgent)
                    most = version.chunk_count if urgent() else TOGETHER
                    if not await self._chunks.workers.look(hashing.some, most, told, lambda: left):
                        return None
            return found
        finally:
            self._waiting.remove(job)
            left = True

    async def _still(self, version: ObjectVersion, found: Checksums) -> bool:
        """Whether what is on disk is what was hashed: between two pieces a chunk may have been found damaged and
        fetched again, into the same file."""
        now = await self._chunks.workers.look(from_sums, self._disk, version, {})
        return now is not None and now.crc64nvme == found.crc64nvme

    async def _combined(self, version: ObjectVersion) -> Checksums | None:
        passed = dict(self._passing.sums(version))
        return await self._chunks.workers.look(from_sums, self._disk, version, passed)

    async def _streamed(self, version: ObjectVersion, job: Job) -> Checksums:
        """Of the bytes as they are served, in their order, whether the disk keeps them or not."""
        job.step, job.done = "verifying", 0
        sha256, total = hashlib.sha256(), 0
        for number in range(version.chunk_count):
            data = await self._chunks.copy(version, number)
            total = joined(total, len(data), block_sums(memoryview(data)))
            await self._chunks.workers.look(sha256.update, data)
            job.done += len(data)
        return Checksums(sha256.hexdigest(), total)

    async def _bring(self, version: ObjectVersion, job: Job) -> None:
        job.step, job.done = "fetching", 0
        for start in range(0, version.size, PIECE):
            stop = min(start + PIECE, version.size)
            await self._chunks.bring(version, start, stop)
            job.done = stop
