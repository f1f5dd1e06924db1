"""Marks: what the checksum of each block has come to after each of its pages, of chunks that are here whole. With them
a touch of 4 KiB reads 4 KiB, and verifies them. `marker.py` says when they are made.

They are advice, and need no seal: the last of a block's sixteen is the block's own checksum, so a row that stayed
behind when its chunk changed, under a lazyfs that knows nothing of marks, is seen to be another's; then, and where a
page does not agree with them, the whole block is read and compared. A chunk of no more than a block has none.

The rows of a segment are one record, which ends with the last one: 128 KiB if the segment is full, and what a single
small chunk would take if each had a record as long. Must not know lmdb itself (a transaction is given), nor where bytes
are.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from lazyfs.cache.records import CHUNK_SUMS, HEAD, SUMS_SIZE, Kept, Record, is_part, segment_key, sound
from lazyfs.cache.tables import Tables, Transaction
from lazyfs.objects import BLOCKS_PER_CHUNK, MARKS_PER_BLOCK, SEGMENT_CHUNKS

BLOCK_MARKS = MARKS_PER_BLOCK * 8
ROW = BLOCKS_PER_CHUNK * BLOCK_MARKS
"""Bytes of one chunk: sixteen checksums of 8 bytes for each block."""


def put(txn: Transaction, at: Tables, object_id: bytes, marks: Mapping[int, bytes]) -> None:
    """Keep the marks of these chunks of an object, by number, unless their segments have gone meanwhile."""
    for segment, numbers in groupby(sorted(marks), lambda number: number // SEGMENT_CHUNKS):
        key = segment_key(object_id, segment)
        if txn.get(key, db=at.segments) is None:
            continue
        rows = bytearray(txn.get(key, db=at.marks) or b"")
        for number in numbers:
            begin = number % SEGMENT_CHUNKS * ROW
            rows.extend(bytes(max(0, begin + ROW - len(rows))))
            rows[begin : begin + ROW] = marks[number].ljust(ROW, b"\0")
        txn.put(key, bytes(rows), db=at.marks)


def kept_in(txn: Transaction, table: Any, key: bytes, record: Record, place: int, *, partly: bool) -> Kept | None:
    """What a segment's `record` says of the chunk in this place of it. For who wants it `partly`: some blocks of one,
    and the marks. Where there are marks that agree with it the record's seal is not looked at, for which all 8 KiB of
    it are read: what else it may say wrong, presence or generation, leads to bytes that do not agree."""
    begin = HEAD.size + place * CHUNK_SUMS
    if partly and table is not None and len(record) == HEAD.size + SUMS_SIZE + 8:
        generation, _, bits = HEAD.unpack_from(record)
        rows = txn.get(key, db=table) if bits >> place & 1 else None
        if rows is not None:
            sums, marks = bytes(record[begin : begin + CHUNK_SUMS]), bytes(rows[place * ROW : (place + 1) * ROW])
            if len(marks) == ROW and marks[BLOCK_MARKS - 8 : BLOCK_MARKS] == sums[:8]:
                return Kept(generation, sums, marks)
    if not sound(key, record):
        return None
    generation, _, bits = HEAD.unpack_from(record)
    here = bits >> place & 1
    if not here and not partly:
        return None
    sums = bytes(record[begin : begin + CHUNK_SUMS])
    return Kept(generation, sums) if here or is_part(sums) else None
