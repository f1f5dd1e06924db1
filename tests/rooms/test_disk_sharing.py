"""One cache directory and more than one daemon, or more data than room: what each leaves for the others."""

import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from lazyfs.cache import directory
from lazyfs.cache import room as room_module
from lazyfs.cache.directory import CacheDirectory
from lazyfs.cache.disk import Disk
from lazyfs.cache.ledger import Ledger
from lazyfs.cache.objectfile import ToWrite
from lazyfs.cache.records import Run
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import CHUNK_SIZE, MIB, ObjectVersion
from tests.rooms.building import (
    CacheMaker,
    allocated,
    bury,
    chunk_on,
    keep,
    object_files,
    pattern,
    verified,
    version_of,
)
from tests.rooms.second_daemon import SecondDaemon

DATA = pattern(5 * MIB + 12345)
VERSION = version_of("k", DATA)
SAME = ("k", len(DATA), 0)
"""How the second daemon is told of the same object."""


def spoken_for(disk: Disk, place: Path) -> int:
    """Bytes of disk that the index says are taken by other files than its own."""
    return disk.used() - (place / "index" / "data.mdb").stat().st_blocks * 512


def present(disk: Disk, version: ObjectVersion = VERSION, data: bytes = DATA) -> list[int]:
    """Which chunks the disk has; each is what it should be."""
    found = {number: chunk_on(disk, version, number) for number in range(version.chunk_count)}
    right = [number for number, raw in found.items() if raw == bytes(verified(version, data, number).view)]
    assert all(found[number] is None for number in found if number not in right)
    return right


def test_one_object_larger_than_the_cache(caches: CacheMaker, place: Path) -> None:
    """It evicts its own oldest parts; no file of an earlier generation stays behind, and every byte is spoken for."""
    bound = 12 * MIB
    disk = caches.open(max_size=bound)
    data = pattern(20 * MIB)
    version = version_of("big", data)
    for first in range(0, 20, 2):
        assert keep(disk, version, data, [first, first + 1]) == 2
        assert chunk_on(disk, version, first) == data[first * MIB : (first + 1) * MIB]
        assert allocated(place) <= bound
        assert len(object_files(place)) == 1
        assert allocated(place / "objects") == spoken_for(disk, place)


def test_a_file_that_was_evicted_under_its_writer_takes_no_space(caches: CacheMaker, place: Path) -> None:
    """Which the rules forbid; should it happen all the same, nothing is counted, and nothing is left."""
    disk = caches.open()
    keep(disk, VERSION, DATA, [0, 1])
    write, claims = ToWrite.write, Ledger.claims

    def evicted_first(file: ToWrite, offset: int, chunks: Sequence[memoryview]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ledger, "claims", lambda _: {})
            disk._index.bury_object(VERSION.object_id)
        disk.room._dig()
        write(file, offset, chunks)

    assert Ledger.claims is claims
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToWrite, "write", evicted_first)
        assert keep(disk, VERSION, DATA, [2, 3]) == 0
    disk.room._dig()
    assert present(disk) == []
    assert allocated(place / "objects") == spoken_for(disk, place) == 0
    assert keep(disk, VERSION, DATA, [2, 3]) == 2
    assert present(disk) == [2, 3]


def test_two_daemons_share_what_they_keep(caches: CacheMaker, place: Path) -> None:
    """Each reads what the other wrote; what both wrote counts once; what one evicts is gone for both."""
    disk = caches.open()
    keep(disk, VERSION, DATA, [0, 1, 2])
    with SecondDaemon(place) as second:
        assert second.ask("have", *SAME, *range(6)) == [0, 1, 2]
        assert second.ask("keep", *SAME, 2, 3, 4) == 2
        assert present(disk) == [0, 1, 2, 3, 4]
        assert spoken_for(disk, place) == allocated(place / "objects") == 5 * MIB
        assert second.ask("bury", 1)
        assert present(disk) == []
        assert keep(disk, VERSION, DATA, [4]) == 1
        assert second.ask("have", *SAME, *range(6)) == [4]


