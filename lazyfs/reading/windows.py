"""How far ahead: the sizes of windows with their reasons, and the budget that all streams of a mount share.

Must not know how runs are found or where chunks are. Pure; time is counted in reads. Not thread safe; one loop.
"""

from collections import OrderedDict
from collections.abc import Callable

from lazyfs.objects import CHUNK_SIZE, KIB, MIB

GROWTH = 4
"""A run that has gone on for n bytes has 4n planned ahead of it: what it wastes by ending is in proportion to what it
was worth, and with each answer five times as much is under way. Two reads of 1 MiB have 8 MiB ahead, as many GETs of
1 MiB side by side; two of 128 KiB have nothing (EARLIEST)."""

ALONE = 4
"""Beginnings that were answered and of which nothing came, after which a touch that lies in two chunks is taken to be
one more of those. Who walks goes on at once; 32 that begin side by side do so before the first of them is answered."""

AT_ONCE = 2
"""Beginnings after which who walks has gone on, and one for each reader beside him that waits. Among more the kernel
makes neighbours by chance: what it reads around a touch begins where what it read around another one ends."""

PAST_HEADER = 2 * MIB
BEGIN_WINDOW = 32 * MIB
"""A run of so many bytes from the first one of its file on is past most headers, and has so much ahead at least. That
saves one of the round trips that a start waits for, and wastes 30 MiB of a file that is left then: a cold GiB, shaped,
had 0.88 GB/s before, and 0.96 with this and a pace that waits until the rate grows no more (medians of 16 rounds)."""

SURE = 4 * MIB
"""A run as long as this is no header and has SURE_GROWTH times its length ahead. In the model of
tests/rooms/test_walks.py (32 connections of 90 MB/s, 30 ms to the first byte, a reader of 1,200 MiB/s) a first shard of
256 MiB takes 347 ms, and 323 when the last one was read to its end; with 4 throughout 350 and 330, with 16 from SURE on
362 and 308. Windows of 4 MiB that double took 447 and 364, in a form of it in which these took 360 and 323."""

SURE_GROWTH = 8
"""See SURE."""

LARGEST_WINDOW = 256 * MIB
"""At 30 ms to the first byte and 90 MB/s a connection, 32 connections of 8 MiB are busy with this."""

BESIDE_FIRST = 32 * MIB
"""Behind the first tensor of a model no more is planned while it is copied: what comes then takes the processor from
who copies it, and from who answers him. Over TLS, of four shards of 500 MiB, it was there after 0.24 to 0.28 s with 16
MiB, 0.22 to 0.30 with 48, and 0.23 to 0.45 with all that the window is, in eight loads each in turns; all four took as
long each time, with and without TLS."""

STEP = 8 * MIB
"""A window moves by whole steps, so that one GET brings one step."""

EARLIEST = CHUNK_SIZE
"""Nothing is planned ahead of a run shorter than this. Its bytes lie in one or two chunks that are fetched anyway, so
waiting costs no round trip, and a header of some 100 KiB that the kernel reads in five steps wastes nothing."""

SLACK = 4 * MIB
"""A read this far before or behind a run still belongs to it: the kernel's read-ahead sends reads out of order."""

FIRST_SLACK = 128 * KIB
"""A small read this far behind a young run goes on with it. That alone plans nothing, see EARLIEST."""

FILE_BEGIN = 8 * MIB
"""A run that begins before this may be the load of a whole shard, and begins with what the last shard taught."""

ACTIVE_READS = 512
"""A run that had no read among so many of the mount's last reads does not share in the budget."""


class Budget:
    """Bytes of read-ahead that all streams of a mount may hold together, shared evenly among the active ones: `size` at
    most, and what `useful` says that it pays to have under way, once it can say so, but a step for each.

    `first_window` is the least that a run at the beginning of a file has ahead: nothing, until a run was read to the
    end of its file. A model's shards are loaded one after another in the same way, so the next one begins with a
    quarter of the window that the last had reached.
    """

    def __init__(self, size: int, useful: Callable[[], int | None] = lambda: None) -> None:
        self.size = size
        self._useful = useful
        self.first_window = 0
        self._reads = 0
        self._active: OrderedDict[int, int] = OrderedDict()
        self._latest = 0

    def finished(self, window: int) -> None:
        """A run with this window got to the end of its file."""
        self.first_window = max(self.first_window, window // 4)

    def abandoned(self) -> None:
        """A run ended with most of its window unread: what comes next begins small."""
        self.first_window = 0

    def share(self, stream: int) -> int:
        """Note a read of the stream with this id, and say how many bytes its window may have."""
        self._reads += 1
        active = self._active
        active[stream] = self._reads
        if stream != self._latest:
            active.move_to_end(stream)
            self._latest = stream
        useful = self._useful()
        size = self.size if useful is None or useful > self.size else useful
        if len(active) == 1:
            return size
        while next(iter(active.values())) <= self._reads - ACTIVE_READS:
            active.popitem(last=False)
        return min(self.size // len(active), max(STEP, size // len(active)))

    def forget(self, stream: int) -> None:
        """The stream with this id is gone; ids are used again."""
        self._active.pop(stream, None)
        if self._latest == stream:
            self._latest = 0
