"""Checksums of chunks: CRC64-NVME of each 64 KiB block, because CRCs combine into the chunk's, the segment's and at
last the object's, which is what S3 calls the full-object checksum; and marks, from each of which on a block's can be
computed: with them a page is verified without the rest of its block.

awscrt computes it at 37 to 52 GB/s on a core (zlib.crc32: 4), so verifying every byte costs nothing that shows.
"""

import sys
from array import array

from awscrt.checksums import combine_crc64nvme, crc64nvme

from lazyfs.objects import BLOCK_SIZE, MARK_SIZE, MARKS_PER_BLOCK


def block_sums(view: memoryview) -> bytes:
    """The checksum of each block of a chunk, 8 bytes each in native order; the last block may be short."""
    return array("Q", [crc64nvme(view[i : i + BLOCK_SIZE]) for i in range(0, len(view), BLOCK_SIZE)]).tobytes()


def mark_sums(view: memoryview) -> bytes:
    """For each block of a chunk the checksums of its first page, of its first two, and so on up to all of it, 8 bytes
    each; where the block ends before, those of what there is."""
    found: list[int] = []
    for block in range(0, len(view), BLOCK_SIZE):
        crc = 0
        for page in range(block, block + BLOCK_SIZE, MARK_SIZE):
            crc = crc64nvme(view[page : page + MARK_SIZE], crc)
            found.append(crc)
    return array("Q", found).tobytes()


def of_blocks(marks: bytes) -> bytes:
    """Of `mark_sums`, the checksum of each block."""
    return array("Q", marks)[MARKS_PER_BLOCK - 1 :: MARKS_PER_BLOCK].tobytes()


def crc_on(view: memoryview, before: bytes) -> bytes:
    """The checksum of what has the checksum `before`, or of nothing if that is empty, and then these bytes."""
    crc: int = crc64nvme(view, int.from_bytes(before, sys.byteorder))
    return crc.to_bytes(8, sys.byteorder)


def joined(total: int, size: int, sums: bytes) -> int:
    """The checksum of `total`'s bytes and then of a chunk of `size` bytes, whose block checksums these are. Costs a
    microsecond a block, and reads no byte of the object."""
    for number, one in enumerate(array("Q", sums[: -(-size // BLOCK_SIZE) * 8])):
        total = combine_crc64nvme(total, one, min(BLOCK_SIZE, size - number * BLOCK_SIZE))
    return total


def seal(key: bytes, body: bytes | memoryview) -> bytes:
    """8 bytes that bind a record's body to its key, so that a record under a wrong key counts as damaged."""
    bound: int = crc64nvme(body, crc64nvme(key))
    return bound.to_bytes(8, "little")
