"""Chunks that are to be written together, as runs that are one write each. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from lazyfs.cache.records import Run, chunk_size
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, ObjectVersion


@dataclass(frozen=True, slots=True)
class Verified:
    """A chunk whose bytes are in memory, to be kept, or the blocks of one from `block` on. `sums` are the checksums of
    its blocks."""

    version: ObjectVersion
    number: int
    view: memoryview
    sums: bytes
    block: int = 0

    @property
    def end(self) -> int:
        """Where its bytes end in the chunk."""
        return self.block * BLOCK_SIZE + len(self.view)

    @property
    def whole(self) -> bool:
        """Whether it is all of the chunk."""
        return len(self.view) == self.version.chunk_length(self.number)


def size_on_disk(chunk: Verified) -> int:
    """Bytes of disk that the chunk takes, or that one takes of which these are blocks."""
    return chunk_size(chunk.version.size, chunk.number)


def in_runs(chunks: Sequence[Verified], generations: dict[bytes, int]) -> list[tuple[Run, list[Verified]]]:
    """The chunks as runs of adjacent ones, each one write of bytes that lie one behind the other."""
    groups: list[list[Verified]] = []
    for chunk in sorted(chunks, key=lambda c: (c.version.object_id, c.number, c.block)):
        last = groups[-1][-1] if groups else None
        next_to = last and last.version == chunk.version and last.number + 1 == chunk.number
        if last and next_to and last.end == CHUNK_SIZE and not chunk.block:
            groups[-1].append(chunk)
        else:
            groups.append([chunk])
    return [
        (Run(g[0].version.object_id, generations[g[0].version.object_id], g[0].number, g[-1].number + 1), g)
        for g in groups
    ]
