"""Chunks read back from object files, and compared with the checksums that an index has of them.

Must not know which index that is, nor what becomes of a chunk that is wrong. Blocks; any thread.
"""

import logging
from collections.abc import Mapping, Sequence

from lazyfs.cache.objectfile import ObjectFiles, Scratch
from lazyfs.cache.records import ABSENT, Kept
from lazyfs.cache.sums import block_sums, crc_on, mark_sums, of_blocks
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, MARK_SIZE, MARKS_PER_BLOCK, ObjectVersion

log = logging.getLogger(__name__)


def read(
    files: ObjectFiles, version: ObjectVersion, first: int, kept: Sequence[Kept], into: Sequence[memoryview]
) -> list[bool]:
    """Read adjacent chunks of one file, from `first` on, into their buffers, and verify each; says which are right."""
    whole = filled(files, version.object_id, kept[0].generation, first * CHUNK_SIZE, into)
    return [whole and block_sums(view) == one.sums[: _sums_length(view)] for view, one in zip(into, kept, strict=True)]


def read_part(
    files: ObjectFiles, scratch: Scratch, version: ObjectVersion, number: int, kept: Kept, start: int, stop: int
) -> bytes | None:
    """Bytes [start, stop) of one chunk, reading and verifying only the pages they lie in, or their blocks; None if
    wrong."""
    found = _by_marks(files, scratch, version, number, kept, start, stop) if kept.marks else None
    if found is not None:
        return found
    low = start - start % BLOCK_SIZE
    high = min(version.chunk_length(number), -(-stop // BLOCK_SIZE) * BLOCK_SIZE)
    view = scratch.view(high - low)
    if not filled(files, version.object_id, kept.generation, number * CHUNK_SIZE + low, [view]):
        return None
    at = low // BLOCK_SIZE * 8
    if block_sums(view) != kept.sums[at : at + _sums_length(view)]:
        return None
    return bytes(view[start - low : stop - low])


def _by_marks(
    files: ObjectFiles, scratch: Scratch, version: ObjectVersion, number: int, kept: Kept, start: int, stop: int
) -> bytes | None:
    """The same by pages; None also if the marks are wrong."""
    low = start - start % MARK_SIZE
    high = min(version.chunk_length(number), -(-stop // MARK_SIZE) * MARK_SIZE)
    view = scratch.view(high - low)
    if not filled(files, version.object_id, kept.generation, number * CHUNK_SIZE + low, [view]):
        return None
    at, marks = low, kept.marks
    while at < high:
        block, end = at // BLOCK_SIZE, min(high, at - at % BLOCK_SIZE + BLOCK_SIZE)
        first, last = at // MARK_SIZE * 8, (end - 1) // MARK_SIZE * 8
        before = marks[first - 8 : first] if at % BLOCK_SIZE else b""
        right = crc_on(view[at - low : end - low], before) == marks[last : last + 8]
        own = (block + 1) * MARKS_PER_BLOCK * 8
        if not right or marks[own - 8 : own] != kept.sums[block * 8 : block * 8 + 8]:
            return None
        at = end
    return bytes(view[start - low : stop - low])


def marks(
    files: ObjectFiles, scratch: Scratch, version: ObjectVersion, kept: Mapping[int, Kept | None]
) -> dict[int, bytes]:
    """The marks of those of these chunks, by number, that are here as a whole. One of which the bytes do not agree with
    its checksums is left to who reads it."""
    found: dict[int, bytes] = {}
    for number, one in kept.items():
        view = scratch.view(version.chunk_length(number))
        if one is None or not filled(files, version.object_id, one.generation, number * CHUNK_SIZE, [view]):
            continue
        sums = mark_sums(view)
        if of_blocks(sums) == one.sums[: _sums_length(view)]:
            found[number] = sums
    return found


def blocks_right(
    files: ObjectFiles, object_id: bytes, size: int, number: int, kept: Kept, buffer: memoryview
) -> bool:
    """Whether those blocks of a chunk that are here have the checksums that are kept of them; of an object of `size`
    bytes. `buffer` has room for a block."""
    for at in range(-(-min(CHUNK_SIZE, size - number * CHUNK_SIZE) // BLOCK_SIZE)):
        offset, wanted = number * CHUNK_SIZE + at * BLOCK_SIZE, kept.sums[at * 8 : at * 8 + 8]
        view = buffer[: min(BLOCK_SIZE, size - offset)]
        if wanted != ABSENT and not (
            filled(files, object_id, kept.generation, offset, [view]) and block_sums(view) == wanted
        ):
            return False
    return True


def filled(files: ObjectFiles, object_id: bytes, generation: int, offset: int, into: Sequence[memoryview]) -> bool:
    """Fill the buffers from `offset` on; False if the file does not have these bytes, or fails."""
    try:
        return files.read(object_id, generation, offset, into)
    except OSError as error:
        log.debug("object file: %s", error)
        return False


def _sums_length(view: memoryview) -> int:
    return -(-len(view) // BLOCK_SIZE) * 8
