"""Verified chunks in memory, under a hard budget in bytes.

One anonymous mapping cut into slots of one chunk: fresh memory is dear (2 GiB received into reused buffers cost 0.45
CPU seconds a GB, into fresh ones 1.2 and more), so a slot is used again and again, the first ones are made ready before
anybody reads, and resident memory never passes the budget. Page alignment comes with it.

Must not know where chunks come from or who reads them. Loop thread only; nothing here waits.
Invariants: each slot is free, lent (to a flight), or holds exactly one chunk; a pinned chunk is never evicted;
`len(free) + lent + len(chunks) == slots`.
"""

import contextlib
import ctypes
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass

from lazyfs.objects import CHUNK_SIZE, MIB

Key = tuple[bytes, int]
"""(object_id, chunk number), or a negative number for what is no whole chunk."""


MOST_READ_CHUNKS = 16
"""Chunks kept after they were read to their end: the kernel's page cache has them, and a slot used again is warm
memory, where a new one costs a page fault for each page."""

MOST_PARTLY_READ = 64
"""Chunks kept of which the end was read and not the beginning: who copies a tensor out of a mapping touches its end
first. Their beginning was read from the disk again, behind what is being written: a reader over TLS waited 3 to 95 ms
for it, and has it at once since."""

POPULATED = 256 * MIB
"""Bytes that `populate` makes ready at most: without any, a plain cold read had 0.94 GB/s, with this 1.18. Window and
write queue of one reach 480 MiB now and then; with 512 its rate was steadier, and the first tensor of a model that is
loaded right after the mount came after 0.8 s, not 0.3, in three loads of twelve."""

POPULATE_STEP = 2 * MIB
"""Bytes of one call, in which nobody else maps memory: no thread starts. Where the machine has to find the memory,
512 MiB took a second now and then, and with 16 MiB a call the first GETs of a model were sent 0.1 s apart."""

POPULATE_NICENESS = 10

_MADV_POPULATE_WRITE = 23
"""linux/mman.h since 5.14. Python 3.11's mmap does not know it, and would hold the interpreter for as long as it takes.
"""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@dataclass(frozen=True, slots=True)
class MemoryStatistics:
    """Slots by use, and chunks dropped to make room since the start."""

    slots: int
    free: int
    lent: int
    chunks: int
    pinned: int
    evictions: int


class Chunk:
    """One chunk in memory. `view` is exactly its bytes, and stays good while it is pinned, or until the next await."""

    __slots__ = ("pins", "slot", "taken", "used", "view")

    def __init__(self, slot: int, view: memoryview) -> None:
        self.slot = slot
        self.view = view
        self.pins = 0
        self.taken = 0
        """Bytes that were given to readers, each time anew."""
        self.used = False


