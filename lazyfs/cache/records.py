"""The records of the index: what they mean, and how they are laid out in bytes. Pure."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from lazyfs.cache.sums import seal
from lazyfs.objects import BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, SEGMENT_CHUNKS, ObjectVersion

Record = bytes | memoryview

HEAD = struct.Struct("<IQQ")
"""Of a segment: generation, last use, presence bits; the checksums and the seal follow."""

OBJECT = struct.Struct("<IQI")
"""Of an object: generation, size, number of chunks present; the key as text, a NUL and the bucket follow."""

SUMS_SIZE = SEGMENT_CHUNKS * BLOCKS_PER_CHUNK * 8
CHUNK_SUMS = BLOCKS_PER_CHUNK * 8
ABSENT = b"\xff" * 8
"""Instead of the checksum of a block that is not here, of a chunk that is here in part: it is not present, but takes
the room of a whole one. A chunk of which nothing is here has none of these among its checksums. A real checksum may be
the same once in 2^64, and its block then is fetched again."""

WHOLE_FILE = 0xFFFFFFFF
RUN_SIZE = 16 + 3 * 4

LOWER = 1 << 32
"""Added to the generation of an object file in a lower layer; in the index a generation has 32 bits."""

MIXED = 2 * LOWER
"""Added to the generation of a file of which this directory and a lower layer have all chunks together."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A chunk that is on disk, or some blocks of one: the generation of its object file, its block checksums, 8 bytes
    each, and its `marks` if there are any and they were asked for."""

    generation: int
    sums: bytes
    marks: bytes = field(default=b"", compare=False)

    def lacks(self, start: int, stop: int) -> range:
        """The blocks from the first to the last one that is not here, of those in which bytes [start, stop) lie."""
        low, high = start // BLOCK_SIZE, -(-stop // BLOCK_SIZE)
        while low < high and self.sums[low * 8 : low * 8 + 8] != ABSENT:
            low += 1
        while low < high and self.sums[high * 8 - 8 : high * 8] != ABSENT:
            high -= 1
        return range(low, high)


@dataclass(frozen=True, slots=True)
class Run:
    """Adjacent chunks [first, stop) of one generation of an object file. `stop` 2^32 - 1 means the whole file."""

    object_id: bytes
    generation: int
    first: int
    stop: int

    @property
    def whole(self) -> bool:
        """Whether the run stands for the whole file, to be unlinked."""
        return self.stop == WHOLE_FILE

    def overlaps(self, other: "Run") -> bool:
        """Whether there is a chunk of one file in both."""
        same_file = self.object_id == other.object_id and self.generation == other.generation
        return same_file and self.first < other.stop and other.first < self.stop


@dataclass(frozen=True, slots=True)
class Written:
    """A chunk whose bytes are in its object file, to be counted as present; or the blocks of one from `block` on."""

    version: ObjectVersion
    generation: int
    number: int
    sums: bytes
    block: int = 0


def object_record(generation: int, version: ObjectVersion) -> bytes:
    """The record of an object of which nothing is present yet."""
    names = f"{version.key}\0{version.place}".encode("utf-8", "surrogatepass")
    return OBJECT.pack(generation, version.size, 0) + names


def names_of(record: Record) -> tuple[str, str]:
    """The bucket and the key of an object; an empty bucket in records of earlier versions, which had none."""
    text = bytes(record[OBJECT.size :]).decode("utf-8", "replace")
    key, _, place = text.partition("\0")
    return place, key


def disk_size(length: int) -> int:
    """What `length` bytes take on disk: whole pages of 4 KiB, the block size of ext4 and xfs."""
    return -(-length // 4096) * 4096


def chunks_of(size: int) -> int:
    """How many chunks an object of `size` bytes has."""
    return -(-size // CHUNK_SIZE)


def chunk_size(size: int, number: int) -> int:
    """Disk bytes of one chunk of an object of `size` bytes."""
    return disk_size(min(CHUNK_SIZE, size - number * CHUNK_SIZE))


def is_part(sums: bytes | bytearray) -> bool:
    """Whether these checksums, of a chunk that is not present, are of one that is here in part."""
    at = sums.find(ABSENT)
    while at % 8 and at >= 0:
        at = sums.find(ABSENT, at + 1)
    return at >= 0


def put_blocks(sums: bytearray, place: int, chunk: Written) -> tuple[bool, bool]:
    """Put the checksums of what was written into those of a segment, in which the chunk has this place and was not
    present: whether it was here in part before, and whether all of it is here now."""
    begin, length = place * CHUNK_SUMS, -(-chunk.version.chunk_length(chunk.number) // BLOCK_SIZE) * 8
    mine = sums[begin : begin + length]
    partly = is_part(mine)
    if not partly:
        mine[:] = ABSENT * (length // 8)
    mine[chunk.block * 8 : chunk.block * 8 + len(chunk.sums)] = chunk.sums
    sums[begin : begin + CHUNK_SUMS] = mine.ljust(CHUNK_SUMS, b"\0")
    return partly, not is_part(mine)


def parts_in(record: Record) -> int:
    """Of a segment, the bits of the chunks that are here in part."""
    bits, sums = HEAD.unpack_from(record)[2], bytes(record[HEAD.size : -8])
    if ABSENT not in sums:
        return 0
    parts = (place for place in range(SEGMENT_CHUNKS) if is_part(sums[place * CHUNK_SUMS : (place + 1) * CHUNK_SUMS]))
    return sum(1 << place for place in parts if not bits >> place & 1)


def taken_in(record: Record) -> int:
    """Of a segment, the bits of the chunks that take room: those that are present, and those that are here in part."""
    return int(HEAD.unpack_from(record)[2]) | parts_in(record)


def segment_size(size: int, segment: int, bits: int) -> int:
    """Disk bytes of these chunks of a segment of an object of `size` bytes."""
    last, place = divmod(-(-size // CHUNK_SIZE) - 1, SEGMENT_CHUNKS)
    total = bits.bit_count() * CHUNK_SIZE
    if segment == last and bits >> place & 1:
        total -= CHUNK_SIZE - disk_size(size - (last * SEGMENT_CHUNKS + place) * CHUNK_SIZE)
    return total


def runs_in(packed: Record) -> Iterator[Run]:
    """The runs of which the keys were put one after the other."""
    raw = bytes(packed)
    return (run_of(raw[i : i + RUN_SIZE]) for i in range(0, len(raw), RUN_SIZE))


def segment_key(object_id: bytes, segment: int) -> bytes:
    return object_id + segment.to_bytes(4, "big")


def run_key(run: Run) -> bytes:
    return run.object_id + b"".join(number.to_bytes(4, "big") for number in (run.generation, run.first, run.stop))


def run_of(key: bytes) -> Run:
    return Run(key[:16], *(int.from_bytes(key[i : i + 4], "big") for i in (16, 20, 24)))


def daemon_key(daemon: int) -> bytes:
    return daemon.to_bytes(8, "big")


def sound(key: bytes, value: Record) -> bool:
    return len(value) == HEAD.size + SUMS_SIZE + 8 and seal(key, value[:-8]) == bytes(value[-8:])


def number_of(value: Record | None) -> int:
    return int.from_bytes(value[:8], "little") if value is not None else 0
