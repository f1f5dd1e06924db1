"""Pins: what eviction leaves alone, by key or prefix, in the index, so that every daemon that shares the cache keeps to
them and a restart does not end them.

A pin is of a path and not of bytes: of one key, or of all below a prefix, and holds for versions that are yet to come.

Eviction meets the least recently used first, and would meet what is pinned at every write. So what it meets and finds
pinned is set apart in the table of uses: its entry moves behind all others, by the highest bit of its time, until it is
used, or unpinned. A search for something to evict ends at the first entry that is set apart.

Must not know lmdb itself (a transaction is given), names of a mount, or who pins.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lazyfs.cache.records import names_of
from lazyfs.cache.tables import Transaction
from lazyfs.errors import UsageError

MOST_PINS = 10_000
"""All of them are looked through by each eviction, some 20 ms for so many."""

APART = 0x80
"""In the first byte of a use: nanoseconds since 1970 reach this bit in the year 2262."""


@dataclass(frozen=True, slots=True, order=True)
class Pin:
    """A key of a bucket (`place`), or a prefix: empty, or ending in `/`."""

    place: str
    key: str

    def covers(self, place: str, key: str) -> bool:
        """Whether an object is under it. One whose bucket the index does not know is taken for everybody's."""
        if place not in ("", self.place):
            return False
        return key == self.key or ((self.key.endswith("/") or not self.key) and key.startswith(self.key))


class PinSet:
    """All pins at one moment."""

    def __init__(self, pins: Iterable[Pin]) -> None:
        self.all = sorted(set(pins))
        self._known = {(pin.place, pin.key) for pin in self.all}
        self._anywhere = {pin.key for pin in self.all}

    def __len__(self) -> int:
        return len(self.all)

    def cover(self, place: str, key: str) -> bool:
        """Whether an object is pinned."""
        return bool(self.all) and any(self._has(place, name) for name in (key, *_above(key)))

    def over(self, pin: Pin) -> Pin | None:
        """The pin of a prefix above this one, if there is one."""
        above = (Pin(pin.place, name) for name in _above(pin.key) if name != pin.key)
        return next((one for one in above if (one.place, one.key) in self._known), None)

    def _has(self, place: str, name: str) -> bool:
        return (place, name) in self._known if place else name in self._anywhere


def _above(key: str) -> Iterator[str]:
    """The prefixes that a key is below, from the empty one down."""
    at = 0
    yield ""
    while (at := key.find("/", at) + 1) > 0:
        yield key[:at]


# ---- in a transaction


def load(txn: Transaction, table: Any) -> PinSet:
    """All pins. A record that is none is none. `table` is None in an index that was made before there were any."""
    if table is None or not txn.stat(table)["entries"]:
        return PinSet(())
    with txn.cursor(table) as cursor:
        found = [_unpack(bytes(value)) for _, value in cursor]
    return PinSet(pin for pin in found if pin is not None)


def put(txn: Transaction, table: Any, pin: Pin) -> None:
    """Pin it. `UsageError` when there are too many."""
    key = _name(pin)
    if txn.get(key, db=table) is None and txn.stat(table)["entries"] >= MOST_PINS:
        raise UsageError(f"there are {MOST_PINS} pins already; pin directories instead of files, or unpin some")
    txn.put(key, json.dumps([pin.place, pin.key]).encode("ascii"), db=table)


def drop(txn: Transaction, table: Any, pin: Pin) -> list[Pin]:
    """Take away this pin, and every one below it; those that were there."""
    gone = [one for one in load(txn, table).all if pin.covers(one.place, one.key) or one == pin]
    for one in gone:
        txn.delete(_name(one), db=table)
    return gone


def _name(pin: Pin) -> bytes:
    """Keys of S3 are longer than those of LMDB may be."""
    return hashlib.sha256(json.dumps([pin.place, pin.key]).encode("ascii")).digest()[:16]


def _unpack(value: bytes) -> Pin | None:
    try:
        place, key = json.loads(value)
    except (ValueError, TypeError, RecursionError):
        return None
    return Pin(place, key) if isinstance(place, str) and isinstance(key, str) else None


# ---- in the table of uses


def is_apart(entry: bytes) -> bool:
    """Whether an entry is one of those that were set apart, which come last."""
    return entry[0] & APART != 0


def apart(entry: bytes) -> bytes:
    """The entry, set apart."""
    return bytes([entry[0] | APART]) + entry[1:]


def bring_back(txn: Transaction, lru: Any, objects: Any, pins: PinSet) -> None:
    """What is set apart and no longer pinned is among the others again, as old as it was."""
    entries = []
    with txn.cursor(lru) as cursor:
        more = cursor.set_range(bytes([APART]))
        while more:
            entries.append(bytes(cursor.key()))
            more = cursor.next()
    for entry in entries:
        found = txn.get(entry[8:-4], db=objects)
        if found is None or not pins.cover(*names_of(found)):
            txn.delete(entry, db=lru)
            txn.put(bytes([entry[0] & ~APART]) + entry[1:], b"", db=lru)
