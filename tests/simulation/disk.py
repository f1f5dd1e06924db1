"""A disk cache in memory that fails as its script says, under the promises of `lazyfs.cache.disk.Disk`.

Bytes that it says are right were verified, and what it says was kept is there. All else may fail at any time, and
chunks may go between any two steps, for another daemon may have made room.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lazyfs.cache.disk import Disk, Verified
from lazyfs.cache.records import ABSENT, Kept
from lazyfs.cache.sums import block_sums
from lazyfs.cache.verdicts import unpack
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, SEGMENT_CHUNKS, ObjectVersion
from tests.simulation.script import DiskFaults

JUNK = b"\xdd" * CHUNK_SIZE


@dataclass(slots=True, eq=False)
class Held:
    """One chunk on disk, or some blocks of one. `rotten` once a byte of it was flipped, `found` when a read has met
    that."""

    version: ObjectVersion
    kept: Kept
    data: bytearray
    rotten: bool = False
    found: bool = False
    pieced: bool = False
    """It became whole part by part."""

    def blocks(self) -> list[range]:
        """Where the bytes are that are here."""
        starts = range(0, len(self.data), BLOCK_SIZE)
        return [range(at, min(at + BLOCK_SIZE, len(self.data))) for at in starts if not self.kept.lacks(at, at + 1)]


class SimulatedDisk(Disk):
    """`clock` gives seconds. After `heal` nothing fails, and what rotted before may still be met."""

    def __init__(
        self,
        *,
        faults: DiskFaults,
        dice: random.Random,
        clock: Callable[[], float],
        note: Callable[..., None],
    ) -> None:
        self._faults = faults
        self._dice = dice
        self._clock = clock
        self._note = note
        self._chunks: dict[tuple[bytes, int], Held] = {}
        self._parts: dict[tuple[bytes, int], Held] = {}
        self._generations: dict[bytes, int] = {}
        self._verdicts: dict[bytes, bytes] = {}
        self._latest = 0
        self.discards = 0
        self.rotted = 0
        self.rewritten = 0
        """Chunks written though they were here, and right."""
        self._closed = False

    def open(self) -> None:
        """A new daemon opens what an old one left."""
        self._closed = False

    def heal(self) -> None:
        """Nothing goes wrong from now on."""
        self._faults = DiskFaults(room=self._faults.room)

    def held(self) -> list[tuple[int, Held]]:
        """All chunks that are here, and parts of them, with their numbers."""
        return [(number, held) for kind in (self._chunks, self._parts) for (_, number), held in kind.items()]

    def has(self, object_id: bytes, number: int) -> bool:
        """Whether the chunk is here, whatever goes wrong; not once the disk is closed. Not of one that became whole
        part by part: the whole may have been asked for while the last part was not written."""
        held = None if self._closed else self._chunks.get((object_id, number))
        return held is not None and not held.pieced

    def kept(self, object_id: bytes, number: int, *, partly: bool = False) -> Kept | None:
        """See `Disk.kept`."""
        key = (object_id, number)
        held = None if self._refuses() else self._chunks.get(key) or (self._parts.get(key) if partly else None)
        return None if held is None else held.kept

    def present(self, object_id: bytes, segment: int) -> int:
        """See `Disk.present`."""
        if self._refuses():
            return 0
        first = segment * SEGMENT_CHUNKS
        return sum(((object_id, first + place) in self._chunks) << place for place in range(SEGMENT_CHUNKS))

    def cached_bytes(self, version: ObjectVersion) -> int:
        """See `Disk.cached_bytes`."""
        return min(version.size, self.cached_chunks(version) * CHUNK_SIZE)

    def cached_chunks(self, version: ObjectVersion) -> int:
        """See `Disk.cached_chunks`."""
        return sum(object_id == version.object_id for object_id, _ in self._chunks)

    def read(self, version: ObjectVersion, first: int, kept: Sequence[Kept], into: Sequence[memoryview]) -> list[bool]:
        """See `Disk.read`."""
        self._strike(version)
        found = [self._whole(version, first + place, one) for place, one in enumerate(kept)]
        for view, data in zip(into, found, strict=True):
            view[:] = JUNK[: len(view)] if data is None else data
        right = [
            data is not None and block_sums(view) == one.sums
            for view, data, one in zip(into, found, kept, strict=True)
        ]
        self._met(version, first, kept, right)
        self._note("disk", "read", version.key, first, right)
        return right

    def read_part(self, version: ObjectVersion, number: int, kept: Kept, start: int, stop: int) -> bytes | None:
        """See `Disk.read_part`."""
        self._strike(version)
        data = self._whole(version, number, kept)
        low, high = start - start % BLOCK_SIZE, min(version.chunk_length(number), -(-stop // BLOCK_SIZE) * BLOCK_SIZE)
        right = False
        if data is not None:
            sums = block_sums(memoryview(data)[low:high])
            right = sums == kept.sums[low // BLOCK_SIZE * 8 : low // BLOCK_SIZE * 8 + len(sums)]
        self._met(version, number, [kept], [right])
        self._note("disk", "part", version.key, number, right)
        return bytes(data[start:stop]) if data is not None and right else None

    def keep(self, chunks: Sequence[Verified]) -> int:
        """See `Disk.keep`."""
        self._strike(chunks[0].version)
        self._must_work("write")
        if self._hit(self._faults.fails):
            self._store(chunks[: self._dice.randint(0, len(chunks))])
            raise CacheUnavailable("cannot write to the cache: simulated")
        if self._hit(self._faults.partial):
            chunks = chunks[: self._dice.randint(0, len(chunks))]
        self._store(chunks)
        self._note("disk", "keep", [(chunk.version.key, chunk.number) for chunk in chunks])
        return len(chunks)

    def touch(self, segments: set[tuple[bytes, int]]) -> None:
        """See `Disk.touch`."""
        self._must_work("touch")

    def discard(self, version: ObjectVersion, number: int) -> None:
        """See `Disk.discard`."""
        self._note("disk", "discard", version.key, number)
        self.discards += 1
        held = self._any((version.object_id, number))
        if held is not None:
            held.found = False  # whoever asked has done what can be done, also when it fails now
        self._must_work("discard")
        found = unpack(self._verdicts.get(version.object_id))
        if found is not None and not found.wrong:
            del self._verdicts[version.object_id]
        self._chunks.pop((version.object_id, number), None)
        self._parts.pop((version.object_id, number), None)

    def generation(self, version: ObjectVersion) -> int | None:
        """See `Disk.generation`."""
        whole = all(self.kept(version.object_id, number) for number in range(version.chunk_count))
        return self._generations.get(version.object_id) if whole else None

    def verdict(self, object_id: bytes) -> bytes | None:
        """See `Disk.verdict`."""
        return None if self._refuses() else self._verdicts.get(object_id)

    def put_verdict(self, object_id: bytes, packed: bytes) -> None:
        """See `Disk.put_verdict`."""
        self._must_work("write")
        self._verdicts[object_id] = packed

    def forget(self, version: ObjectVersion) -> bool:
        """See `Disk.forget`."""
        self._must_work("forget")
        if self._hit(self._faults.fails):
            raise CacheUnavailable("the index cannot be written: simulated")
        self._evict(version.object_id, whole=True)
        return True

    def close(self) -> None:
        """See `Disk.close`. What was kept stays, for `open`."""
        self._note("disk", "close")
        self._closed = True

    # ---- what goes wrong

    def _hit(self, share: float) -> bool:
        return share > 0 and self._dice.random() < share

    def _refuses(self) -> bool:
        return self._closed or self._faults.refuses[0] <= self._clock() < self._faults.refuses[1]

    def _must_work(self, what: str) -> None:
        if self._refuses():
            raise OSError(f"cannot {what}: simulated")

    def _strike(self, version: ObjectVersion) -> None:
        """Bits rot, and another daemon makes room, just before a step."""
        if self._hit(self._faults.rot) and (self._chunks or self._parts):
            held = self._dice.choice([held for _, held in self.held()])
            held.data[self._dice.choice(self._dice.choice(held.blocks()))] ^= 1 << self._dice.randrange(8)
            held.rotten = True
            self.rotted += 1
            self._note("disk", "rot", held.version.key)
        if self._hit(self._faults.evicts) and self._chunks:
            object_id = self._dice.choice([version.object_id, next(iter(self._chunks))[0]])
            self._evict(object_id, whole=self._dice.random() < 0.5)

    def _evict(self, object_id: bytes, *, whole: bool) -> None:
        """A segment of the object, or all of it: then its file has another name from now on."""
        mine = [number for owner, number in (*self._chunks, *self._parts) if owner == object_id]
        if not mine:
            return
        segment = self._dice.choice(mine) // SEGMENT_CHUNKS
        for number in mine:
            if whole or number // SEGMENT_CHUNKS == segment:
                self._chunks.pop((object_id, number), None)
                self._parts.pop((object_id, number), None)
        if whole:
            self._generations.pop(object_id, None)
        self._note("disk", "evict", object_id.hex()[:6], "whole" if whole else segment)

    # ---- what is kept

    def _whole(self, version: ObjectVersion, number: int, kept: Kept) -> bytearray | None:
        if self._refuses() or self._generations.get(version.object_id) != kept.generation:
            return None
        held = self._any((version.object_id, number))
        return None if held is None else held.data

    def _any(self, key: tuple[bytes, int]) -> Held | None:
        return self._chunks.get(key) or self._parts.get(key)

    def _met(self, version: ObjectVersion, first: int, kept: Sequence[Kept], right: Sequence[bool]) -> None:
        """Of these chunks the first that is not right will be discarded by whoever reads, if it is still the same."""
        for place, (one, good) in enumerate(zip(kept, right, strict=True)):
            if not good:
                held = self._any((version.object_id, first + place))
                if held is not None and held.rotten and held.kept == one and not self._refuses():
                    held.found = True
                return

    def _store(self, chunks: Sequence[Verified]) -> None:
        for chunk in chunks:
            key = (chunk.version.object_id, chunk.number)
            if self._faults.room is not None:
                while len(self._chunks) + len(self._parts) >= self._faults.room and self._any(key) is None:
                    kind = self._chunks or self._parts
                    del kind[next(iter(kind))]
            if key[0] not in self._generations:
                self._latest += 1
                self._generations[key[0]] = self._latest
            before = self._chunks.get(key) if chunk.whole else None
            self.rewritten += before is not None and not before.rotten and not before.pieced
            if chunk.whole:
                self._parts.pop(key, None)
                kept = Kept(self._generations[key[0]], chunk.sums)
                self._chunks[key] = Held(chunk.version, kept, bytearray(chunk.view))
            elif key not in self._chunks:
                self._store_part(key, chunk)

    def _store_part(self, key: tuple[bytes, int], chunk: Verified) -> None:
        length = chunk.version.chunk_length(chunk.number)
        before = self._parts.pop(key, None)
        sums = bytearray(before.kept.sums if before else ABSENT * -(-length // BLOCK_SIZE))
        sums[chunk.block * 8 : chunk.block * 8 + len(chunk.sums)] = chunk.sums
        data = before.data if before else bytearray(length)
        data[chunk.block * BLOCK_SIZE : chunk.end] = chunk.view
        held = Held(chunk.version, Kept(self._generations[key[0]], bytes(sums)), data)
        held.rotten = before is not None and before.rotten
        held.pieced = not held.kept.lacks(0, length)
        (self._chunks if held.pieced else self._parts)[key] = held
