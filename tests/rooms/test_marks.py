"""Marks: a touch of a chunk that has them reads the pages it wants, what those are compared with, and who gets them."""

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest
import trio
import trio.testing

from lazyfs.cache import quiet
from lazyfs.cache.checking import check
from lazyfs.cache.disk import Disk, Verified
from lazyfs.cache.index import Index
from lazyfs.cache.marker import MOST, TOGETHER, Marker
from lazyfs.cache.marks import ROW
from lazyfs.cache.quiet import PAUSE
from lazyfs.cache.records import CHUNK_SUMS, HEAD, segment_key
from lazyfs.cache.sums import block_sums, mark_sums, of_blocks
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, KIB, MARK_SIZE, MIB, SEGMENT_CHUNKS, ObjectVersion
from tests.rooms.building import CacheMaker, Inline, bury, keep, object_files, pattern, version_of
from tests.rooms.caching import caching
from tests.rooms.memory_store import MemoryStore

TAIL = BLOCK_SIZE + MARK_SIZE + 777
"""Bytes of a last chunk: a block, a page, and a little of the next one."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each read of an object file."""
    found: list[int] = []
    real = os.preadv

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        found.append(sum(map(len, buffers)))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    return found


def touched(disk: Disk, version: ObjectVersion, start: int, stop: int) -> bytes | None:
    """Bytes [start, stop) of one chunk of the object, as a touch gets them from the disk."""
    number = start // CHUNK_SIZE
    kept = disk.kept(version.object_id, number, partly=True)
    base = number * CHUNK_SIZE
    return None if kept is None else disk.read_part(version, number, kept, start - base, stop - base)


def keep_marked(disk: Disk, version: ObjectVersion, data: bytes, numbers: Sequence[int]) -> int:
    """Put these chunks on disk, with marks; how many were kept."""
    kept = keep(disk, version, data, numbers)
    disk.mark(version, numbers)
    return kept


def rows(disk: Disk) -> dict[bytes, bytes]:
    """The marks that are kept, by segment."""
    with disk.index.look() as (txn, tables), txn.cursor(tables.marks) as cursor:
        return {bytes(key): bytes(value) for key, value in cursor}


def change(disk: Disk, version: ObjectVersion, changed: Callable[[bytearray], None]) -> None:
    """Change the marks of the object's first segment."""
    key = segment_key(version.object_id, 0)
    with disk.index.change() as (txn, tables):
        value = bytearray(txn.get(key, db=tables.marks) or b"")
        changed(value)
        txn.put(key, bytes(value), db=tables.marks)


def damage(place: Path, offset: int) -> None:
    """Flip a bit of the only object file."""
    (file,) = object_files(place)
    with file.open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([byte ^ 4]))


