"""Whole objects judged over a store in memory and a real disk: when, by what, what of those that are wrong, and with a
disk that does not keep them."""

import dataclasses
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing
from awscrt.checksums import crc64nvme

from lazyfs.cache import digester
from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.digest import Hashing, from_sums
from lazyfs.cache.disk import Disk, Verified
from lazyfs.cache.memory import Memory
from lazyfs.cache.passing import Passing
from lazyfs.cache.quiet import PAUSE
from lazyfs.cache.records import Run
from lazyfs.cache.sums import block_sums, joined
from lazyfs.cache.threads import Workers
from lazyfs.cache.verdicts import Expected, Verdict, difference, pack, unpack
from lazyfs.cache.verifier import Verifier
from lazyfs.errors import Corrupt, StoreError, Unreachable
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, MIB, Checksums, ObjectVersion
from tests.rooms.building import CacheMaker, Inline, keep, object_files, pattern, verified, version_of
from tests.rooms.memory_store import MemoryStore

DATA = pattern(3 * MIB + 70_001)
CRC = crc64nvme(DATA)
SHA = hashlib.sha256(DATA).hexdigest()


@dataclass
class Someone:
    """The fake at the edge: says what a test lets it say."""

    known: Checksums = field(default_factory=Checksums)
    name: str = "s3"
    error: StoreError | None = None
    asked: int = 0

    def witness(self, version: ObjectVersion) -> str:
        """See `Witnesses.witness`."""
        return self.name

    async def expected(self, version: ObjectVersion) -> Expected:
        """See `Witnesses.expected`."""
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return Expected(self.known, self.name)


@dataclass
class Bench:
    """A verifier with all it needs, and one object."""

    disk: Disk
    store: MemoryStore = field(default_factory=MemoryStore)
    witness: Someone = field(default_factory=Someone)
    spoiled: list[ObjectVersion] = field(default_factory=list)

    @asynccontextmanager
    async def running(
        self, *, automatic: bool = True, patience: float = 0.0, workers: Workers | None = None
    ) -> AsyncIterator[tuple[ChunkCache, Verifier]]:
        """As a mount runs them."""
        async with trio.open_nursery() as nursery:
            chunks = ChunkCache(
                store=self.store,
                disk=self.disk,
                memory=Memory(8 * MIB),
                nursery=nursery,
                span_size=8 * MIB,
                workers=workers,
            )
            verifier = Verifier(
                chunks=chunks,
                disk=self.disk,
                witnesses=self.witness,
                nursery=nursery,
                spoiled=self.spoiled.append,
                automatic=automatic,
                patience=patience,
            )
            nursery.start_soon(chunks.writer.run)
            yield chunks, verifier
            await over(chunks, verifier)
            assert chunks.idle()
            nursery.cancel_scope.cancel()


async def over(chunks: ChunkCache, verifier: Verifier) -> None:
    """Wait until everything is written and judged."""
    while not chunks.idle() or verifier.statistics().under_way:
        await chunks.writer.settled()
        await trio.lowlevel.checkpoint()


async def read_all(chunks: ChunkCache, version: ObjectVersion) -> bytes:
    """All bytes, a chunk at a time."""
    found = bytearray()
    for start in range(0, version.size, CHUNK_SIZE):
        found += await chunks.read(version, start, min(start + CHUNK_SIZE, version.size))
    return bytes(found)


@pytest.fixture
def roomy(caches: CacheMaker) -> Bench:
    """With a disk that keeps everything."""
    return Bench(caches.open())


@pytest.fixture
def tight(caches: CacheMaker) -> Bench:
    """With a disk that cannot keep the object."""
    return Bench(caches.open(max_size=4 * MIB))


def tampered(store: MemoryStore, key: str, wrong: bytes) -> None:
    """From here on the store gives other bytes under the same ETag."""
    _, info = store._objects[key]
    store._objects[key] = (wrong, info)


WRONG = DATA[:MIB] + b"\xff" + DATA[MIB + 1 :]


