"""The numbers of one mount at one moment, from all of its rooms.

Its job: one copy, taken in one step of the loop, that may then be read in another thread. Must not know what the
numbers are called outside.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lazyfs.cache.memory import MemoryStatistics
from lazyfs.cache.statistics import ChunkStatistics
from lazyfs.cache.verifier import VerifierStatistics
from lazyfs.errors import CacheUnavailable
from lazyfs.filesystem.calls import CallStatistics
from lazyfs.filesystem.passthrough import PassthroughStatistics
from lazyfs.service.mount import RunningMount
from lazyfs.stores.fetch import FetchStatistics
from lazyfs.stores.traffic import TrafficStatistics
from lazyfs.tallies import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A copy of every number. Sizes in bytes; `disk_bound` is what the cache on disk may take now, 0 where that is not
    known; `waits` are what things waited in, by queue; `report` is what `lazyfs stats` says."""

    calls: CallStatistics
    read_bytes: int
    failures: int
    traffic: TrafficStatistics
    fetch: FetchStatistics
    waits: Mapping[str, Spread]
    chunks: ChunkStatistics
    in_memory: int
    not_in_memory: int
    memory: MemoryStatistics
    memory_budget: int
    disk_used: int
    disk_bound: int
    disk_evicted: int
    disk_failures: int
    verified: VerifierStatistics
    sources: int
    open_files: int
    passed: PassthroughStatistics
    inodes: int
    hidden: Mapping[str, int]
    report: bytes


def gather(mount: RunningMount) -> Facts:
    """The facts of now. On the loop."""
    traffic = mount.traffic.statistics()
    try:
        bound = max(0, mount.disk.room.bound())
    except (CacheUnavailable, OSError):
        bound = 0
    return Facts(
        calls=mount.operations.calls.statistics(),
        read_bytes=mount.operations.read_bytes,
        failures=mount.operations.failures,
        traffic=traffic,
        fetch=mount.store.statistics(),
        waits={
            "connection": traffic.connection,
            "gate": mount.store.gate_waits(),
            "writer": mount.chunks.writer.waits.state(),
        },
        chunks=mount.chunks.statistics(),
        in_memory=mount.chunks.looks[True],
        not_in_memory=mount.chunks.looks[False],
        memory=mount.memory.statistics(),
        memory_budget=mount.budget,
        disk_used=mount.disk.used(),
        disk_bound=bound,
        disk_evicted=mount.disk.room.evicted_bytes,
        disk_failures=mount.disk.failures,
        verified=mount.verifier.statistics(),
        sources=len(mount.tree.tops),
        open_files=len(mount.files),
        passed=mount.passthrough.statistics() if mount.passthrough else PassthroughStatistics(0, 0, ""),
        inodes=len(mount.tree),
        hidden={reason.name.lower(): count for reason, count in mount.tree.hidden().items()},
        report=mount.report(),
    )
