"""Chunks in memory: the budget, who goes first, and that nothing pinned ever goes."""

import mmap
import threading
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from lazyfs.cache.memory import MOST_PARTLY_READ, Chunk, Key, Memory
from lazyfs.objects import CHUNK_SIZE, MIB

OBJECT = b"o" * 16


def fill(memory: Memory, numbers: range) -> list[Chunk]:
    """Bring these chunks into memory."""
    slots = memory.lend(len(numbers), urgent=True)
    assert slots is not None
    return [memory.keep((OBJECT, number), slot, CHUNK_SIZE) for number, slot in zip(numbers, slots, strict=True)]


def here(memory: Memory, numbers: range) -> list[int]:
    """Which of them are in memory."""
    return [number for number in numbers if memory.get((OBJECT, number)) is not None]


def test_the_budget_is_a_number_of_slots() -> None:
    """There are as many slots as chunks fit, and an urgent loan pushes out what is oldest."""
    memory = Memory(4 * MIB)
    fill(memory, range(4))
    fill(memory, range(4, 6))
    assert here(memory, range(6)) == [2, 3, 4, 5]
    assert memory.statistics().evictions == 2


def test_read_ahead_pushes_out_only_what_was_read() -> None:
    """Chunks that nobody has read yet are worth more than a guess."""
    memory = Memory(4 * MIB)
    chunks = fill(memory, range(4))
    assert memory.lend(1, urgent=False) is None
    memory.use((OBJECT, 3), chunks[3], taken=CHUNK_SIZE, to_end=True)
    assert memory.lend(1, urgent=False) is not None
    assert here(memory, range(4)) == [0, 1, 2]


def test_a_chunk_read_in_part_is_not_yet_read() -> None:
    """Only its last byte makes a chunk dispensable; before, the rest of it is still wanted."""
    memory = Memory(2 * MIB)
    chunks = fill(memory, range(2))
    memory.use((OBJECT, 0), chunks[0], taken=CHUNK_SIZE - 1, to_end=False)
    assert memory.lend(1, urgent=False) is None