@pytest.mark.parametrize(
    "length", [1, 100, MARK_SIZE, MARK_SIZE + 1, BLOCK_SIZE, BLOCK_SIZE + 1, TAIL, CHUNK_SIZE]
)
def test_every_sixteenth_is_the_checksum_of_its_block(length: int) -> None:
    """So that no byte is read twice for both; a block that ends early repeats its last."""
    view = memoryview(pattern(length))
    marks = mark_sums(view)
    assert of_blocks(marks) == block_sums(view)
    for at in range(0, length, MARK_SIZE):
        begin = at - at % BLOCK_SIZE
        upto = view[begin : at + MARK_SIZE]
        assert marks[at // MARK_SIZE * 8 :][:8] == block_sums(upto)


@pytest.mark.parametrize(
    ("start", "stop", "read"),
    [
        (0, 4 * KIB, [MARK_SIZE]),
        (MARK_SIZE, MARK_SIZE + 1, [MARK_SIZE]),
        (BLOCK_SIZE - 1, BLOCK_SIZE, [MARK_SIZE]),
        (3 * MARK_SIZE - 1, 3 * MARK_SIZE + 1, [2 * MARK_SIZE]),
        (BLOCK_SIZE - 5, BLOCK_SIZE + 5, [2 * MARK_SIZE]),
        (5 * MARK_SIZE, 5 * MARK_SIZE + 2 * BLOCK_SIZE, [2 * BLOCK_SIZE]),
        (CHUNK_SIZE - 4 * KIB, CHUNK_SIZE, [MARK_SIZE]),
        (CHUNK_SIZE + BLOCK_SIZE + 1, CHUNK_SIZE + BLOCK_SIZE + 2, [MARK_SIZE]),
        (CHUNK_SIZE + TAIL - 1, CHUNK_SIZE + TAIL, [777]),
        (CHUNK_SIZE + 1, CHUNK_SIZE + TAIL, [TAIL]),
    ],
)
def test_a_touch_reads_the_pages_that_it_lies_in(
    caches: CacheMaker, asked: list[int], start: int, stop: int, read: list[int]
) -> None:
    """Also for the next daemon, across blocks, and at the short end of the object."""
    data = pattern(CHUNK_SIZE + TAIL)
    version = version_of("k", data)
    disk = caches.open()
    assert keep_marked(disk, version, data, [0, 1]) == 2
    caches.close(disk)
    disk = caches.open()
    asked.clear()
    assert touched(disk, version, start, stop) == data[start:stop]
    assert asked == read


def test_damage_beside_a_page_does_not_matter_to_it(caches: CacheMaker, place: Path) -> None:
    """And in it is found, by the whole block as well."""
    data = pattern(MIB)
    version = version_of("k", data)
    disk = caches.open()
    keep_marked(disk, version, data, [0])
    damage(place, MARK_SIZE + 9)
    assert touched(disk, version, MARK_SIZE, MARK_SIZE + 4096) is None
    assert touched(disk, version, 0, MARK_SIZE + 1) is None
    for start in (0, 2 * MARK_SIZE, 3 * MARK_SIZE, BLOCK_SIZE):
        assert touched(disk, version, start, start + 4096) == data[start : start + 4096]


@pytest.mark.parametrize("place_of_mark", [0, 7, 15])
def test_marks_that_are_wrong_cost_a_second_read(caches: CacheMaker, asked: list[int], place_of_mark: int) -> None:
    """Whichever of a block's sixteen it is, and whatever touch meets it: the bytes are right all the same."""
    data = pattern(MIB)
    version = version_of("k", data)
    disk = caches.open()
    keep_marked(disk, version, data, [0])

    def flip(value: bytearray) -> None:
        value[BLOCK_SIZE // MARK_SIZE * 8 + place_of_mark * 8] ^= 1

    change(disk, version, flip)
    asked.clear()
    for page in range(16):
        start = BLOCK_SIZE + page * MARK_SIZE
        assert touched(disk, version, start, start + 9) == data[start : start + 9]
    assert asked.count(BLOCK_SIZE) == (16 if place_of_mark == 15 else 2)
    assert asked.count(MARK_SIZE) == 16


def test_marks_of_other_bytes_are_not_believed(caches: CacheMaker, asked: list[int]) -> None:
    """A lazyfs that knows no marks evicted the chunk, and what it fetched then was kept without new ones."""
    data, others = pattern(MIB), pattern(MIB, 1)
    version = version_of("k", data)
    disk = caches.open()
    keep_marked(disk, version, others, [0])
    left = rows(disk)
    assert disk.drop([version.object_id])[0] == MIB
    view = memoryview(data)
    assert disk.keep([Verified(version, 0, view, block_sums(view))]) == 1
    with disk.index.change() as (txn, tables):
        for key, value in left.items():
            txn.put(key, value, db=tables.marks)
    kept = disk.kept(version.object_id, 0, partly=True)
    assert kept is not None
    assert not kept.marks
    assert touched(disk, version, 5, 10) == data[5:10]
    # Not even where the first block is the same.
    changed = left[segment_key(version.object_id, 0)][:120] + block_sums(view)[:8]

    def mix(value: bytearray) -> None:
        value[: len(changed)] = changed

    change(disk, version, mix)
    kept = disk.kept(version.object_id, 0, partly=True)
    assert kept is not None
    assert kept.marks
    asked.clear()
    assert touched(disk, version, BLOCK_SIZE + 5, BLOCK_SIZE + 10) == data[BLOCK_SIZE + 5 : BLOCK_SIZE + 10]
    assert touched(disk, version, 5, 10) == data[5:10]
    assert asked == [MARK_SIZE, BLOCK_SIZE] * 2


def test_marks_that_fit_do_not_make_wrong_bytes_right(caches: CacheMaker, place: Path) -> None:
    """All of a chunk's bytes and marks are another's, but for the mark by which a chunk's row is known."""
    data, others = pattern(MIB), pattern(MIB, 1)
    version = version_of("k", data)
    disk = caches.open()
    keep_marked(disk, version, data, [0])
    (file,) = object_files(place)
    file.write_bytes(others)
    marks = mark_sums(memoryview(others))

    def swap(value: bytearray) -> None:
        value[:] = marks
        value[120:128] = block_sums(memoryview(data))[:8]

    change(disk, version, swap)
    for start in (BLOCK_SIZE - 50, BLOCK_SIZE, 5 * BLOCK_SIZE + MARK_SIZE):
        assert touched(disk, version, start, start + 100) is None


def test_a_record_that_is_damaged_serves_no_wrong_bytes(caches: CacheMaker) -> None:
    """Its seal is not looked at where there are marks: a generation or a checksum that is wrong is found by reading."""
    data = pattern(2 * MIB)
    version = version_of("k", data)
    disk = caches.open()
    keep_marked(disk, version, data, [0])
    key = segment_key(version.object_id, 0)
    with disk.index.look() as (txn, tables):
        whole = bytes(txn.get(key, db=tables.segments) or b"")
    for at in (*range(HEAD.size), HEAD.size, HEAD.size + 9, HEAD.size + CHUNK_SUMS, len(whole) - 1):
        for bit in range(8):
            record = bytearray(whole)
            record[at] ^= 1 << bit
            with disk.index.change() as (txn, tables):
                txn.put(key, bytes(record), db=tables.segments)
            for start in (0, BLOCK_SIZE, MIB):
                assert touched(disk, version, start, start + 50) in (None, data[start : start + 50])
    for other in (whole[:-1], whole[:10], whole + b"x", b""):
        with disk.index.change() as (txn, tables):
            txn.put(key, other, db=tables.segments)
        assert touched(disk, version, 0, 50) is None


def test_who_has_none(caches: CacheMaker, place: Path) -> None:
    """A chunk that nobody asked marks for, one that is not here, one that is here in part, and one that is damaged."""
    data = pattern(5 * MIB)
    version = version_of("k", data)
    disk = caches.open()
    keep(disk, version, data, [0, 3])
    view = memoryview(data)[2 * MIB : 2 * MIB + 3 * BLOCK_SIZE]
    assert disk.keep([Verified(version, 2, view, block_sums(view))]) == 1
    damage(place, 3 * MIB + 5)
    disk.mark(version, [1, 2, 3])
    disk.mark(version_of("other", data), [0])
    assert rows(disk) == {}
    for start in (0, 2 * MIB):
        assert touched(disk, version, start, start + 5) == data[start : start + 5]


def test_a_record_ends_with_its_last_row(caches: CacheMaker) -> None:
    """And chunks that come later, in any order, leave the others' rows alone."""
    data = pattern(4 * MIB)
    version = version_of("k", data)
    disk = caches.open()
    for number, length in ((1, 2), (3, 4), (0, 4), (2, 4)):
        assert keep_marked(disk, version, data, [number]) == 1
        (record,) = rows(disk).values()
        assert len(record) == length * ROW
        sums = [mark_sums(memoryview(data)[n * MIB : (n + 1) * MIB]) for n in range(length)]
        held = [n for n in range(length) if disk.kept(version.object_id, n)]
        assert [record[n * ROW : (n + 1) * ROW] == sums[n] for n in range(length)] == [n in held for n in range(length)]


@pytest.mark.parametrize("how", ["bury", "drop", "forget"])
def test_they_go_with_their_segment(caches: CacheMaker, how: str) -> None:
    """Whatever makes a segment go, of an object that is complete or not."""
    data = pattern((SEGMENT_CHUNKS + 1) * MIB)
    disk = caches.open()
    complete, other = version_of("complete", data[: 2 * MIB]), version_of("other", data)
    keep_marked(disk, complete, data[: 2 * MIB], [0, 1])
    keep_marked(disk, other, data, [3, SEGMENT_CHUNKS])
    assert len(rows(disk)) == 3
    left: list[int] = []
    for version in (complete, other, other):
        match how:
            case "bury":
                bury(disk, 1)
            case "drop":
                disk.drop([version.object_id])
            case "forget":
                disk.forget(version)
        left.append(len(rows(disk)))
    assert left == ([2, 1, 0] if how == "bury" else [2, 0, 0])


def test_fsck_takes_away_what_was_left(caches: CacheMaker, place: Path) -> None:
    """Marks without a segment are no damage: a lazyfs that knows none has evicted it."""
    data = pattern(2 * MIB)
    version, gone = version_of("k", data), version_of("gone", data)
    disk = caches.open()
    keep_marked(disk, version, data, [0])
    with disk.index.change() as (txn, tables):
        txn.put(segment_key(gone.object_id, 0), bytes(ROW), db=tables.marks)
    caches.close(disk)
    for mend in (False, True):
        found: Any = check(place, mend=mend, quick=False, told=lambda done, total: None)
        assert (found.status, found.problems) == ("clean", [])
    disk = caches.open()
    assert list(rows(disk)) == [segment_key(version.object_id, 0)]


def test_an_index_without_the_table(caches: CacheMaker, place: Path, asked: list[int]) -> None:
    """One of an earlier lazyfs, opened only to be read, as a lower layer is, or to go on with."""
    data = pattern(2 * MIB)
    version = version_of("k", data)
    disk = caches.open()
    keep_marked(disk, version, data, [0])
    caches.close(disk)
    with lmdb.open(str(place / "index"), max_dbs=16) as env:
        table = env.open_db(b"marks")
        with env.begin(write=True) as txn:
            txn.drop(table)
    reading = Index(place / "index", to_read=True, alone=True)
    kept = reading.kept(version.object_id, 0, partly=True)
    reading.close()
    assert kept is not None
    assert (kept.sums, kept.marks) == (block_sums(memoryview(data)[:MIB]), b"")
    disk = caches.open()
    asked.clear()
    assert touched(disk, version, 5, 10) == data[5:10]
    assert asked == [BLOCK_SIZE]
    assert keep_marked(disk, version, data, [1]) == 1
    asked.clear()
    assert touched(disk, version, MIB + 5, MIB + 10) == data[MIB + 5 : MIB + 10]
    assert asked == [MARK_SIZE]


# ---- when they are made


async def test_who_touches_what_is_on_disk_finds_marks_there_the_next_time(
    caches: CacheMaker, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that was touched is marked when nobody reads any more; none that was read through, or has one block."""
    monkeypatch.setattr(quiet, "PAUSE", 0.0)
    store, disk, data = MemoryStore(), caches.open(), pattern(3 * MIB + BLOCK_SIZE)
    version = store.put("k", data)
    keep(disk, version, data, range(4))
    async with caching(store, disk) as cache, trio.open_nursery() as nursery:
        for start in (MIB + 9, 3 * MIB + 9):
            assert await cache.read(version, start, start + 9) == data[start : start + 9]
        await cache.read(version, 0, MIB)
        assert cache.statistics().unmarked == 1
        assert rows(disk) == {}
        nursery.start_soon(cache.marker.run)
        while cache.statistics().unmarked:
            await trio.testing.wait_all_tasks_blocked()
        (record,) = rows(disk).values()
        assert [bool(record[at : at + ROW].strip(b"\0")) for at in range(0, len(record), ROW)] == [False, True]
        asked.clear()
        assert await cache.read(version, MIB + 90_000, MIB + 90_009) == data[MIB + 90_000 : MIB + 90_009]
        assert (asked, cache.statistics().unmarked) == ([MARK_SIZE], 0)
        assert store.gets() == []
        nursery.cancel_scope.cancel()


class Marking:
    """What a marker had marked, and when, while `reads` is the number of reads so far; as many as `disturbed` come with
    the next chunks that are marked."""

    def __init__(self) -> None:
        self.reads = 0
        self.marked: list[tuple[str, list[int]]] = []
        self.times: list[float] = []
        self.disturbed = 0
        self.error: Exception | None = None

    def mark(self, version: ObjectVersion, numbers: Sequence[int]) -> None:
        """See `Marker`."""
        self.marked.append((version.key, list(numbers)))
        self.times.append(trio.current_time())
        self.reads += self.disturbed
        self.disturbed = 0
        if self.error is not None:
            raise self.error

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Marker]:
        """A marker that runs for a while."""
        async with trio.open_nursery() as nursery:
            made = Marker(mark=self.mark, workers=Inline(), reads=lambda: self.reads)
            nursery.start_soon(made.run)
            yield made
            nursery.cancel_scope.cancel()


async def test_nothing_is_marked_while_somebody_reads(autojump_clock: trio.testing.MockClock) -> None:
    """However long that is; and a read between two batches makes the second one wait."""
    marking, version = Marking(), version_of("k", b"")
    async with marking.running() as running:
        for number in range(2 * TOGETHER + 1):
            running.touched(version, 2 * TOGETHER - number)
        for _ in range(100):
            marking.reads += 1
            await trio.sleep(PAUSE * 0.9)
        assert marking.marked == []
        marking.disturbed = 1
        began = trio.current_time()
        await trio.sleep(10 * PAUSE)
        numbers = list(range(2 * TOGETHER + 1))
        batches = [numbers[:TOGETHER], numbers[TOGETHER : 2 * TOGETHER], numbers[2 * TOGETHER :]]
        assert marking.marked == [("k", batch) for batch in batches]
        first, second, third = (at - began for at in marking.times)
        assert 0 < first <= PAUSE
        assert second - first >= PAUSE
        assert third == second
        assert len(running) == 0


async def test_each_segment_by_itself(autojump_clock: trio.testing.MockClock) -> None:
    """In the order in which they were touched first, whatever was touched in between; once each."""
    marking, one, other = Marking(), version_of("one", b""), version_of("other", b"")
    async with marking.running() as running:
        for version, number in ((one, 3), (other, 5), (one, SEGMENT_CHUNKS), (one, 1), (one, 3)):
            running.touched(version, number)
        assert len(running) == 4
        await trio.sleep(3 * PAUSE)
        assert marking.marked == [("one", [1, 3]), ("other", [5]), ("one", [SEGMENT_CHUNKS])]
        assert len(running) == 0


@pytest.mark.parametrize(
    ("error", "level"), [(CacheUnavailable("full"), "DEBUG"), (OSError(12, "memory"), "DEBUG"), (KeyError(), "ERROR")]
)
async def test_what_fails_is_given_up_and_ends_nothing(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, error: Exception, level: str
) -> None:
    """With all that waits, for the next would fail as well; touched again, it is tried again. A defect is told."""
    caplog.set_level("DEBUG", "lazyfs.cache.marker")
    marking, one, other = Marking(), version_of("one", b""), version_of("other", b"")
    marking.error = error
    async with marking.running() as running:
        for version, number in ((one, 3), (other, 5)):
            running.touched(version, number)
        await trio.sleep(100 * PAUSE)
        assert marking.marked == [("one", [3])]
        assert len(running) == 0
        assert [record.levelname for record in caplog.records] == [level]
        marking.error = None
        running.touched(other, 5)
        await trio.sleep(3 * PAUSE)
        assert marking.marked[1:] == [("other", [5])]


async def test_the_oldest_touches_are_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    """A segment at a time, so that what waits is bounded."""
    marking, version = Marking(), version_of("k", b"")
    async with marking.running() as running:
        for number in range(MOST + 10):
            running.touched(version, number)
        assert len(running) == MOST + 10 - SEGMENT_CHUNKS
        await trio.sleep(2 * PAUSE)
        assert [n for _, numbers in marking.marked for n in numbers] == list(range(SEGMENT_CHUNKS, MOST + 10))


# ---- what the marks that are wrong, or missing, must not lead to


def test_no_marks_are_kept_for_a_segment_that_went_meanwhile(caches: CacheMaker, place: Path) -> None:
    """Another daemon may evict it between the reading and the writing; and none where they would pass the bound."""
    data = pattern(2 * MIB)
    version = version_of("k", data)
    disk = caches.open()
    keep(disk, version, data, [0, 1])
    disk.index.put_marks(version.object_id, {SEGMENT_CHUNKS + 1: bytes(ROW)})
    assert rows(disk) == {}
    disk.room._max_size = disk.used() + MIB
    disk.mark(version, [0, 1])
    assert rows(disk) == {}
    disk.room._max_size = None
    disk.mark(version, [0, 1])
    assert len(rows(disk)) == 1


async def test_a_damaged_record_with_good_marks_is_no_damaged_chunk(caches: CacheMaker) -> None:
    """A touch finds it out by reading; the chunk is fetched again, and nothing is called damaged that nobody looked at:
    its record could not be discarded."""
    store, disk, data = MemoryStore(), caches.open(), pattern(MIB)
    version = store.put("k", data)
    keep_marked(disk, version, data, [0])
    key = segment_key(version.object_id, 0)
    with disk.index.change() as (txn, tables):
        record = bytearray(txn.get(key, db=tables.segments) or b"")
        record[HEAD.size + 5 * 8] ^= 1
        txn.put(key, bytes(record), db=tables.segments)
    async with caching(store, disk) as cache:
        assert await cache.read(version, 5 * BLOCK_SIZE, 5 * BLOCK_SIZE + 9) == data[5 * BLOCK_SIZE :][:9]
        assert cache.statistics().corrupt == 0
        await trio.testing.wait_all_tasks_blocked()
        await cache.writer.flush()
    assert disk.kept(version.object_id, 0) is not None


async def test_what_cannot_have_marks_does_not_wait_for_them(caches: CacheMaker) -> None:
    """A chunk that is here in part, and one of a single block."""
    store, disk, data = MemoryStore(), caches.open(), pattern(2 * MIB)
    version, small = store.put("k", data), store.put("small", data[:BLOCK_SIZE])
    view = memoryview(data)[: 3 * BLOCK_SIZE]
    assert disk.keep([Verified(version, 0, view, block_sums(view))]) == 1
    keep(disk, small, data[:BLOCK_SIZE], [0])
    async with caching(store, disk) as cache:
        for one in (version, small):
            assert await cache.read(one, 5, 10) == data[5:10]
        assert cache.statistics().disk_hits == 2
        assert cache.statistics().unmarked == 0
    assert store.gets() == []
