"""How soon a mount can be read when its cache knows a million chunks (R10).

The one row that reaches into lazyfs: to fetch a terabyte first would take hours, so its index is filled by lazyfs's own
code. The object files are sparse and hold nothing; none of them is read.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from lazyfs.cache.index import Index
from lazyfs.cache.objectfile import ObjectFiles
from lazyfs.cache.records import CHUNK_SUMS, Run, Written
from lazyfs.objects import CHUNK_SIZE, ObjectVersion
from scripts.benchmarks.results import Line, at_most
from scripts.benchmarks.rows import Row, in_turns
from scripts.benchmarks.stage import BUCKET, PLAIN, Stage

OBJECTS = 200
CHUNKS = 5000
"""Of each object: a million chunks, a terabyte."""


def fill(cache: Path, place: str, *, objects: int = OBJECTS, chunks: int = CHUNKS) -> list[ObjectVersion]:
    """Give a cache directory that no mount uses an index of complete objects, and their files."""
    index, files = Index(cache / "index"), ObjectFiles(cache / "objects")
    made = []
    for number in range(objects):
        version = ObjectVersion(place, f"llm/part-{number:05}.safetensors", f'"{number:032x}-1"', chunks * CHUNK_SIZE)
        generation = index.generation(version)
        sums = os.urandom(CHUNK_SUMS)
        if not index.claim(0, [Run(version.object_id, generation, 0, chunks)], version.size, 1 << 62, [version]):
            raise RuntimeError("the index does not take the chunks that it shall have")
        index.settle(0, [Written(version, generation, chunk, sums) for chunk in range(chunks)])
        path = files.path(version.object_id, generation)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.touch(mode=0o600)
        os.truncate(path, version.size)
        made.append(version)
    index.close()
    return made


class Ready(Row):
    """A mount of a cache with a terabyte in its index, against one of an empty cache."""

    name = "R10"

    def run(self, stage: Stage) -> Iterator[Line]:
        """The whole command, from its start to its end with a mount that can be read."""
        stage.prepare_file()
        stage.shape(PLAIN)
        with stage.new_cache("cache-full") as full:
            with stage.mounted(full):
                pass
            started = time.monotonic()
            fill(full, f"{stage.server.url}|{BUCKET}")
            filled = time.monotonic() - started
            size = (full / "index" / "data.mdb").stat().st_blocks * 512
            ours, theirs = in_turns(stage.repeat, lambda _: self._ready(stage, full), lambda _: self._empty(stage))
        yield Line(
            row=self.name,
            workload=f"mount to ready, {OBJECTS * CHUNKS:,} chunks in the index: seconds",
            unit="s",
            ours=ours,
            bound=at_most(1),
            note=f"index of {size >> 20} MiB, filled in {filled:.0f} s",
        )
        yield Line(
            row=self.name,
            workload="  beyond that of an empty cache",
            unit="s",
            ours=[mine - other for mine, other in zip(ours, theirs, strict=True)],
            bound=at_most(1),
            note=f"an empty one: {sorted(theirs)[len(theirs) // 2]:.2f} s",
        )

    def _ready(self, stage: Stage, cache: Path) -> float:
        with stage.mounted(cache) as mount:
            used = mount.stats()["disk"]["used"]
            if used < OBJECTS * CHUNKS * CHUNK_SIZE:
                raise RuntimeError(f"the mount does not know the index that was made: {used} bytes on disk")
            return mount.ready_after

    def _empty(self, stage: Stage) -> float:
        with stage.new_cache() as cache, stage.mounted(cache) as mount:
            return mount.ready_after
