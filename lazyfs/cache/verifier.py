"""Whether whole objects are what their source says: P20 of the promises, end to end.

Its job: when all of an object is on disk, compare its bytes with the strongest digest that somebody has of it. What
does not agree is taken out of service and fetched once more, while its readers wait; what is wrong again is refused for
good. Must not know who has digests (`Witnesses` does), nor names.

A CRC64-NVME costs no reading: the chunks' own checksums combine into it, as soon as they are here. A SHA-256 takes the
bytes, read from disk in a thread of its own, one object at a time, each block compared with its own checksum on the
way, and waits a while for readers to be quiet.

Concurrency: loop thread only. At most one job for a version. What a verdict says is kept in the index, so a warm start
asks nobody.
"""

import dataclasses
import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.digester import PATIENCE, Digester, Incomplete, Job
from lazyfs.cache.disk import Disk
from lazyfs.cache.passing import Passing
from lazyfs.cache.verdicts import NONE, Expected, Verdict, difference, pack, unpack
from lazyfs.errors import Corrupt, LazyfsError
from lazyfs.objects import Checksums, ObjectVersion

log = logging.getLogger(__name__)

RESULTS = 256
"""Jobs that are over and whose outcome may still be asked for."""

QUIET = 60.0
"""Seconds between two warnings about objects without a digest; those in between are only counted."""


class Witnesses(Protocol):
    """Who says what an object must come to."""

    def witness(self, version: ObjectVersion) -> str:
        """Whom `expected` would ask, without asking; another answer than before opens the question again."""
        ...

    async def expected(self, version: ObjectVersion) -> Expected:
        """What the version must come to. Raises `StoreError` when it cannot be asked for now."""
        ...


@dataclass(frozen=True, slots=True)
class VerifierStatistics:
    """Objects since the start: `verified` agreed with a digest, `without` had none, `wrong` did not agree, `mended` did
    when fetched again, `refused` did not; `under_way` now."""

    verified: int
    without: int
    wrong: int
    mended: int
    refused: int
    under_way: int


