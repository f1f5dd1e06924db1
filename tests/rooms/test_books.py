"""The books of the disk cache where they are damaged, or others have a claim: what is believed, given back and kept."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.cache import catalogue
from lazyfs.cache.books import USED
from lazyfs.cache.checking import check
from lazyfs.cache.directory import CacheDirectory
from lazyfs.cache.disk import TOUCHED, Disk
from lazyfs.cache.index import Index
from lazyfs.cache.records import HEAD, OBJECT, Run, Written, segment_key
from lazyfs.cache.room import INDEX_SLACK
from lazyfs.cache.verdicts import Verdict, pack, unpack
from lazyfs.objects import MIB, SEGMENT_CHUNKS, ObjectVersion
from tests.rooms.building import CacheMaker, allocated, bury, chunk_on, keep, part, pattern, version_of

DATA = pattern(66 * MIB)
VERSION = version_of("model", DATA)


def flip(disk: Disk, key: bytes, at: int, table: str, bits: int = 1) -> None:
    """Flip bits of a byte of a record."""
    with disk.index.change() as (txn, tables):
        value = bytearray(txn.get(key, db=getattr(tables, table)) or b"")
        value[at] ^= bits
        txn.put(key, bytes(value), db=getattr(tables, table))


def spoken_for(disk: Disk) -> int:
    """Bytes that are counted as used, but for those of the index itself."""
    return disk.used() - disk.index.own_size()


def right(disk: Disk) -> list[int]:
    """Which chunks the disk has that are what they should be."""
    return [n for n in range(VERSION.chunk_count) if chunk_on(disk, VERSION, n) == DATA[n * MIB : (n + 1) * MIB]]


def entries(disk: Disk, table: str) -> int:
    """How many records a table has."""
    with disk.index.look() as (txn, tables):
        return int(txn.stat(getattr(tables, table))["entries"])


# ---- damaged records


def test_chunks_kept_where_a_record_is_damaged_are_counted_once(caches: CacheMaker, place: Path) -> None:
    """The object is begun anew, in a file of its own: counted beside what the record had said it would be complete with
    holes in it, and a kernel that reads it past the index would get zeros."""
    disk = caches.open()
    assert keep(disk, VERSION, DATA, range(64)) == 64
    flip(disk, segment_key(VERSION.object_id, 0), HEAD.size + 5, "segments")
    assert disk.present(VERSION.object_id, 0) == 0
    assert keep(disk, VERSION, DATA, range(3)) == 3
    assert (disk.cached_chunks(VERSION), disk.generation(VERSION)) == (3, None)
    disk.room.clear()
    assert spoken_for(disk) == 3 * MIB == allocated(place / "objects")
    assert entries(disk, "lru") == 1
    assert right(disk) == [0, 1, 2]


def test_where_somebody_else_writes_a_damaged_object_nothing_is_counted(caches: CacheMaker, place: Path) -> None:
    """It cannot go, for its file is written; what was written beside is cleared again."""
    disk = caches.open()
    assert keep(disk, VERSION, DATA, range(4)) == 4
    other = CacheDirectory(place, create=False)
    run = Run(VERSION.object_id, disk.index.generation(VERSION), 65, 66)
    assert disk.index.claim(other.daemon, [run], MIB, 1 << 50)
    flip(disk, segment_key(VERSION.object_id, 0), HEAD.size + 5, "segments")
    assert keep(disk, VERSION, DATA, range(4, 6)) == 0
    disk.room.clear()
    assert spoken_for(disk) == 4 * MIB + MIB
    assert disk.index.settle(other.daemon, []) == 0
    assert keep(disk, VERSION, DATA, range(4, 6)) == 2
    disk.room.clear()
    assert spoken_for(disk) == 2 * MIB == allocated(place / "objects")
    other.close()


def test_a_count_that_is_wrong_makes_no_file_whole(caches: CacheMaker) -> None:
    """An object's record has no checksum: who reads past the index is shown no file with holes."""
    disk = caches.open()
    assert keep(disk, VERSION, DATA, range(64)) == 64
    assert not disk.path(VERSION)
    flip(disk, VERSION.object_id, 12, "objects", 2)
    generation = disk.generation(VERSION)
    assert generation is not None, "66 are counted"
    assert disk.lend(VERSION, generation) is None
    assert not disk.path(VERSION)
    flip(disk, VERSION.object_id, 12, "objects", 2)
    assert keep(disk, VERSION, DATA, [64, 65]) == 2
    descriptor = disk.lend(VERSION, generation)
    assert descriptor is not None
    assert os.pread(descriptor, MIB, 65 * MIB) == DATA[65 * MIB :]
    os.close(descriptor)
    assert Path(disk.path(VERSION)).read_bytes() == DATA


