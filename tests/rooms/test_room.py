"""Room made on a disk cache for what is no chunk: how much is lacking, what goes, and what pins keep."""

from pathlib import Path

from lazyfs.cache import pins
from lazyfs.cache.directory import MODELS, USED, CacheDirectory
from lazyfs.cache.disk import Disk
from lazyfs.cache.room import INDEX_SLACK
from lazyfs.objects import MIB
from tests.rooms.building import PLACE, CacheMaker, keep, pattern, version_of

DATA = pattern(4 * MIB)


def test_what_models_take_is_off_the_bound_of_chunks(place: Path, caches: CacheMaker) -> None:
    """A daemon keeps no more than what is left, from the moment that it is spoken for."""
    disk = caches.open(max_size=8 * MIB)
    version = version_of("a", DATA)
    assert keep(disk, version, DATA, range(4)) == 4
    (place / MODELS).mkdir(mode=0o700)
    (place / MODELS / USED).write_text(str(5 * MIB))
    other = version_of("b", DATA)
    keep(disk, other, DATA, range(4))
    assert disk.used() + 5 * MIB <= 8 * MIB


def test_chunks_go_by_their_last_use_and_pinned_ones_stay(place: Path, caches: CacheMaker) -> None:
    disk = caches.open(max_size=32 * MIB)
    old, pinned = version_of("old", DATA), version_of("kept/pinned", DATA)
    for version in (pinned, old):
        assert keep(disk, version, DATA, range(4)) == 4
    with disk.index.change() as (txn, tables):
        pins.put(txn, tables.pins, pins.Pin(PLACE, "kept/"))
    caches.close(disk)
    disk = Disk(CacheDirectory(place, create=False), max_size=12 * MIB, min_free=0)
    room = disk.room
    try:
        assert 4 * MIB <= room.chunks_size() < 5 * MIB
        lacking = room.lacking(6 * MIB, 0)
        assert 2 * MIB < lacking - INDEX_SLACK < 3 * MIB
        assert room.oldest_use() is not None
        assert room.evict(lacking) == 4 * MIB
        assert room.lacking(6 * MIB, 0) <= 0
        assert disk.cached_chunks(old) == 0
        assert disk.cached_chunks(pinned) == 4
        assert room.evict(MIB) == 0
        assert room.oldest_use() is None
    finally:
        disk.close()