async def test_the_last_chunk_brings_the_verdict(roomy: Bench) -> None:
    """Not before all is on disk, and once."""
    version = roomy.store.put("k", DATA)
    roomy.witness.known = Checksums(SHA, CRC)
    async with roomy.running() as (chunks, verifier):
        await chunks.read(version, 0, MIB)
        await over(chunks, verifier)
        assert roomy.witness.asked == 0
        assert await read_all(chunks, version) == DATA
        await over(chunks, verifier)
        found = verifier.verdict(version)
        assert found is not None
        assert (found.held, found.sha256, found.wrong) == ("sha256", SHA, "")
        for _ in range(2):
            verifier.opened(version)
            verifier.kept(version)
        await over(chunks, verifier)
    assert roomy.witness.asked == 1
    assert sum(call.stop - call.start for call in roomy.store.calls) == len(DATA)


PATIENCE = 20.0


async def keep_reading(chunks: ChunkCache, version: ObjectVersion, seconds: float) -> None:
    """A chunk again and again, with never a quiet moment."""
    until = trio.current_time() + seconds
    while trio.current_time() < until:
        await chunks.read(version, 0, 1)
        await trio.sleep(PAUSE * 0.4)


@asynccontextmanager
async def put_off(roomy: Bench, reading: float) -> AsyncIterator[tuple[Verifier, ObjectVersion]]:
    """An object whose SHA-256 is known and that is here, and somebody who reads it for some seconds from now on."""
    version = roomy.store.put("k", DATA)
    roomy.witness.known = Checksums(SHA)
    async with roomy.running(patience=PATIENCE, workers=Inline()) as (chunks, verifier), trio.open_nursery() as nursery:
        assert await read_all(chunks, version) == DATA
        await chunks.writer.settled()
        nursery.start_soon(keep_reading, chunks, version, reading)
        yield verifier, version
        nursery.cancel_scope.cancel()


async def judged(verifier: Verifier) -> float:
    """Wait for the first verdict, and say when that was."""
    while not verifier.statistics().verified:  # noqa: ASYNC110 - the clock jumps
        await trio.sleep(0.01)
    return trio.current_time()


@pytest.mark.parametrize(("reading", "least", "most"), [(5.0, 5.0, 6.0), (100.0, PATIENCE, PATIENCE + 1)])
async def test_a_sha256_is_put_off_while_somebody_reads(
    roomy: Bench, autojump_clock: trio.testing.MockClock, reading: float, least: float, most: float
) -> None:
    """And not for ever."""
    async with put_off(roomy, reading) as (verifier, _):
        began = trio.current_time()
        assert least <= await judged(verifier) - began <= most


async def test_who_asks_for_what_was_put_off_has_it(roomy: Bench, autojump_clock: trio.testing.MockClock) -> None:
    """At the next look."""
    async with put_off(roomy, 100.0) as (verifier, version):
        await trio.sleep(2.0)
        assert verifier.progress(version)["done"] == 0
        began = trio.current_time()
        verifier.demand(version)
        assert await judged(verifier) - began <= 2 * PAUSE


