"""What takes room on the disk: of an object, as the records of its segments say, whole chunks and chunks here in part.

Must not know lmdb itself: a transaction is given. A record that is damaged says nothing.
"""

from collections.abc import Iterator

from lazyfs.cache.records import (
    HEAD,
    OBJECT,
    Record,
    chunks_of,
    daemon_key,
    disk_size,
    number_of,
    parts_in,
    segment_size,
    sound,
    taken_in,
)
from lazyfs.cache.tables import Tables, Transaction, segments_of


def holds(txn: Transaction, tables: Tables, object_id: bytes) -> bool:
    """Whether anything of it does."""
    return any(taken_in(value) for _, value in _records(txn, tables, object_id))


def has_parts(txn: Transaction, tables: Tables, object_id: bytes, but: bytes = b"") -> bool:
    """Whether chunks of it are here in part, in segments other than the one whose key is `but`."""
    return any(parts_in(value) for key, value in _records(txn, tables, object_id) if key != but)


def taken(txn: Transaction, tables: Tables, object_id: bytes) -> int:
    """The bytes of disk that it takes. A chunk of which only some blocks are here takes as many as a whole one."""
    found = txn.get(object_id, db=tables.objects)
    if found is None:
        return 0
    _, size, present = OBJECT.unpack_from(found)
    if present >= chunks_of(size):
        return disk_size(size)
    at = len(object_id)
    return sum(
        segment_size(size, int.from_bytes(key[at:], "big"), taken_in(value))
        for key, value in _records(txn, tables, object_id)
    )


def claimed(txn: Transaction, tables: Tables, but: int) -> int:
    """The bytes that other daemons than this one have claimed: they are not on the disk yet, or not all of them."""
    with txn.cursor(tables.claims) as cursor:
        return sum(number_of(value) for key, value in cursor if bytes(key) != daemon_key(but))


def whole(txn: Transaction, tables: Tables, object_id: bytes, generation: int) -> bool:
    """Whether the records of its segments say that all of it is in the file of this generation. Some 3 us for each of
    them; the object's own record has a count, but no checksum."""
    found = txn.get(object_id, db=tables.objects)
    if found is None or OBJECT.unpack_from(found)[0] != generation:
        return False
    heads = (HEAD.unpack_from(value) for _, value in _records(txn, tables, object_id))
    here = sum(bits.bit_count() for file, _, bits in heads if file == generation)
    return bool(here == chunks_of(OBJECT.unpack_from(found)[1]))


def _records(txn: Transaction, tables: Tables, object_id: bytes) -> Iterator[tuple[bytes, Record]]:
    """The object's segments whose records are sound."""
    for key in segments_of(txn, tables, object_id):
        value = txn.get(key, db=tables.segments)
        if value is not None and sound(key, value):
            yield key, value