class Memory:
    """`budget` bytes of chunks, at least two of them."""

    def __init__(self, budget: int) -> None:
        self.slots = max(2, budget // CHUNK_SIZE)
        # Private: Python's default is shared memory, which the kernel never backs with large pages.
        self._map = mmap.mmap(-1, self.slots * CHUNK_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._whole = memoryview(self._map)
        # Pages of 2 MiB make the first touch of each slot some 100 times cheaper; where they are off, nothing is lost.
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE)
        # The one given back last is taken first: its memory is warm.
        self._free = list(range(self.slots - 1, -1, -1))
        self._keep_read = min(MOST_READ_CHUNKS, self.slots // 4)
        self._keep_partly = min(MOST_PARTLY_READ, self.slots // 4)
        self._lent = 0
        self._pinned = 0
        self._evictions = 0
        # Chunks nobody has read yet are worth more than read ones: the kernel's page cache has those too.
        self._unread: OrderedDict[Key, Chunk] = OrderedDict()
        self._partly: OrderedDict[Key, Chunk] = OrderedDict()
        self._read: OrderedDict[Key, Chunk] = OrderedDict()
        self._all = (self._unread, self._partly, self._read)

    def populate(self) -> int:
        """Have the kernel give the slots that are used first their memory now; how many bytes. Blocks, changes
        no byte, may run beside everything else, in a thread of its own that it makes a little nicer.

        On the machine of the benchmarks the first touch of 512 MiB took 0.35 s of CPU, a quarter of a cold GiB's.
        """
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), POPULATE_NICENESS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        size = min(self.slots * CHUNK_SIZE, POPULATED)
        for offset in range(0, size, POPULATE_STEP):
            if _libc.madvise(start + offset, min(POPULATE_STEP, size - offset), _MADV_POPULATE_WRITE) != 0:
                size = offset  # an older kernel, or memory is short: then slots get theirs when they are used
                break
        return size

    def statistics(self) -> MemoryStatistics:
        """A frozen copy of the numbers."""
        chunks = sum(map(len, self._all))
        return MemoryStatistics(self.slots, len(self._free), self._lent, chunks, self._pinned, self._evictions)

    def get(self, key: Key) -> Chunk | None:
        """The chunk, if it is here. Does not count as a use."""
        return self._unread.get(key) or self._partly.get(key) or self._read.get(key)

    def numbers(self, object_id: bytes) -> list[int]:
        """The chunks of an object that are here, in no order. Looks at all that is here."""
        here = (key for chunks in self._all for key in chunks)
        return [number for one, number in here if one == object_id and number >= 0]

    def use(self, key: Key, chunk: Chunk, *, taken: int, to_end: bool) -> None:
        """A reader took bytes of it, so many, up to its last one when `to_end`: from then on it goes before unread
        ones, and first when no byte of it is left to be read."""
        chunk.taken += taken
        before = self._unread if not chunk.used else self._partly if key in self._partly else self._read
        chunk.used |= to_end
        now = self._unread if not chunk.used else self._read if chunk.taken >= len(chunk.view) else self._partly
        if now is before:
            now.move_to_end(key)
        else:
            now[key] = before.pop(key)

    def lend(self, count: int, *, urgent: bool) -> list[int] | None:
        """`count` slots to fill, or None. Only an urgent loan may push out chunks that nobody has read yet, and none
        pushes them out for nothing."""
        while len(self._read) > self._keep_read and self._evict(self._read):
            pass
        while len(self._partly) > self._keep_partly and self._evict(self._partly):
            pass
        # What cannot be had must cost nothing. A pinned chunk is in one of the three: for urgent loans this is exact.
        read = len(self._read) + len(self._partly)
        if len(self._free) + read + (len(self._unread) - self._pinned if urgent else 0) < count:
            return None
        while len(self._free) < count:
            if not (self._evict(self._read) or self._evict(self._partly) or (urgent and self._evict(self._unread))):
                return None
        self._lent += count
        return [self._free.pop() for _ in range(count)]

    def slot_view(self, slot: int, length: int) -> memoryview:
        """The first `length` bytes of a lent slot, writable."""
        return self._whole[slot * CHUNK_SIZE : slot * CHUNK_SIZE + length]

    def keep(self, key: Key, slot: int, length: int) -> Chunk:
        """A lent slot now holds this chunk, verified."""
        if self.get(key) is not None:
            raise AssertionError("a chunk is in memory twice: its flight was not the only one")
        self._lent -= 1
        chunk = Chunk(slot, self.slot_view(slot, length))
        self._unread[key] = chunk
        return chunk

    def give_back(self, slot: int) -> None:
        """A lent slot was not needed after all."""
        self._lent -= 1
        self._free.append(slot)

    def pin(self, chunk: Chunk) -> None:
        """Hold the chunk in memory until `unpin`, once more for each call."""
        self._pinned += chunk.pins == 0
        chunk.pins += 1

    def unpin(self, chunk: Chunk) -> None:
        """Undo one `pin`."""
        chunk.pins -= 1
        self._pinned -= chunk.pins == 0

    def forget_objects(self, object_ids: Container[bytes]) -> bool:
        """Drop all that is here of these objects and not pinned; whether something of them is left. Looks at all that
        is here."""
        keys = [key for chunks in self._all for key in chunks if key[0] in object_ids]
        for key in keys:
            self.forget(key)
        return any(self.get(key) for key in keys)

    def forget(self, key: Key) -> None:
        """Drop the chunk if it is here and not pinned."""
        for chunks in self._all:
            chunk = chunks.get(key)
            if chunk is not None and chunk.pins == 0:
                del chunks[key]
                self._free.append(chunk.slot)

    def _evict(self, chunks: OrderedDict[Key, Chunk]) -> bool:
        for key, chunk in chunks.items():
            if chunk.pins == 0:
                del chunks[key]
                self._free.append(chunk.slot)
                self._evictions += 1
                return True
        return False
