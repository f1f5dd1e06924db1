"""What a mount is put together of: that what one room measures or decides reaches the room that it is for."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from lazyfs.cache.disk import Disk
from lazyfs.cache.threads import DISK_THREADS, DiskThreads
from lazyfs.cli.sources import configured, find_sources
from lazyfs.config import Config
from lazyfs.objects import GIB, MIB
from lazyfs.service import machine
from lazyfs.service.mount import READ_AHEAD_SHARE, RunningMount
from lazyfs.stores.base import Claim
from tests.rooms.building import pattern
from tests.rooms.caching import caching
from tests.rooms.memory_store import MemoryStore


@asynccontextmanager
async def put_together(place: Path, **settings: Any) -> AsyncIterator[RunningMount]:
    """A mount of two buckets of one endpoint, which nothing serves and that asks for nothing."""
    config = Config(endpoint_url="http://127.0.0.1:1", cache_dir=str(place), no_sign_request=True, **settings)
    sources = configured(find_sources("", ["a=s3://one", "b=s3://two"], [], {}, None), config)
    async with trio.open_nursery() as nursery:
        mount = RunningMount(config, sources, str(place.parent / "mnt"), nursery)
        yield mount
        await mount.end()
        nursery.cancel_scope.cancel()


async def test_the_budget_is_the_one_that_was_set(place: Path) -> None:
    """Of the slots in memory, and a part of it of what is planned ahead."""
    async with put_together(place, memory_budget=48 * MIB) as mount:
        assert mount.memory.slots == 48
        assert mount.files._budget.size == int(48 * MIB * READ_AHEAD_SHARE)


async def test_the_budget_is_the_machines_where_none_was_set(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixteenth of what the cgroup or the machine has."""
    monkeypatch.setattr(machine, "memory_limit", lambda: 2 * GIB)
    async with put_together(place) as mount:
        assert mount.memory.slots == 128


async def test_windows_are_bound_by_what_reads_have_shown_of_the_network(place: Path) -> None:
    """Of all endpoints that were asked: the planner's share is what is useful, once that is known."""
    async with put_together(place, memory_budget=512 * MIB) as mount:
        budget = mount.files._budget
        assert budget.share(1) == budget.size
        for name, useful in (("a", 40 * MIB), ("b", 50 * MIB)):
            store = mount.store[name]
            store._counts["get_requests"] = 1
            assert budget.share(1) != 90 * MIB
            store._pace.useful = useful
        assert budget.share(1) == 90 * MIB


async def test_the_lane_of_a_run_is_that_of_its_requests(disk: Disk) -> None:
    """By which the gate shares connections between the runs that queue them."""
    store, lanes = MemoryStore(), set[object]()
    read = store.read

    async def seen(version: Any, start: int, into: Any, arrived: Any, claim: Claim) -> None:
        lanes.add(claim.lane)
        await read(version, start, into, arrived, claim)

    store.read = seen  # type: ignore[method-assign]
    version = store.put("k", pattern(4 * MIB))
    async with caching(store, disk, 64 * MIB) as cache:
        cache.start(version, 0, 2 * MIB, demand=0, lane="one")
        cache.start(version, 2 * MIB, 4 * MIB, demand=0, lane="two")
    assert lanes == {"one", "two"}


async def test_reads_from_the_disk_are_side_by_side() -> None:
    """So many at once, and each off the loop."""
    workers, together = DiskThreads(), threading.Barrier(DISK_THREADS)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(DISK_THREADS):
                nursery.start_soon(workers.read, together.wait)
    assert DISK_THREADS > 1
