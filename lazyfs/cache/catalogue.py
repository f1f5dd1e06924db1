"""All that the index has of objects, read a part at a time: what is cached below a prefix, and what of it is pinned.

Blocks, for as long as there are many objects, and is meant for a thread of its own. Must not know names of a mount.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lazyfs.cache import holdings
from lazyfs.cache.index import Index
from lazyfs.cache.pins import PinSet, load
from lazyfs.cache.records import OBJECT, names_of
from lazyfs.objects import CHUNK_SIZE

AT_ONCE = 1000
"""Records read in one go, some 2 ms: the loop reads the index as well, and waits for that."""


@dataclass(frozen=True, slots=True)
class Known:
    """One object of which something is, or was, on disk. `place` is empty in records of earlier versions."""

    object_id: bytes
    place: str
    key: str
    size: int
    present: int

    @property
    def cached(self) -> int:
        """Bytes on disk, to a chunk."""
        return min(self.size, self.present * CHUNK_SIZE)


def known(index: Index) -> Iterator[Known]:
    """Every object of the index, each as it was when its turn came."""
    after = b""
    while True:
        found: list[Known] = []
        with index.look() as (txn, tables), txn.cursor(tables.objects) as cursor:
            more = cursor.set_range(after)
            while more and len(found) < AT_ONCE:
                value = cursor.value()
                if len(value) >= OBJECT.size:
                    _, size, present = OBJECT.unpack_from(value)
                    found.append(Known(bytes(cursor.key()), *names_of(value), size, present))
                after = bytes(cursor.key()) + b"\0"
                more = cursor.next()
        yield from found
        if not more:
            return


def knows(index: Index, object_id: bytes) -> bool:
    """Whether there is a record of the object."""
    with index.look() as (txn, tables):
        return txn.get(object_id, db=tables.objects) is not None


def holds(index: Index, object_id: bytes) -> bool:
    """Whether anything of the object takes room on disk: chunks, or parts of such."""
    with index.look() as (txn, tables):
        return holdings.holds(txn, tables, object_id)


def taken(index: Index, object_id: bytes) -> int:
    """Bytes of disk that the object takes, chunks that are here in part included."""
    with index.look() as (txn, tables):
        return holdings.taken(txn, tables, object_id)


def claimed(index: Index, but: int) -> int:
    """Bytes that other daemons than this one are about to write."""
    with index.look() as (txn, tables):
        return holdings.claimed(txn, tables, but)


def whole(index: Index, object_id: bytes, generation: int) -> bool:
    """Whether all of an object is in its file of this generation, by the records of all its segments."""
    with index.look() as (txn, tables):
        return holdings.whole(txn, tables, object_id, generation)


def pins(index: Index) -> PinSet:
    """All pins."""
    with index.look() as (txn, tables):
        return load(txn, tables.pins)


def pinned_bytes(index: Index, wanted: Callable[[Known], bool] = lambda _: True) -> int:
    """Bytes of disk that what is pinned takes, chunks that are here in part included: no eviction gives them back."""
    held = pins(index)
    if not held:
        return 0
    return sum(taken(index, one.object_id) for one in known(index) if wanted(one) and held.cover(one.place, one.key))
