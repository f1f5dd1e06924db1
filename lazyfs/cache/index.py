"""The index of the chunk cache, in LMDB: the only importer of lmdb, and fully synchronous.

What is present, with checksums and last use, and how many bytes of disk are spoken for. It is the single truth, with no
second copy in memory, so several daemons may share one cache directory. What a write transaction does to the tables is
in `ledger.py`; here they are opened, read and committed. Must not know names, S3 or why somebody reads.

Rules that come from LMDB: one fixed map_size (resizing races between processes), never writemap (a full disk then kills
by SIGBUS), opened after any fork, no read transaction outlives a statement. Commits are not synced: a killed process
loses nothing, a power failure may damage the file, which is then set aside.

Concurrency: reads from any thread; write transactions serialize between threads and processes inside LMDB, and each
begins and ends in one call, hence on one thread.

Tables (integers big-endian in keys, so that byte order is number order):
  objects   object_id -> generation u32, size u64, present chunks u32, and as text the key, NUL, the bucket
  segments  object_id + segment u32 -> generation u32, last use u64, presence u64, 64 x 16 checksums of 8 bytes, seal;
            of a chunk that is here in part no presence bit, and ABSENT for each block that is not; see `records.py`
  marks     object_id + segment u32 -> for each of its chunks what checksums of blocks had come to; see `marks.py`
  lru       last use u64 + object_id + segment u32 -> nothing; as many entries as segments; see `pins.py`
  claims    daemon u64 -> bytes reserved u64, and the runs of chunks they are for
  graves    object_id + generation u32 + first u32 + stop u32 -> bytes u64 that leave the disk when it is dug
  verdicts  object_id -> what became of comparing all of its bytes, as `verdicts.py` packs it
  listings  16 bytes for bucket and prefix -> a listing, as `listings.py` packs it
  pins      16 bytes for bucket and key -> what eviction leaves alone, as `pins.py` packs it
  meta      "used" -> bytes of disk spoken for by chunks, those here in part included, claims and graves together
"""

import contextlib
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb

from lazyfs.cache.answer import Answer
from lazyfs.cache.books import USED
from lazyfs.cache.ledger import Ledger, Lent, not_lent
from lazyfs.cache.marks import kept_in, put
from lazyfs.cache.records import (
    HEAD,
    OBJECT,
    Kept,
    Run,
    Written,
    number_of,
    object_record,
    segment_key,
    sound,
)
from lazyfs.cache.tables import Tables
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import SEGMENT_CHUNKS, ObjectVersion

FORMAT = b"lazyfs-index-1"
VERDICTS_BESIDE = 1024
"""How many may be of objects that have left the cache, before anybody looks: some 200 KiB."""

TABLES = ("meta", "objects", "segments", "lru", "claims", "graves", "listings", "verdicts", "pins", "marks")
LATER = ("pins", "marks")
MAP_SIZE = 64 * 1024**3
"""Address space, not disk. 12 KiB a segment, and 128 where it was touched at random: enough for 300 TiB, or 30."""