@pytest.mark.parametrize(("at", "bits"), [(12, 1), (12, 2), (13, 255), (15, 128)])
def test_a_count_that_is_wrong_stops_no_eviction(caches: CacheMaker, place: Path, at: int, bits: int) -> None:
    """What goes is what the records of the segments say, though they and the object's do not agree."""
    disk = caches.open()
    data = pattern(5000)
    small = version_of("small", data)
    assert keep(disk, small, data, [0]) == 1
    flip(disk, small.object_id, at, "objects", bits)
    assert keep(disk, VERSION, DATA, range(2)) == 2
    assert spoken_for(disk) == 2 * MIB + 8192
    bury(disk, 1)
    assert disk.kept(small.object_id, 0) is None
    assert spoken_for(disk) == 2 * MIB == allocated(place / "objects")


def test_what_is_still_read_past_the_index_is_mended_later(caches: CacheMaker, place: Path) -> None:
    """By a kernel, say, whose daemon was killed: what is damaged is forgotten, and the file is cleared when nobody has
    it open."""
    disk = caches.open()
    data = pattern(3 * MIB)
    version, stray = version_of("m", data), version_of("stray", data)
    assert [keep(disk, one, data, range(3)) for one in (version, stray)] == [3, 3]
    lent = [disk.lend(one, disk.generation(one) or 0) for one in (version, stray)]
    with Path(disk.path(version)).open("r+b") as file:
        file.seek(MIB + 7)
        file.write(bytes([data[MIB + 7] ^ 1]))
    with disk.index.change() as (txn, tables):
        for table in (tables.objects, tables.segments):
            with txn.cursor(table) as cursor:
                assert cursor.set_range(stray.object_id)
                cursor.delete()
    caches.close(disk)
    assert len(check(place, mend=True, quick=False, told=lambda done, total: None).problems) > 1
    (left,) = check(place, mend=True, quick=False, told=lambda done, total: None).problems
    assert left.words.endswith(", and is still read")
    assert not left.mended
    for descriptor in lent:
        assert descriptor is not None
        os.close(descriptor)
    assert check(place, mend=True, quick=False, told=lambda done, total: None).status == "mended"
    assert check(place, mend=False, quick=False, told=lambda done, total: None).status == "clean"
    assert allocated(place / "objects") == 2 * MIB


def test_what_an_earlier_lazyfs_counted_twice_is_given_back(caches: CacheMaker, place: Path) -> None:
    """It had put chunks in the place of a damaged record, beside which the object's count and the books went on."""
    disk = caches.open()
    assert keep(disk, VERSION, DATA, range(64)) == 64
    with disk.index.change() as (txn, tables):
        record = bytearray(txn.get(VERSION.object_id, db=tables.objects) or b"")
        OBJECT.pack_into(record, 0, *OBJECT.unpack_from(record)[:2], 128)
        txn.put(VERSION.object_id, bytes(record), db=tables.objects)
        used = int.from_bytes(txn.get(USED, db=tables.meta) or b"", "little")
        txn.put(USED, (used + 64 * MIB).to_bytes(8, "little"), db=tables.meta)
    assert disk.forget(VERSION)
    assert (spoken_for(disk), allocated(place / "objects")) == (0, 0)


