"""Chunks on disk: what comes back is right or nothing, the bound holds at every step, and a kill leaves no mess."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lazyfs.cache import room as room_module
from lazyfs.cache.disk import Disk, Verified
from lazyfs.cache.ledger import Ledger
from lazyfs.cache.memory import Memory
from lazyfs.cache.objectfile import ToWrite
from lazyfs.cache.records import Run, Written
from lazyfs.cache.sums import block_sums
from lazyfs.cache.sweep import entries
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import CHUNK_SIZE, MIB
from tests.rooms.building import (
    CacheMaker,
    allocated,
    bury,
    chunk_on,
    keep,
    no_space,
    object_files,
    pattern,
    resident,
    takes_direct,
    verified,
    version_of,
)


def test_what_is_kept_comes_back(caches: CacheMaker) -> None:
    """Whole chunks, the short last one, and pieces of either; also for the next daemon."""
    data = pattern(3 * MIB + 70_001)
    version = version_of("a/b", data)
    disk = caches.open()
    assert keep(disk, version, data, range(4)) == 4
    caches.close(disk)
    disk = caches.open()
    for number in range(4):
        assert chunk_on(disk, version, number) == data[number * MIB : (number + 1) * MIB]
    kept = disk.kept(version.object_id, 3)
    assert kept is not None
    for start, stop in ((0, 1), (65_530, 65_540), (70_000, 70_001), (0, 70_001)):
        assert disk.read_part(version, 3, kept, start, stop) == data[3 * MIB + start : 3 * MIB + stop]
    assert disk.cached_bytes(version) == len(data)


def test_bytes_are_not_in_the_page_cache_twice(caches: CacheMaker, place: Path) -> None:
    """Written and read past it, where the filesystem can; the mount's pages are enough. A touch as well: a buffer that
    begins anywhere would be refused, and O_DIRECT be given up for every later read."""
    data = pattern(MIB)
    version = version_of("a", data)
    disk = caches.open()
    memory = Memory(2 * MIB)
    slot = memory.slot_view(0, MIB)
    slot[:] = data
    assert disk.keep([Verified(version, 0, slot, block_sums(slot))]) == 1
    (file,) = object_files(place)
    pages = 0 if takes_direct(file) else MIB // 4096
    assert resident(file) == pages
    kept = disk.kept(version.object_id, 0)
    assert kept is not None
    for start, stop in ((0, 4096), (65_530, 65_540), (MIB - 1, MIB)):
        assert disk.read_part(version, 0, kept, start, stop) == data[start:stop]
    slot[:] = bytes(MIB)
    assert disk.read(version, 0, [kept], [slot]) == [True]
    assert slot == data
    assert resident(file) == pages


def test_a_chunk_that_is_not_kept_is_absent(caches: CacheMaker) -> None:
    """A hole of the sparse file is never taken for zeros of the object."""
    data = bytes(3 * MIB)
    version = version_of("zeros", data)
    disk = caches.open()
    keep(disk, version, data, [0, 2])
    assert [chunk_on(disk, version, number) is not None for number in range(3)] == [True, False, True]


@pytest.mark.parametrize("offset", [0, 12_345, MIB - 1, MIB + 65_536, 2 * MIB + 9])
def test_a_flipped_bit_is_found(caches: CacheMaker, place: Path, offset: int) -> None:
    """Wherever it is: that chunk is wrong, the others are right, and a read of its other blocks may go on."""
    data = pattern(2 * MIB + 10)
    version = version_of("k", data)
    disk = caches.open()
    keep(disk, version, data, range(3))
    (path,) = object_files(place)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    found = [chunk_on(disk, version, number) is not None for number in range(3)]
    assert found == [number != offset // MIB for number in range(3)]


def test_swapped_object_files_are_found(caches: CacheMaker, place: Path) -> None:
    """Bytes of another object are not these bytes."""
    disk = caches.open()
    versions = {key: version_of(key, pattern(MIB, seed)) for seed, key in enumerate("ab")}
    for seed, (_, version) in enumerate(versions.items()):
        keep(disk, version, pattern(MIB, seed), [0])
    first, second = object_files(place)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert [chunk_on(disk, version, 0) for version in versions.values()] == [None, None]


def test_a_truncated_or_missing_file_is_found(caches: CacheMaker, place: Path) -> None:
    """Less than the whole, or nothing: absent, and no exception."""
    data = pattern(2 * MIB)
    version = version_of("k", data)
    disk = caches.open()
    keep(disk, version, data, range(2))
    (path,) = object_files(place)
    os.truncate(path, MIB + 5)
    assert chunk_on(disk, version, 0) == data[:MIB]
    assert chunk_on(disk, version, 1) is None
    path.unlink()
    disk._files.close()
    assert chunk_on(disk, version, 0) is None


def test_a_discarded_chunk_can_be_kept_again(caches: CacheMaker) -> None:
    """What was wrong is forgotten and its place is free."""
    data = pattern(2 * MIB)
    version = version_of("k", data)
    disk = caches.open()
    keep(disk, version, data, range(2))
    used = disk.used()
    disk.discard(version, 1)
    assert chunk_on(disk, version, 1) is None
    assert disk.used() < used - CHUNK_SIZE + 64 * 1024  # the index itself may have grown by some pages
    assert keep(disk, version, data, [1]) == 1
    assert chunk_on(disk, version, 1) == data[MIB:]


def test_the_bound_holds_at_every_moment(caches: CacheMaker, place: Path) -> None:
    """While 100 MiB go through a cache of 12, what the files take is sampled without pause."""
    bound = 12 * MIB
    disk = caches.open(max_size=bound)
    most, done = 0, threading.Event()

    def sample() -> None:
        nonlocal most
        while not done.is_set():
            try:
                most = max(most, allocated(place))
            except FileNotFoundError:
                continue

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        for number in range(25):
            data = pattern(4 * MIB, number)
            version = version_of(f"k{number}", data)
            assert keep(disk, version, data, range(4)) == 4
            assert chunk_on(disk, version, 3) == data[3 * MIB :]
    finally:
        done.set()
        sampler.join()
    assert 4 * MIB < most <= bound
    assert disk.used() <= bound
    assert disk.room.evicted_bytes >= 80 * MIB


def test_a_batch_larger_than_the_bound_is_kept_in_part(caches: CacheMaker) -> None:
    """What fits is kept, the rest is not, and nothing fails."""
    data = pattern(16 * MIB)
    disk = caches.open(max_size=6 * MIB)
    assert keep(disk, version_of("k", data), data, range(16)) > 0
    assert disk.used() <= 6 * MIB


def test_free_space_is_left(caches: CacheMaker, place: Path) -> None:
    """With more to leave free than there can be, whoever else gives some back meanwhile, nothing is kept."""
    found = os.statvfs(place)
    disk = caches.open(min_free=found.f_blocks * found.f_frsize)
    assert keep(disk, version_of("k", pattern(MIB)), pattern(MIB), [0]) == 0


def test_segments_of_an_incomplete_object_go_one_by_one(caches: CacheMaker) -> None:
    """Holes are punched for the segment that was used longest ago; the rest of the file stays."""
    data = pattern(MIB)
    version = version_of("large", bytes(130 * MIB))
    disk = caches.open(max_size=8 * MIB)
    for number in (0, 64, 128):
        view = memoryview(data)
        assert disk.keep([verified(version_of("x", data), data, 0)]) in (0, 1)
        one = verified(version_of("x", data), data, 0)
        assert disk.keep([type(one)(version, number, view, one.sums)]) == 1
    bury(disk, 1)
    bury(disk, 1)
    assert chunk_on(disk, version, 0) is None
    assert chunk_on(disk, version, 128) == data


def test_what_is_being_written_is_not_evicted(caches: CacheMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between claim and settlement neither the object nor a segment of it goes, whoever makes room; others do."""
    data, other = pattern(2 * MIB), pattern(MIB, 1)
    version = version_of("k", data)
    disk = caches.open()
    keep(disk, version, data, [0])
    keep(disk, version_of("other", other), other, [0])
    settle = disk._index.settle

    def evict_first(daemon: int, written: list[Written]) -> int:
        assert disk._index.bury_object(version.object_id) == 0
        bury(disk, 100 * MIB)
        return settle(daemon, written)

    monkeypatch.setattr(disk._index, "settle", evict_first)
    assert keep(disk, version, data, [1]) == 1
    assert [chunk_on(disk, version, number) for number in (0, 1)] == [data[:MIB], data[MIB:]]
    assert chunk_on(disk, version_of("other", other), 0) is None


