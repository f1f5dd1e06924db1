"""Chunks read back from object files, and compared with the checksums that an index has of them.

Must not know which index that is, nor what becomes of a chunk that is wrong. Blocks; any thread.
"""

import logging
from collections.abc import Sequence

from lazyfs.cache.objectfile import ObjectFiles, Scratch
from lazyfs.cache.records import Kept
from lazyfs.cache.sums import block_sums
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, ObjectVersion

log = logging.getLogger(__name__)


def read(
    files: ObjectFiles, version: ObjectVersion, first: int, kept: Sequence[Kept], into: Sequence[memoryview]
) -> list[bool]:
    """Read adjacent chunks of one file, from `first` on, into their buffers, and verify each; says which are right."""
    try:
        whole = files.read(version.object_id, kept[0].generation, first * CHUNK_SIZE, into)
    except OSError as error:
        log.debug("object file: %s", error)
        return [False] * len(kept)
    return [whole and block_sums(view) == one.sums[: _sums_length(view)] for view, one in zip(into, kept, strict=True)]


def read_part(
    files: ObjectFiles, scratch: Scratch, version: ObjectVersion, number: int, kept: Kept, start: int, stop: int
) -> bytes | None:
    """Bytes [start, stop) of one chunk, reading and verifying only the blocks they lie in; None if wrong."""
    low = start - start % BLOCK_SIZE
    high = min(version.chunk_length(number), -(-stop // BLOCK_SIZE) * BLOCK_SIZE)
    view = scratch.view(high - low)
    try:
        if not files.read(version.object_id, kept.generation, number * CHUNK_SIZE + low, [view]):
            return None
    except OSError as error:
        log.debug("object file: %s", error)
        return None
    at = low // BLOCK_SIZE * 8
    if block_sums(view) != kept.sums[at : at + _sums_length(view)]:
        return None
    return bytes(view[start - low : stop - low])


def _sums_length(view: memoryview) -> int:
    return -(-len(view) // BLOCK_SIZE) * 8
