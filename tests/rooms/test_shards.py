"""The shards of a model: their names, and that the next one is begun while one is still read."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.memory import Memory
from lazyfs.filesystem.files import OpenFiles
from lazyfs.filesystem.nodes import Branch, File
from lazyfs.filesystem.tree import Tree
from lazyfs.objects import MIB, ObjectVersion
from lazyfs.reading.plans import Plan
from lazyfs.reading.runs import Run
from lazyfs.reading.shards import next_shard
from lazyfs.reading.windows import Budget
from tests.rooms.building import PLACE, CacheMaker, pattern
from tests.rooms.memory_store import MemoryStore

SIZE = 24 * MIB


@pytest.mark.parametrize(
    ("name", "following"),
    [
        ("model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors"),
        ("model-00009-of-00010.safetensors", "model-00010-of-00010.safetensors"),
        ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
        ("llama-3-70b-q4-00001-of-00003.gguf", "llama-3-70b-q4-00002-of-00003.gguf"),
        ("part-1-of-3", "part-2-of-3"),
        ("model-00004-of-00004.safetensors", None),
        ("model.safetensors", None),
        ("model-00005-of-00004.safetensors", None),
        ("1-of-", None),
        ("", None),
    ],
)
def test_the_next_name(name: str, following: str | None) -> None:
    """Counted up, as wide as it was, and never past the last."""
    assert next_shard(name) == following


@asynccontextmanager
async def opened(
    store: MemoryStore,
    caches: CacheMaker,
    *names: str,
    size: int = SIZE,
    beginning: bytes = b"",
    budget: int = 64 * MIB,
) -> AsyncIterator[tuple[OpenFiles, dict[str, File]]]:
    """The open files of a mount over a store that holds these, and the files by name."""
    for index, name in enumerate(names):
        store.put(name, beginning + (pattern(MIB, index) * (size // MIB))[len(beginning) :])
    async with trio.open_nursery() as nursery:
        memory = Memory(max(128 * MIB, budget * 3 // 2))
        cache = ChunkCache(store=store, disk=caches.open(), memory=memory, nursery=nursery, span_size=8 * MIB)
        branch = Branch(
            place=PLACE, prefix="", list_prefix=lambda prefix, _: store.list(prefix), age=lambda _: 0.0, ttl=60.0
        )
        tree = Tree(branch)
        found = {node.name: node for node in await tree.entries(tree.root.inode) if isinstance(node, File)}
        yield OpenFiles(cache, Budget(budget)), found
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def read_upto(files: OpenFiles, file: File, stop: int, start: int = 0) -> int:
    """Read up to there, a MiB at a time; the handle."""
    handle = files.open(file)
    for offset in range(start, stop, MIB):
        await files.get(handle).read(offset, MIB)
    await trio.testing.wait_all_tasks_blocked()
    return handle


def fetched(store: MemoryStore, key: str) -> int:
    """Bytes of an object that were asked for."""
    return sum(call.stop - call.start for call in store.calls if call.kind == "get" and call.key == key)


async def test_shards_are_read_ahead_like_one_file(caches: CacheMaker) -> None:
    """From a quarter of the first one on, what is then in its window, but no more than four times what was read, in
    steps of 8 MiB. Each byte once."""
    store = MemoryStore()
    names = [f"m-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    async with opened(store, caches, *names) as (files, found):
        quarter = SIZE // 4
        handle = await read_upto(files, found[names[0]], quarter - MIB)
        assert [fetched(store, name) for name in names] == [SIZE, 0, 0]
        await read_upto(files, found[names[0]], quarter, quarter - MIB)
        # The window is 48 MiB by then, and 30 of it lie beyond.
        assert [fetched(store, name) for name in names] == [SIZE, 24 * MIB, 0]
        await read_upto(files, found[names[0]], SIZE - MIB, quarter)
        # It has its 64 MiB, and all but one lie beyond.
        assert [fetched(store, name) for name in names] == [SIZE, SIZE, SIZE]
        await read_upto(files, found[names[0]], SIZE, SIZE - MIB)
        files.release(handle)
        for name in names[1:]:
            await read_upto(files, found[name], SIZE)
        assert [fetched(store, name) for name in names] == [SIZE, SIZE, SIZE]


async def test_a_second_model_is_expected_to_be_read_like_the_first(caches: CacheMaker) -> None:
    """Where a file was read to its end, the shards after the next one are begun before its middle."""
    store = MemoryStore()
    first, *names = ["a-00001-of-00001.bin", *(f"m-0000{number}-of-00003.bin" for number in (1, 2, 3))]
    async with opened(store, caches, first, *names) as (files, found):
        await read_upto(files, found[first], SIZE)
        await read_upto(files, found[names[0]], 2 * MIB)
        assert [fetched(store, name) for name in names] == [SIZE, 0, 0]
        await read_upto(files, found[names[0]], 4 * MIB, 2 * MIB)
        assert [fetched(store, name) for name in names] == [SIZE, 8 * MIB, 0]


async def test_a_shard_that_is_read_by_somebody_is_left_to_him(caches: CacheMaker) -> None:
    """Threads that load a shard each have their own streams: what they read already is not brought again."""
    store = MemoryStore()
    names = [f"m-0000{number}-of-00003.bin" for number in (1, 2, 3)]
    async with opened(store, caches, *names) as (files, found):
        await read_upto(files, found[names[1]], MIB)
        await read_upto(files, found[names[0]], SIZE)
        assert [fetched(store, name) for name in names] == [SIZE, MIB, 0]


async def test_who_stops_early_has_nothing_sent_that_waits(caches: CacheMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is queued of other shards when a shard is closed before its end is not asked for."""
    store = MemoryStore()
    names = [f"m-0000{number}-of-00002.bin" for number in (1, 2)]
    async with opened(store, caches, *names) as (files, found):
        dropped: list[tuple[str, int, int]] = []
        drop = files._cache.drop

        def noted(version: ObjectVersion, start: int, stop: int) -> None:
            dropped.append((version.key, start, stop))
            drop(version, start, stop)

        monkeypatch.setattr(files._cache, "drop", noted)
        handle = await read_upto(files, found[names[0]], SIZE // 2)
        files.release(handle)
        assert dropped == [(names[0], SIZE // 2, SIZE), (names[1], 0, SIZE)]
        dropped.clear()
        handle = await read_upto(files, found[names[0]], SIZE)
        files.release(handle)
        assert [one for one in dropped if one[0] == names[1]] == []


async def test_a_shard_is_foreseen_while_the_one_before_it_is_read(caches: CacheMaker) -> None:
    """From when some of it is set on its way until who read it has closed it; and not if the one before was left."""
    store = MemoryStore()
    names = [f"m-0000{number}-of-00003.bin" for number in (1, 2, 3)]
    async with opened(store, caches, *names, size=SIZE) as (files, found):

        def foreseen() -> list[bool]:
            return [found[name].inode in files.foreseen for name in names]

        handle = await read_upto(files, found[names[0]], SIZE // 8)
        assert foreseen() == [False, False, False]
        await read_upto(files, found[names[0]], SIZE // 2, SIZE // 8)
        assert foreseen() == [False, True, True]
        for _ in range(2):
            files.release(handle)
        assert foreseen() == [False, False, False]
        handle = await read_upto(files, found[names[0]], SIZE)
        files.release(handle)
        assert foreseen() == [False, True, True]
        for stop in (MIB, SIZE):
            handle = await read_upto(files, found[names[1]], stop)
            assert foreseen() == [False, True, True]
            files.release(handle)
            assert foreseen()[1] == (stop == MIB), "a header was read, and then all"


async def test_what_was_foreseen_is_not_when_the_shard_between_is_open(caches: CacheMaker) -> None:
    """Who left the first one does not go on with the third, though somebody reads the second."""
    store = MemoryStore()
    names = [f"m-0000{number}-of-00003.bin" for number in (1, 2, 3)]
    async with opened(store, caches, *names) as (files, found):
        handle = await read_upto(files, found[names[0]], SIZE // 2)
        assert [found[name].inode in files.foreseen for name in names] == [False, True, True]
        await read_upto(files, found[names[1]], MIB)
        files.release(handle)
        assert [found[name].inode in files.foreseen for name in names] == [False, False, False]


@pytest.mark.parametrize(
    ("size", "budget", "expected"),
    [(24 * MIB, 64 * MIB, [MIB] * 24), (192 * MIB, 256 * MIB, [8 * MIB] * 14)],
)
async def test_a_shard_far_from_who_reads_comes_in_large_gets(
    caches: CacheMaker, size: int, budget: int, expected: list[int]
) -> None:
    """Near him, over all connections. A quarter of the first one is read."""
    store = MemoryStore()
    names = [f"m-0000{number}-of-00002.bin" for number in (1, 2)]
    async with opened(store, caches, *names, size=size, budget=budget) as (files, found):
        await read_upto(files, found[names[0]], size // 4)
        gets = [call.stop - call.start for call in store.calls if call.kind == "get" and call.key == names[1]]
        assert gets == expected


async def test_a_tensor_before_the_read_comes_over_all_connections(caches: CacheMaker) -> None:
    """However far into the file: who faults at its end begins at its beginning next."""
    store = MemoryStore()
    async with opened(store, caches, "weights", size=256 * MIB) as (files, found):
        opened_file = files.get(files.open(found["weights"]))
        tensor = Plan(((160 * MIB, 192 * MIB),), (), Run(160 * MIB, 160 * MIB, 192 * MIB, 1))
        opened_file._start(tensor, 200 * MIB, 201 * MIB)
        await trio.testing.wait_all_tasks_blocked()
        assert [call.stop - call.start for call in store.calls if call.kind == "get"] == [MIB] * 32


async def test_what_is_no_shard_begins_nothing(caches: CacheMaker) -> None:
    """Nor the last shard, nor one whose next is not there."""
    store = MemoryStore()
    names = ["a.safetensors", "b.safetensors", "m-00001-of-00003.bin", "m-00003-of-00003.bin"]
    async with opened(store, caches, *names) as (files, found):
        for name in ("a.safetensors", "m-00001-of-00003.bin", "m-00003-of-00003.bin"):
            await read_upto(files, found[name], SIZE)
        assert [fetched(store, name) for name in names] == [SIZE, 0, SIZE, SIZE]


async def test_a_shard_read_in_part_begins_nothing(caches: CacheMaker) -> None:
    """A header, a tensor at the end: that is not somebody who loads a model."""
    store = MemoryStore()
    names = ["m-00001-of-00002.bin", "m-00002-of-00002.bin"]
    async with opened(store, caches, *names) as (files, found):
        handle = files.open(found[names[0]])
        for offset in (0, SIZE - 3 * MIB, SIZE - 2 * MIB, SIZE - MIB):
            await files.get(handle).read(offset, MIB)
        await trio.testing.wait_all_tasks_blocked()
        assert fetched(store, names[1]) == 0
