"""What the chunks of a mount came to, in numbers. Must not know who counts."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChunkStatistics:
    """Chunks since the start. Reads by where they were found; corrupt: wrong on disk; unkept: not written to disk; and
    how many are to get marks when nobody reads."""

    memory_hits: int
    disk_hits: int
    misses: int
    waits: int
    corrupt: int
    kept: int
    unkept: int
    unmarked: int
