"""Walks: for each way that loaders read, the exact plan of a small case, and bytes fetched over bytes used of a large
one."""

import heapq
import random
from collections.abc import Iterable

import pytest

from lazyfs.cache.spans import spans_to_get
from lazyfs.objects import CHUNK_SIZE, GIB, KIB, MIB, align_down, chunk_range
from lazyfs.reading.streams import Streams
from lazyfs.reading.windows import LARGEST_WINDOW, Budget

SIZE = 4 * GIB
Read = tuple[int, int]
PAGE = 4 * KIB


def plans(reads: Iterable[Read], size: int = SIZE) -> list[list[Read]]:
    """The ranges planned for each read, in MiB."""
    made = Streams(size, Budget(16 * GIB))
    planned = (made.observe(start, stop).ranges for start, stop in reads)
    return [[(start // MIB, -(-stop // MIB)) for start, stop in ranges] for ranges in planned]


def totals(reads: Iterable[Read], size: int = SIZE) -> tuple[int, int]:
    """Chunks fetched, and chunks used. What was dropped counts as fetched, for it may have been sent."""
    made = Streams(size, Budget(GIB))
    fetched: set[int] = set()
    used: set[int] = set()
    for start, stop in reads:
        for part in made.observe(start, stop).ranges:
            fetched.update(chunk_range(*part))
        used.update(chunk_range(start, stop))
    assert used <= fetched
    return len(fetched), len(used)


def forward(start: int, stop: int, size: int = MIB) -> list[Read]:
    """Reads of `size` bytes one after another."""
    return [(offset, min(stop, offset + size)) for offset in range(start, stop, size)]


def elements(step: int, length: int, count: int, start: int = 0) -> list[Read]:
    """Elements of `length` bytes, one every `step`, each in reads of up to 1 MiB as the kernel sends them."""
    begins = (start + number * step for number in range(count))
    return [read for begin in begins for read in forward(begin, begin + length)]


def test_sequential() -> None:
    assert plans(forward(0, 12 * MIB)) == [
        [(0, 1)], [(1, 32)], [], [], [(32, 40)], [(40, 48)], [(48, 56)], [(56, 72)], [(72, 80)], [(80, 88)],
        [(88, 96)], [(96, 104)],
    ]  # fmt: skip
    assert totals(forward(0, SIZE)) == (4096, 4096)


def test_sequential_from_the_middle() -> None:
    """Not from the first byte on it may be anything, and earns what it has ahead."""
    assert plans(forward(GIB, GIB + 6 * MIB)) == [
        [(1024, 1025)], [(1025, 1034)], [], [(1034, 1056)], [(1056, 1064)], [(1064, 1072)]
    ]  # fmt: skip


def test_sequential_in_small_reads() -> None:
    """Reads of 128 KiB have nothing ahead of them until they fill a chunk, which is fetched anyway."""
    assert plans(forward(0, 9 * MIB // 8, 128 * KIB)) == [[(0, 1)], *[[]] * 6, [(1, 5)], []]
    assert totals(forward(0, GIB, 128 * KIB), GIB) == (1024, 1024)


def test_sequential_from_a_page_in_the_middle_of_a_chunk() -> None:
    """As the kernel reads around faults of a mapping."""
    first = 100 * MIB + 77 * PAGE
    assert plans(forward(first, first + 4 * MIB)) == [[(100, 102)], [(102, 111)], [], [(111, 136)]]


def test_sequential_out_of_order() -> None:
    """Two outstanding reads may pass each other: one run, each byte of it planned, and none past its window."""
    reads = [read for pair in range(0, GIB, 2 * MIB) for read in forward(pair, pair + 2 * MIB)[::-1]]
    assert plans(reads[:6]) == [[(1, 2)], [(0, 1)], [(3, 4)], [(2, 32)], [], [(4, 5), (32, 40)]]
    assert totals(reads, GIB) == (1024, 1024)


def test_sequential_with_reads_that_pass_three_others() -> None:
    reads = [(n * MIB, (n + 1) * MIB) for block in range(0, 1024, 4) for n in (block, block + 3, block + 2, block + 1)]
    assert totals(reads, GIB) == (1024, 1024)


def test_strided_with_gaps_below_a_chunk() -> None:
    """256 KiB of each MiB touch every chunk, and are a run once four lie in equal steps."""
    assert plans(elements(MIB, 256 * KIB, 7)) == [
        [(0, 1)], [(1, 2)], [(2, 3)], [(3, 32)], [], [(32, 48)], [(48, 56)]
    ]  # fmt: skip
    assert totals(elements(MIB, 256 * KIB, 1024), GIB) == (1024, 1024)


def test_strided_below_a_chunk() -> None:
    assert plans(elements(MIB // 2, 256 * KIB, 6)) == [[(0, 1)], [(0, 1)], [(1, 2)], [(2, 9)], [(9, 32)], []]
    assert totals(elements(MIB // 2, 256 * KIB, 2048), GIB) == (1024, 1024)


def test_strided_in_several_reads() -> None:
    """2 MiB of every 16: the first element is taken for a run, the next are expected to end as it did, and with the
    fourth the step is known. What the first had planned is dropped, and no gap is fetched again."""
    assert plans(elements(16 * MIB, 2 * MIB, 6)) == [
        [(0, 1)], [(1, 32)],
        [], [],
        [(32, 33)], [(33, 34)],
        [(48, 50), (64, 66), (80, 82)], [],
        [(96, 98), (112, 114), (128, 130)], [],
        [(144, 146), (160, 162), (176, 178), (192, 194), (208, 210)], [],
    ]  # fmt: skip
    assert totals(elements(16 * MIB, 2 * MIB, 256)) == (512 + 28, 512)


def test_strided_in_single_reads() -> None:
    """256 KiB of every 3 MiB: nothing but the elements, and a window of elements that doubles."""
    found = plans(elements(3 * MIB, 256 * KIB, 7))
    assert found[:4] == [[(0, 1)], [(3, 4)], [(6, 7)], [(9, 10), (12, 13), (15, 16)]]
    assert [len(ranges) for ranges in found] == [1, 1, 1, 3, 3, 5, 9]
    assert totals(elements(3 * MIB, 256 * KIB, 341), GIB) == (342, 341)


def test_strided_inside_the_slack_of_a_run() -> None:
    """2 MiB of every 4: the jumps look like reads that pass each other, until the third leaves its gap open too."""
    found = plans(elements(4 * MIB, 2 * MIB, 6))
    assert found[6:10] == [[(12, 14), (16, 18), (20, 22)], [], [(24, 26), (28, 30), (32, 34)], []]
    fetched, used = totals(elements(4 * MIB, 2 * MIB, 1024))
    assert used == 2048
    assert fetched <= used + 2 * 16


def test_strided_long_elements() -> None:
    """12 MiB of every 100: after the fourth element nothing is fetched in vain but one past the end."""
    before, _ = totals(elements(100 * MIB, 12 * MIB, 3))
    fetched, used = totals(elements(100 * MIB, 12 * MIB, 40))
    assert used == 480
    assert fetched - used <= before - 3 * 12 + 12


def test_strided_by_no_whole_page() -> None:
    """Slices of a matrix whose rows are no multiple of a page begin on one all the same, a page off now and then."""
    step = 16 * MIB + 1500
    reads = [(align_down(n * step, PAGE), align_down(n * step, PAGE) + 256 * KIB) for n in range(250)]
    fetched, used = totals(reads)
    assert used <= fetched <= used + 8


def test_strided_by_16_ranks() -> None:
    """Tensor-parallel ranks in turn, 1 MiB each of every 64 MiB."""
    reads = [(n * 64 * MIB + r * 4 * MIB, n * 64 * MIB + r * 4 * MIB + MIB) for n in range(64) for r in range(16)]
    assert totals(reads) == (1024, 1024)


def test_backward() -> None:
    """The third read downwards makes a run; what is wanted first comes first, in chunks, then in whole steps."""
    assert plans([(n * MIB, (n + 1) * MIB) for n in range(500, 494, -1)]) == [
        [(500, 501)],
        [(499, 500)],
        [(498, 499), (497, 498), (496, 497), (495, 496), (494, 495), (493, 494), (492, 493), (491, 492), (490, 491),
         (488, 490), (486, 488)],
        [],
        [(480, 486), (472, 480)],
        [(464, 472)],
    ]  # fmt: skip
    assert totals([(n * MIB, (n + 1) * MIB) for n in range(1023, -1, -1)], GIB) == (1024, 1024)


def test_backward_through_a_mapping() -> None:
    """A fault reads 1 MiB around it, of which the upper part is there: 129 pages, each time right below the last."""
    reads = [(500 * MIB + n * 129 * PAGE, 500 * MIB + (n + 1) * 129 * PAGE) for n in range(0, -900, -1)]
    assert plans(reads[:5]) == [
        [(500, 501)],
        [(499, 500)],
        [(498, 499), (497, 498), (496, 497), (495, 496), (494, 495), (493, 494), (492, 493)],
        [],
        [],
    ]
    fetched, used = totals(reads)
    assert fetched - used <= LARGEST_WINDOW // MIB


def test_backward_in_strides() -> None:
    assert plans(elements(-16 * MIB, MIB, 5, GIB)) == [
        [(1024, 1025)], [(1008, 1009)], [(992, 993)],
        [(976, 977), (960, 961), (944, 945)],
        [(928, 929), (912, 913), (896, 897)],
    ]  # fmt: skip
    assert totals(elements(-16 * MIB, MIB, 65, GIB)) == (65, 65)


@pytest.mark.parametrize("block", [2 * MIB, 8 * MIB])
def test_backward_in_blocks(block: int) -> None:
    """Each block is read upwards, and the next lies below it."""
    assert totals(elements(-block, block, 2 * GIB // block, 2 * GIB - block), 2 * GIB) == (2048, 2048)


@pytest.mark.parametrize("header", [100 * KIB, 900 * KIB])
def test_a_header_and_a_jump(header: int) -> None:
    """The length, the header in the kernel's steps, then a tensor far away: nothing is wasted, and the tensor has
    8 MiB ahead with its second read and 32 with its fourth."""
    reads = [(0, 16 * KIB), *forward(16 * KIB, header, 128 * KIB)]
    tensor = 2 * GIB + 1000 * PAGE
    found = plans([*reads, *forward(tensor, tensor + 5 * MIB)])
    assert found[0] == [(0, 1)]
    assert not any(found[1 : len(reads)])
    assert found[len(reads) :] == [[(2051, 2053)], [(2053, 2062)], [], [(2062, 2088)], [(2088, 2096)]]


def test_a_header_and_scattered_tensors() -> None:
    """Small tensors here and there, the way a rank takes its part of a layer: their chunks and no more."""
    begins = [n * 4 * MIB + 300 * KIB for n in random.Random(0).sample(range(1, 1024), 299)]
    reads = [(0, 16 * KIB), (16 * KIB, 144 * KIB), *[(begin, begin + 500 * KIB) for begin in begins]]
    assert totals(reads) == (300, 300)


def test_16_readers_in_turn() -> None:
    """Through one descriptor, each in its own slice. In the first round they cannot be told from one strided walk, and
    gain by it; from the second on each has the plan it would have alone. The first is where a file begins."""
    rounds = [[(rank * 256 * MIB + n * MIB, rank * 256 * MIB + (n + 1) * MIB) for rank in range(16)] for n in range(12)]
    found = plans(read for each in rounds for read in each)
    assert [[start for start, _ in ranges] for ranges in found[:16]] == [
        [0], [256], [512], [768, 1024, 1280], [1536, 1792, 2048], [2304, 2560, 2816, 3072, 3328], [3584, 3840],
        *[[]] * 9,
    ]  # fmt: skip
    for rank in range(16):
        alone = plans(forward(rank * 256 * MIB, (rank * 256 + 12) * MIB))
        assert found[16 + rank :: 16] == alone[1:]


def test_16_readers_by_chance() -> None:
    """As processes come: every slice is fetched once, and nothing else."""
    dice = random.Random(16)
    places = [rank * 256 for rank in range(16)]
    reads: list[Read] = []
    while left := [rank for rank in range(16) if places[rank] < (rank + 1) * 256]:
        rank = dice.choice(left)
        reads.append((places[rank] * MIB, (places[rank] + 1) * MIB))
        places[rank] += 1
    assert totals(reads) == (4096, 4096)
    made = Streams(SIZE, Budget(16 * GIB))
    assert not any(made.observe(*read).dropped for read in reads[:2000])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [4 * KIB, MIB])
def test_random(seed: int, size: int) -> None:
    """Pages touched with MADV_RANDOM, and the kernel's 1 MiB around a fault: the chunks of each read, and no more."""
    dice = random.Random(seed)
    offsets = [dice.randrange((SIZE - size) // PAGE) * PAGE for _ in range(3000)]
    made = Streams(SIZE, Budget(GIB))
    for offset in offsets:
        planned = {n for part in made.observe(offset, offset + size).ranges for n in chunk_range(*part)}
        assert planned <= set(chunk_range(offset, offset + size))
    assert made.close() == []
    fetched, used = totals((offset, offset + size) for offset in offsets)
    assert fetched == used


def model(mib: int, budget: Budget, *, first_byte: float = 0.030, rate: float = 90e6, connections: int = 32) -> float:
    """Milliseconds that a reader of 1,200 MiB/s with two outstanding reads of 1 MiB takes for a file, on connections of
    this rate, with GETs as the chunk cache cuts them. CPU costs nothing here."""
    made = Streams(mib * MIB, budget)
    free = [0.0] * connections
    arrival: dict[int, float] = {}
    now = done = 0.0
    for number in range(mib):
        for part in made.observe(number * MIB, (number + 1) * MIB).ranges:
            missing = [n for n in chunk_range(*part) if n not in arrival]
            idle = sum(at <= now for at in free)
            for span in spans_to_get(missing, (number + 1) * MIB, (number + 1) * MIB, idle=idle, most=8):
                end = max(now, heapq.heappop(free)) + first_byte
                for n in span:
                    end += CHUNK_SIZE / rate
                    arrival[n] = end
                heapq.heappush(free, end)
        # The next read is sent when the one before this one was consumed.
        if number:
            now = max(done, now) + 1 / 1200
        done = max(arrival[number], now)
    return 1000 * max(done, now)


def test_a_cold_start_has_many_connections_within_few_reads() -> None:
    """The figures at windows.SURE."""
    budget = Budget(GIB)
    first, second = (model(256, budget) for _ in range(2))
    assert (round(first), round(second)) == (347, 323)


@pytest.mark.parametrize(("length", "wasted"), [(MIB // 2, 0), (MIB, 0), (2 * MIB, 8), (3 * MIB, 7), (4 * MIB, 28)])
def test_a_run_that_stops_early_wastes_little(length: int, wasted: int) -> None:
    fetched, used = totals(forward(GIB, GIB + length))
    assert fetched - used == wasted


@pytest.mark.parametrize(("length", "wasted"), [(MIB // 2, 0), (MIB, 0), (2 * MIB, 30), (3 * MIB, 29), (4 * MIB, 28)])
def test_a_file_that_is_left_after_its_beginning_wastes_no_more(length: int, wasted: int) -> None:
    """What comes after 2 MiB is no header."""
    fetched, used = totals(forward(0, length))
    assert fetched - used == wasted


@pytest.mark.parametrize("seed", range(200))
def test_walkers_of_every_kind_together(seed: int) -> None:
    """Whatever goes on side by side: plans are aligned and inside the file, and each read's bytes are planned by
    then."""
    dice = random.Random(seed)
    size = dice.randrange(1, 400) * MIB + dice.randrange(5000)
    made = Streams(size, Budget(dice.choice([0, 5, 64, 512]) * MIB))
    steps = [MIB, 2 * MIB, -MIB, 3 * MIB, -3 * MIB, -2 * MIB, 256 * KIB, 16 * MIB, -7 * MIB, 5 * MIB + PAGE]
    lengths = [4 * KIB, 128 * KIB, MIB]
    walkers = [[dice.randrange(size), dice.choice(steps), dice.choice(lengths)] for _ in range(dice.randrange(1, 6))]
    planned: set[int] = set()
    for _ in range(150):
        walker = dice.choice(walkers)
        start = walker[0] % size
        stop = min(size, start + walker[2])
        walker[0] += walker[1] if dice.random() < 0.95 else dice.randrange(size)
        plan = made.observe(start, stop)
        assert all(0 <= first < last <= size for first, last in plan.ranges + plan.dropped)
        assert all(first % MIB == 0 and (last % MIB == 0 or last == size) for first, last in plan.ranges)
        planned.update(n for part in plan.ranges for n in chunk_range(*part))
        assert planned.issuperset(chunk_range(start, stop))
    assert all(first < last for first, last in made.close())
    assert len(made) == 0
