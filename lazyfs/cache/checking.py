"""A cache that no mount uses, checked against itself: what `lazyfs fsck` does.

Its job: whether the index can be read and its books add up, whether object files agree with it, what lies about, and
whether every chunk has its checksum; and to mend that, by forgetting what is wrong, for all of it can be fetched again.
Must not know who asks, nor names of a mount.

Nothing is written unless it is to be mended, but for this program's own place among the daemons. What a killed daemon
left (claims and graves) is no damage: the next mount clears it, and so does mending.
"""

import contextlib
import mmap
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lazyfs.cache.audit import cut_short, verify
from lazyfs.cache.books import USED
from lazyfs.cache.digest import AT_ONCE
from lazyfs.cache.directory import MARK, MODELS, OPEN_MARK, CacheDirectory
from lazyfs.cache.index import Index
from lazyfs.cache.ledger import Ledger
from lazyfs.cache.objectfile import ObjectFiles
from lazyfs.cache.readback import blocks_right, filled
from lazyfs.cache.records import (
    CHUNK_SUMS,
    HEAD,
    OBJECT,
    WHOLE_FILE,
    Kept,
    Run,
    chunk_size,
    chunks_of,
    number_of,
    parts_in,
    segment_size,
    sound,
)
from lazyfs.cache.sums import block_sums
from lazyfs.cache.sweep import FILE_OVERHEAD, entries
from lazyfs.cache.tables import LRU_KEY_SIZE, Tables, Transaction
from lazyfs.errors import CacheUnavailable, SetupError, UsageError
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, SEGMENT_CHUNKS, runs

Told = Callable[[int, int], None]
"""Told how many bytes of how many are read."""

