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
from lazyfs.objects import MIB
from lazyfs.reading.shards import HEAD, next_shard
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
    store: MemoryStore, caches: CacheMaker, *names: str, size: int = SIZE
) -> AsyncIterator[tuple[OpenFiles, dict[str, File]]]:
    """The open files of a mount over a store that holds these, and the files by name."""
    for index, name in enumerate(names):
        store.put(name, pattern(MIB, index) * (size // MIB))
    async with trio.open_nursery() as nursery:
        memory = Memory(128 * MIB)
        cache = ChunkCache(store=store, disk=caches.open(), memory=memory, nursery=nursery, span_size=8 * MIB)
        branch = Branch(
            place=PLACE, prefix="", list_prefix=lambda prefix, _: store.list(prefix), age=lambda _: 0.0, ttl=60.0
        )
        tree = Tree(branch)
        found = {node.name: node for node in await tree.entries(tree.root.inode) if isinstance(node, File)}
        yield OpenFiles(cache, Budget(64 * MIB)), found
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def read_upto(files: OpenFiles, file: File, stop: int) -> None:
    """Read from the beginning, a MiB at a time."""
    handle = files.open(file)
    for offset in range(0, stop, MIB):
        await files.get(handle).read(offset, MIB)
    await trio.testing.wait_all_tasks_blocked()


def fetched(store: MemoryStore, key: str) -> int:
    """Bytes of an object that were asked for."""
    return sum(call.stop - call.start for call in store.calls if call.kind == "get" and call.key == key)


async def test_the_next_shard_is_begun(caches: CacheMaker) -> None:
    """Its head, once, past the middle of the one before; and no shard after that."""
    store = MemoryStore()
    names = [f"m-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    async with opened(store, caches, *names) as (files, found):
        await read_upto(files, found[names[0]], SIZE // 2 - MIB)
        assert [fetched(store, name) for name in names] == [SIZE, 0, 0]
        await read_upto(files, found[names[0]], SIZE)
        assert [fetched(store, name) for name in names] == [SIZE, HEAD, 0]
        await read_upto(files, found[names[1]], SIZE)
        assert [fetched(store, name) for name in names] == [SIZE, SIZE, HEAD]


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
