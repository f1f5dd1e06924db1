"""Pins: what they cover, that no eviction touches it, and that who looks for something to evict does not look twice."""

import json
import logging
import time
from pathlib import Path

import lmdb
import pytest

from lazyfs.cache import catalogue, pins
from lazyfs.cache.disk import Disk
from lazyfs.cache.index import Index
from lazyfs.cache.pins import Pin, PinSet
from lazyfs.errors import UsageError
from lazyfs.objects import MIB
from tests.rooms.building import PLACE, CacheMaker, bury, chunk_on, keep, part, pattern, version_of
from tests.rooms.second_daemon import SecondDaemon

DATA = pattern(2 * MIB)
KEYS = ("a/one", "a/two", "b/one", "b/two")
VERSIONS = {key: version_of(key, DATA) for key in KEYS}


def pin(disk: Disk, key: str) -> None:
    """Pin a key or prefix."""
    with disk.index.change() as (txn, tables):
        pins.put(txn, tables.pins, Pin(PLACE, key))


def unpin(disk: Disk, key: str) -> list[str]:
    """Unpin it; the keys of all pins that went."""
    with disk.index.change() as (txn, tables):
        gone = pins.drop(txn, tables.pins, Pin(PLACE, key))
        pins.bring_back(txn, tables.lru, tables.objects, pins.load(txn, tables.pins))
    return [one.key for one in gone]


def fill(disk: Disk) -> None:
    """Keep all of them, in their order, those that are there already left as they are."""
    for version in VERSIONS.values():
        keep(disk, version, DATA, range(2))


def there(disk: Disk) -> list[str]:
    """The keys of which all is on disk."""
    return [key for key, version in VERSIONS.items() if disk.generation(version) is not None]


def uses(disk: Disk) -> list[bytes]:
    """The table of uses, in its order."""
    with disk.index.look() as (txn, tables), txn.cursor(tables.lru) as cursor:
        return [bytes(key) for key in cursor.iternext(values=False)]


@pytest.mark.parametrize(
    ("key", "covered"),
    [
        ("", {"a", "a/b", "a/b/c", "ab/c"}),
        ("a/", {"a/b", "a/b/c"}),
        ("a/b", {"a/b"}),
        ("a/b/", {"a/b/c"}),
        ("a", {"a"}),
    ],
)
def test_what_a_pin_covers(key: str, covered: set[str]) -> None:
    """A key is itself and nothing that only begins so; a prefix is what is below it. In its bucket alone."""
    made = PinSet([Pin(PLACE, key)])
    names = ("a", "a/b", "a/b/c", "ab/c")
    assert {name for name in names if made.cover(PLACE, name)} == covered
    assert {name for name in names if Pin(PLACE, key).covers(PLACE, name)} == covered
    assert not any(made.cover("another", name) for name in names)
    assert {name for name in names if made.cover("", name)} == covered, "of a record of earlier versions"


def test_eviction_leaves_what_is_pinned(caches: CacheMaker) -> None:
    """The oldest of all; also for the next daemon; until it is unpinned, and then it is as old as it was."""
    disk = caches.open()
    fill(disk)
    pin(disk, "a/")
    bury(disk, 2 * MIB)
    assert there(disk) == ["a/one", "a/two", "b/two"]
    caches.kill(disk)
    disk = caches.open()
    bury(disk, 100 * MIB)
    assert there(disk) == ["a/one", "a/two"]
    assert catalogue.pinned_bytes(disk.index) == 4 * MIB
    fill(disk)
    assert unpin(disk, "a/") == ["a/"]
    bury(disk, 2 * MIB)
    assert there(disk) == ["a/two", "b/one", "b/two"]
    assert len(uses(disk)) == 3


def test_what_is_pinned_takes_room_for_chunks_that_are_here_in_part(caches: CacheMaker) -> None:
    """Each as much as a whole one, the short last one as much as there is of it; what is not pinned counts for none."""
    data = pattern(3 * MIB + 5000)
    pinned, other = version_of("a/one", data), version_of("b/one", data)
    disk = caches.open()
    for version in (pinned, other):
        assert disk.keep([part(version, data, 0, 2, 3), part(version, data, 3, 0, 1)]) == 2
    assert keep(disk, pinned, data, [1]) == 1
    pin(disk, "a/")
    assert catalogue.pinned_bytes(disk.index) == disk.taken(pinned) == 2 * MIB + 8192
    assert catalogue.taken(disk.index, other.object_id) == MIB + 8192
    assert disk.room.chunks_size() == MIB + 8192
    keep(disk, pinned, data, [0, 2, 3])
    assert catalogue.pinned_bytes(disk.index) == 3 * MIB + 8192
    assert disk.taken(version_of("c", data)) == 0


