"""The index of the chunk cache, in LMDB: the only importer of lmdb, and fully synchronous.

What is present, with checksums and last use, and how many bytes of disk are spoken for. It is the single truth, with no
second copy in memory, so several daemons may share one cache directory. Must not know names, S3 or why somebody reads.

Rules that come from LMDB: one fixed map_size (resizing races between processes), never writemap (a full disk then kills
by SIGBUS), opened after any fork, no read transaction outlives a statement. Commits are not synced: a killed process
loses nothing, a power failure may damage the file, which is then set aside.

Concurrency: reads from any thread; write transactions serialize between threads and processes inside LMDB, and each
begins and ends in one call, hence on one thread.

Tables (integers big-endian in keys, so that byte order is number order):
  objects   object_id -> generation u32, size u64, present chunks u32, and the key as text for people
  segments  object_id + segment u32 -> generation u32, last use u64, presence u64, 64 x 16 checksums of 8 bytes, seal
  lru       last use u64 + object_id + segment u32 -> nothing; as many entries as segments
  claims    daemon u64 -> bytes reserved u64, and the runs of chunks they are for
  graves    object_id + generation u32 + first u32 + stop u32 -> bytes u64 that leave the disk when it is dug
  listings  16 bytes for bucket and prefix -> a listing, as `listings.py` packs it
  meta      "used" -> bytes of disk spoken for by present chunks, claims and graves together
"""

import contextlib
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import lmdb

from lazyfs.cache.records import (
    CHUNK_SUMS,
    HEAD,
    OBJECT,
    SUMS_SIZE,
    WHOLE_FILE,
    Kept,
    Run,
    Written,
    disk_size,
    number_of,
    run_key,
    run_of,
    segment_key,
    segment_size,
    sound,
)
from lazyfs.cache.sums import seal
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import CHUNK_SIZE, SEGMENT_CHUNKS, ObjectVersion

FORMAT = b"lazyfs-index-1"
MAP_SIZE = 64 * 1024**3
"""Address space, not disk. 12 KiB a segment: enough for an index of more than 300 TiB of chunks."""


