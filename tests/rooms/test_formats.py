"""What a safetensors file says of its inside, and what is brought ahead by it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lazyfs.objects import GIB, KIB, MIB
from lazyfs.reading.formats import LARGEST_HEADER, LENGTH, borders, has_tensors
from lazyfs.reading.plans import Plan
from lazyfs.reading.streams import Streams
from lazyfs.reading.windows import Budget
from tests.rooms.building import CacheMaker
from tests.rooms.memory_store import MemoryStore
from tests.rooms.test_shards import fetched, opened, read_upto
from tests.rooms.test_streams import span, walk

HEADER = 8 * KIB
"""Bytes before the first tensor, in the files here."""


def safetensors(header: object, pad: int = 0) -> bytes:
    """The beginning of a file with this header."""
    words = json.dumps(header).encode() + b" " * pad
    return len(words).to_bytes(LENGTH, "little") + words


def tensor(start: object, stop: object) -> dict[str, object]:
    """One of a header."""
    return {"dtype": "F16", "shape": [1], "data_offsets": [start, stop]}


def padded(*ends: int) -> bytes:
    """The beginning of a file whose tensors end so many bytes after the header, which is `HEADER` long with its length;
    the header has the last tensor first."""
    pairs = [*zip([0, *ends], ends, strict=False)]
    said = {f"tensor {number}": tensor(*pair) for number, pair in reversed([*enumerate(pairs)])}
    bare = len(safetensors(said))
    return safetensors(said, HEADER - bare)


def test_a_file_as_the_library_writes_it(tmp_path: Path) -> None:
    """Every tensor begins and ends at a border, in a file with metadata, an empty tensor and several types."""
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "embedding": np.arange(70_000, dtype=np.float32),
        "empty": np.zeros(0, np.float16),
        "norm": np.ones(3, np.float16),
        "mask": np.ones((5, 7), np.bool_),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "np", "data_offsets": "none"})
    whole = path.read_bytes()
    found = borders(whole, len(whole))
    assert list(found) == sorted(set(found))
    assert found[-1] == len(whole)
    for one in tensors.values():
        assert any(one.tobytes() == whole[start:stop] for start in found for stop in found if start <= stop)
    assert borders(memoryview(whole)[: found[0]], len(whole)) == found, "the header is enough"
    assert borders(whole[: found[0] - 1], len(whole)) == (), "and less is not"


GOOD = safetensors({"a": tensor(0, 10), "b": tensor(10, 30), "__metadata__": {"x": "y"}})


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"\x01",
        bytes(1000),
        safetensors([]),
        safetensors({}),
        safetensors("text"),
        safetensors({"__metadata__": {}}),
        safetensors({"a": tensor(-1, 10)}),
        safetensors({"a": tensor(0, 31)}),
        safetensors({"a": tensor(0.5, 10)}),
        safetensors({"a": tensor(True, 10)}),
        safetensors({"a": tensor("0", "10")}),
        safetensors({"a": {"data_offsets": [1]}}),
        safetensors({"a": {"data_offsets": [1, 2, 3]}}),
        safetensors({"a": {"data_offsets": 7}}),
        safetensors({"a": {"shape": [1]}}),
        safetensors({"a": 7}),
        safetensors({"a": tensor(0, 10)}, LARGEST_HEADER),
        (1 << 63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"\xff\xfe",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
)
def test_what_is_no_header_says_nothing(beginning: bytes) -> None:
    """Whatever is wrong with it, and nothing fails: anybody can put such a file there."""
    assert borders(GOOD, len(GOOD) + 30) == (len(GOOD), len(GOOD) + 10, len(GOOD) + 30)
    assert borders(beginning, len(beginning) + 30) == ()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(
    st.sampled_from(["data_offsets", "__metadata__", "a"]), one)), st.integers(0, 100))  # fmt: skip
def test_no_header_raises(header: object, size: int) -> None:
    """What comes out is ascending, and within the file."""
    found = borders(safetensors(header), size)
    assert list(found) == sorted(set(found))
    assert all(LENGTH <= offset <= size for offset in found)


@pytest.mark.parametrize(
    ("name", "has"), [("model-00001-of-00004.safetensors", True), ("model.bin", False), ("safetensors", False)]
)
def test_which_files_have_one(name: str, has: bool) -> None:
    assert has_tensors(name) == has


def knowing(*ends: int, size: int = 4 * GIB) -> Streams:
    """The streams of a file whose tensors end there."""
    made = Streams(size, Budget(GIB))
    made.tensors.know([HEADER, *ends])
    return made


def test_a_tensor_that_is_begun_is_brought_whole() -> None:
    """With its second MiB, in whole steps; what comes after it as the run earns it."""
    plain = walk(Streams(4 * GIB, Budget(GIB)), 0, 60 * MIB, MIB)
    assert plain[:3] == [(0, 1), (1, 32), (32, 40)]
    found = walk(knowing(HEADER + 48 * MIB, GIB), 0, 60 * MIB, MIB)
    assert found[:2] == [(0, 1), (1, 48)]
    assert all(one in plain for one in found[2:] if one[0] >= 128), "nothing changes for who has read more"


def test_a_header_alone_brings_nothing_more() -> None:
    """Nor does the rest of the MiB in which it lies."""
    made = knowing(HEADER + 48 * MIB)
    assert span(made.observe(0, MIB)) == (0, 1)
    assert made.ahead() == (0, 0)


def test_a_tensor_in_the_middle() -> None:
    """The kernel reads 512 KiB before the page that is touched, and then on: with 1 MiB of the tensor read it is
    brought whole, and the one before it is not."""
    begin, end = 100 * MIB + 64 * KIB, 130 * MIB
    made = knowing(begin, end, GIB)
    at = begin - 512 * KIB
    assert span(made.observe(at, at + MIB)) == (99, 101)
    assert span(made.observe(at + MIB, at + 2 * MIB)) == (101, 128)


def test_the_end_of_one_tensor_is_no_beginning_of_the_next() -> None:
    """Who reads a small tensor reads a little of the next one, by the kernel's own reading ahead."""
    small, large = 100 * MIB + 512 * KIB, 101 * MIB + 512 * KIB
    made = knowing(small, large, GIB)
    made.observe(100 * MIB, 101 * MIB)
    plan = made.observe(101 * MIB, 102 * MIB)
    assert span(plan) == (101, 110), "no more than eight MiB after two"


