"""Streams: runs of reads in one inode, detected by offset alone, and how far to read ahead of each.

Its job: from the offsets of reads, whatever descriptor, thread or process they come through, find who goes on with
what: runs upwards and downwards, and walks of equal steps. Must not know what is cached or how bytes come. Pure: no
I/O, no clock; time is counted in reads. Not thread safe; one loop.

Why by offset and not by descriptor: ranks that share one descriptor, and loaders that fault through mappings, look
random to a detector that keeps one cursor for each handle.

A read belongs to a run that is near it, or is the neighbour of a young run, or begins a young run, which may be a step
of a walk. A young run plans nothing ahead. It becomes a run with its second read upwards or its third downwards, and
with its fourth where many began of which nothing came.
"""

from collections.abc import Sequence

from lazyfs.objects import CHUNK_SIZE, align_down, align_up
from lazyfs.reading.beyond import beyond
from lazyfs.reading.lengths import Lengths
from lazyfs.reading.meeting import pass_over, reach
from lazyfs.reading.plans import NOTHING, Plan
from lazyfs.reading.runs import Range, Run, Stride
from lazyfs.reading.strides import Strides
from lazyfs.reading.table import Table
from lazyfs.reading.tensors import PAGE, Tensors
from lazyfs.reading.windows import ALONE, AT_ONCE, EARLIEST, FILE_BEGIN, LARGEST_WINDOW, SLACK, Budget
from lazyfs.reading.young import Young

__all__ = ["Budget", "Streams"]

YOUNG = 32
"""A young run older than so many beginnings needs more reads to become a run, and so do all when half as many again
began and none became one. Of 1 MiB reads at random whole MiB of 4 GiB, where chance makes the most neighbours, 4,000
fetch up to 1.1 % more than their chunks; at random pages nothing."""

LATELY = 512
"""Reads of an inode in which the kernel is taken to keep what it read; ACTIVE_READS of a mount are as many."""

LARGEST_ELEMENT = 2 * CHUNK_SIZE
"""Elements up to this size that lie one below the other are a run downwards; SLACK covers the reads in one."""


