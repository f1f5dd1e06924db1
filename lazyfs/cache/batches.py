"""Chunks that are to be written together, as runs that are one write each. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from lazyfs.cache.records import Run
from lazyfs.objects import ObjectVersion


@dataclass(frozen=True, slots=True)
class Verified:
    """A chunk whose bytes are in memory, to be kept. `sums` are its block checksums."""

    version: ObjectVersion
    number: int
    view: memoryview
    sums: bytes


def in_runs(chunks: Sequence[Verified], generations: dict[bytes, int]) -> list[tuple[Run, list[Verified]]]:
    """The chunks as runs of adjacent ones, each one write."""
    groups: list[list[Verified]] = []
    for chunk in sorted(chunks, key=lambda c: (c.version.object_id, c.number)):
        last = groups[-1][-1] if groups else None
        if last and last.version == chunk.version and last.number + 1 == chunk.number:
            groups[-1].append(chunk)
        else:
            groups.append([chunk])
    return [
        (Run(g[0].version.object_id, generations[g[0].version.object_id], g[0].number, g[-1].number + 1), g)
        for g in groups
    ]