def test_who_leaves_a_tensor_is_not_believed_again() -> None:
    """A rank that reads its part of every tensor: of the first one all is brought, of the others as of any file."""
    at = [0, 64 * MIB, 150 * MIB, 270 * MIB]
    plain, made = Streams(4 * GIB, Budget(GIB)), knowing(*(HEADER + begin for begin in at[1:]))
    found = {one: [walk(one, begin, begin + 2 * MIB, MIB) for begin in at] for one in (plain, made)}
    assert found[made][0] == [(0, 1), (1, 64)]
    assert found[made][1:] == found[plain][1:]


PAGE = 4 * KIB


def fault(made: Streams, offset: int, size: int = 4 * GIB) -> Plan:
    """Somebody touches this byte of a mapping: the kernel reads 512 KiB before its page, and from it on."""
    at = offset // PAGE * PAGE - 512 * KIB
    return made.observe(at, min(at + MIB, size))


def spans(plan: Plan) -> list[tuple[int, int]]:
    """The ranges of a plan, in MiB."""
    return [(start // MIB, -(-stop // MIB)) for start, stop in plan.ranges]


@pytest.mark.parametrize(
    ("end", "byte", "also"),
    [
        (HEADER + 48 * MIB, HEADER + 48 * MIB - 1, True),
        (48 * MIB, 48 * MIB - 1, True),
        (48 * MIB + 100, 48 * MIB + 99, True),
        (48 * MIB + 100, 48 * MIB + 100 - 256, True),
        (48 * MIB + 3 * KIB, 48 * MIB - 1, False),
        (HEADER + 48 * MIB, HEADER + 48 * MIB - 2 * PAGE, False),
        (HEADER + 48 * MIB, HEADER + 48 * MIB, False),
        (HEADER + 48 * MIB, 24 * MIB, False),
    ],
)
def test_who_faults_at_the_end_of_a_tensor_copies_it(end: int, byte: int, also: bool) -> None:
    """Its last bytes first, then from the beginning on: all of it is brought, and what comes then was planned. In
    place of a touch anywhere else the kernel's reading around may pass an end, too."""
    made = knowing(end, GIB)
    made.observe(0, MIB)
    low, high = (byte // PAGE * PAGE - 512 * KIB) // MIB, -(-(byte // PAGE * PAGE + 512 * KIB) // MIB)
    assert spans(fault(made, byte)) == [(low, high), (0, low)][: 1 + also]
    if also:
        assert made.ahead() == (1, high * MIB - HEADER)
        assert walk(made, MIB, 6 * MIB, MIB) == []
        assert walk(made, 6 * MIB, 8 * MIB, MIB) == [(high, 72)], "then eight times what was read"


def test_a_first_tensor_that_is_copied_comes_before_what_is_behind_it() -> None:
    """32 MiB are planned behind it at most until it was read; where a file was read to its end before, all at once."""
    end = HEADER + 48 * MIB
    made = knowing(end, GIB)
    made.observe(0, MIB)
    fault(made, end - 1)
    assert walk(made, MIB, 47 * MIB, MIB)[-1][1] == 80
    assert walk(made, 47 * MIB, 50 * MIB, MIB)[-1][1] == 50 + 256 - 2
    later = knowing(end, GIB)
    later._budget.finished(256 * MIB)
    later.observe(0, MIB)
    fault(later, end - 1)
    assert walk(later, MIB, 47 * MIB, MIB)[-1][1] == 296


def test_a_tensor_that_is_copied_comes_before_the_next_shard() -> None:
    """Though more than a quarter of the first one was read, and all of it is planned."""
    end = HEADER + 48 * MIB
    made = knowing(end, size=80 * MIB)
    made.observe(0, MIB)
    fault(made, end - 1, 80 * MIB)
    walk(made, MIB, 47 * MIB, MIB)
    assert (made.latest.frontier, made.beyond) == (80 * MIB, 0)
    walk(made, 47 * MIB, 50 * MIB, MIB)
    assert made.beyond == 4 * 50 * MIB


def test_who_copies_a_tensor_in_the_middle_is_not_taken_to_copy_the_one_before() -> None:
    """Its first page holds the last bytes of that one, too, for tensors are not aligned to pages."""
    borders = [10_008 + number * 100 * MIB for number in range(10)]
    made = knowing(*borders)
    made.observe(0, MIB)
    assert spans(fault(made, borders[6] - 1)) == [(599, 601), (500, 599)]
    before = fault(made, borders[5])
    assert spans(before) == [(499, 501)], "the read itself; the rest was planned"
    assert made.latest.promised == borders[6]
    at = (borders[5] // PAGE + 128) * PAGE
    assert spans(made.observe(at, at + MIB)) == []
    assert not made.tensors.left


def test_a_tensor_that_is_gone_through_is_not_begun_again() -> None:
    """By a second thread, or once more at its end, with a window that does not reach it."""
    made = Streams(4 * GIB, Budget(16 * MIB))
    made.tensors.know([HEADER, 2 * GIB, 3 * GIB])
    walk(made, 0, GIB, MIB)
    assert spans(fault(made, 2 * GIB - 1)) == [(2047, 2049)]
    made = knowing(HEADER + 48 * MIB, GIB)
    made.observe(0, MIB)
    assert len(fault(made, HEADER + 48 * MIB - 1).ranges) == 2
    assert len(fault(made, HEADER + 48 * MIB - 1).ranges) < 2


def test_who_touches_nothing_but_ends_is_not_believed_for_long() -> None:
    """Eight threads may load a tensor each; with one more, it is the ends that somebody wants."""
    ends = [HEADER + (number + number * number % 7) * 40 * MIB for number in range(1, 20)]
    made = knowing(*sorted(ends))
    made.observe(0, MIB)
    counts = [len(fault(made, end - 1).ranges) for end in sorted(set(ends))]
    assert counts.count(2) == 8
    assert made.tensors.left


@pytest.mark.parametrize("size", [PAGE, 32 * KIB])
def test_a_small_read_at_an_end_is_no_fault(size: int) -> None:
    made = knowing(48 * MIB, GIB)
    made.observe(0, MIB)
    middle = 48 * MIB - PAGE // 2
    assert len(made.observe(middle - size // 2, middle + size // 2).ranges) == 1


def test_a_tensor_whose_end_was_read_before_counts_as_read() -> None:
    """The kernel read 512 KiB before its end with the fault there, and does not ask for them again."""
    end = 60 * MIB + 700 * KIB
    made = knowing(end, GIB)
    walk(made, 0, end - 512 * KIB, MIB)
    walk(made, 300 * MIB, 310 * MIB, MIB)
    assert not made.tensors.left


def test_the_end_of_the_last_tensor() -> None:
    """The kernel reads no further than the file goes."""
    size = 100 * MIB + 20 * KIB
    made = Streams(size, Budget(GIB))
    made.tensors.know([HEADER, 60 * MIB, size])
    made.observe(0, MIB)
    assert spans(fault(made, size - 1, size)) == [(99, 101), (60, 99)]


def test_small_tensors_are_not_brought_by_their_ends() -> None:
    """The kernel's own read has them."""
    made = knowing(100 * MIB, 100 * MIB + 600 * KIB, GIB)
    assert spans(fault(made, 100 * MIB + 600 * KIB - 1)) == [(100, 102)]


def test_a_tensor_that_memory_is_short_for_is_planned_again() -> None:
    """From where it was cut; from the beginning if not even its end could be had."""
    for place, offset, again in ((0, 47 * MIB, (1, 48)), (1, 10 * MIB, (10, 48))):
        made = knowing(HEADER + 48 * MIB, GIB)
        made.observe(0, MIB)
        plan = fault(made, HEADER + 48 * MIB - 1)
        plan.reached(place, offset)
        assert walk(made, MIB, 2 * MIB, MIB) == [again]


def test_of_a_large_tensor_no_more_than_the_window_is_brought() -> None:
    made = Streams(4 * GIB, Budget(16 * MIB))
    made.tensors.know([HEADER, 2 * GIB, 3 * GIB])
    made.observe(0, MIB)
    assert spans(fault(made, 2 * GIB - 1)) == [(2047, 2049), (0, 16)]


async def test_who_read_a_tensor_in_part_is_not_believed_when_the_file_is_opened_again(caches: CacheMaker) -> None:
    """Every time that it is opened its beginning would be brought in vain."""
    name = "model.safetensors"
    store = MemoryStore()
    beginning = padded(10 * MIB, 20 * MIB, 40 * MIB)
    async with opened(store, caches, name, size=48 * MIB, beginning=beginning) as (files, found):
        file = found[name]
        handle = await read_upto(files, file, 2 * MIB)
        assert not file.partly
        await read_upto(files, file, 34 * MIB, 32 * MIB)
        files.release(handle)
        files.release(handle)
        assert file.partly
        handle = await read_upto(files, file, MIB)
        assert not files.get(handle)._streams.tensors.ending(19 * MIB + 512 * KIB + HEADER, 20 * MIB + 512 * KIB)
        files.release(handle)


async def test_the_open_file_looks_inside(caches: CacheMaker) -> None:
    """With the first read, of a file whose name says what it is; so the second one brings all of the tensor."""
    names = ["model.safetensors", "model.bin"]
    store = MemoryStore()
    beginning = padded(40 * MIB, 47 * MIB)
    async with opened(store, caches, *names, size=48 * MIB, beginning=beginning) as (files, found):
        for name in names:
            await read_upto(files, found[name], MIB)
        assert [fetched(store, name) for name in names] == [MIB, MIB]
        for name in names:
            await read_upto(files, found[name], 2 * MIB, MIB)
        assert [fetched(store, name) for name in names] == [40 * MIB, 32 * MIB]