def test_nothing_is_written_where_a_grave_is(caches: CacheMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever digs, now or after a restart, can hit no byte that was written since; the rest of a batch is kept."""
    data = pattern(3 * MIB)
    version = version_of("k", data)
    disk = caches.open()
    keep(disk, version, data, range(2))

    def fail(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(disk._files, "clear", fail)
        disk.discard(version, 1)
        used = disk.used()
        assert keep(disk, version, data, [1]) == 0
        assert keep(disk, version, data, [2]) == 1
        assert chunk_on(disk, version, 1) is None
        assert disk.used() - used < MIB + 64 * 1024
        assert disk.failures >= 2
    assert keep(disk, version, data, [1]) == 1, "dug by the next who needs the place"
    assert [chunk_on(disk, version, number) for number in range(3)] == [data[n * MIB : (n + 1) * MIB] for n in range(3)]


class Killed(Exception):
    """Stands for SIGKILL at a chosen step."""


@pytest.mark.parametrize("step", ["after the claim", "after the write", "after the burial"])
def test_a_kill_between_two_steps_leaves_nothing(
    caches: CacheMaker, place: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next daemon finds good bytes, no byte spoken for in vain, and no file that the index does not know."""
    old, new = pattern(4 * MIB, 1), pattern(4 * MIB, 2)
    disk = caches.open(max_size=7 * MIB)
    keep(disk, version_of("old", old), old, range(4))

    def die(*_: object) -> None:
        raise Killed

    if step == "after the claim":
        monkeypatch.setattr(ToWrite, "write", die)
    elif step == "after the write":
        monkeypatch.setattr(disk._index, "settle", die)
    else:
        monkeypatch.setattr(disk._files, "clear", die)
    with pytest.raises(Killed):
        keep(disk, version_of("new", new), new, range(4))
    monkeypatch.undo()
    caches.kill(disk)
    disk = caches.open(max_size=7 * MIB)
    for key, data in (("old", old), ("new", new)):
        for number in range(4):
            assert chunk_on(disk, version_of(key, data), number) in (None, data[number * MIB : (number + 1) * MIB])
    known = {disk._files.path(object_id, generation) for object_id, generation in entries(disk._index)}
    assert disk._files.found().keys() <= entries(disk._index).keys()
    assert set(object_files(place)) <= known
    own = (place / "index" / "data.mdb").stat().st_blocks * 512
    assert disk.used() - own == disk.cached_bytes(version_of("old", old)) + disk.cached_bytes(version_of("new", new))
    assert keep(disk, version_of("new", new), new, range(4)) + disk.cached_bytes(version_of("new", new)) >= 4


def test_a_batch_of_many_pieces_is_few_steps(caches: CacheMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pieces of a file come together, it is opened once, and a segment's record is written once."""
    data = pattern(66 * MIB)
    version = version_of("k", data)
    disk = caches.open()
    steps: list[str] = []

    def noted(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: object) -> Any:
            steps.append(step)
            return function(*args)

        return run

    disk._files._direct = False  # which these buffers are not aligned for
    monkeypatch.setattr(disk._files, "_writable", noted("open", disk._files._writable))
    monkeypatch.setattr(Ledger, "_put_segment", noted("record", Ledger._put_segment))
    wanted = [0, 1, 5, 7, 40, 63, 64, 65]
    assert keep(disk, version, data, wanted) == len(wanted)
    assert steps == ["open", "record", "record"]
    assert keep(disk, version, data, [1, 2, 5]) == 1
    for number in range(version.chunk_count):
        here = number in {*wanted, 2}
        assert chunk_on(disk, version, number) == (data[number * MIB : (number + 1) * MIB] if here else None)


def test_what_has_no_room_is_given_up_soon(caches: CacheMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs a batch few claims, not two for each chunk; what there is room for is kept."""
    data = pattern(20 * MIB)
    version = version_of("k", data)
    disk = caches.open(max_size=12 * MIB)
    assert keep(disk, version, data, range(4)) == 4
    claims: list[int] = []
    claim = disk._index.claim

    def counted(*args: Any) -> Any:
        claims.append(args[2])
        return claim(*args)

    monkeypatch.setattr(disk._index, "claim", counted)
    monkeypatch.setattr(disk.room, "_max_size", 4 * MIB)
    monkeypatch.setattr(disk._index, "bury", lambda *_: 0)
    assert keep(disk, version, data, range(4, 20)) == 0
    assert len(claims) <= 10, claims
    monkeypatch.setattr(disk.room, "_max_size", 13 * MIB)
    assert 6 <= keep(disk, version, data, range(4, 20)) <= 8


def test_what_is_smaller_may_find_room_where_a_chunk_does_not(
    caches: CacheMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small files are kept in what is left of a cache that is full of pins."""
    large, small = pattern(MIB, 1), pattern(20_000, 2)
    disk = caches.open(max_size=2 * MIB)
    monkeypatch.setattr(disk._index, "bury", lambda *_: 0)
    monkeypatch.setattr(disk.room, "_max_size", disk.used() + room_module.INDEX_SLACK + MIB // 2)
    batch = [verified(version_of("a", large), large, 0)]
    batch += [verified(version_of(f"small {number}", small), small, 0) for number in range(8)]
    assert disk.keep(batch) == 8


def test_a_write_that_fails_is_cleared(caches: CacheMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full or failing disk is an error by name; what was claimed is given back."""
    data = pattern(2 * MIB)
    disk = caches.open()
    used = disk.used()

    monkeypatch.setattr(ToWrite, "write", no_space)
    with pytest.raises(CacheUnavailable, match="No space left"):
        keep(disk, version_of("k", data), data, range(2))
    assert disk.used() - used < 64 * 1024
    monkeypatch.undo()
    assert keep(disk, version_of("k", data), data, range(2)) == 2


def test_a_settlement_that_fails_is_made_up_for(
    caches: CacheMaker, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that were written and could not be counted are cleared, and nothing stays spoken for."""
    data = pattern(4 * MIB)
    version = version_of("k", data)
    disk = caches.open()
    keep(disk, version, data, [0])

    def fail(*_: object) -> None:
        raise CacheUnavailable("index: disk full")

    with monkeypatch.context() as patch:
        patch.setattr(disk._index, "settle", fail)
        with pytest.raises(CacheUnavailable):
            keep(disk, version, data, [1, 2])
    assert keep(disk, version, data, [3]) == 1
    own = (place / "index" / "data.mdb").stat().st_blocks * 512
    assert disk.used() - own == allocated(place / "objects") == 2 * MIB


def test_after_a_power_failure_files_are_compared_with_the_index(caches: CacheMaker, place: Path) -> None:
    """An index that is older than the files: what it does not know goes, a file with more in it than it knows goes,
    the rest stays warm."""
    data = pattern(4 * MIB)
    versions = {key: version_of(key, data) for key in ("same", "more", "unknown")}
    disk = caches.open()
    keep(disk, versions["same"], data, range(4))
    keep(disk, versions["more"], data, range(1))
    disk._index._env.sync(True)
    old = (place / "index" / "data.mdb").read_bytes()
    keep(disk, versions["more"], data, range(1, 4))
    keep(disk, versions["unknown"], data, range(4))
    caches.kill(disk)
    (place / "index" / "data.mdb").write_bytes(old)
    (place / "open").write_text("another boot")
    disk = caches.open()
    assert len(object_files(place)) == 1
    assert [chunk_on(disk, versions["same"], n) == data[n * MIB : (n + 1) * MIB] for n in range(4)] == [True] * 4
    own = (place / "index" / "data.mdb").stat().st_blocks * 512
    assert disk.used() - own == allocated(place / "objects") == 4 * MIB


@pytest.mark.parametrize("gone", ["index/data.mdb", "index"])
def test_files_without_an_index_are_set_aside(
    caches: CacheMaker, place: Path, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    """They would take space that nobody has spoken for."""
    data = pattern(2 * MIB)
    version = version_of("k", data)
    disk = caches.open()
    keep(disk, version, data, range(2))
    caches.close(disk)
    if (place / gone).is_dir():
        shutil.rmtree(place / gone)
    else:
        (place / gone).unlink()
    disk = caches.open()
    assert "started anew" in caplog.text
    assert object_files(place) == []
    assert keep(disk, version, data, range(2)) == 2


@pytest.mark.parametrize("raw", [b"noise" * 5000, bytes(20_000)])
def test_an_index_that_cannot_be_used_is_set_aside(
    caches: CacheMaker, place: Path, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning; the cache is empty and works, and the files of before are gone from it."""
    data = pattern(MIB)
    version = version_of("k", data)
    disk = caches.open()
    keep(disk, version, data, [0])
    caches.close(disk)
    (place / "index" / "data.mdb").write_bytes(raw)
    disk = caches.open()
    assert "started anew" in caplog.text
    assert chunk_on(disk, version, 0) is None
    assert object_files(place) == []
    assert keep(disk, version, data, [0]) == 1


def test_an_index_left_open_by_another_boot_is_audited(
    caches: CacheMaker, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A sound one is used as it is; a torn one is set aside though LMDB would open it."""
    data = pattern(MIB)
    version = version_of("k", data)
    disk = caches.open()
    keep(disk, version, data, [0])
    caches.close(disk)
    (place / "open").write_text("another boot")
    disk = caches.open()
    assert chunk_on(disk, version, 0) == data
    caches.close(disk)
    index = place / "index" / "data.mdb"
    with index.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(4096) * (index.stat().st_size // 4096 - 3))
    (place / "open").write_text("another boot")
    disk = caches.open()
    assert "started anew" in caplog.text
    assert keep(disk, version, data, [0]) == 1


def test_only_ours_can_read_it(caches: CacheMaker, place: Path) -> None:
    """Directories 0700, files 0600, and no name of a key anywhere (P13)."""
    disk = caches.open()
    data = pattern(MIB)
    keep(disk, version_of("../../etc/secret-name", data), data, [0])
    for path in [place, *place.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
        assert "secret-name" not in str(path)


def test_a_run_stands_for_its_chunks(caches: CacheMaker, place: Path) -> None:
    """Clearing a run of chunks gives back just their blocks; clearing the whole removes the file."""
    data = pattern(4 * MIB)
    version = version_of("k", data)
    disk: Disk = caches.open()
    keep(disk, version, data, range(4))
    (path,) = object_files(place)
    generation = int(path.suffix[1:], 16)
    before = path.stat().st_blocks
    disk._files.clear(Run(version.object_id, generation, 1, 3))
    assert before - path.stat().st_blocks == 2 * MIB // 512
    disk._files.clear(Run(version.object_id, generation, 0, 0xFFFFFFFF))
    assert not path.exists()