class Verifier:
    """The verifier of one mount. `spoiled` is told of versions whose readers may have had wrong bytes."""

    def __init__(
        self,
        *,
        chunks: ChunkCache,
        disk: Disk,
        witnesses: Witnesses,
        nursery: trio.Nursery,
        spoiled: Callable[[ObjectVersion], None],
        automatic: bool = True,
        patience: float = PATIENCE,
    ) -> None:
        """`automatic`: look at every object that is complete; else only at those that are asked for. `patience`:
        seconds for which a look that nobody waits for, and that takes a processor, is put off while somebody reads."""
        self._chunks = chunks
        self._disk = disk
        self._witnesses = witnesses
        self._nursery = nursery
        self._spoiled = spoiled
        self._automatic = automatic
        self._jobs: dict[bytes, Job] = {}
        self._ended: OrderedDict[bytes, Job] = OrderedDict()
        self._suspects: set[bytes] = set()
        self._quiet_until = -math.inf
        self._counts = dict.fromkeys(("verified", "without", "wrong", "mended", "refused"), 0)
        self._passing = Passing(disk)
        self._digester = Digester(chunks=chunks, disk=disk, passing=self._passing, patience=patience)
        self._unsettled: dict[bytes, ObjectVersion] = {}
        # Witnesses of versions that agreed, but of which some is not on disk, and so no verdict is kept.
        self._agreed: OrderedDict[bytes, str] = OrderedDict()
        chunks.writer.on_kept = self.kept
        if automatic:
            chunks.writer.on_fresh = self._passing.note

    def statistics(self) -> VerifierStatistics:
        """A frozen copy of the counters."""
        return VerifierStatistics(**self._counts, under_way=len(self._jobs))

    def verdict(self, version: ObjectVersion) -> Verdict | None:
        """What was found of the version, if that still holds for the bytes on disk."""
        found = unpack(self._disk.verdict(version.object_id))
        if found is None or found.wrong or found.generation == self._disk.generation(version):
            return found
        return None

    def settled(self, version: ObjectVersion) -> bool:
        """Whether what was found of the bytes on disk is not wrong, and its witness would say the same now."""
        found = self.verdict(version)
        return found is not None and not found.wrong and found.witness == self._witnesses.witness(version)

    def kept(self, version: ObjectVersion) -> None:
        """Some of the version came to be on disk, or was given up by it: if all of it is here, look at it; if all of it
        was, once nothing more of anything is going to be."""
        if not self._automatic:
            return
        if self._disk.generation(version) is None:
            self._unsettled[version.object_id] = version
        elif self._open(version):
            self._begin(version, whole=False)
        if not self._chunks.writer.busy:
            settled, self._unsettled = self._unsettled, {}
            for one in settled.values():
                if self._open(one) and self._passing.complete(one):
                    self._begin(one, whole=False)

    def opened(self, version: ObjectVersion) -> None:
        """Somebody is going to read the version."""
        if not version.size or version.object_id in self._jobs:
            return
        found, still_open = self.verdict(version), self._open(version)
        if found is not None and found.wrong and not still_open:
            self._chunks.barred.refuse(version, Corrupt(found.wrong))
            return
        self._chunks.barred.admit(version)
        if self._automatic and still_open and self._disk.generation(version) is not None:
            self._begin(version, whole=False)

    def _open(self, version: ObjectVersion) -> bool:
        """Whether nothing was found of the version by the one who is its witness now."""
        found, witness = self.verdict(version), self._witnesses.witness(version)
        if found is not None:
            return found.witness != witness
        return self._disk.generation(version) is not None or self._agreed.get(version.object_id) != witness

    def demand(self, version: ObjectVersion) -> dict[str, Any]:
        """Look at all bytes of the version, fetching what is missing; how far that is, now and when it has ended."""
        if version.object_id not in self._jobs:
            self._ended.pop(version.object_id, None)
            self._begin(version, whole=True)
        job = self._jobs[version.object_id]
        job.whole = job.urgent = True
        return self.progress(version)

    def progress(self, version: ObjectVersion) -> dict[str, Any]:
        """How far the job of the version is, or what came of its last one; empty if there is none."""
        job = self._jobs.get(version.object_id) or self._ended.get(version.object_id)
        return {} if job is None else dataclasses.asdict(job)

    # ---- one object

    def _begin(self, version: ObjectVersion, *, whole: bool) -> None:
        if version.object_id not in self._jobs:
            job = self._jobs[version.object_id] = Job(version.size, whole)
            self._nursery.start_soon(self._run, version, job)

    async def _run(self, version: ObjectVersion, job: Job) -> None:
        try:
            await self._judge(version, job)
        except LazyfsError as error:
            job.words = str(error)
            if not isinstance(error, (Corrupt, Incomplete)):
                log.info("%r is not verified for now: %s", version.key, error)
        except Exception as error:
            log.exception("a defect while verifying %r", version.key)
            job.words = f"a defect: {type(error).__name__}: {error}"
        finally:
            job.step = "done"
            del self._jobs[version.object_id]
            self._ended[version.object_id] = job
            if len(self._ended) > RESULTS:
                self._ended.popitem(last=False)

    async def _judge(self, version: ObjectVersion, job: Job) -> None:
        expected = await self._witnesses.expected(version)
        found, generation = await self._digester.digests(version, expected, job)
        wrong = difference(version, expected, found)
        if not wrong:
            await self._held(version, expected, found, generation, job)
            return
        self._counts["wrong"] += 1
        again = version.object_id in self._suspects
        self._suspects.add(version.object_id)
        self._chunks.barred.hold(version)
        try:
            self._spoiled(version)
            if not again:
                log.error("WRONG BYTES: %s. They are dropped and fetched again; who has the file open gets EIO", wrong)
                await self._forget(version)
                job.whole = job.urgent = True
                found, generation = await self._digester.digests(version, expected, job)
                wrong = difference(version, expected, found)
            if wrong:
                await self._refuse(version, expected, f"{wrong}, also when fetched again", generation)
            self._counts["mended"] += 1
            log.warning("%r was fetched again, and its bytes are right now", version.key)
            await self._held(version, expected, found, generation, job)
        except Corrupt:
            raise
        except BaseException:
            # It cannot be had again now. What is fetched later is judged when all of it is here, and not a third time.
            self._chunks.barred.admit(version)
            raise

    async def _held(
        self, version: ObjectVersion, expected: Expected, found: Checksums, generation: int | None, job: Job
    ) -> None:
        self._suspects.discard(version.object_id)
        self._chunks.barred.admit(version)
        job.outcome = expected.checksums.strongest or NONE
        if job.outcome == "sha256" and not found.sha256:
            job.outcome = "crc64nvme"
        if expected.checksums.strongest:
            self._counts["verified"] += 1
        elif not expected.quiet:
            self._without(version)
        self._passing.forget(version)
        if generation is None:
            self._agreed[version.object_id] = expected.witness
            if len(self._agreed) > RESULTS:
                self._agreed.popitem(last=False)
            return
        sha256 = found.sha256 or expected.checksums.sha256
        await self._keep(version, Verdict(job.outcome, generation, expected.witness, sha256))

    def _without(self, version: ObjectVersion) -> None:
        self._counts["without"] += 1
        if trio.current_time() >= self._quiet_until:
            self._quiet_until = trio.current_time() + QUIET
            log.warning(
                "%r has no digest to be compared with: S3 has none of the whole object, and there is no .sha256 beside "
                "it; it is read as it came (%d such objects so far)",
                version.key,
                self._counts["without"],
            )

    async def _refuse(self, version: ObjectVersion, expected: Expected, wrong: str, generation: int | None) -> None:
        error = Corrupt(wrong)
        self._counts["refused"] += 1
        self._chunks.barred.refuse(version, error)
        log.critical(
            "WRONG BYTES: %s. Reads of it fail with EIO until the object, or the digest stored beside it, is replaced",
            wrong,
        )
        await self._keep(version, Verdict("", generation or 0, expected.witness, wrong=wrong))
        await self._forget(version)
        raise error

    async def _forget(self, version: ObjectVersion) -> None:
        self._passing.forget(version)
        self._agreed.pop(version.object_id, None)
        await self._chunks.forget(version)

    async def _keep(self, version: ObjectVersion, verdict: Verdict) -> None:
        await self._chunks.writer.step(self._disk.put_verdict, version.object_id, pack(verdict))