def test_a_verdict_goes_with_any_chunk_that_it_was_about(caches: CacheMaker, place: Path) -> None:
    """Whoever forgets it: a reader, a check of the cache, an eviction of a part of it. One that says that the version
    is wrong stays, for it is about whatever is fetched."""
    disk = caches.open()
    held, wrong = Verdict("sha256", 1, "s3"), Verdict("", 1, "s3", wrong="it is")
    assert keep(disk, VERSION, DATA, range(66)) == 66
    for verdict, left in ((held, None), (wrong, wrong)):
        disk.put_verdict(VERSION.object_id, pack(verdict))
        disk.index.discard(VERSION.object_id, 3)
        assert unpack(disk.verdict(VERSION.object_id)) == left
        disk.put_verdict(VERSION.object_id, pack(verdict))
        bury(disk, 1)
        assert unpack(disk.verdict(VERSION.object_id)) == left
        assert keep(disk, VERSION, DATA, range(66)) > 0
    disk.put_verdict(VERSION.object_id, pack(held))
    with Path(disk.path(VERSION)).open("r+b") as file:
        file.seek(5 * MIB)
        file.write(bytes([DATA[5 * MIB] ^ 1]))
    caches.close(disk)
    assert check(place, mend=True, quick=False, told=lambda done, total: None).status == "mended"
    disk = caches.open()
    assert disk.kept(VERSION.object_id, 5) is None
    assert disk.verdict(VERSION.object_id) is None
    data = DATA[: 64 * MIB + 5000]
    short = version_of("short", data)
    assert keep(disk, short, data, range(65)) == 65
    disk.put_verdict(short.object_id, pack(held))
    generation = disk.generation(short)
    flip(disk, segment_key(short.object_id, 1), HEAD.size + 5, "segments")
    caches.close(disk)
    assert check(place, mend=True, quick=False, told=lambda done, total: None).status == "mended"
    disk = caches.open()
    assert disk.index.generation(short) == generation, "the rest of the file stays"
    assert disk.verdict(short.object_id) is None


# ---- what others have claimed


@pytest.fixture
def dead(place: Path) -> Callable[[Disk, int], int]:
    """Has a daemon, which was killed since, claim a chunk of the object; gives its number."""

    def claim(disk: Disk, number: int) -> int:
        directory = CacheDirectory(place, create=False)
        run = Run(VERSION.object_id, disk.index.generation(VERSION), number, number + 1)
        assert disk.index.claim(directory.daemon, [run], MIB, 1 << 50, [VERSION])
        os.close(directory._lock)
        return directory.daemon

    return claim


def test_what_the_dead_have_claimed_is_forgotten_all_the_same(
    caches: CacheMaker, place: Path, dead: Callable[[Disk, int], int]
) -> None:
    """A whole object, or a chunk that is damaged; and whoever forgets is told while somebody alive writes it."""
    disk = caches.open()
    assert keep(disk, VERSION, DATA, range(2)) == 2
    dead(disk, 1)
    disk.discard(VERSION, 1)
    assert disk.kept(VERSION.object_id, 1) is None
    assert spoken_for(disk) == MIB
    dead(disk, 5)
    assert disk.forget(VERSION)
    assert (spoken_for(disk), allocated(place / "objects")) == (0, 0)
    assert keep(disk, VERSION, DATA, range(2)) == 2
    living = CacheDirectory(place, create=False)
    run = Run(VERSION.object_id, disk.index.generation(VERSION), 5, 6)
    assert disk.index.claim(living.daemon, [run], MIB, 1 << 50)
    assert not disk.forget(VERSION)
    assert right(disk) == [0, 1]
    living.close()


