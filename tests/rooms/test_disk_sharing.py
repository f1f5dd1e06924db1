"""One cache directory and more than one daemon, or more data than room: what each leaves for the others."""

import os
from pathlib import Path

import pytest

from lazyfs.cache.directory import CacheDirectory
from lazyfs.cache.disk import Disk
from lazyfs.cache.ledger import Ledger
from lazyfs.cache.records import Run
from lazyfs.objects import MIB, ObjectVersion
from tests.rooms.building import (
    CacheMaker,
    allocated,
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
    write, claims = disk._files.write, Ledger.claims

    def evicted_first(*arguments: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ledger, "claims", lambda _: {})
            disk._index.bury_object(VERSION.object_id)
        disk._dig()
        write(*arguments)  # type: ignore[arg-type]

    assert Ledger.claims is claims
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk._files, "write", evicted_first)
        assert keep(disk, VERSION, DATA, [2, 3]) == 0
    disk._dig()
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
    directory = CacheDirectory(place, create=False)
    disk = caches.open()
    index = disk._index
    generation = index.generation(VERSION)
    run = Run(VERSION.object_id, generation, 0, 2)
    assert index.claim(directory.daemon, [run], 2 * MIB, 1 << 50)
    caches.close(disk)
    disk = caches.open()
    assert spoken_for(disk, place) == 2 * MIB
    caches.close(disk)
    directory.close()
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
