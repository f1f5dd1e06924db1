"""What one write transaction does to the index: the books of presence and space, and nothing that opens or commits.

Every byte of disk is spoken for by exactly one of three: a chunk that is present, a claim (about to be written), or a
grave (about to leave the disk). A chunk of which only some blocks are here speaks for all of its bytes. The rules that
make it safe for several daemons, any of which may be killed at any step, are two, and hold because write transactions
of all processes come one after the other:

  No claim overlaps a grave. What is to be cleared is written by nobody until it is cleared, so whoever digs a grave,
  now or after a restart, can hit no byte of somebody else.
  Nothing that is claimed is buried. So no file is unlinked, and no hole punched, under a writer.

Must not know lmdb itself (a transaction is given), paths or descriptors.
"""

from collections.abc import Callable, Iterable, Mapping

from lazyfs.cache.answer import Answer
from lazyfs.cache.books import Books
from lazyfs.cache.holdings import has_parts
from lazyfs.cache.pins import PinSet, apart, is_apart, load
from lazyfs.cache.records import (
    CHUNK_SUMS,
    HEAD,
    OBJECT,
    SUMS_SIZE,
    WHOLE_FILE,
    Record,
    Run,
    Written,
    chunk_size,
    chunks_of,
    daemon_key,
    disk_size,
    names_of,
    number_of,
    put_blocks,
    run_key,
    run_of,
    runs_in,
    segment_key,
    segment_size,
    sound,
    taken_in,
)
from lazyfs.cache.tables import LRU_KEY_SIZE, segments_of
from lazyfs.objects import CHUNK_SIZE, SEGMENT_CHUNKS

Lent = Callable[[bytes, int], bool]
"""Whether the object file of an (object_id, generation) is read past the index, which only complete ones are."""


def not_lent(_object_id: bytes, _generation: int) -> bool:
    """Where no file is ever lent."""
    return False


