"""The rows of the index's books, and how one is changed in a write transaction: a segment and its place in the order of
uses, how many chunks of an object are present, graves, and the bytes that are spoken for.

Must not know the rules by which they change (`ledger.py` has them), nor lmdb: a transaction is given.
"""

from lazyfs.cache.pins import apart
from lazyfs.cache.records import HEAD, OBJECT, Record, Run, number_of, run_key
from lazyfs.cache.sums import seal
from lazyfs.cache.tables import Tables, Transaction
from lazyfs.cache.verdicts import unpack

USED = b"used"


class Books:
    """The books, open in one transaction."""

    def __init__(self, txn: Transaction, tables: Tables) -> None:
        self._txn = txn
        self._at = tables

    def _put_segment(self, key: bytes, generation: int, uses: tuple[int, int], bits: int, sums: bytes) -> None:
        """Write a record and move its entry in the lru table from the first to the second of `uses`."""
        before, now = uses
        body = HEAD.pack(generation, now, bits) + sums
        self._txn.put(key, body + seal(key, body), db=self._at.segments)
        if before != now:
            self._forget_use(before, key)
            self._txn.put(now.to_bytes(8, "big") + key, b"", db=self._at.lru)

    def _forget_segment(self, key: bytes) -> Record | None:
        """Its record, which goes with its marks."""
        self._txn.delete(key, db=self._at.marks)
        record: Record | None = self._txn.pop(key, db=self._at.segments)
        return record

    def _forget_use(self, last_use: int, key: bytes) -> None:
        """Take the entry out of the lru table, set apart or not."""
        entry = last_use.to_bytes(8, "big") + key
        if not self._txn.delete(entry, db=self._at.lru):
            self._txn.delete(apart(entry), db=self._at.lru)

    def _put_present(self, object_id: bytes, found: Record, change: int) -> None:
        """Change the number of the object's chunks that are present."""
        generation, size, present = OBJECT.unpack_from(found)
        head = OBJECT.pack(generation, size, max(0, present + change))
        self._txn.put(object_id, head + bytes(found[OBJECT.size :]), db=self._at.objects)

    def open_question(self, object_id: bytes) -> None:
        """Forget that all of the object was right, for some of it leaves the file: what comes in its place was not
        compared. That it was wrong holds for the version, and stays."""
        found = unpack(self._txn.get(object_id, db=self._at.verdicts))
        if found is not None and not found.wrong:
            self._txn.delete(object_id, db=self._at.verdicts)

    def _put_grave(self, run: Run, size: int) -> int:
        """Bytes that are spoken for already go into a grave, to be spoken for until it is dug; how many."""
        before = number_of(self._txn.get(run_key(run), db=self._at.graves))
        self._txn.put(run_key(run), (before + size).to_bytes(8, "little"), db=self._at.graves)
        return size

    def _used(self) -> int:
        return number_of(self._txn.get(USED, db=self._at.meta))

    def _change_used(self, change: int) -> None:
        self._txn.put(USED, max(0, self._used() + change).to_bytes(8, "little"), db=self._at.meta)