KNOWN = {MARK, f"{MARK}.new", OPEN_MARK, "room", "index", "objects", "daemons", "damaged", MODELS, "lost+found"}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong: its kind, a sentence, and whether it was mended."""

    kind: str
    words: str
    mended: bool


@dataclass(slots=True)
class Findings:
    """What was found. `leftovers`: claims and graves of daemons that were killed."""

    objects: int = 0
    chunks: int = 0
    bytes: int = 0
    leftovers: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def status(self) -> str:
        """clean, mended, or damaged if something is left."""
        if not self.problems:
            return "clean"
        return "mended" if all(problem.mended for problem in self.problems) else "damaged"


def check(path: Path, *, mend: bool, quick: bool, told: Told) -> Findings:
    """Check the cache in `path`. `quick`: no bytes are read. `UsageError` for what is not a cache, `SetupError` for
    one that is in use or cannot be read."""
    if not (path / MARK).is_file():
        raise UsageError(f"{path} is not a cache directory of lazyfs; `lazyfs mount --print-config` shows --cache-dir")
    directory = CacheDirectory(path, create=False)
    try:
        with directory.alone(1.0) as alone:
            _refuse_if_used(directory, alone)
            found = _Check(directory, mend, told).run(quick)
    except BaseException:
        directory.leave()
        raise
    if mend:
        directory.close()
    else:
        directory.leave()
    return found


def _refuse_if_used(directory: CacheDirectory, alone: bool) -> None:
    others = len(directory.alive()) - 1
    if others or not alone:
        raise SetupError(
            f"the cache {directory.path} is in use by {max(1, others)} mount(s); unmount first (`lazyfs status` lists "
            "what is mounted)"
        )


class _Check:
    def __init__(self, directory: CacheDirectory, mend: bool, told: Told) -> None:
        self._directory = directory
        self._mend = mend
        self._told = told
        self._found = Findings()

    def run(self, quick: bool) -> Findings:
        directory, found = self._directory, self._found
        torn = directory.orphaned() or cut_short(directory.index) or not verify(directory.index)
        index = None if torn else self._opened()
        if index is None:
            self._problem("index", "the index cannot be read: nothing that is cached can be used")
            if self._mend:
                directory.set_aside(wait=True)
                Index(directory.index).close()
            return found
        try:
            self._check_books(index)
            files = ObjectFiles(directory.objects)
            self._check_files(index, files)
            self._check_strays()
            if not quick:
                self._check_bytes(index, files)
            if self._mend:
                self._dig(index, files)
            files.close()
        finally:
            index.close()
        return found

    def _opened(self) -> Index | None:
        """None if it cannot be. One that is not there, of a cache that is empty, is as good as one that is empty."""
        to_read = not self._mend and (self._directory.index / "data.mdb").exists()
        try:
            return Index(self._directory.index, to_read=to_read)
        except CacheUnavailable as error:
            if isinstance(error.__cause__, PermissionError):
                raise SetupError(f"the index in {self._directory.path} cannot be opened: {error}") from None
            return None

    def _problem(self, kind: str, words: str, *, mended: bool | None = None) -> None:
        self._found.problems.append(Problem(kind, words, self._mend if mended is None else mended))

    # ---- the index against itself

    def _check_books(self, index: Index) -> None:
        with (index.change() if self._mend else index.look()) as (txn, tables):
            # First: it reads the object records, so they must be such.
            for key, value in _rows(txn, tables.objects):
                if len(key) != 16 or len(value) < OBJECT.size:
                    self._problem("record", "an object's record is damaged")
                    if self._mend:
                        txn.delete(key, db=tables.objects)
            claims, graves = list(_rows(txn, tables.claims)), list(_rows(txn, tables.graves))
            self._found.leftovers = len(claims) + len(graves)
            present = self._check_segments(txn, tables)
            self._check_uses(txn, tables)
            total = sum(number_of(value) for _, value in claims) + sum(number_of(value) for _, value in graves)
            for key, value in _rows(txn, tables.objects):
                if len(key) != 16 or len(value) < OBJECT.size:
                    continue
                generation, size, count = OBJECT.unpack_from(value)
                held = present.get(key, {})
                total += sum(segment_size(size, segment, bits | parts) for segment, (bits, parts) in held.items())
                right = sum(bits.bit_count() for bits, _ in held.values())
                self._found.objects += 1
                self._found.chunks += right
                if right != count:
                    self._problem("books", f"{_name(value)}: {count} chunks are counted, and {right} are there")
                    if self._mend:
                        head = OBJECT.pack(generation, size, right)
                        txn.put(key, head + value[OBJECT.size :], db=tables.objects)
            used = number_of(txn.get(USED, db=tables.meta))
            if used != total:
                self._problem("books", f"{used} bytes are counted as used, and {total} are")
                if self._mend:
                    txn.put(USED, total.to_bytes(8, "little"), db=tables.meta)
            if self._mend:
                for key, _ in claims:
                    Ledger(txn, tables).settle(int.from_bytes(key, "big"), [], 0)
            self._found.bytes = total

    def _check_segments(self, txn: Transaction, tables: Tables) -> dict[bytes, dict[int, tuple[int, int]]]:
        """By object and segment, of records that are sound and belong to an object: the bits of chunks that are present
        and those of chunks that are here in part."""
        present: dict[bytes, dict[int, tuple[int, int]]] = defaultdict(dict)
        for key, value in _rows(txn, tables.segments):
            object_id, segment = key[:16], int.from_bytes(key[16:], "big")
            record = txn.get(object_id, db=tables.objects) if len(key) == 20 else None
            if record is None or len(record) < OBJECT.size:
                words = "a record of chunks belongs to no object"
            elif not sound(key, value):
                words = f"{_name(record)}: a record of chunks is damaged"
            else:
                (generation, _, bits), (wanted, size, _) = HEAD.unpack_from(value), OBJECT.unpack_from(record)
                parts, most = parts_in(value), max(0, chunks_of(size) - segment * SEGMENT_CHUNKS)
                if generation == wanted and (bits | parts) >> most == 0:
                    present[object_id][segment] = bits, parts
                    continue
                words = f"{_name(record)}: a record of chunks is of another file"
            self._problem("record", words)
            if self._mend:
                txn.delete(key, db=tables.segments)
                Ledger(txn, tables).open_question(object_id)
        if self._mend:
            # No damage: a lazyfs that knows nothing of marks leaves them behind.
            for key, _ in _rows(txn, tables.marks):
                if txn.get(key, db=tables.segments) is None:
                    txn.delete(key, db=tables.marks)
        return present

    def _check_uses(self, txn: Transaction, tables: Tables) -> None:
        """Each segment has one entry in the table of uses, of the time that its record says."""
        wanted = {key: HEAD.unpack_from(value)[1] for key, value in _rows(txn, tables.segments) if sound(key, value)}
        seen: set[bytes] = set()
        for entry, _ in _rows(txn, tables.lru):
            key = entry[8:]
            use = int.from_bytes(entry[:8], "big") & ~(1 << 63)
            if len(entry) == LRU_KEY_SIZE and wanted.get(key) == use and key not in seen:
                seen.add(key)
                continue
            self._problem("uses", "an entry in the order of uses has no chunks")
            if self._mend:
                txn.delete(entry, db=tables.lru)
        for key in wanted.keys() - seen:
            self._problem("uses", "chunks have no place in the order of uses, so that they would never be evicted")
            if self._mend:
                txn.put(wanted[key].to_bytes(8, "big") + key, b"", db=tables.lru)

    # ---- the files against the index

    def _check_files(self, index: Index, files: ObjectFiles) -> None:
        known = entries(index)
        with index.look() as (txn, tables):
            loose = {(run.object_id, run.generation) for run in Ledger(txn, tables).graves()}
            claims = Ledger(txn, tables).claims().values()
            loose |= {(run.object_id, run.generation) for runs_ in claims for run in runs_}
            names = {key: _name(value) for key, value in _rows(txn, tables.objects)}
        there = files.found()
        for place, size in there.items():
            if place in loose:
                continue
            if place not in known:
                read = files.is_lent(*place)
                words = f"the object file {files.path(*place).name} is not in the index"
                self._problem("stray", words + ", and is still read" * read, mended=self._mend and not read)
                if self._mend and not read:
                    files.clear(Run(*place, 0, WHOLE_FILE))
            elif size > known[place] + FILE_OVERHEAD:
                self._problem("file", f"{names[place[0]]}: its file takes {size} bytes, {known[place]} are known")
                if self._mend:
                    index.bury_object(place[0])
        for place, size in known.items():
            if size and place not in there and place not in loose:
                self._problem("file", f"{names[place[0]]}: its file is missing")
                if self._mend:
                    index.bury_object(place[0])

    def _check_strays(self) -> None:
        root = self._directory.path
        for path in sorted(root.iterdir()):
            if path.name not in KNOWN:
                self._problem("stray", f"{path} is not of lazyfs; move it away", mended=False)
        for path in sorted(self._directory.objects.rglob("*")):
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode) and path.parent == self._directory.objects:
                continue
            if not _is_object_file(path) or not stat.S_ISREG(status.st_mode):
                plain = stat.S_ISREG(status.st_mode)
                self._problem("stray", f"{path} is no object file", mended=self._mend and plain)
                if self._mend and plain:
                    path.unlink()

    # ---- every byte

    def _check_bytes(self, index: Index, files: ObjectFiles) -> None:
        buffer = memoryview(mmap.mmap(-1, AT_ONCE * CHUNK_SIZE))
        done = 0
        with index.look() as (txn, tables):
            keys = [key for key, _ in _rows(txn, tables.segments)]
            sizes = {key: (OBJECT.unpack_from(value), _name(value)) for key, value in _rows(txn, tables.objects)}
        total = max(1, self._found.bytes)
        for key in keys:
            object_id, segment = key[:16], int.from_bytes(key[16:], "big")
            with index.look() as (txn, tables):
                value = txn.get(key, db=tables.segments)
            if value is None or object_id not in sizes or not sound(key, value):
                continue
            value = bytes(value)
            (generation, size, _), name = sizes[object_id]
            _, _, bits = HEAD.unpack_from(value)
            first = segment * SEGMENT_CHUNKS
            parts = parts_in(value)
            for number in (first + place for place in range(SEGMENT_CHUNKS) if parts >> place & 1):
                at = HEAD.size + number % SEGMENT_CHUNKS * CHUNK_SUMS
                kept = Kept(generation, value[at : at + CHUNK_SUMS])
                if not blocks_right(files, object_id, size, number, kept, buffer):
                    self._problem("bytes", f"{name}: chunk {number}, of which a part is here, is damaged")
                    if self._mend:
                        index.discard(object_id, number)
                done += chunk_size(size, number)
            for run in runs((first + place for place in range(SEGMENT_CHUNKS) if bits >> place & 1), AT_ONCE):
                views = [
                    buffer[at * CHUNK_SIZE : at * CHUNK_SIZE + min(CHUNK_SIZE, size - number * CHUNK_SIZE)]
                    for at, number in enumerate(run)
                ]
                whole = filled(files, object_id, generation, run.start * CHUNK_SIZE, views)
                for number, view in zip(run, views, strict=True):
                    at = HEAD.size + number % SEGMENT_CHUNKS * CHUNK_SUMS
                    sums = value[at : at + -(-len(view) // BLOCK_SIZE) * 8]
                    # Read again alone, for the file may end in its neighbour.
                    right = whole or filled(files, object_id, generation, number * CHUNK_SIZE, [view])
                    if not right or block_sums(view) != sums:
                        self._problem("bytes", f"{name}: chunk {number} is damaged")
                        if self._mend:
                            index.discard(object_id, number)
                    done += chunk_size(size, number)
                self._told(min(done, total), total)

    def _dig(self, index: Index, files: ObjectFiles) -> None:
        for run in index.graves():
            with contextlib.suppress(BlockingIOError):  # it is still read, and is cleared by who starts after that
                files.clear(run)
                index.dug([run])


def _rows(txn: Transaction, table: object) -> Iterator[tuple[bytes, bytes]]:
    """All of a table; what is deleted on the way is not missed."""
    after: bytes = b""
    while True:
        with txn.cursor(table) as cursor:
            if not cursor.set_range(after):
                return
            key, value = bytes(cursor.key()), bytes(cursor.value())
        yield key, value
        after = key + b"\0"


def _name(record: bytes | memoryview) -> str:
    return bytes(record[OBJECT.size :]).partition(b"\0")[0].decode("utf-8", "replace")


def _is_object_file(path: Path) -> bool:
    name = path.name
    plain = re.fullmatch(r"[0-9a-f]{32}\.[0-9a-f]{8}", name) is not None
    return plain and path.parent.name == name[:2]