class Ledger(Books):
    """The books, open in one write transaction."""

    # ---- space for what is about to be written

    def claim(self, daemon: int, runs: list[Run], size: int, bound: int, fresh: Mapping[bytes, bytes]) -> Answer:
        """Speak for `size` bytes before they are written into `runs`, if `used` then stays within `bound`. `fresh` are
        the records of objects that may not be known yet; they are from here on if the claim is granted."""
        if self._txn.get(daemon_key(daemon), db=self._at.claims) is not None:
            return Answer.BLOCKED
        for run in runs:
            found = self._txn.get(run.object_id, db=self._at.objects) or fresh.get(run.object_id)
            if found is None or OBJECT.unpack_from(found)[0] != run.generation or self._forgotten(run):
                return Answer.STALE
        if any(grave.overlaps(run) for grave in self.graves() for run in runs):
            return Answer.BLOCKED
        if self._used() + size > bound:
            return Answer.NO_ROOM
        for object_id in {run.object_id for run in runs} & fresh.keys():
            self._txn.put(object_id, fresh[object_id], overwrite=False, db=self._at.objects)
        packed = b"".join(run_key(run) for run in runs)
        self._txn.put(daemon_key(daemon), size.to_bytes(8, "little") + packed, db=self._at.claims)
        self._change_used(size)
        return Answer.GRANTED

    def settle(self, daemon: int, written: Iterable[Written], now: int) -> int:
        """End the daemon's claim: what was written is present, and the rest of what was claimed becomes graves.

        A chunk whose object file has another generation by now is not counted; nor is one that is present already.
        One that is here in part takes the room of a whole one, from its first block on. Returns how many were counted.
        """
        value = self._txn.pop(daemon_key(daemon), db=self._at.claims)
        if value is None:
            return 0
        added = self._add(written, now)
        taken = {(object_id, number) for object_id, number, _ in added}
        self._change_used(sum(size for _, _, size in added) - number_of(value))
        claimed = [run for runs in self.claims().values() for run in runs]
        for run in runs_in(value[8:]):
            if any((run.object_id, number) not in taken for number in range(run.first, run.stop)):
                self._bury_missing(run, [other for other in claimed if other.object_id == run.object_id])
        return len(added)

    def _forgotten(self, run: Run) -> bool:
        """Whether the object of a run had to be forgotten, for a record of the run's segments is damaged. What that
        spoke for is not known: chunks put in its place would be counted twice, and an object with holes be complete."""
        for segment in range(run.first // SEGMENT_CHUNKS, (run.stop - 1) // SEGMENT_CHUNKS + 1):
            key = segment_key(run.object_id, segment)
            value = self._txn.get(key, db=self._at.segments)
            if value is not None and not sound(key, value):
                self.bury_object(run.object_id)
                return self._txn.get(run.object_id, db=self._at.objects) is None
        return False

    def _bury_missing(self, run: Run, others: list[Run]) -> None:
        """Graves for the chunks of an ended claim that are not present, and that nobody else is writing: there may be
        bytes of them on disk."""
        found = self._txn.get(run.object_id, db=self._at.objects)
        if found is None or OBJECT.unpack_from(found)[0] != run.generation:
            if not any(other.generation == run.generation for other in others):
                self._put_grave(Run(run.object_id, run.generation, 0, WHOLE_FILE), 0)
            return
        _, size, present = OBJECT.unpack_from(found)
        if present == 0 and not others and not has_parts(self._txn, self._at, run.object_id):
            self._bury_object(run.object_id, found)
            return
        for number in range(run.first, min(run.stop, chunks_of(size))):
            missing = Run(run.object_id, run.generation, number, number + 1)
            if not self._takes_room(run.object_id, number) and not any(missing.overlaps(other) for other in others):
                bytes_ = chunk_size(size, number)
                self._change_used(bytes_)
                self._put_grave(missing, bytes_)

    def _takes_room(self, object_id: bytes, number: int) -> bool:
        """Whether the chunk is present, or here in part."""
        key = segment_key(object_id, number // SEGMENT_CHUNKS)
        value = self._txn.get(key, db=self._at.segments)
        return value is not None and sound(key, value) and bool(taken_in(value) >> number % SEGMENT_CHUNKS & 1)

    def claims(self) -> dict[int, list[Run]]:
        """What every daemon is writing."""
        with self._txn.cursor(self._at.claims) as cursor:
            return {int.from_bytes(key, "big"): list(runs_in(value[8:])) for key, value in cursor}

    def graves(self) -> list[Run]:
        """What has to leave the disk."""
        with self._txn.cursor(self._at.graves) as cursor:
            return [run_of(bytes(key)) for key, _ in cursor]

    def _add(self, written: Iterable[Written], now: int) -> list[tuple[bytes, int, int]]:
        """Count the chunks, or blocks of some: (object_id, number, bytes of disk that are taken so) of each that is
        counted. A segment's record is written once: written for each chunk it was a third of the index's time."""
        groups: dict[tuple[bytes, int, int], list[Written]] = {}
        for chunk in written:
            key = chunk.version.object_id, chunk.generation, chunk.number // SEGMENT_CHUNKS
            groups.setdefault(key, []).append(chunk)
        added: list[tuple[bytes, int, int]] = []
        for (object_id, generation, segment), chunks in groups.items():
            found = self._txn.get(object_id, db=self._at.objects)
            if found is not None and OBJECT.unpack_from(found)[0] == generation:
                sizes = self._add_to_segment(segment_key(object_id, segment), found, chunks, now)
                added += [(object_id, number, size) for number, size in sizes]
        return added

    def _add_to_segment(self, key: bytes, found: Record, chunks: list[Written], now: int) -> list[tuple[int, int]]:
        """Count these chunks of one segment, of an object whose record was `found`: the number and bytes of each."""
        generation = chunks[0].generation
        value = self._txn.get(key, db=self._at.segments)
        last_use, bits, sums = 0, 0, bytearray(SUMS_SIZE)
        if value is not None:
            if not sound(key, value):
                return []  # somebody else writes the object, or `claim` had forgotten it
            before, last_use, bits = HEAD.unpack_from(value)
            if before == generation:
                sums[:] = value[HEAD.size : -8]
            else:
                bits = 0
        counted: list[tuple[int, int]] = []
        present = bits
        for chunk in chunks:
            place = chunk.number % SEGMENT_CHUNKS
            if present >> place & 1:
                continue
            partly, whole = put_blocks(sums, place, chunk)
            present |= whole << place
            counted.append((chunk.number, 0 if partly else chunk_size(chunk.version.size, chunk.number)))
        if counted:
            self._put_segment(key, generation, (last_use, now), present, bytes(sums))
        if present != bits:
            self._put_present(chunks[0].version.object_id, found, present.bit_count() - bits.bit_count())
        return counted

    # ---- uses

    def touch(self, segments: Iterable[tuple[bytes, int]], now: int) -> None:
        """These (object_id, segment) were read now."""
        for object_id, segment in segments:
            key = segment_key(object_id, segment)
            value = self._txn.get(key, db=self._at.segments)
            if value is not None and sound(key, value):
                generation, last_use, bits = HEAD.unpack_from(value)
                self._put_segment(key, generation, (last_use, now), bits, value[HEAD.size : -8])

    # ---- what goes

    def bury(self, size: int, lent: Lent) -> int:
        """Forget least recently used chunks of at least `size` bytes, if so many are neither claimed nor pinned nor
        lent; the bytes.

        A complete object goes as a whole, by unlinking; of another one a segment goes, by punching.
        """
        claimed = [run for runs in self.claims().values() for run in runs]
        pins = load(self._txn, self._at.pins)
        freed, position = 0, b""
        # Asked once for each object: one of 100 GB that is lent, and so used longest ago, has 1,600 segments.
        stays: dict[bytes, bool] = {}

        def is_lent(object_id: bytes, generation: int) -> bool:
            if object_id not in stays:
                stays[object_id] = lent(object_id, generation)
            return stays[object_id]

        while freed < size:
            with self._txn.cursor(self._at.lru) as cursor:
                if not cursor.set_range(position):
                    break
                entry = bytes(cursor.key())
            if len(entry) != LRU_KEY_SIZE:
                self._txn.delete(entry, db=self._at.lru)  # damaged, and would be met first by every eviction
                continue
            if is_apart(entry):
                break
            if self._is_pinned(entry[8:-4], pins):
                self._txn.delete(entry, db=self._at.lru)
                self._txn.put(apart(entry), b"", db=self._at.lru)
                continue
            bytes_ = None if stays.get(entry[8:-4]) else self._bury_segment(entry[8:], claimed, is_lent)
            if bytes_ is None:
                position = entry + b"\0"
                continue
            self._txn.delete(entry, db=self._at.lru)
            freed += bytes_
        return freed

    def _is_pinned(self, object_id: bytes, pins: PinSet) -> bool:
        found = self._txn.get(object_id, db=self._at.objects) if pins else None
        return found is not None and pins.cover(*names_of(found))

    def bury_object(self, object_id: bytes, lent: Lent = not_lent) -> int:
        """Forget everything of one object, unless some of it is claimed, or it is lent; the bytes."""
        found = self._txn.get(object_id, db=self._at.objects)
        if found is None or lent(object_id, OBJECT.unpack_from(found)[0]):
            return 0
        if any(run.object_id == object_id for runs in self.claims().values() for run in runs):
            return 0
        return self._bury_object(object_id, found)

    def discard(self, object_id: bytes, number: int) -> int:
        """Forget one chunk, or what is here of it, whose bytes on disk turned out wrong, unless somebody writes it just
        now; the bytes."""
        segment, place = divmod(number, SEGMENT_CHUNKS)
        key = segment_key(object_id, segment)
        found = self._txn.get(object_id, db=self._at.objects)
        value = self._txn.get(key, db=self._at.segments)
        if found is None or value is None or not sound(key, value):
            return 0
        generation, last_use, bits = HEAD.unpack_from(value)
        run = Run(object_id, generation, number, number + 1)
        taken = taken_in(value) >> place & 1
        if not taken or any(run.overlaps(other) for runs in self.claims().values() for other in runs):
            return 0
        sums, begin = bytearray(value[HEAD.size : -8]), place * CHUNK_SUMS
        sums[begin : begin + CHUNK_SUMS] = bytes(CHUNK_SUMS)
        self._put_segment(key, generation, (last_use, last_use), bits & ~(1 << place), bytes(sums))
        self._put_present(object_id, found, -(bits >> place & 1))
        self.open_question(object_id)
        size = OBJECT.unpack_from(found)[1]
        return self._put_grave(run, segment_size(size, segment, 1 << place))

    def dug(self, runs: Iterable[Run]) -> None:
        """The bytes of these graves have left the disk."""
        for run in runs:
            self._change_used(-number_of(self._txn.pop(run_key(run), db=self._at.graves)))

    def _bury_segment(self, key: bytes, claimed: list[Run], lent: Lent) -> int | None:
        """None if it cannot go now."""
        object_id, segment = key[:-4], int.from_bytes(key[-4:], "big")
        mine = [run for run in claimed if run.object_id == object_id]
        found = self._txn.get(object_id, db=self._at.objects)
        if found is None:
            self._forget_segment(key)
            return 0
        value = self._txn.get(key, db=self._at.segments)
        generation, size, present = OBJECT.unpack_from(found)
        if value is None or not sound(key, value) or present >= chunks_of(size):
            # Complete, or a damaged record: what it spoke for is not known, so the object goes as a whole.
            return None if mine or lent(object_id, generation) else self._bury_object(object_id, found)
        run = Run(object_id, generation, segment * SEGMENT_CHUNKS, (segment + 1) * SEGMENT_CHUNKS)
        if any(run.overlaps(other) for other in mine):
            return None
        bits, taken = HEAD.unpack_from(value)[2], taken_in(value)
        if present <= bits.bit_count() and not mine and not has_parts(self._txn, self._at, object_id, but=key):
            return self._bury_object(object_id, found)
        self._forget_segment(key)
        self._put_present(object_id, found, -bits.bit_count())
        self.open_question(object_id)
        return self._put_grave(run, segment_size(size, segment, taken))

    def _bury_object(self, object_id: bytes, found: Record) -> int:
        """Forget the object, its segments and their uses; one grave for the whole file."""
        generation, size, present = OBJECT.unpack_from(found)
        freed, lost = 0, present
        # Those that there are, and not those that the size says: a damaged record says 2^60 bytes.
        for key in list(segments_of(self._txn, self._at, object_id)):
            segment = int.from_bytes(key[len(object_id) :], "big")
            value = self._forget_segment(key)
            if value is not None and len(value) >= HEAD.size:
                self._forget_use(HEAD.unpack_from(value)[1], key)
            if value is not None and sound(key, value):
                freed += segment_size(size, segment, taken_in(value))
                lost -= HEAD.unpack_from(value)[2].bit_count()
        if lost > 0 and present <= 2 * chunks_of(size):
            # Chunks of damaged records, or some that an earlier lazyfs counted twice after such damage. A larger number
            # is damaged itself.
            freed += min(lost * CHUNK_SIZE, disk_size(size))
        self._txn.delete(object_id, db=self._at.objects)
        return self._put_grave(Run(object_id, generation, 0, WHOLE_FILE), freed)