def test_another_daemon_keeps_to_it(caches: CacheMaker, place: Path) -> None:
    """The evictor of a process that did not pin, and that was there before."""
    disk = caches.open()
    fill(disk)
    with SecondDaemon(place) as other:
        pin(disk, "a/one")
        assert other.ask("bury", 100 * MIB)
    assert there(disk) == ["a/one"]


def test_what_is_pinned_is_looked_at_once(caches: CacheMaker) -> None:
    """It is set apart behind all others, so that a search for what can go ends before it; a use brings it back, and
    each segment has one entry all the while."""
    disk = caches.open()
    fill(disk)
    pin(disk, "")
    bury(disk, MIB)
    assert there(disk) == list(KEYS)
    assert all(pins.is_apart(entry) for entry in uses(disk))
    disk.touch({(VERSIONS["a/one"].object_id, 0)})
    assert [pins.is_apart(entry) for entry in uses(disk)] == [False, True, True, True]
    bury(disk, MIB)
    assert len(uses(disk)) == 4
    disk.forget(VERSIONS["a/one"])
    assert len(uses(disk)) == 3, "a pin is no reason to keep what is wrong"
    unpin(disk, "")
    assert not any(pins.is_apart(entry) for entry in uses(disk))


def test_a_cache_full_of_pins_keeps_nothing_more(
    caches: CacheMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once; and what is pinned can still be read."""
    disk = caches.open(max_size=8 * MIB)
    for key in ("a/one", "a/two"):
        keep(disk, VERSIONS[key], DATA, range(2))
    pin(disk, "a/")
    big = pattern(4 * MIB, 1)
    with caplog.at_level(logging.WARNING):
        for number in range(4):
            keep(disk, version_of(f"b/{number}", big), big, range(4))
    assert there(disk) == ["a/one", "a/two"]
    assert chunk_on(disk, VERSIONS["a/two"], 1) == DATA[MIB:]
    full = version_of("c", big)
    pin(disk, "")
    for _ in range(3):
        keep(disk, full, big, range(4))
    assert caplog.text.count("the cache is full of what is pinned") == 1


def test_unpin_takes_what_is_below(caches: CacheMaker) -> None:
    """And says what is above."""
    disk = caches.open()
    for key in ("", "a/", "a/one", "b/one"):
        pin(disk, key)
    assert unpin(disk, "a/") == ["a/", "a/one"]
    assert [one.key for one in catalogue.pins(disk.index).all] == ["", "b/one"]
    assert catalogue.pins(disk.index).over(Pin(PLACE, "a/one")) == Pin(PLACE, "")
    assert unpin(disk, "") == ["", "b/one"]


def test_there_are_not_too_many(caches: CacheMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says what to do; pinning again what is pinned is no new pin."""
    monkeypatch.setattr(pins, "MOST_PINS", 2)
    disk = caches.open()
    for key in ("a", "b", "a"):
        pin(disk, key)
    with pytest.raises(UsageError, match="pin directories"):
        pin(disk, "c")


def test_an_index_without_pins_is_read(caches: CacheMaker, place: Path) -> None:
    """One of earlier versions: no table of pins, and objects without their bucket, which then are everybody's."""
    disk = caches.open()
    fill(disk)
    caches.close(disk)
    with lmdb.open(str(place / "index"), max_dbs=16) as env:
        objects, table = env.open_db(b"objects"), env.open_db(b"pins")
        with env.begin(write=True) as txn:
            txn.drop(table, delete=True)
            for key, value in list(txn.cursor(objects)):
                txn.put(bytes(key), bytes(value).partition(b"\0http")[0], db=objects)
    index = Index(place / "index", to_read=True)
    assert len(catalogue.pins(index)) == 0
    assert {one.key for one in catalogue.known(index)} == set(KEYS)
    assert {one.place for one in catalogue.known(index)} == {""}
    index.close()
    disk = caches.open()
    pin(disk, "a/")
    bury(disk, 100 * MIB)
    assert there(disk) == ["a/one", "a/two"]


def test_a_record_that_is_no_pin_is_none(caches: CacheMaker) -> None:
    """Whatever it holds."""
    disk = caches.open()
    pin(disk, "a")
    with disk.index.change() as (txn, tables):
        for number, value in enumerate((b"", b"\xff", b"[1, 2]", b"[]", b"{}", json.dumps(["a"]).encode())):
            txn.put(bytes([number]) * 16, value, db=tables.pins)
    assert [one.key for one in catalogue.pins(disk.index).all] == ["a"]


def test_uses_of_this_century_are_not_apart() -> None:
    """The bit that sets apart is no part of a time."""
    assert not pins.is_apart(time.time_ns().to_bytes(8, "big"))
    assert not pins.is_apart((time.time_ns() * 4).to_bytes(8, "big"))
