"""Warming: files are brought to the disk before anybody reads them, and are there when it is over.

Its job: jobs that count what is missing, say so if it cannot fit, bring it piece by piece behind whatever readers wait
for, at a rate if one is set, and do so again for what the disk did not keep. Must not know names, nor who asked.

What is brought goes to the disk through a quarter of memory, for all jobs together, and chunks that readers have there
stay. Before it begins, the files themselves and those that are open count as used just now, so that what goes from a
full cache is neither; what is pinned never goes.

Concurrency: loop thread only. A job ends with the daemon; what it has brought stays.
"""

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import trio

from lazyfs.cache import catalogue
from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.disk import Disk
from lazyfs.cache.pins import PinSet
from lazyfs.cache.records import disk_size
from lazyfs.errors import LazyfsError, NotFound, ObjectChanged, UsageError
from lazyfs.objects import CHUNK_SIZE, MIB, SEGMENT_CHUNKS, ObjectVersion

log = logging.getLogger(__name__)

Wanted = tuple[ObjectVersion, Callable[[], None]]
"""A version, and what to call if it turns out to be another one by now."""

Source = Callable[[], AsyncGenerator[Wanted, None]]
"""Gives what is to be warmed, every time it is called, as it is then."""

MOST_PIECES = 8
"""Pieces on their way at once; each is several GETs."""

GRID = 8
"""Chunks: a piece is so many or a multiple, if memory allows, so that GETs are of full size."""

RECORD_SIZE = 12 * 1024
"""Bytes that the index may grow by for a segment."""

STRIKES = 6
"""Rounds that brought nothing more, one after another, before a job is given up; with pauses of 16 s in all."""

ENDED = 32
"""Jobs that are over and whose outcome may still be asked for."""

MOST_PROBLEMS = 20
"""Sentences of a job that are kept."""


@dataclass(slots=True)
class Warming:
    """One job. `step` is listing, fetching or done; `outcome` is then warm or cancelled, or empty with the reason in
    `words`. `bytes_here` of `bytes` are on disk, of `files_here` of `files` all; `fetched` were brought by this job."""

    name: str
    rate: int | None = None
    step: str = "listing"
    files: int = 0
    files_here: int = 0
    bytes: int = 0
    bytes_here: int = 0
    fetched: int = 0
    outcome: str = ""
    words: str = ""
    problems: list[str] = field(default_factory=list)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    free_at: float = 0.0
    strikes: int = 0

    def public(self) -> dict[str, Any]:
        """What may be told of it."""
        hidden = {"scope", "ended", "free_at", "strikes"}
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in hidden}