class Index:
    """An open index. Raises `CacheUnavailable` for every failure of LMDB, and for a foreign or damaged file at open."""

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        self._file = path / "data.mdb"
        with _translating():
            self._env = lmdb.open(
                str(path), map_size=MAP_SIZE, max_dbs=8, max_readers=512, sync=False, metasync=False, mode=0o600
            )
            self._env.reader_check()
            self._meta = self._env.open_db(b"meta")
            self._objects = self._env.open_db(b"objects")
            self._segments = self._env.open_db(b"segments")
            self._lru = self._env.open_db(b"lru")
            self._claims = self._env.open_db(b"claims")
            self._graves = self._env.open_db(b"graves")
            self._listings = self._env.open_db(b"listings")
            with self._env.begin(write=True) as txn:
                found = txn.get(b"format", db=self._meta)
                if found is None:
                    txn.put(b"format", FORMAT, db=self._meta)
                elif found != FORMAT:
                    raise CacheUnavailable(f"the index has format {found[:40]!r}, this lazyfs writes {FORMAT!r}")

    def close(self) -> None:
        """Flush to disk and close; only a clean close is safe against a power failure."""
        with _translating():
            self._env.sync(True)
            self._env.close()

    # ---- reading, inline in the loop: about 3 us each

    def kept(self, object_id: bytes, number: int) -> Kept | None:
        """The chunk's checksums if it is on disk; None if not, or if its record is damaged."""
        key = segment_key(object_id, number // SEGMENT_CHUNKS)
        with _translating(), self._env.begin(db=self._segments, buffers=True) as txn:
            value = txn.get(key)
            if value is None or not sound(key, value):
                return None
            generation, _, bits = HEAD.unpack_from(value)
            place = number % SEGMENT_CHUNKS
            if not bits >> place & 1:
                return None
            start = HEAD.size + place * CHUNK_SUMS
            return Kept(generation, bytes(value[start : start + CHUNK_SUMS]))

    def present(self, object_id: bytes, segment: int) -> int:
        """The presence bits of a segment, chunk 0 of it lowest; 0 if there is no sound record."""
        key = segment_key(object_id, segment)
        with _translating(), self._env.begin(db=self._segments, buffers=True) as txn:
            value = txn.get(key)
            return HEAD.unpack_from(value)[2] if value is not None and sound(key, value) else 0

    def present_chunks(self, object_id: bytes) -> int:
        """How many chunks of the object are on disk."""
        with _translating(), self._env.begin(db=self._objects) as txn:
            value = txn.get(object_id)
            return OBJECT.unpack_from(value)[2] if value is not None else 0

    def used(self) -> int:
        """Bytes of disk spoken for: chunks, claims, graves, and what the index itself takes."""
        with _translating(), self._env.begin(db=self._meta) as txn:
            return number_of(txn.get(b"used")) + self._own_size()

    def listing(self, key: bytes) -> bytes | None:
        """A listing as it was put, or None."""
        with _translating(), self._env.begin(db=self._listings) as txn:
            return txn.get(key)

    def entries(self) -> Iterator[tuple[bytes, int]]:
        """Every (object_id, generation) the index knows, for checks; not for the hot path."""
        with _translating(), self._env.begin(db=self._objects) as txn:
            pairs = [(bytes(key), OBJECT.unpack_from(value)[0]) for key, value in txn.cursor()]
        yield from pairs

    # ---- writing, in the writer's thread

    def generation(self, version: ObjectVersion) -> int:
        """The generation of the version's object file, a new random one if the index does not know the object yet."""
        fresh = OBJECT.pack(int.from_bytes(os.urandom(4), "little"), version.size, 0)
        with _translating(), self._env.begin(db=self._objects) as txn:
            value = txn.get(version.object_id)
        if value is None:
            with _translating(), self._env.begin(write=True, db=self._objects) as txn:
                txn.put(version.object_id, fresh + version.key.encode("utf-8", "surrogatepass"), overwrite=False)
                value = txn.get(version.object_id)
        return int(OBJECT.unpack_from(value or fresh)[0])

    def claim(self, daemon: int, runs: list[Run], size: int, bound: int) -> bool:
        """Speak for `size` bytes before they are written, if the whole then stays within `bound` bytes.

        The runs are remembered, so that whoever finds the claim of a dead daemon can clear what it left.
        """
        packed = b"".join(run_key(run) for run in runs)
        with _translating(), self._env.begin(write=True) as txn:
            used = number_of(txn.get(b"used", db=self._meta))
            if used + self._own_size() + size > bound:
                return False
            txn.put(daemon.to_bytes(8, "big"), size.to_bytes(8, "little") + packed, db=self._claims)
            txn.put(b"used", (used + size).to_bytes(8, "little"), db=self._meta)
            return True

    def settle(self, daemon: int, written: list[Written]) -> int:
        """End the daemon's claim: count what was written as present, give the rest of the bytes back.

        A chunk whose object file has another generation by now went into an unlinked file and is not counted; nor is
        one that is present already. Returns how many chunks were counted.
        """
        now = time.time_ns()
        with _translating(), self._env.begin(write=True) as txn:
            claimed = number_of(txn.pop(daemon.to_bytes(8, "big"), db=self._claims))
            kept = counted = 0
            for chunk in written:
                if self._add(txn, chunk, now):
                    kept += disk_size(chunk.version.chunk_length(chunk.number))
                    counted += 1
            self._change_used(txn, kept - claimed)
            return counted

    def _add(self, txn: lmdb.Transaction, chunk: Written, now: int) -> bool:
        object_id = chunk.version.object_id
        found = txn.get(object_id, db=self._objects)
        if found is None or OBJECT.unpack_from(found)[0] != chunk.generation:
            return False
        segment, place = divmod(chunk.number, SEGMENT_CHUNKS)
        key = segment_key(object_id, segment)
        value = txn.get(key, db=self._segments)
        last_use, bits, sums = 0, 0, bytearray(SUMS_SIZE)
        if value is not None and sound(key, value):
            generation, last_use, bits = HEAD.unpack_from(value)
            if generation == chunk.generation:
                sums[:] = value[HEAD.size : -8]
            else:
                bits = 0
        if bits >> place & 1:
            return False
        sums[place * CHUNK_SUMS : place * CHUNK_SUMS + len(chunk.sums)] = chunk.sums
        self._put_segment(txn, key, chunk.generation, (last_use, now), bits | 1 << place, bytes(sums))
        _, size, present = OBJECT.unpack_from(found)
        head = OBJECT.pack(chunk.generation, size, present + 1)
        txn.put(object_id, head + found[OBJECT.size :], db=self._objects)
        return True

    def put_listing(self, key: bytes, packed: bytes) -> None:
        """Keep a listing under its key."""
        with _translating(), self._env.begin(write=True, db=self._listings) as txn:
            txn.put(key, packed)

    def touch(self, segments: set[tuple[bytes, int]]) -> None:
        """These (object_id, segment) were read now."""
        now = time.time_ns()
        with _translating(), self._env.begin(write=True) as txn:
            for object_id, segment in segments:
                key = segment_key(object_id, segment)
                value = txn.get(key, db=self._segments)
                if value is not None and sound(key, value):
                    generation, last_use, bits = HEAD.unpack_from(value)
                    self._put_segment(txn, key, generation, (last_use, now), bits, value[HEAD.size : -8])

    def _put_segment(
        self, txn: lmdb.Transaction, key: bytes, generation: int, uses: tuple[int, int], bits: int, sums: bytes
    ) -> None:
        """Write a record and move its entry in the lru table from the first to the second of `uses`."""
        before, now = uses
        body = HEAD.pack(generation, now, bits) + sums
        txn.put(key, body + seal(key, body), db=self._segments)
        if before != now:
            txn.delete(before.to_bytes(8, "big") + key, db=self._lru)
            txn.put(now.to_bytes(8, "big") + key, b"", db=self._lru)

    def bury(self, size: int) -> list[Run]:
        """Forget least recently used chunks of at least `size` bytes, if there are so many; they stay spoken for.

        A complete object goes as a whole, by unlinking; of another one a segment goes, by punching. The caller clears
        the disk and calls `dug` for each run; after a crash in between, `unfinished` tells what is left to clear.
        """
        buried: list[Run] = []
        freed = 0
        with _translating(), self._env.begin(write=True) as txn:
            while freed < size:
                with txn.cursor(db=self._lru) as cursor:
                    if not cursor.first():
                        break
                    key = cursor.key()[8:]
                    cursor.delete()
                run, bytes_ = self._bury_one(txn, key)
                if run is not None:
                    freed += bytes_
                    buried.append(run)
                    txn.put(run_key(run), bytes_.to_bytes(8, "little"), db=self._graves)
        return buried

    def _bury_one(self, txn: lmdb.Transaction, key: bytes) -> tuple[Run | None, int]:
        object_id, segment = key[:-4], int.from_bytes(key[-4:], "big")
        found = txn.get(object_id, db=self._objects)
        value = txn.get(key, db=self._segments)
        if found is None or value is None or not sound(key, value):
            # A damaged record: what it spoke for is not known, so the object goes as a whole.
            return (None, 0) if found is None else self._bury_object(txn, object_id, found)
        generation, size, present = OBJECT.unpack_from(found)
        if present >= -(-size // CHUNK_SIZE):
            return self._bury_object(txn, object_id, found)
        bits = HEAD.unpack_from(value)[2]
        txn.delete(key, db=self._segments)
        bytes_ = segment_size(size, segment, bits)
        if present <= bits.bit_count():
            txn.delete(object_id, db=self._objects)
            return Run(object_id, generation, 0, WHOLE_FILE), bytes_
        head = OBJECT.pack(generation, size, present - bits.bit_count())
        txn.put(object_id, head + found[OBJECT.size :], db=self._objects)
        return Run(object_id, generation, segment * SEGMENT_CHUNKS, (segment + 1) * SEGMENT_CHUNKS), bytes_

    def _bury_object(self, txn: lmdb.Transaction, object_id: bytes, found: bytes | memoryview) -> tuple[Run, int]:
        generation, size, present = OBJECT.unpack_from(found)
        last = -(-size // CHUNK_SIZE) - 1
        freed = present * CHUNK_SIZE
        for segment in range(last // SEGMENT_CHUNKS + 1):
            key = segment_key(object_id, segment)
            value = txn.pop(key, db=self._segments)
            if value is not None and len(value) >= HEAD.size:
                _, last_use, bits = HEAD.unpack_from(value)
                txn.delete(last_use.to_bytes(8, "big") + key, db=self._lru)
                if segment == last // SEGMENT_CHUNKS and bits >> last % SEGMENT_CHUNKS & 1:
                    freed -= CHUNK_SIZE - disk_size(size - last * CHUNK_SIZE)
        txn.delete(object_id, db=self._objects)
        return Run(object_id, generation, 0, WHOLE_FILE), freed

    def discard(self, object_id: bytes, number: int) -> list[Run]:
        """Forget one chunk whose bytes on disk turned out wrong, as `bury` does."""
        segment, place = divmod(number, SEGMENT_CHUNKS)
        key = segment_key(object_id, segment)
        with _translating(), self._env.begin(write=True) as txn:
            found = txn.get(object_id, db=self._objects)
            value = txn.get(key, db=self._segments)
            if found is None or value is None or not sound(key, value):
                return []
            generation, last_use, bits = HEAD.unpack_from(value)
            if not bits >> place & 1:
                return []
            self._put_segment(txn, key, generation, (last_use, last_use), bits & ~(1 << place), value[HEAD.size : -8])
            _, size, present = OBJECT.unpack_from(found)
            txn.put(object_id, OBJECT.pack(generation, size, present - 1) + found[OBJECT.size :], db=self._objects)
            run = Run(object_id, generation, number, number + 1)
            bytes_ = segment_size(size, segment, 1 << place)
            txn.put(run_key(run), bytes_.to_bytes(8, "little"), db=self._graves)
            return [run]

    def bury_object(self, object_id: bytes) -> list[Run]:
        """Forget everything of one object, as `bury` does for the least recently used."""
        with _translating(), self._env.begin(write=True) as txn:
            found = txn.get(object_id, db=self._objects)
            if found is None:
                return []
            run, freed = self._bury_object(txn, object_id, found)
            txn.put(run_key(run), freed.to_bytes(8, "little"), db=self._graves)
            return [run]

    def dug(self, run: Run) -> None:
        """The run's bytes have left the disk."""
        with _translating(), self._env.begin(write=True) as txn:
            self._change_used(txn, -number_of(txn.pop(run_key(run), db=self._graves)))

    def unfinished(self, alive: set[int]) -> tuple[list[Run], dict[int, list[Run]]]:
        """What a killed daemon left: graves not dug, and by dead daemon the runs it was writing. `alive`: the
        others."""
        with _translating(), self._env.begin() as txn:
            graves = [run_of(bytes(key)) for key, _ in txn.cursor(db=self._graves)]
            claims = {
                int.from_bytes(key, "big"): [run_of(bytes(value[i : i + 28])) for i in range(8, len(value), 28)]
                for key, value in txn.cursor(db=self._claims)
            }
        return graves, {daemon: runs for daemon, runs in claims.items() if daemon not in alive}

    def _change_used(self, txn: lmdb.Transaction, change: int) -> None:
        used = max(0, number_of(txn.get(b"used", db=self._meta)) + change)
        txn.put(b"used", used.to_bytes(8, "little"), db=self._meta)

    def _own_size(self) -> int:
        try:
            return self._file.stat().st_blocks * 512
        except OSError:
            return 0


@contextlib.contextmanager
def _translating() -> Iterator[None]:
    """The border where LMDB's exceptions end. On a full disk commits and deletes both fail, with an I/O error."""
    try:
        yield
    except (lmdb.Error, OSError, struct.error) as error:
        raise CacheUnavailable(f"index: {type(error).__name__}: {error}") from error
