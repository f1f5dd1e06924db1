"""The quick way into a thread: results, failures, cancellation, and a touch of warm bytes that goes it."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast
from unittest.mock import AsyncMock, Mock

import pytest
import trio
import trio.testing

from lazyfs.cache.chunks import SMALL_READ, ChunkCache
from lazyfs.cache.memory import Memory
from lazyfs.cache.threads import QUICK, DiskThreads, Threads
from lazyfs.filesystem.control import Control
from lazyfs.filesystem.files import OpenFile, OpenFiles
from lazyfs.filesystem.fuse import Operations
from lazyfs.filesystem.nodes import Branch, File
from lazyfs.filesystem.tree import Tree
from lazyfs.objects import KIB, MIB
from lazyfs.reading.streams import Streams
from lazyfs.reading.windows import Budget
from tests.rooms.building import PLACE, CacheMaker, keep, pattern
from tests.rooms.memory_store import MemoryStore


async def test_results_and_failures() -> None:
    """Come back to who asked, from another thread, many at once."""
    threads = Threads(2, "test")
    found: dict[int, tuple[int, int]] = {}

    async def ask(number: int) -> None:
        found[number] = await threads.run(lambda: (number, threading.get_ident()))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ask, number)
    assert [found[number][0] for number in range(20)] == list(range(20))
    assert threading.get_ident() not in {thread for _, thread in found.values()}
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    assert await threads.run(len, "abc") == 3


async def test_who_is_cancelled_does_not_wait() -> None:
    """The step runs to its end, and the threads go on."""
    threads = Threads(1, "test")
    gate, began, ended = threading.Event(), threading.Event(), threading.Event()

    def step() -> None:
        began.set()
        gate.wait(10)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.run, step)
        await trio.to_thread.run_sync(began.wait, 10)
        nursery.cancel_scope.cancel()
    assert not ended.is_set()
    gate.set()
    assert await threads.run(ended.is_set)


async def test_writes_are_one_after_another() -> None:
    """In the order in which they were asked for, while reads go on beside them."""
    workers = DiskThreads()
    gate = threading.Event()
    order: list[int] = []

    async with trio.open_nursery() as nursery:
        nursery.start_soon(workers.write, gate.wait, 10)
        for number in range(3):
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(workers.write, order.append, number)
        await trio.testing.wait_all_tasks_blocked()
        assert await workers.read(list, order) == await workers.touch(list, order) == []
        gate.set()
    assert order == [0, 1, 2]


@pytest.mark.parametrize("kind", ["read", "write"])
async def test_a_step_that_uses_buffers_of_others_is_waited_for(kind: str) -> None:
    """Also when whoever asked is cancelled: the buffer is somebody else's as soon as the call is over."""
    workers = DiskThreads()
    gate, began, ended = threading.Event(), threading.Event(), threading.Event()

    def step() -> None:
        began.set()
        gate.wait(10)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(getattr(workers, kind), step)
        await trio.to_thread.run_sync(began.wait, 10)
        nursery.cancel_scope.cancel()
        trio.lowlevel.current_trio_token().run_sync_soon(gate.set)
    assert ended.is_set()


@asynccontextmanager
async def warm_file(
    caches: CacheMaker, data: bytes
) -> AsyncIterator[tuple[MemoryStore, Memory, ChunkCache, OpenFile]]:
    """A file of a store, open, of which all is on disk and nothing in memory."""
    store, disk = MemoryStore(), caches.open()
    version = store.put("k", data)
    keep(disk, version, data, range(version.chunk_count))
    async with trio.open_nursery() as nursery:
        memory = Memory(16 * MIB)
        quick = DiskThreads(lambda: 0.0)  # however busy the machine
        cache = ChunkCache(store=store, disk=disk, memory=memory, nursery=nursery, span_size=8 * MIB, workers=quick)
        branch = Branch(
            place=PLACE, prefix="", list_prefix=lambda prefix, _: store.list(prefix), age=lambda _: 0.0, ttl=60.0
        )
        tree = Tree(branch)
        (file,) = [node for node in await tree.entries(tree.root.inode) if isinstance(node, File)]
        assert file.version == version
        files = OpenFiles(cache, Budget(8 * MIB))
        yield store, memory, cache, files.get(files.open(file))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_a_touch_of_warm_bytes_reads_their_block_only(caches: CacheMaker) -> None:
    """4 KiB here and there of a file on disk: no chunk comes into memory, nothing is asked of the store."""
    data = pattern(8 * MIB)
    async with warm_file(caches, data) as (store, memory, cache, opened):
        for offset in (5 * MIB + 12 * KIB, 300 * KIB, 7 * MIB + 900 * KIB, 2 * MIB + 64 * KIB - 4 * KIB):
            assert b"".join(await opened.read(offset, 4 * KIB)) == data[offset : offset + 4 * KIB]
        assert memory.statistics().chunks == 0
        assert cache.statistics().disk_hits == 4
        assert store.gets() == []


