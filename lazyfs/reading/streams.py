"""Streams: runs of reads in one inode, detected by offset alone, and how far to read ahead of each.

Its job: from the offsets of reads, whatever descriptor, thread or process they come through, find the runs and say
which bytes to bring before they are asked for. Must not know what is cached or how bytes come. Pure: no I/O, no clock;
time is counted in reads. Not thread safe; one loop.

Why by offset and not by descriptor: ranks that share one descriptor, and loaders that fault through mappings, look
random to a detector that keeps one cursor for each handle.
"""

from collections import OrderedDict
from dataclasses import dataclass

from lazyfs.objects import CHUNK_SIZE, KIB, MIB, align_down, align_up

FIRST_WINDOW = 4 * MIB
"""Read-ahead of a run seen for the second time: a header that is read in two steps costs no more than this."""

LARGEST_WINDOW = 256 * MIB
"""At 30 ms to the first byte and 90 MB/s a connection, 32 connections of 8 MiB are busy with this."""

STEP = 8 * MIB
"""A window moves by whole steps, so that one GET brings one step."""

SLACK = 4 * MIB
"""A read this far before or behind a run still belongs to it: the kernel's read-ahead sends reads out of order."""

FIRST_SLACK = 128 * KIB
"""The same for what may be the second read of a run. Touches at random places come near an earlier one now and then;
with less slack they are not taken for runs."""

MOST_STREAMS = 256
"""Runs remembered for one inode; the one idle for longest is forgotten."""

ACTIVE_READS = 512
"""A run that had no read among so many of the mount's last reads does not share in the budget."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to bring for one read: bytes [start, stop), chunk-aligned except at the end of the file.

    Empty when all of it was planned before. `stream` is told by `reached` how far that went.
    """

    start: int
    stop: int
    stream: "Stream"

    def reached(self, offset: int) -> None:
        """Only bytes before `offset` are here or coming; the rest is planned again when there is room."""
        self.stream.frontier = min(self.stream.frontier, max(offset, self.start))


@dataclass(slots=True, eq=False)
class Stream:
    """One run. `position`: where its reads have got to; `frontier`: up to where bytes are planned; offsets in bytes."""

    position: int
    frontier: int
    window: int = 0
    used: int = 0
    """Bytes read since the window last grew."""


class Budget:
    """Bytes of read-ahead that all streams of a mount may hold together, shared evenly among the active ones.

    `first_window` is how a run begins: small, until a run was read to the end of its file. A model's shards are loaded
    one after another in the same way, so the next one begins with a quarter of the window that the last had reached.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.first_window = FIRST_WINDOW
        self._reads = 0
        self._active: OrderedDict[int, int] = OrderedDict()

    def finished(self, window: int) -> None:
        """A run with this window got to the end of its file."""
        self.first_window = max(FIRST_WINDOW, window // 4)

    def abandoned(self) -> None:
        """A run ended with most of its window unread: what comes next begins small."""
        self.first_window = FIRST_WINDOW

    def share(self, stream: Stream) -> int:
        """Note a read of `stream`, and say how large its window may be."""
        self._reads += 1
        self._active[id(stream)] = self._reads
        self._active.move_to_end(id(stream))
        while next(iter(self._active.values())) <= self._reads - ACTIVE_READS:
            self._active.popitem(last=False)
        return self.size // len(self._active)


class Streams:
    """The streams of one inode of `size` bytes."""

    def __init__(self, size: int, budget: Budget) -> None:
        self._size = size
        self._budget = budget
        self._streams: list[Stream] = []

    def __len__(self) -> int:
        return len(self._streams)

    def observe(self, start: int, stop: int) -> Plan:
        """A read of bytes [start, stop) is here; say what to bring, the read itself included."""
        stream = self._match(start)
        if stream is None:
            return self._begin(start, stop)
        share = self._budget.share(stream)
        stream.used += stop - start
        stream.position = max(stream.position, stop)
        self._grow(stream, share)
        if stop >= self._size:
            self._budget.finished(stream.window)
        return self._plan(stream, start, stop)

    def close(self) -> list[tuple[int, int]]:
        """Nobody reads the inode any more; the bytes that were planned ahead and never reached."""
        unread = [(s.position, s.frontier) for s in self._streams if s.window and s.frontier > s.position]
        if any(s.window > FIRST_WINDOW and s.frontier - s.position > s.window // 2 for s in self._streams):
            self._budget.abandoned()
        self._streams.clear()
        return unread

    def _begin(self, start: int, stop: int) -> Plan:
        """A read that goes on with no run may begin one: bring its chunks and no more. Inside the window of another
        run, what that one planned counts as planned."""
        need = min(self._size, align_up(stop))
        planned = max((s.frontier for s in self._streams if s.position <= start and need <= s.frontier), default=0)
        stream = Stream(position=stop, frontier=max(need, planned))
        self._streams.insert(0, stream)
        del self._streams[MOST_STREAMS:]
        return Plan(need, need, stream) if planned else Plan(align_down(start), need, stream)

    def _match(self, start: int) -> Stream | None:
        """The stream that this read goes on with, moved to the front: a run goes on where its last read was."""
        for index, stream in enumerate(self._streams):
            if abs(start - stream.position) <= (SLACK if stream.window else FIRST_SLACK):
                if index:
                    del self._streams[index]
                    self._streams.insert(0, stream)
                return stream
        return None

    def _grow(self, stream: Stream, share: int) -> None:
        largest = min(LARGEST_WINDOW, share)
        if stream.window == 0:
            stream.window = self._budget.first_window
        elif stream.used >= stream.window // 4:
            stream.window *= 2
        else:
            stream.window = min(stream.window, max(CHUNK_SIZE, largest))
            return
        stream.used = 0
        stream.window = min(stream.window, max(CHUNK_SIZE, largest))

    def _plan(self, stream: Stream, start: int, stop: int) -> Plan:
        """From what is planned to the end of the window, if that is at least a step or the window half empty."""
        target = align_up(stream.position + stream.window)
        if stream.window >= 2 * STEP:
            target = align_down(target, STEP)
        target = min(self._size, target)
        need = min(self._size, align_up(stop))
        begin = min(stream.frontier, target)
        low_water = min(STEP, stream.window // 2)
        if target - begin >= low_water or (target == self._size and target > begin) or begin < need:
            target = max(target, need)
            stream.frontier = max(stream.frontier, target)
            return Plan(align_down(start) if begin < need else begin, target, stream)
        return Plan(need, need, stream)