def test_two_daemons_share_one_bound(caches: CacheMaker, place: Path) -> None:
    """Space that one has is not there for the other."""
    bound = 12 * MIB
    disk = caches.open(max_size=bound)
    with SecondDaemon(place, bound) as second:
        for seed in range(8):
            data = pattern(4 * MIB, seed)
            if seed % 2:
                assert keep(disk, version_of(f"k{seed}", data), data, range(4)) == 4
            else:
                assert second.ask("keep", f"k{seed}", len(data), seed, *range(4)) == 4
            assert allocated(place) <= bound
            assert allocated(place / "objects") == spoken_for(disk, place)


def test_a_killed_neighbour_is_cleaned_up_after(caches: CacheMaker, place: Path) -> None:
    """What it kept stays, its place among the daemons is free."""
    with SecondDaemon(place) as second:
        assert second.ask("keep", *SAME, 0, 1) == 2
        second.kill()
    assert len(list((place / "daemons").iterdir())) == 1
    disk = caches.open()
    assert present(disk) == [0, 1]
    assert disk._directory.alive() == {disk._directory.daemon}
    assert len(list((place / "daemons").iterdir())) == 1


def test_a_living_neighbour_keeps_its_claim(caches: CacheMaker, place: Path) -> None:
    """A daemon that starts clears what the dead were writing, and nobody else's."""
    living = CacheDirectory(place, create=False)
    disk = caches.open()
    index = disk._index
    generation = index.generation(VERSION)
    run = Run(VERSION.object_id, generation, 0, 2)
    assert index.claim(living.daemon, [run], 2 * MIB, 1 << 50, [VERSION])
    caches.close(disk)
    disk = caches.open()
    assert spoken_for(disk, place) == 2 * MIB
    caches.close(disk)
    living.close()
    disk = caches.open()
    assert spoken_for(disk, place) == 0


