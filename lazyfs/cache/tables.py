"""The tables of the index and what is needed of a transaction over them, without lmdb. See `index.py` for what is in
which, and must know no more."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

LRU_KEY_SIZE = 8 + 16 + 4
"""Bytes of a last use, an object_id and the number of a segment."""


class Transaction(Protocol):
    """What is needed of `lmdb.Transaction`."""

    def get(self, key: bytes, default: None = None, *, db: Any) -> Any:
        """The value or None."""

    def put(self, key: bytes, value: bytes, *, overwrite: bool = True, db: Any) -> bool:
        """Store it; unless there is one, if that is not to be overwritten."""

    def pop(self, key: bytes, *, db: Any) -> Any:
        """The value or None, and forget it."""

    def delete(self, key: bytes, *, db: Any) -> bool:
        """Forget it."""

    def stat(self, db: Any) -> Any:
        """Numbers of a table, its `entries` among them."""

    def cursor(self, db: Any) -> AbstractContextManager[Any]:
        """Over all of a table, in the order of keys."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The handles of the tables that `index.py` describes."""

    meta: Any
    objects: Any
    segments: Any
    lru: Any
    claims: Any
    graves: Any
    verdicts: Any
    pins: Any
    marks: Any
    """None, each, in an index that is only read and was made before there were such."""


def segments_of(txn: Transaction, tables: Tables, object_id: bytes) -> Iterator[bytes]:
    """The keys of an object's segments."""
    with txn.cursor(tables.segments) as cursor:
        more = cursor.set_range(object_id)
        while more and bytes(cursor.key()[: len(object_id)]) == object_id:
            yield bytes(cursor.key())
            more = cursor.next()