class Warmer:
    """The jobs of one mount. `open_now` gives the versions that are open, `opened` is told of each before it is
    brought."""

    def __init__(
        self,
        *,
        chunks: ChunkCache,
        disk: Disk,
        nursery: trio.Nursery,
        slots: int,
        open_now: Callable[[], Collection[ObjectVersion]],
        opened: Callable[[ObjectVersion], None] = lambda _: None,
    ) -> None:
        self._chunks = chunks
        self._disk = disk
        self._nursery = nursery
        self._open_now = open_now
        self._opened = opened
        share = max(1, slots // 4)
        self._ways = max(1, min(MOST_PIECES, share // GRID))
        piece = max(1, min(SEGMENT_CHUNKS, share // self._ways))
        self._piece = piece - piece % GRID if piece >= GRID else piece
        self._places = trio.CapacityLimiter(self._ways)
        self._running: dict[str, Warming] = {}
        self._ended: OrderedDict[str, Warming] = OrderedDict()

    def start(self, name: str, source: Source, rate: int | None = None) -> Warming:
        """Begin a job, at `rate` bytes a second at most; one that has this name already goes on as it is."""
        found = self.find(name)
        if found is not None:
            return found
        job = self._running[name] = Warming(name, rate)
        self._nursery.start_soon(self._run, job, source)
        return job

    def find(self, name: str) -> Warming | None:
        """The job of this name, running or over."""
        return self._running.get(name) or self._ended.get(name)

    def running(self) -> list[dict[str, Any]]:
        """What may be told in short of the jobs that run now."""
        long = {"problems", "words"}
        return [{k: v for k, v in job.public().items() if k not in long} for job in self._running.values()]

    def cancel(self) -> int:
        """Stop all of them; how many. What is on its way arrives."""
        for job in self._running.values():
            job.scope.cancel()
        return len(self._running)

    # ---- one job

    async def _run(self, job: Warming, source: Source) -> None:
        try:
            with job.scope:
                await self._warm(job, source)
            if job.scope.cancelled_caught:
                job.outcome, job.words = "cancelled", "it was cancelled"
        except LazyfsError as error:
            job.words = str(error)
        except Exception as error:
            log.exception("a defect while warming")
            job.words = f"a defect: {type(error).__name__}: {error}"
        finally:
            job.step = "done"
            del self._running[job.name]
            self._ended[job.name] = job
            if len(self._ended) > ENDED:
                self._ended.popitem(last=False)
            job.ended.set()

    async def _warm(self, job: Warming, source: Source) -> None:
        await self._fit(job, source)
        missing = job.bytes - job.bytes_here
        while missing:
            job.step = "fetching"
            job.problems.clear()
            await self._round(job, source)
            await self._count(job, source)
            left = job.bytes - job.bytes_here
            if job.problems and not left < missing:
                raise LazyfsError(job.problems[0])
            job.strikes = 0 if left < missing else job.strikes + 1
            if job.strikes == STRIKES:
                raise LazyfsError(
                    f"the disk does not keep {_mib(left)} of it: it is full, too slow, or readers need the room"
                )
            if job.strikes:
                await trio.sleep(0.25 * 2**job.strikes)
            missing = min(left, missing) if left else 0
        job.problems.clear()
        job.outcome = "warm"

    async def _fit(self, job: Warming, source: Source) -> None:
        """Count, and raise `UsageError` if it cannot all be on disk beside what is pinned or open."""
        workers = self._chunks.workers
        pins: PinSet = await workers.look(catalogue.pins, self._disk.index)
        opened = {version.object_id: version for version in self._open_now()}
        held = {one: await workers.look(self._disk.taken, version) for one, version in opened.items()}
        mine = 0
        needed = growth = 0
        touched: set[tuple[bytes, int]] = set()
        for version in opened.values():
            touched |= self._segments(version)
        async with aclosing(self._versions(job, source)) as versions:
            async for version, present in versions:
                needed += disk_size(version.size - self._disk.below(version))
                growth += RECORD_SIZE * (-(-(version.chunk_count - present) // SEGMENT_CHUNKS))
                if version.object_id in held or pins.cover(version.place, version.key):
                    mine += await workers.look(self._disk.taken, version)
                if present:
                    touched |= self._segments(version)
                if len(touched) >= 4096:
                    await self._chunks.writer.step(self._disk.touch, touched)
                    touched = set()

        def must_stay() -> int:
            pinned = catalogue.pinned_bytes(self._disk.index, lambda one: one.object_id not in held)
            return pinned + sum(held.values())

        others = max(0, await workers.look(must_stay) - mine)
        room = await workers.look(self._disk.room.capacity)
        if needed + growth + others > room:
            beside = f" beside {_mib(others)} that are pinned or open" if others else ""
            raise UsageError(
                f"the files need {_mib(needed + growth)}, and the cache has room for {_mib(max(0, room - others))}"
                f"{beside}: nothing was fetched; raise --max-cache-size, unpin something, or warm less"
            )
        if touched:
            await self._chunks.writer.step(self._disk.touch, touched)

    def _segments(self, version: ObjectVersion) -> set[tuple[bytes, int]]:
        count = -(-version.chunk_count // SEGMENT_CHUNKS)
        return {(version.object_id, n) for n in range(count) if self._disk.present(version.object_id, n)}

    async def _count(self, job: Warming, source: Source) -> None:
        """Set the numbers of the job to what is so now."""
        async with aclosing(self._versions(job, source)) as versions:
            async for _ in versions:
                pass

    async def _versions(self, job: Warming, source: Source) -> AsyncGenerator[tuple[ObjectVersion, int], None]:
        """All versions, with how many chunks of each are on disk; what is seen is counted in the job at the end."""
        files = here = size = size_here = 0
        async with aclosing(source()) as wanted:
            async for version, _ in wanted:
                present = min(self._disk.cached_chunks(version), version.chunk_count)
                files += 1
                here += present == version.chunk_count
                size += version.size
                size_here += min(version.size, present * CHUNK_SIZE)
                yield version, present
                if files % 256 == 0:
                    await trio.lowlevel.checkpoint()
        job.files, job.files_here, job.bytes, job.bytes_here = files, here, size, size_here

    async def _round(self, job: Warming, source: Source) -> None:
        """Bring what is missing, once."""
        piece = self._piece if job.rate is None else max(1, min(self._piece, job.rate // (4 * MIB)))
        send, receive = trio.open_memory_channel[tuple[ObjectVersion, Callable[[], None], range, "_Left"]](0)
        async with trio.open_nursery() as nursery, send:
            for _ in range(self._ways):
                nursery.start_soon(self._work, job, receive)
            async with aclosing(source()) as wanted:
                async for version, changed in wanted:
                    if self._disk.generation(version) is not None or not version.size:
                        continue
                    self._opened(version)
                    starts = range(0, version.chunk_count, piece)
                    left = _Left(len(starts))
                    for first in starts:
                        numbers = range(first, min(first + piece, version.chunk_count))
                        await send.send((version, changed, numbers, left))

    async def _work(self, job: Warming, receive: Any) -> None:
        async for version, changed, numbers, left in receive:
            before = self._here(version, numbers)
            missing = sum(version.chunk_length(number) for number in numbers) - before
            if missing:
                await self._pace(job, missing)
                try:
                    async with self._places:
                        await self._bring(version, numbers)
                except LazyfsError as error:
                    if isinstance(error, (ObjectChanged, NotFound)):
                        changed()
                        if not job.strikes:
                            continue  # the next round lists it anew
                    if len(job.problems) < MOST_PROBLEMS and str(error) not in job.problems:
                        job.problems.append(str(error))
            brought = max(0, self._here(version, numbers) - before)
            job.fetched += brought
            job.bytes_here = min(job.bytes, job.bytes_here + brought)
            left.pieces -= 1
            if not left.pieces and self._disk.generation(version) is not None:
                job.files_here = min(job.files, job.files_here + 1)

    async def _bring(self, version: ObjectVersion, numbers: range) -> None:
        start, stop = numbers.start * CHUNK_SIZE, min(version.size, numbers.stop * CHUNK_SIZE)
        try:
            if version in self._chunks.barred:
                await self._chunks.barred.passed(version)
            await self._chunks.bring(version, start, stop)
        except trio.Cancelled:
            self._chunks.drop(version, start, stop)
            raise

    def _here(self, version: ObjectVersion, numbers: range) -> int:
        """Bytes of these chunks that are on disk."""
        bits, segment, total = 0, -1, 0
        for number in numbers:
            if number // SEGMENT_CHUNKS != segment:
                segment = number // SEGMENT_CHUNKS
                bits = self._disk.present(version.object_id, segment)
            if bits >> number % SEGMENT_CHUNKS & 1:
                total += version.chunk_length(number)
        return total

    async def _pace(self, job: Warming, size: int) -> None:
        """Wait until the job may bring so many bytes more."""
        if job.rate is None:
            return
        now = trio.current_time()
        begin = max(now, job.free_at)
        job.free_at = begin + size / job.rate
        await trio.sleep_until(begin)


class _Left:
    """Pieces of a file that are to come."""

    __slots__ = ("pieces",)

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB" if size < 1024 * MIB else f"{size / (1024 * MIB):.1f} GiB"