def test_a_chunk_whose_beginning_was_not_read_goes_after_those_that_were() -> None:
    """Who touched the end of a tensor comes to its beginning later. Once all is read it goes like any other, and before
    what nobody has read in any case."""
    memory = Memory(128 * MIB)
    chunks = fill(memory, range(128))
    memory.use((OBJECT, 0), chunks[0], taken=CHUNK_SIZE // 2, to_end=True)
    for number in range(1, 30):
        memory.use((OBJECT, number), chunks[number], taken=CHUNK_SIZE, to_end=True)
    slots = memory.lend(29, urgent=False)
    assert slots is not None
    assert here(memory, range(128)) == [0, *range(30, 128)]
    for number, slot in zip(range(1, 30), slots, strict=True):
        chunks[number] = memory.keep((OBJECT, number), slot, CHUNK_SIZE)
    memory.use((OBJECT, 1), chunks[1], taken=CHUNK_SIZE, to_end=True)
    memory.use((OBJECT, 0), chunks[0], taken=CHUNK_SIZE // 2, to_end=False)
    assert memory.lend(1, urgent=False) is not None
    assert here(memory, range(2)) == [0]
    assert memory.lend(1, urgent=False) is not None
    assert here(memory, range(2)) == []
    memory.use((OBJECT, 2), chunks[2], taken=1, to_end=True)
    assert memory.lend(2, urgent=False) is None
    assert memory.lend(1, urgent=False) is not None
    assert here(memory, range(4)) == [3]


def test_few_chunks_are_kept_for_their_beginnings() -> None:
    """A walk that takes the second half of every chunk has the same memory again and again."""
    memory = Memory(256 * MIB)
    for number in range(200):
        memory.use((OBJECT, number), fill(memory, range(number, number + 1))[0], taken=1, to_end=True)
    assert memory.statistics().chunks == MOST_PARTLY_READ + 1


def test_a_pinned_chunk_stays() -> None:
    """Not even an urgent loan takes it; after the last unpin it can go."""
    memory = Memory(2 * MIB)
    chunks = fill(memory, range(2))
    for chunk in chunks:
        memory.pin(chunk)
        memory.pin(chunk)
    assert memory.lend(1, urgent=True) is None
    memory.unpin(chunks[0])
    assert memory.lend(1, urgent=True) is None
    memory.unpin(chunks[0])
    assert memory.lend(1, urgent=True) is not None
    assert here(memory, range(2)) == [1]


def test_a_loan_that_cannot_be_had_pushes_nothing_out() -> None:
    """What was brought ahead is not fetched twice because somebody asked for more than there is."""
    memory = Memory(4 * MIB)
    chunks = fill(memory, range(4))
    memory.pin(chunks[0])
    memory.pin(chunks[2])
    assert memory.lend(3, urgent=True) is None
    assert here(memory, range(4)) == [0, 1, 2, 3]
    memory.use((OBJECT, 1), chunks[1], taken=CHUNK_SIZE, to_end=True)
    assert memory.lend(2, urgent=False) is None
    assert here(memory, range(4)) == [0, 1, 2, 3]
    assert memory.lend(2, urgent=True) is not None
    assert here(memory, range(4)) == [0, 2]


def test_a_chunk_is_in_memory_once() -> None:
    """Keeping it twice is a defect of the caller, and said so."""
    memory = Memory(4 * MIB)
    fill(memory, range(1))
    with pytest.raises(AssertionError, match="twice"):
        fill(memory, range(1))


class MemoryMachine(RuleBasedStateMachine):
    """Any order of loans, landings, pins and reads keeps every slot in exactly one place."""

    loans = Bundle("loans")

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory(6 * MIB)
        self.next = 0
        self.pinned: dict[Key, Chunk] = {}

    @rule(target=loans, count=st.integers(1, 3), urgent=st.booleans())
    def lend(self, count: int, urgent: bool) -> object:
        """Take slots, if there are any."""
        return multiple(*(self.memory.lend(count, urgent=urgent) or []))

    @rule(slot=consumes(loans), pin=st.booleans())
    def land(self, slot: int, pin: bool) -> None:
        """A chunk arrives."""
        key = (OBJECT, self.next)
        self.next += 1
        chunk = self.memory.keep(key, slot, CHUNK_SIZE)
        if pin:
            self.memory.pin(chunk)
            self.pinned[key] = chunk

    @rule(slot=consumes(loans))
    def give_back(self, slot: int) -> None:
        """A chunk does not arrive."""
        self.memory.give_back(slot)

    @rule(number=st.integers(0, 30), taken=st.integers(1, CHUNK_SIZE), to_end=st.booleans())
    def read(self, number: int, taken: int, to_end: bool) -> None:
        """A reader takes some of it."""
        chunk = self.memory.get((OBJECT, number))
        if chunk is not None:
            self.memory.use((OBJECT, number), chunk, taken=taken, to_end=to_end)

    @rule(number=st.integers(0, 30))
    def forget(self, number: int) -> None:
        """It is dropped, unless it is pinned."""
        self.memory.forget((OBJECT, number))

    @rule()
    def unpin(self) -> None:
        """The oldest pin is undone."""
        for key in list(self.pinned)[:1]:
            self.memory.unpin(self.pinned.pop(key))

    @invariant()
    def every_slot_has_one_place(self) -> None:
        """Free, lent, or a chunk."""
        found = self.memory.statistics()
        assert found.free + found.lent + found.chunks == found.slots == 6
        assert found.pinned == len(self.pinned)

    @invariant()
    def pinned_chunks_are_here(self) -> None:
        """Whatever was evicted, these were not."""
        assert all(self.memory.get(key) is chunk for key, chunk in self.pinned.items())


TestMemoryMachine = MemoryMachine.TestCase


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_slots_are_made_ready_without_a_change() -> None:
    """What the kernel can give ahead is there after `populate`, no byte is another, and the budget is not passed."""
    memory = Memory(64 * MIB)
    slots = memory.lend(2, urgent=True)
    assert slots is not None
    memory.slot_view(slots[0], 5)[:] = b"bytes"
    before = resident()
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(memory.populate()))
    thread.start()
    thread.join()
    assert done == [64 * MIB]
    assert resident() - before >= 56 * MIB
    assert bytes(memory.slot_view(slots[0], 6)) == b"bytes\0"
    again = resident()
    assert memory.populate() == 64 * MIB
    assert resident() - again < 8 * MIB