@pytest.mark.parametrize("length", [4096, 5000, 12288])
def test_an_index_that_lost_its_end_is_set_aside(
    caches: CacheMaker, place: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    """LMDB maps the file and trusts its header: a page beyond the end would be a SIGBUS in the daemon."""
    disk = caches.open()
    keep(disk, VERSION, DATA, range(6))
    caches.close(disk)
    os.truncate(place / "index" / "data.mdb", length)
    disk = caches.open()
    assert "started anew" in caplog.text
    assert present(disk) == []
    assert object_files(place) == []
    assert keep(disk, VERSION, DATA, range(6)) == 6
    assert present(disk) == list(range(6))


def test_an_index_of_another_format_is_set_aside(
    caches: CacheMaker, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that LMDB itself opens without complaint."""
    disk = caches.open()
    keep(disk, VERSION, DATA, range(6))
    with disk._index._env.begin(write=True) as txn:
        txn.put(b"format", b"lazyfs-index-99", db=disk._index._meta)
    caches.close(disk)
    disk = caches.open()
    assert "started anew" in caplog.text
    assert object_files(place) == []
    assert keep(disk, VERSION, DATA, range(6)) == 6


def test_who_waited_while_room_was_made_does_not_make_it_again(
    caches: CacheMaker, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two daemons need room at once: one evicts, the other finds that there is enough."""
    disk = caches.open(max_size=12 * MIB)
    for seed in range(2):
        old = pattern(5 * MIB, seed)
        assert keep(disk, version_of(f"old-{seed}", old), old, range(5)) == 5
    other, waits, kept = CacheDirectory(place, create=False), threading.Event(), []
    try_lock = directory._try_lock

    def watched(descriptor: int) -> bool:
        got = try_lock(descriptor)
        if not got and threading.current_thread() is thread:
            waits.set()
        return got

    monkeypatch.setattr(directory, "_try_lock", watched)
    monkeypatch.setattr(disk.room, "_patience", 60.0)
    thread = threading.Thread(target=lambda: kept.append(keep(disk, VERSION, DATA, range(4))))
    with other.alone(0) as alone:
        assert alone
        thread.start()
        assert waits.wait(30)
        bury(disk, 5 * MIB)
    thread.join()
    assert kept == [4]
    assert disk.room.evicted_bytes == 0, "what was evicted, the other evicted"
    assert disk._index.present_chunks(version_of("old-1", pattern(5 * MIB, 1)).object_id) == 5
    other.close()


def test_a_daemon_that_is_stuck_making_room_stops_nobody(
    caches: CacheMaker, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait for it once, keep what there is room for, and evict again when it is done."""
    monkeypatch.setattr(room_module, "PATIENCE", 0.05)
    disk = caches.open(max_size=8 * MIB)
    stuck = CacheDirectory(place, create=False)
    old = pattern(6 * MIB, 1)
    with stuck.alone(0) as alone:
        assert alone
        assert keep(disk, version_of("old", old), old, range(4)) == 4, "there is room for these"
        assert keep(disk, VERSION, DATA, range(4)) == 0
        assert disk.room._patience == 0.0
        assert keep(disk, VERSION, DATA, range(4)) == 0
        assert present(disk, version_of("old", old), old) == list(range(4))
    assert keep(disk, VERSION, DATA, range(4)) > 0
    assert disk.room._patience == room_module.PATIENCE
    stuck.close()


def test_a_claim_and_a_grave_of_the_dead_are_found_by_who_needs_room(caches: CacheMaker, place: Path) -> None:
    """Without any daemon starting in between; the living one's own are finished as well."""
    disk = caches.open(max_size=12 * MIB)
    dead = CacheDirectory(place, create=False)
    keep(disk, VERSION, DATA, [0, 1])
    run = Run(VERSION.object_id, disk._index.generation(VERSION), 2, 5)
    assert disk._index.claim(dead.daemon, [run], 3 * MIB, 1 << 50)
    file = disk._files.to_write(VERSION, run.generation)
    file.write(2 * CHUNK_SIZE, [verified(VERSION, DATA, n).view for n in (2, 3)])
    lost = pattern(3 * MIB, 1)
    keep(disk, version_of("lost", lost), lost, range(3))
    assert disk._index.bury_object(version_of("lost", lost).object_id) == 3 * MIB
    data = pattern(4 * MIB, 2)
    with dead.alone(0):
        assert present(disk) == [0, 1], "what is only claimed is not there"
    os.close(dead._lock)
    assert keep(disk, version_of("new", data), data, range(4)) == 4
    assert present(disk) == [0, 1], "there was room enough without these"
    assert disk._index.claims() == {}
    assert disk._index.graves() == []
    assert allocated(place / "objects") == spoken_for(disk, place) == 6 * MIB


def test_a_file_that_another_daemon_has_open_gives_its_space_back(caches: CacheMaker, place: Path) -> None:
    """An unlinked file lives as long as somebody has it open, unseen by every bound; so it is cut first."""
    disk = caches.open()
    keep(disk, VERSION, DATA, range(6))
    with SecondDaemon(place) as second:
        assert second.ask("have", *SAME, *range(6)) == list(range(6))
        disk._index.bury_object(VERSION.object_id)
        disk.room._dig()
        open_there = list(Path(f"/proc/{second.pid}/fd").iterdir())
        deleted = [path.stat() for path in open_there if "(deleted)" in os.readlink(path)]
        assert deleted
        assert sum(found.st_blocks for found in deleted) == 0
        assert second.ask("have", *SAME, *range(6)) == []


def test_a_daemon_whose_cache_was_replaced_writes_nothing_into_the_new_one(caches: CacheMaker, place: Path) -> None:
    """Deleted and made again by others: what it has open is what it had."""
    disk = caches.open()
    keep(disk, VERSION, DATA, [0])
    place.rename(place.with_name("gone"))
    place.mkdir(mode=0o700)
    CacheDirectory(place, create=False).close()
    shutil.rmtree(place.with_name("gone"))
    with pytest.raises(CacheUnavailable):
        keep(disk, VERSION, DATA, [1])
    assert object_files(place) == []
