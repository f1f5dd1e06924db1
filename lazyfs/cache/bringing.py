"""Bringing bytes to be kept on disk and not to be read, behind everything that readers wait for.

Must not know who wants them there. Loop thread only.
"""

from collections.abc import Sequence
from typing import Protocol

from lazyfs.cache.disk import Disk, Verified
from lazyfs.cache.memory import Chunk, Memory
from lazyfs.cache.spans import NEAR
from lazyfs.cache.sums import block_sums
from lazyfs.cache.writer import Writer
from lazyfs.objects import CHUNK_SIZE, SEGMENT_CHUNKS, ObjectVersion, chunk_range, runs

BRINGING = "bringing"
"""The lane of what is brought so."""


class Coming(Protocol):
    """What starts flights, and waits for them: `chunks.ChunkCache`."""

    def launch(
        self, version: ObjectVersion, start: int, stop: int, demand: int, *, reader: int, lane: str
    ) -> int:
        """As `ChunkCache.start`, though the version be barred."""
        ...

    async def obtain(self, version: ObjectVersion, number: int, *, urgent: bool = True) -> Chunk:
        """The chunk, waiting for it. Good until the next await."""
        ...


async def bring(
    chunks: Coming, disk: Disk, memory: Memory, writer: Writer, version: ObjectVersion, start: int, stop: int
) -> None:
    """Have bytes [start, stop) on disk, as far as the disk takes them."""
    missing = [number for number in chunk_range(start, stop) if disk.kept(version.object_id, number) is None]
    most = max(1, memory.slots // 4)  # half of what the writer takes at a time
    for at in range(0, len(missing), most):
        await _bring(chunks, disk, memory, writer, version, missing[at : at + most])


async def _bring(
    chunks: Coming, disk: Disk, memory: Memory, writer: Writer, version: ObjectVersion, missing: Sequence[int]
) -> None:
    for span in runs(missing, SEGMENT_CHUNKS):
        # All of it is waited for together, so over all connections that are idle, and nothing of it in small GETs.
        start = span.start * CHUNK_SIZE
        chunks.launch(version, start, span.stop * CHUNK_SIZE, 0, reader=start - NEAR, lane=BRINGING)
    for number in missing:
        chunk = await chunks.obtain(version, number, urgent=False)
        # Nobody reads it here, so it makes room for the next: else memory fills and nothing moves.
        memory.use((version.object_id, number), chunk, taken=len(chunk.view), to_end=True)
    await writer.settled()
    for number in missing:
        # Here all the time, and given up by the writer when it had too much to do.
        found = memory.get((version.object_id, number))
        # A pinned one waits to be written already, or somebody is about to read it.
        if found is not None and found.pins == 0 and disk.kept(version.object_id, number) is None:
            writer.put(Verified(version, number, found.view, block_sums(found.view)), found)
    await writer.settled()