def test_what_others_are_about_to_write_is_not_free(
    caches: CacheMaker, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a filesystem has less left than it must keep when they have written it."""
    disk = caches.open()
    before, lacking = disk.room.bound(), disk.room.lacking(10 * MIB, 0)
    run = Run(VERSION.object_id, disk.index.generation(VERSION), 0, 8)
    found = os.statvfs(place)
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    used = disk.used()
    assert disk.index.claim(77, [run], 8 * MIB, 1 << 50, [VERSION])
    assert disk.used() - used >= 8 * MIB
    assert disk.room.bound() - disk.used() == before - used - 8 * MIB
    assert disk.room.lacking(10 * MIB, 0) == lacking + 8 * MIB
    assert catalogue.claimed(disk.index, 77) == 0


# ---- what the index itself takes


def test_of_what_cannot_be_kept_nothing_is_noted(caches: CacheMaker) -> None:
    """A cache that is full, of which nothing may go, does not grow by the names of what was read past it."""
    disk = caches.open(max_size=8 * MIB)
    held = pattern(5 * MIB)
    assert keep(disk, version_of("held", held), held, range(5)) == 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk.index, "bury", lambda *_: 0)
        data = pattern(4 * MIB)
        for number in range(50):
            assert keep(disk, version_of(f"k{number}", data), data, range(4)) <= 1
    assert entries(disk, "objects") <= 1 + entries(disk, "segments")
    assert disk.cached_chunks(version_of("k0", data)) <= 1


def many_small(disk: Disk, count: int) -> list[ObjectVersion]:
    """Files of a page each, on disk."""
    data = pattern(4096)
    versions = [version_of(f"d/{number}", data) for number in range(count)]
    for first in range(0, count, 64):
        batch = [part(version, data, 0, 0, 1) for version in versions[first : first + 64]]
        assert disk.keep(batch) == len(batch)
    return versions


def test_reads_of_what_is_warm_do_not_make_the_index_larger_than_it_may_be(caches: CacheMaker, place: Path) -> None:
    """Each use rewrites a record of 12 KiB, and LMDB writes nothing over what it still has: so the uses of some seconds
    are written in several transactions, and none beyond the bound."""
    count = 20 * TOUCHED
    disk = caches.open()
    versions = many_small(disk, count)
    disk.room._max_size = limit = allocated(place) + INDEX_SLACK
    for _ in range(4):
        disk.touch({(version.object_id, 0) for version in versions})
        assert allocated(place) <= limit
    assert all(disk.kept(version.object_id, 0) for version in versions)


def test_uses_are_written_though_others_have_filled_the_disk(caches: CacheMaker, place: Path) -> None:
    """They cost nothing once the index has the pages, and tell who is to go: without them what was read all the time
    would be the first."""
    disk = caches.open()
    hot, cold = version_of("hot", DATA), version_of("cold", DATA)
    for version in (hot, cold):
        assert keep(disk, version, DATA, range(4)) == 4
    disk.room._min_free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize + 64 * MIB
    assert disk.used() > disk.room.bound() + INDEX_SLACK
    disk.touch({(hot.object_id, 0)})
    bury(disk, 1)
    assert [disk.cached_chunks(version) for version in (hot, cold)] == [4, 0]


def test_the_uses_of_many_are_all_written_where_there_is_room(caches: CacheMaker) -> None:
    """However many transactions that takes."""
    disk = caches.open()
    versions = many_small(disk, 3 * TOUCHED + 1)
    first = versions[: 2 * TOUCHED + 1]
    disk.touch({(version.object_id, 0) for version in first})
    bury(disk, len(versions[len(first) :]) * 4096)
    assert [disk.kept(version.object_id, 0) is not None for version in versions] == [True] * len(first) + [
        False
    ] * TOUCHED


# ---- what is lent


def test_whether_an_object_is_lent_is_asked_once(tmp_path: Path) -> None:
    """However many segments it has: what the kernel reads by itself has the oldest uses, and each eviction meets it."""
    index = Index(tmp_path / "index")
    sizes = {"large": 20 * SEGMENT_CHUNKS, "small": 1}
    for key, chunks in sizes.items():
        version = ObjectVersion("p", key, '"e"', chunks * MIB)
        generation = index.generation(version)
        run = Run(version.object_id, generation, 0, chunks)
        assert index.claim(1, [run], version.size, 1 << 50, [version])
        sums = bytes(128)
        assert index.settle(1, [Written(version, generation, n, sums) for n in range(chunks)]) == chunks
    asked: list[bytes] = []

    def lent(object_id: bytes, generation: int) -> bool:
        asked.append(object_id)
        return object_id == ObjectVersion("p", "large", '"e"', sizes["large"] * MIB).object_id

    assert index.bury(1, lent) == MIB
    assert len(asked) == 2
    with index.look() as (txn, tables):
        assert [OBJECT.unpack_from(value)[2] for _, value in txn.cursor(tables.objects)] == [sizes["large"]]
    index.close()


def test_an_object_that_went_to_make_room_for_its_own_chunks_has_another_file_then(caches: CacheMaker) -> None:
    """Of the same name, who has the old one open would take what is in it for damaged."""
    data = pattern(8 * MIB)
    version, disk = version_of("k", data), caches.open(max_size=4 * MIB)
    before, changed = None, 0
    for number in range(8):
        keep(disk, version, data, [number])
        kept = disk.kept(version.object_id, number)
        if kept is None:
            continue
        gone = number == 0 or disk.kept(version.object_id, number - 1) is None
        if before is not None and gone:
            assert kept.generation != before
            changed += 1
        before = kept.generation
    assert changed > 0