class _Border:
    """Where LMDB's exceptions end. On a full disk commits and deletes both fail, with an I/O error. A class, for a
    generator would cost a touch of warm bytes a microsecond more."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, lmdb.Error | OSError | struct.error):
            raise CacheUnavailable(f"index: {type(error).__name__}: {error}") from error


_BORDER = _Border()


class Index:
    """An open index. Raises `CacheUnavailable` for every failure of LMDB, and for a foreign or damaged file at open."""

    def __init__(self, path: Path, *, to_read: bool = False, alone: bool = False) -> None:
        """`to_read`: nothing is made, and whatever would write fails; `alone`: nobody else writes: no lock is taken."""
        if not to_read:
            path.mkdir(mode=0o700, exist_ok=True)
        self._path = path
        self._to_read, self._alone = to_read, alone
        self._file = path / "data.mdb"
        self._given_up = False
        # Held by every read, so that none is inside an environment while a write closes it to open it again.
        self._lock = threading.Lock()
        with _BORDER:
            self._open(to_read=to_read)

    def _open(self, *, to_read: bool = False) -> None:
        """Open it, or only to be read, which works on a disk that has turned read-only."""
        self._env = lmdb.open(
            str(self._path),
            map_size=MAP_SIZE,
            max_dbs=16,
            max_readers=512,
            sync=False,
            metasync=False,
            mode=0o600,
            readonly=to_read,
            lock=not self._alone,
            create=False,  # of the directory, which is there
        )
        try:
            self._env.reader_check()
            tables = {name: self._table(name, to_read) for name in TABLES}
            self._meta, self._objects, self._segments = (tables[name] for name in ("meta", "objects", "segments"))
            self._listings, self._verdicts = tables.pop("listings"), tables["verdicts"]
            self._tables = Tables(**tables)
            if not to_read or self._alone:
                self._check_format(to_read)
        except BaseException:
            self._env.close()
            raise

    def _table(self, name: str, to_read: bool) -> Any:
        """The handle of a table; None for one that earlier versions did not have, and that cannot be made."""
        try:
            return self._env.open_db(name.encode(), create=not to_read)
        except (lmdb.NotFoundError, lmdb.ReadonlyError):
            if name not in LATER:
                raise
            return None

    def _check_format(self, to_read: bool) -> None:
        with self._env.begin(write=not to_read) as txn:
            found = txn.get(b"format", db=self._meta)
            if found is None and not to_read:
                txn.put(b"format", FORMAT, db=self._meta)
            elif found != FORMAT:
                raise CacheUnavailable(f"the index has format {(found or b'')[:40]!r}, this lazyfs writes {FORMAT!r}")

    def close(self) -> None:
        """Flush to disk and close; only a clean close is safe against a power failure."""
        with self._lock, _BORDER:
            try:
                if not self._to_read:
                    self._env.sync(True)
            finally:
                self._env.close()

    # ---- reading, inline in the loop: about 3 us each

    def kept(self, object_id: bytes, number: int, *, partly: bool = False) -> Kept | None:
        """The chunk's checksums if it is on disk; None if not, or if its record is damaged. `partly`: or of some blocks
        of it, with the marks of all of it if it has such."""
        key = segment_key(object_id, number // SEGMENT_CHUNKS)
        with self._lock, _BORDER, self._env.begin(db=self._segments, buffers=True) as txn:
            value = txn.get(key)
            if value is None:
                return None
            return kept_in(txn, self._tables.marks, key, value, number % SEGMENT_CHUNKS, partly=partly)

    def present(self, object_id: bytes, segment: int) -> int:
        """The presence bits of a segment, chunk 0 of it lowest; 0 if there is no sound record."""
        key = segment_key(object_id, segment)
        with self._lock, _BORDER, self._env.begin(db=self._segments, buffers=True) as txn:
            value = txn.get(key)
            return HEAD.unpack_from(value)[2] if value is not None and sound(key, value) else 0

    def present_chunks(self, object_id: bytes) -> int:
        """How many chunks of the object are on disk."""
        with self._lock, _BORDER, self._env.begin(db=self._objects) as txn:
            value = txn.get(object_id)
            return OBJECT.unpack_from(value)[2] if value is not None else 0

    def complete(self, version: ObjectVersion) -> int | None:
        """The generation of the version's object file if all of its chunks are on disk, else None."""
        with self._lock, _BORDER, self._env.begin(db=self._objects) as txn:
            value = txn.get(version.object_id)
        if value is None:
            return None
        generation, _, present = OBJECT.unpack_from(value)
        return int(generation) if present >= version.chunk_count else None

    def used(self) -> int:
        """Bytes of disk spoken for: chunks, claims, graves, and what the index itself takes."""
        with self._lock, _BORDER, self._env.begin(db=self._meta) as txn:
            return number_of(txn.get(USED)) + self.own_size()

    def listing(self, key: bytes) -> bytes | None:
        """A listing as it was put, or None."""
        with self._lock, _BORDER, self._env.begin(db=self._listings) as txn:
            return txn.get(key)

    def verdict(self, object_id: bytes) -> bytes | None:
        """What was found of the object as a whole, as it was put, or None."""
        with self._lock, _BORDER, self._env.begin(db=self._verdicts) as txn:
            return txn.get(object_id)

    def graves(self) -> list[Run]:
        """What has to leave the disk. Whoever digs must be the only one who does."""
        with self._lock, _BORDER, self._env.begin() as txn:
            return Ledger(txn, self._tables).graves()

    def claims(self) -> dict[int, list[Run]]:
        """By daemon, dead or alive, what it is writing."""
        with self._lock, _BORDER, self._env.begin() as txn:
            return Ledger(txn, self._tables).claims()

    # ---- writing, in the writer's thread

    def generation(self, version: ObjectVersion) -> int:
        """The generation of the version's object file; if the index does not know the object, a new random one, with
        which it may be claimed."""
        with _BORDER:
            self._mend()
            with self._lock, self._env.begin(db=self._objects) as txn:
                value = txn.get(version.object_id)
            return int(OBJECT.unpack_from(value)[0] if value else int.from_bytes(os.urandom(4), "little"))

    def claim(
        self, daemon: int, runs: list[Run], size: int, bound: int, versions: Iterable[ObjectVersion] = ()
    ) -> Answer:
        """Speak for `size` bytes before they are written into `runs`, if `used` then stays within `bound` bytes.
        Objects of `versions` need not be known; for one of which nothing can be kept there would be a record for ever.

        The runs are remembered, so that whoever finds the claim of a dead daemon can clear what it left.
        """
        generations = {run.object_id: run.generation for run in runs}
        wanted = [version for version in versions if version.object_id in generations]
        fresh = {one.object_id: object_record(generations[one.object_id], one) for one in wanted}
        with self._writing() as ledger:
            return ledger.claim(daemon, runs, size, bound - self.own_size(), fresh)

    def settle(self, daemon: int, written: list[Written]) -> int:
        """End the daemon's claim: what was written is present, the rest of what it claimed is buried.

        Returns how many chunks were counted; one that is present already, or that went into a file of a generation
        that has passed, is not.
        """
        with self._writing() as ledger:
            return ledger.settle(daemon, written, time.time_ns())

    def touch(self, segments: Iterable[tuple[bytes, int]]) -> None:
        """These (object_id, segment) were read now."""
        with self._writing() as ledger:
            ledger.touch(segments, time.time_ns())

    def put_verdict(self, object_id: bytes, packed: bytes) -> None:
        """Keep what was found of the object as a whole. Those of objects that have left the cache are forgotten when
        they are most of all: what they said is found out anew."""
        with self._transaction() as txn:
            objects = self._tables.objects
            if txn.stat(self._verdicts)["entries"] > 2 * txn.stat(objects)["entries"] + VERDICTS_BESIDE:
                with txn.cursor(self._verdicts) as cursor:
                    known = [bytes(key) for key in cursor.iternext(values=False)]
                for key in known:
                    if txn.get(key, db=objects) is None:
                        txn.delete(key, db=self._verdicts)
            txn.put(object_id, packed, db=self._verdicts)

    def put_marks(self, object_id: bytes, marks: dict[int, bytes]) -> None:
        """Keep the marks of these chunks, by number."""
        with self._transaction() as txn:
            put(txn, self._tables, object_id, marks)

    def put_listings(self, packed: dict[bytes, bytes]) -> None:
        """Keep listings under their keys, all or none."""
        with self._transaction() as txn:
            for key, value in packed.items():
                txn.put(key, value, db=self._listings)

    def bury(self, size: int, lent: Lent = not_lent) -> int:
        """Forget least recently used chunks of at least `size` bytes, if so many are claimed by nobody; the bytes.

        They stay spoken for, in graves: the caller clears the disk of those and says `dug`.
        """
        with self._writing() as ledger:
            return ledger.bury(size, lent)

    def bury_object(self, object_id: bytes, lent: Lent = not_lent) -> int:
        """Forget everything of one object, as `bury` does, unless some of it is claimed, or it is lent."""
        with self._writing() as ledger:
            return ledger.bury_object(object_id, lent)

    def discard(self, object_id: bytes, number: int) -> int:
        """Forget one chunk whose bytes on disk turned out wrong, as `bury` does, unless it is claimed."""
        with self._writing() as ledger:
            return ledger.discard(object_id, number)

    def dug(self, runs: Iterable[Run]) -> None:
        """The bytes of these graves have left the disk."""
        with self._writing() as ledger:
            ledger.dug(runs)

    @contextlib.contextmanager
    def look(self) -> Iterator[tuple[lmdb.Transaction, Tables]]:
        """The tables as they are at this moment, for `pins.py` and those who look at all of them, a part at a time:
        nobody else reads meanwhile."""
        with self._lock, _BORDER, self._env.begin() as txn:
            yield txn, self._tables

    @contextlib.contextmanager
    def change(self) -> Iterator[tuple[lmdb.Transaction, Tables]]:
        """The same, in one transaction that writes."""
        with self._transaction() as txn:
            yield txn, self._tables

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Ledger]:
        """The books, in one transaction."""
        with self._transaction() as txn:
            yield Ledger(txn, self._tables)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[lmdb.Transaction]:
        """A write transaction, committed if nothing was raised."""
        with _BORDER:
            self._mend()
            try:
                with self._env.begin(write=True) as txn:
                    yield txn
            except lmdb.Error:
                self._rescue()
                raise

    def _rescue(self) -> None:
        """After a write that failed: LMDB may have given the environment up for good (MDB_PANIC), reads included,
        though the file is as it was before. Then it is opened again at once, for readers.
        """
        try:
            with self._env.begin():
                return
        except lmdb.Error:
            self._given_up = True
        with contextlib.suppress(lmdb.Error, OSError, CacheUnavailable):
            self._mend()

    def _mend(self) -> None:
        """Open the index again if LMDB has given it up; only to be read, and raise, if that is all the disk can do."""
        if not self._given_up:
            return
        with self._lock:
            self._env.close()
            try:
                self._open()
            except (lmdb.Error, OSError):
                self._open(to_read=True)
                raise
        self._given_up = False

    def own_size(self) -> int:
        """Bytes of disk that the index itself takes."""
        try:
            return self._file.stat().st_blocks * 512
        except OSError:
            return 0