class Streams:
    """The streams of one inode of `size` bytes."""

    def __init__(self, size: int, budget: Budget) -> None:
        self._size = size
        self._budget = budget
        self._reads = 0
        self._births = 0
        # The beginning at which something last became of one, and not by chance.
        self._fruitful = 0
        self._young = Young()
        self._table = Table(budget, self._young)
        self._strides = Strides()
        self._lengths = Lengths()
        self.tensors = Tensors(size)
        """What is known of the inside; who has read a MiB of a tensor from its beginning on, or faults at its end, is
        taken to read all of it."""
        self.waiting = 0
        """Reads that are not answered yet."""

    def __len__(self) -> int:
        return len(self._table) + len(self._young)

    @property
    def remembered(self) -> int:
        """How many runs are remembered, those included that may become steps of a walk; some 450 bytes each."""
        return len(self) + self._strides.remembered

    def observe(self, start: int, stop: int) -> Plan:
        """A read of bytes [start, stop) is here; say what to bring, the read itself included."""
        self._reads += 1
        run = self._table.front
        if start == run.high and run.step > 0:
            parts = self._reach(run, start, stop)
            part = run.upwards(start, stop, self._largest(run), self._size, self.tensors.rest(run))
            if run.high >= self._size:
                self._budget.finished(run.window)
            if part is None:
                return self._plan(parts, run) if parts else NOTHING
            return self._plan((*parts, *self._left_by_others(run, part)), run)
        found = self._table.find(start, stop)
        if found is None:
            young = self._young.neighbour(start, stop)
            return self._begin(start, stop) if young is None else self._grow(young, start, stop)
        if found.step > 0 and start > found.high:
            read = self._young.above(stop)
            if read is not None and found.planned(start) >= stop:
                return self._meet(found, read, start)
            pass_over(found, start, self._young)
            if start - found.high >= CHUNK_SIZE:
                jumped = self._jump(found, start, stop)
                if jumped is not None:
                    return jumped
        return self._go_on(found, start, stop)

    @property
    def latest(self) -> Run:
        """The run that was read last."""
        return self._table.front

    @property
    def beyond(self) -> int:
        """Bytes that the latest run would have ahead after the end of the file; see `beyond.py`."""
        return beyond(self._table.front, self._size, self._budget)

    @property
    def finished(self) -> bool:
        """Whether the latest run has got to the end of the file."""
        return self._table.front.high >= self._size

    def ahead(self) -> tuple[int, int]:
        """How many streams something is planned ahead of, and how many bytes that are."""
        active, walks = self._table.active, self._strides.all()
        parts = [*(run.unread() for run in active), *(walk.unread(self._size) for walk in walks)]
        return len(parts), sum(stop - start for part in parts for start, stop in part)

    def close(self) -> list[Range]:
        """Nobody reads the inode any more; the bytes that were planned ahead and never reached."""
        unread = self._table.close()
        for stride in self._strides.all():
            unread += self._abandon(stride)
        self._strides = Strides()
        self._young.clear()
        return unread

    # ---- runs

    def _go_on(self, run: Run, start: int, stop: int) -> Plan:
        """The read belongs to this run, near where it had got to."""
        # What was jumped over perhaps before anything there was planned.
        parts = [self._need(start, stop)] if run.fills(start, stop) else []
        run.low = min(run.low, start)
        parts += self._reach(run, start, stop)
        if run.step < 0:
            parts = run.downwards(self._largest(run))
        else:
            part = run.upwards(start, stop, self._largest(run), self._size, self.tensors.rest(run))
            if part is not None:
                parts += self._left_by_others(run, part)
            if run.high >= self._size:
                self._budget.finished(run.window)
        self._table.to_front(run)
        return self._plan(parts, run) if parts else NOTHING

    def _reach(self, run: Run, start: int, stop: int) -> list[Range]:
        run.last = self._reads
        return reach(run, stop, self._need(start, stop), self._size, self._young, self._table)

    def _meet(self, run: Run, read: Run, start: int) -> Plan:
        """What was read downwards, ahead of a run upwards and inside its plan, goes on from `start`. Where the run has
        got to, it has read all of that."""
        self._young.forget(read)
        pass_over(run, start, self._young)
        if start - run.high < EARLIEST:
            return self._go_on(run, start, read.high)
        read.low, read.last = start, self._reads
        read.downs += 1
        self._young.remember(read)
        return NOTHING

    def _left_by_others(self, run: Run, part: Range) -> Sequence[Range]:
        """What of this part no other run that is ahead has brought, or is about to. Read ahead all the same, a fifth of
        a file that 32 processes walk in slices came from the disk once more, for nobody."""
        others = self._table.read_by_others(run, run.high, part[1], self._reads - LATELY) if run.skips else ()
        return run.skip(part, others) if others else (part,)

    def _plan(self, parts: Sequence[Range], run: Run) -> Plan:
        """The plan for a read of this run, and what it is time to give up of others."""
        if run.window and run not in self._table.active:
            self._table.to_front(run)
        return Plan(tuple(parts), self._table.left(self._reads), run)

    def _jump(self, run: Run, start: int, stop: int) -> Plan | None:
        """The read is a chunk or more behind the end of a run. None if it may be one that passed another; else it was
        no run but a walk of close steps, or too many bytes were jumped over for a run."""
        gap, step = start - run.high, start - run.element
        length = step - gap
        jumps = run.jumps + 1 if step == run.jump else 0
        hole = run.hole + gap
        if jumps >= 2 and hole > max(jumps * gap, (run.high - run.low) // 2):
            dropped = self._table.rest(run)
            run.bounded, run.expect = True, length  # what lies behind it belongs to the walk
            return self._walk(start, stop, step, length, tuple(dropped))
        if hole > max(SLACK, (run.high - run.low) // 2):
            return self._begin(start, stop)
        run.hole, run.jumps, run.jump, run.element = hole, jumps, step, start
        return None

    def _establish(self, run: Run, step: int) -> None:
        """From here on it is a run."""
        run.step = step
        self.tensors.went_elsewhere(self._table.front)
        if step < 0:
            return
        # Inside the window of another run, what that one planned counts as planned.
        for other in self._table.active:
            if other.step > 0 and (planned := other.planned(run.low)) >= run.high:
                run.frontier = max(run.frontier, planned)
        if run.low < FILE_BEGIN:
            run.window = self._budget.first_window
        front = self._table.front
        if front.step > 0 and not front.bounded and front.last < run.begun:
            run.expect = self._lengths.after(front.high - front.low, anything=not self.tensors)

    def _largest(self, stream: Run | Stride) -> int:
        share = self._budget.share(id(stream))
        return LARGEST_WINDOW if share >= LARGEST_WINDOW else max(CHUNK_SIZE, share)

    # ---- young runs

    def _need(self, start: int, stop: int) -> Range:
        return align_down(start), min(self._size, align_up(stop))

    def _grow(self, run: Run, start: int, stop: int) -> Plan:
        """A neighbour of a young run, which may be a run now."""
        ahead_of = self._table.planned(start, stop) if start < run.low else None
        if ahead_of is not None:
            return self._meet(ahead_of, run, start)
        self._young.forget(run)
        run.last = self._reads
        first, last = self._need(start, stop)
        if start >= run.high:
            run.ups += 1
            first = max(first, run.frontier)
        else:
            run.downs += 1
            last = min(last, align_down(run.low))
        age = self._births - run.birth
        quick = age <= YOUNG and self._births - self._fruitful <= YOUNG * 3 // 2
        at_once = age <= AT_ONCE + self.waiting
        needed = 1 if quick and (at_once or not self._scattered) else 3
        step = 1 if run.ups >= needed else -1 if run.downs > needed else 0
        if step and max(stop, run.high) - min(start, run.low) >= EARLIEST:
            if step < 0:
                run.frontier = max(last, align_down(run.low))
            self._fruitful = self._births if at_once else self._fruitful
            self._establish(run, step)
            return self._go_on(run, start, stop)
        run.low, run.high, run.frontier = min(run.low, start), max(run.high, stop), max(run.frontier, last)
        self._young.remember(run)
        return Plan(((first, last),), (), run, alone=self._is_alone(start, stop)) if first < last else NOTHING

    def _begin(self, start: int, stop: int) -> Plan:
        """A read that goes on with nothing: bring its chunks and, if it is a step of a walk, what comes next."""
        self._births += 1
        expected = self._strides.expected(start)
        if expected is not None:
            return self._element(*expected, start, stop)
        need = self._need(start, stop)
        run = self._new(start, stop)
        chain = self._strides.detect(run)
        if self._table.planned(start, need[1]) is not None:
            # Somebody looks ahead, as who copies tensors one after another does at the end of each. That says nothing
            # of where others begin.
            self._fruitful += 1
            self._young.remember(run)
            return NOTHING
        if chain is not None and not self._table.passed(chain):
            step = (start - chain[0].element) // (len(chain) - 1)
            length = max(each.high - each.element for each in chain[:-1])
            gap = abs(step) - length
            if gap >= CHUNK_SIZE or (step < 0 and length > LARGEST_ELEMENT and gap >= 0):
                held = [each for each in chain[:-1] if each in self._table.active]
                dropped = [part for each in held for part in self._table.rest(each)]
                return self._walk(start, stop, step, length, tuple(dropped))
            shortest = min(each.high - each.element for each in chain[:-1])
            if gap > -CHUNK_SIZE and abs(step) - shortest < CHUNK_SIZE:
                return self._merge(run, chain, 1 if step > 0 else -1)
        self._young.remember(run)
        broken = self._strides.broken(self._births)
        given_up = () if broken is None else tuple(self._abandon(broken))
        ending = self.tensors.ending(start, stop)
        if ending is not None and align_up(ending[0]) < need[0] and not self._is_promised(ending[1]):
            low = self.tensors.begin(ending)
            if low is not None:
                return self._from_its_beginning(ending, low, need, given_up)
        return Plan((need,), given_up, run, alone=self._is_alone(start, stop))

    @property
    def _scattered(self) -> bool:
        """Whether nothing came of so many beginnings that were answered that the next is one of those."""
        return self._births - self._fruitful - self.waiting >= ALONE

    def _is_alone(self, start: int, stop: int) -> bool:
        return self._scattered and align_down(start) + CHUNK_SIZE < stop

    def _is_promised(self, end: int) -> bool:
        """Whether a run goes through the tensor that ends there, or is expected to."""
        return any(run.promised == end for run in self._table.active)

    def _from_its_beginning(self, tensor: Range, low: int, need: Range, given_up: tuple[Range, ...]) -> Plan:
        """A read at the end of a tensor that is about to be copied: bring the read's chunks, then the tensor. The read
        of its beginning may begin at `low`, and who has got there goes on with it."""
        begin, end = tensor
        run = self._table.reader(low - PAGE, begin + EARLIEST)
        if run is None:
            run = self._new(begin, begin)
            run.low, run.step, run.frontier = low, 1, align_down(begin)
        leading = begin < FILE_BEGIN and not self._budget.first_window
        parts = run.through(end, need, self._largest(run), leading=leading)
        self._table.to_front(run)
        return Plan((need, *parts), given_up + self._table.left(self._reads), run, others=1)

    def _new(self, start: int, stop: int) -> Run:
        frontier = self._need(start, stop)[1]
        return Run(start, stop, frontier, 0, self._reads, self._reads, self._births, element=start)

    # ---- walks of equal steps

    def _merge(self, run: Run, chain: list[Run], step: int) -> Plan:
        """Steps so close that they leave no chunk out are a run."""
        start, stop = run.low, run.high
        for each in chain:
            self._young.forget(each)
        run.low = min(each.low for each in chain)
        run.high = start if step > 0 else max(each.high for each in chain)
        self._fruitful = self._births
        self._establish(run, step)
        run.expect = 0
        run.frontier = align_down(chain[-2].low) if step < 0 else max(align_down(start), chain[-2].frontier)
        return self._go_on(run, start, stop)

    def _walk(self, start: int, stop: int, step: int, length: int, dropped: tuple[Range, ...]) -> Plan:
        """A walk of equal steps was found, of which this read is one."""
        stride = Stride(start, step, length)
        pushed = self._strides.add(stride, self._births)
        if pushed is not None:
            dropped += tuple(self._abandon(pushed))
        self._fruitful = self._births
        return self._step(stride, start, stop, planned=False, dropped=dropped)

    def _element(self, stride: Stride, number: int, start: int, stop: int) -> Plan:
        """A read begins element `number` after the current one of a walk."""
        self._fruitful = self._births
        planned = stride.covers(number, self._need(start, stop))
        self._strides.go_on(stride, start, number, self._births)
        return self._step(stride, start, stop, planned=planned, dropped=())

    def _step(self, stride: Stride, start: int, stop: int, *, planned: bool, dropped: tuple[Range, ...]) -> Plan:
        """Bring the element that begins here, unless it is planned, and those in the window after it."""
        run = self._new(start, stop)
        if stride.length > stop - start:
            run.step, run.bounded, run.expect = 1, True, stride.length
            run.frontier = self._need(start, start + stride.length)[1]
            self._table.to_front(run)
        else:
            self._young.remember(run)
        parts = stride.ahead(self._largest(stride), self._size)
        if not planned:
            parts.insert(0, (align_down(start), run.frontier))
        return Plan(tuple(parts), dropped, run, stride, self._size) if parts or dropped else NOTHING

    def _abandon(self, stride: Stride) -> list[Range]:
        self._budget.forget(id(stride))
        return stride.unread(self._size)