async def test_who_asks_does_not_wait_for_what_was_put_off_before(
    roomy: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    """It has its turn first, and hurries."""
    roomy.witness.known = Checksums(SHA)
    versions = [roomy.store.put(key, DATA) for key in ("k", "l")]
    async with roomy.running(patience=PATIENCE, workers=Inline()) as (chunks, verifier), trio.open_nursery() as nursery:
        for version in versions:
            assert await read_all(chunks, version) == DATA
        await chunks.writer.settled()
        nursery.start_soon(keep_reading, chunks, versions[0], 100.0)
        await trio.sleep(2.0)
        began = trio.current_time()
        verifier.demand(versions[1])
        while verifier.statistics().verified < 2:  # noqa: ASYNC110 - the clock jumps
            await trio.sleep(0.01)
        assert trio.current_time() - began <= 4 * PAUSE
        nursery.cancel_scope.cancel()


async def test_hashing_goes_on_from_where_it_was_when_somebody_reads_between(
    roomy: Bench, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece at a time, and each after a pause of its own."""
    version = roomy.store.put("k", DATA)
    roomy.witness.known = Checksums(SHA)
    monkeypatch.setattr(digester, "TOGETHER", 1)
    pieces: list[float] = []
    some = Hashing.some

    def disturbed(self: Hashing, most: int, *more: Any) -> bool:
        pieces.append(trio.current_time())
        reading.looks[0] += 1
        return some(self, most, *more)

    monkeypatch.setattr(Hashing, "some", disturbed)
    async with roomy.running(patience=PATIENCE, workers=Inline()) as (reading, verifier):
        assert await read_all(reading, version) == DATA
        await judged(verifier)
    assert len(pieces) == version.chunk_count
    assert all(after - before >= PAUSE for before, after in pairwise(pieces))


async def test_a_chunk_that_is_fetched_again_while_the_others_are_hashed_is_hashed_too(
    roomy: Bench, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is the same, and what was hashed before is no longer in it."""
    version = roomy.store.put("k", DATA)
    roomy.witness.known = Checksums(SHA)
    monkeypatch.setattr(digester, "TOGETHER", 2)
    some = Hashing.some
    calls = 0

    def replaced(self: Hashing, most: int, *more: Any) -> bool:
        nonlocal calls
        calls += 1
        if calls == 2:
            generation = roomy.disk.generation(version)
            roomy.disk.discard(version, 1)
            keep(roomy.disk, version, WRONG, [1])
            assert roomy.disk.generation(version) == generation
        return some(self, most, *more)

    monkeypatch.setattr(Hashing, "some", replaced)
    async with roomy.running(patience=PATIENCE, workers=Inline()) as (chunks, verifier):
        assert await read_all(chunks, version) == DATA
        await judged(verifier)
        assert (verifier.statistics().wrong, verifier.statistics().mended) == (1, 1)
        assert await read_all(chunks, version) == DATA


async def test_who_asks_for_what_was_put_off_has_what_is_missing_fetched(
    roomy: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    """It was evicted meanwhile."""
    async with put_off(roomy, 100.0) as (verifier, version):
        await trio.sleep(1.0)
        roomy.disk.drop([version.object_id])
        verifier.demand(version)
        await judged(verifier)
        assert verifier.progress(version)["outcome"] == "sha256"


async def test_a_checksum_that_costs_nothing_is_not_put_off(
    roomy: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    """Where both are known: what arrived wrong is seen at once."""
    version = roomy.store.put("k", DATA)
    roomy.witness.known = Checksums(SHA, CRC)
    async with roomy.running(patience=PATIENCE, workers=Inline()) as (chunks, verifier), trio.open_nursery() as nursery:
        tampered(roomy.store, "k", WRONG)
        assert await read_all(chunks, version) == WRONG
        tampered(roomy.store, "k", DATA)
        await chunks.writer.settled()
        began = trio.current_time()
        nursery.start_soon(keep_reading, chunks, version, 100.0)
        while not verifier.statistics().mended:  # noqa: ASYNC110 - the clock jumps
            await trio.sleep(0.01)
        assert trio.current_time() - began < PATIENCE / 2
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("known", [Checksums(crc64nvme=CRC), Checksums(SHA), Checksums(SHA, CRC)])
async def test_wrong_bytes_are_fetched_once_more(roomy: Bench, known: Checksums) -> None:
    """And kept when they are right then."""
    version = roomy.store.put("k", DATA)
    roomy.witness.known = known
    async with roomy.running() as (chunks, verifier):
        tampered(roomy.store, "k", WRONG)
        assert await read_all(chunks, version) == WRONG
        tampered(roomy.store, "k", DATA)
        await over(chunks, verifier)
        assert dataclasses.asdict(verifier.statistics()) | {"verified": 1, "wrong": 1, "mended": 1} == (
            dataclasses.asdict(verifier.statistics())
        )
        assert roomy.spoiled == [version]
        assert await read_all(chunks, version) == DATA


async def test_what_is_fetched_in_place_of_a_damaged_chunk_is_compared_too(roomy: Bench, place: Path) -> None:
    """What was found of the version was of the bytes before."""
    version = roomy.store.put("k", DATA)
    roomy.witness.known = Checksums(SHA)
    async with roomy.running() as (chunks, verifier):
        assert await read_all(chunks, version) == DATA
    (file,) = object_files(place)
    with file.open("r+b") as opened:
        opened.seek(MIB + 5)
        opened.write(bytes([DATA[MIB + 5] ^ 1]))
    tampered(roomy.store, "k", WRONG)
    async with roomy.running() as (chunks, verifier):
        verifier.opened(version)
        assert verifier.settled(version)
        assert await read_all(chunks, version) == WRONG
        assert not verifier.settled(version)
        tampered(roomy.store, "k", DATA)
        await over(chunks, verifier)
        assert (chunks.statistics().corrupt, verifier.statistics().wrong, verifier.statistics().mended) == (1, 1, 1)
        assert await read_all(chunks, version) == DATA
        assert verifier.settled(version)


async def test_wrong_bytes_are_fetched_once_more_whoever_was_killed_in_them(roomy: Bench) -> None:
    """A daemon that was killed while it wrote some of the version has a claim on it, and nothing that is claimed can be
    forgotten."""
    version = roomy.store.put("k", DATA)
    roomy.witness.known = Checksums(SHA)
    run = Run(version.object_id, roomy.disk.index.generation(version), 0, 1)
    assert roomy.disk.index.claim(12345, [run], MIB, 1 << 50, [version])
    async with roomy.running() as (chunks, verifier):
        tampered(roomy.store, "k", WRONG)
        assert await read_all(chunks, version) == WRONG
        tampered(roomy.store, "k", DATA)
        await over(chunks, verifier)
        assert (verifier.statistics().mended, verifier.statistics().refused) == (1, 0)
        assert await read_all(chunks, version) == DATA


@pytest.mark.parametrize("which", ["roomy", "tight"])
async def test_what_stays_wrong_is_refused(which: str, request: pytest.FixtureRequest) -> None:
    """On a disk that keeps it, which remembers, and on one that cannot."""
    bench: Bench = request.getfixturevalue(which)
    version = bench.store.put("k", DATA)
    bench.witness.known = Checksums(crc64nvme=CRC)
    tampered(bench.store, "k", WRONG)
    async with bench.running() as (chunks, verifier):
        assert await read_all(chunks, version) == WRONG
        await over(chunks, verifier)
        assert (verifier.statistics().wrong, verifier.statistics().refused) == (1, 1)
        asked = len(bench.store.calls)
        with pytest.raises(Corrupt, match="also when fetched again"):
            await chunks.read(version, 0, 10)
        assert chunks.start(version, 0, version.size, demand=10) == 0
        assert len(bench.store.calls) == asked
    async with bench.running() as (chunks, verifier):
        verifier.opened(version)
        with pytest.raises(Corrupt):
            await chunks.read(version, 0, 10)
        bench.witness.name = "somebody else"
        tampered(bench.store, "k", DATA)
        verifier.opened(version)
        assert await read_all(chunks, version) == DATA
        await over(chunks, verifier)
        assert verifier.statistics().verified == 1


async def test_what_the_disk_does_not_keep_is_judged_by_its_checksums(tight: Bench) -> None:
    """Once, whatever is read again."""
    version = tight.store.put("k", DATA * 2)
    tight.witness.known = Checksums(crc64nvme=crc64nvme(DATA * 2))
    async with tight.running() as (chunks, verifier):
        for _ in range(3):
            assert await read_all(chunks, version) == DATA * 2
            await over(chunks, verifier)
        assert verifier.statistics().verified == 1
        assert verifier.verdict(version) is None, "there is nothing on disk that it would hold for"
        assert tight.witness.asked == 1


async def test_a_sha256_of_what_is_not_kept_cannot_be_had(tight: Bench) -> None:
    version = tight.store.put("k", DATA * 2)
    tight.witness.known = Checksums(sha256=hashlib.sha256(DATA * 2).hexdigest())
    async with tight.running() as (chunks, verifier):
        assert await read_all(chunks, version) == DATA * 2
        await over(chunks, verifier)
        assert (verifier.statistics().verified, verifier.statistics().wrong) == (0, 0)


async def test_readers_wait_for_the_second_attempt(roomy: Bench) -> None:
    """And get what it brought. If it cannot be made, they go on, and the next is the last."""
    version = roomy.store.put("k", DATA)
    roomy.witness.known = Checksums(crc64nvme=CRC)
    waited: list[bytes] = []
    async with roomy.running() as (chunks, verifier):
        chunks.barred.hold(version)
        async with trio.open_nursery() as nursery:

            async def reader() -> None:
                waited.append(bytes(await chunks.read(version, 0, 10)))

            nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            assert waited == []
            assert roomy.store.calls == []
            chunks.barred.admit(version)
        assert waited == [DATA[:10]]
        tampered(roomy.store, "k", WRONG)
        await read_all(chunks, version)
        await over(chunks, verifier)
        assert verifier.statistics().refused == 1


async def test_a_second_attempt_that_fails_leaves_the_question_open(roomy: Bench) -> None:
    version = roomy.store.put("k", DATA)
    roomy.witness.known = Checksums(crc64nvme=CRC)
    tampered(roomy.store, "k", WRONG)
    calls = 0

    def fault(call: object) -> object:
        nonlocal calls
        calls += 1
        return None

    roomy.store.fault = fault  # type: ignore[assignment]
    async with roomy.running() as (chunks, verifier):
        assert await read_all(chunks, version) == WRONG
        roomy.store.delete("k")
        await over(chunks, verifier)
        assert (verifier.statistics().wrong, verifier.statistics().refused) == (1, 0)
        assert verifier.progress(version)["words"]
        assert version not in chunks.barred


async def test_who_cannot_be_asked_is_asked_at_the_next_open(roomy: Bench) -> None:
    version = roomy.store.put("k", DATA)
    roomy.witness.known = Checksums(crc64nvme=CRC)
    roomy.witness.error = Unreachable("down")
    async with roomy.running() as (chunks, verifier):
        assert await read_all(chunks, version) == DATA
        await over(chunks, verifier)
        assert verifier.verdict(version) is None
        roomy.witness.error = None
        verifier.opened(version)
        await over(chunks, verifier)
        found = verifier.verdict(version)
        assert found is not None
        assert found.held == "crc64nvme"


async def test_on_demand_everything_is_fetched_and_read(roomy: Bench) -> None:
    """Also where nothing is looked at by itself."""
    version = roomy.store.put("k", DATA)
    async with roomy.running(automatic=False) as (chunks, verifier):
        await read_all(chunks, version)
        await over(chunks, verifier)
        assert roomy.witness.asked == 0
        await chunks.forget(version)
        assert verifier.demand(version)["step"] == "asking"
        await over(chunks, verifier)
        found = verifier.progress(version)
        assert (found["step"], found["outcome"], found["done"]) == ("done", "none", len(DATA))
        assert roomy.disk.generation(version) is not None
        verdict = verifier.verdict(version)
        assert verdict is not None
        assert verdict.sha256 == SHA, "nobody had one to compare with, and now it is known"
        assert verifier.progress(dataclasses.replace(version, key="other")) == {}


@pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE, CHUNK_SIZE, CHUNK_SIZE + 1, len(DATA)])
def test_checksums_of_blocks_come_to_that_of_the_object(size: int, caches: CacheMaker) -> None:
    data = DATA[:size]
    version = version_of("k", data)
    disk = caches.open()
    keep(disk, version, data, range(version.chunk_count))
    assert from_sums(disk, version, {}) == Checksums(crc64nvme=crc64nvme(data))
    total = 0
    for start in range(0, size, CHUNK_SIZE):
        piece = memoryview(data)[start : start + CHUNK_SIZE]
        total = joined(total, len(piece), block_sums(piece) + bytes(8))
    assert total == crc64nvme(data)


def test_what_passed_completes_what_is_kept(caches: CacheMaker) -> None:
    """Chunk by chunk, and no more once it is forgotten."""
    version = version_of("k", DATA)
    disk = caches.open()
    passing = Passing(disk)
    keep(disk, version, DATA, [0, 2])
    for number in (1, 3):
        assert not passing.complete(version)
        passing.note(verified(version, DATA, number))
    assert passing.complete(version)
    assert from_sums(disk, version, passing.sums(version)) == Checksums(crc64nvme=CRC)
    passing.forget(version)
    assert (len(passing), passing.complete(version)) == (0, False)


@pytest.mark.parametrize("order", [range(640), range(639, -1, -1), [*range(1, 640, 2), *range(0, 640, 2)]])
def test_whether_all_is_here_is_not_asked_of_all_each_time(order: Sequence[int]) -> None:
    """Ten segments, told of chunk by chunk, asked after each: every segment is looked at a few times and not for every
    chunk, which took minutes of the loop for an object of 100 GiB."""
    size = 640 * CHUNK_SIZE
    version, here, looks = ObjectVersion("p", "k", '"e"', size), set[int](), 0

    class Segments:
        def generation(self, _: ObjectVersion) -> None:
            return None

        def present(self, _: bytes, segment: int) -> int:
            nonlocal looks
            looks += 1
            return sum(1 << number % 64 for number in here if number // 64 == segment)

    passing = Passing(cast(Disk, Segments()))
    passing.note(Verified(version, 700, memoryview(b""), b""))  # so that something is remembered of it
    for number in order:
        assert not passing.complete(version)
        here.add(number)
    assert passing.complete(version)
    assert looks <= 640 + 4 * 10


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """A bound that a test can reach."""
    monkeypatch.setattr("lazyfs.cache.passing.MOST", 3)
    return 3


def test_only_so_much_is_remembered_of_what_passed(few: int, caches: CacheMaker) -> None:
    """The latest."""
    passing = Passing(caches.open())
    versions = [version_of(f"k{n}", DATA) for n in range(4)]
    for version in versions:
        passing.note(verified(version, DATA, 0))
    assert len(passing) == few
    assert [bool(passing.sums(version)) for version in versions] == [False, True, True, True]


def test_differences_are_named() -> None:
    """Whose word it is, and both digests; what only one side has says nothing."""
    version = version_of("k", DATA)
    right = Checksums(SHA, CRC)
    for known in (right, Checksums(), Checksums(SHA), Checksums(crc64nvme=CRC)):
        assert difference(version, Expected(known), right) == ""
    assert difference(version, Expected(Checksums(SHA)), Checksums(crc64nvme=CRC)) == ""
    assert difference(version, Expected(Checksums("0" * 64), "k.sha256"), right) == (
        f"the SHA-256 of 'k' is {SHA}, and k.sha256 says {'0' * 64}"
    )
    assert difference(version, Expected(Checksums(SHA, 7)), right) == (
        f"the CRC64NVME of 'k' is {CRC:016x}, and S3 says 0000000000000007"
    )


def test_verdicts_as_bytes() -> None:
    """Come back as they were; anything else is none."""
    found = Verdict("sha256", 7, 'k.sha256 "1"', SHA)
    assert unpack(pack(found)) == found
    wrong = [pack(found)[:-1], b"[" * 5000, pack(found).replace(b": 7", b': "7"', 1)]
    for packed in (None, b"", b"{}", b"[]", b"null", *wrong):
        assert unpack(packed) is None