async def test_what_follows_from_a_touch_is_decided_after_it(caches: CacheMaker) -> None:
    """Who walks through a file on disk in small steps has the first one before anything is decided; what comes next is
    set on its way by `after`, and `after` twice is as once."""
    data = pattern(8 * MIB)
    async with warm_file(caches, data) as (store, _, cache, opened):
        start = 0
        while not cache.flying:
            assert start < 2 * MIB, "a walk by now"
            assert b"".join(opened.now(start, SMALL_READ) or ()) == data[start : start + SMALL_READ]
            assert (opened.state().read_bytes, cache.flying) == (start, 0)
            start += SMALL_READ
            for _ in range(2):
                opened.after()
                assert opened.state().read_bytes == start
        assert start > SMALL_READ, "one is none"
        assert opened.now(start, SMALL_READ) is None, "all of its chunk is on its way by now"
        opened.after()
        assert b"".join(await opened.wait(start, SMALL_READ)) == data[start : start + SMALL_READ]
        assert store.gets() == []


async def test_a_defect_in_what_follows_from_a_touch_is_said_and_ends_nothing(
    caches: CacheMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reader has his bytes by then, and the next touch is one like any other."""
    data = pattern(8 * MIB)
    async with warm_file(caches, data) as (_, _, _, opened):
        operations = Operations(
            tree=cast(Tree, None),
            files=cast(OpenFiles, SimpleNamespace(get=lambda _: opened)),
            total_size=AsyncMock(),
            report=bytes,
            xattrs=lambda _: {},
            control=cast(Control, None),
            opened=lambda _: None,
            passthrough=None,
            negative_ttl=0.0,
            uid=0,
            gid=0,
            file_mode=0o444,
            dir_mode=0o555,
            started_ns=0,
        )

        def touch(offset: int) -> bool:
            found = operations.read_now(1, offset, 4 * KIB)
            operations.read_done()
            return not isinstance(found, int | None) and b"".join(found) == data[offset : offset + 4 * KIB]

        with monkeypatch.context() as patch:
            patch.setattr(Streams, "observe", Mock(side_effect=RuntimeError("observed")))
            assert touch(5 * MIB)
        assert operations.failures == 1
        assert "a defect in what follows from a read of 'k', which was answered" in caplog.text
        assert opened.state().read_bytes == 0
        assert touch(3 * MIB)
        assert (operations.failures, opened.state().read_bytes) == (1, 4 * KIB)


async def test_touches_stay_on_the_loop_while_the_disk_is_quick() -> None:
    """A stall sends them to a thread, and quick ones bring them back."""
    now = [0.0]
    workers = DiskThreads(lambda: now[0])

    def touch(seconds: float) -> int:
        now[0] += seconds
        return threading.get_ident()

    here = threading.get_ident()
    for _ in range(5):
        assert await workers.touch(touch, QUICK / 3) == here
    assert await workers.touch(touch, 0.05) == here, "nobody can know before"
    elsewhere = [await workers.touch(touch, QUICK / 3) != here for _ in range(60)]
    assert elsewhere[:5] == [True] * 5
    assert elsewhere == sorted(elsewhere, reverse=True)
    assert not elsewhere[-1]


async def test_a_touch_that_fails_is_raised() -> None:
    def fail() -> None:
        raise OSError("the disk")

    workers = DiskThreads()
    for _ in range(2):
        with pytest.raises(OSError, match="the disk"):
            await workers.touch(fail)
        workers._usual = 1.0  # and by a thread
