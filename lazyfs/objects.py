"""The nouns and their arithmetic: sources, object versions, chunks, spans, segments.

Pure: no library, disk, network or clock. Ranges are half open, in bytes unless a name says chunks.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

CHUNK_SIZE = MIB
"""Unit of presence and of a FUSE reply: the largest read the kernel sends is 256 pages, so a reply is one view."""

BLOCK_SIZE = 64 * KIB
"""Unit of checksums inside a chunk, and of what is here of one that is here in part."""

MARK_SIZE = 4 * KIB
"""What a touch of warm data reads and verifies, of a chunk that has marks: an NVMe disk gives 64 KiB in 115 us, this in
55. A page of the kernel's, so that a fault reads no more than it wants."""

MARKS_PER_BLOCK = BLOCK_SIZE // MARK_SIZE

SEGMENT_CHUNKS = 64
"""Chunks of one index record, and the unit of eviction from a file that is not complete (64 MiB)."""

BLOCKS_PER_CHUNK = CHUNK_SIZE // BLOCK_SIZE

ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Storage classes whose objects can be read only once they are restored, which a listing does not tell. GLACIER_IR is
read like any other; INTELLIGENT_TIERING may be archived, and mostly is not."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tree of objects comes from. `prefix` is empty or ends with `/`; `endpoint` is empty for AWS."""

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    moment: str = ""
    """The time as of which the tree is shown, as `moments.parse_moment` writes it; empty for the present."""

    @property
    def url(self) -> str:
        """The source as the user writes it."""
        plain = f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"
        return f"{plain}?versionAt={self.moment}" if self.moment else plain

    @property
    def place(self) -> str:
        """What identifies the bucket among all buckets; two mounts of one bucket share their cached bytes by it."""
        return f"{self.endpoint.rstrip('/')}|{self.bucket}"

    @property
    def listing_place(self) -> str:
        """What identifies its listings: those of one time are not those of another. No bucket has an `@`."""
        return f"{self.place}@{self.moment}" if self.moment else self.place


@dataclass(frozen=True)
class ObjectVersion:
    """Identity of bytes. Immutable; whatever holds bytes is keyed by it.

    `etag` is opaque and as the store spells it, quotes included. `version_id` is where a bucket that has versions keeps
    it, empty for not known; it is no part of the identity: a listing of the present does not tell it, so what was
    cached before it was known would be lost by knowing it; and a mount of another time shares these bytes. That one
    key, ETag and size stand for the same bytes is what If-Match rests on everywhere else. `origin` names the source of
    the mount by which it was found, whose credentials may read it; it is no part of the identity either.
    """

    place: str
    key: str
    etag: str
    size: int
    version_id: str = field(default="", compare=False)
    origin: str = field(default="", compare=False, repr=False)

    @functools.cached_property
    def object_id(self) -> bytes:
        """16 bytes that stand for this version in the cache. A key never becomes a path on the cache disk."""
        # The last part is for nothing, and stays for the sake of the caches that there are.
        parts = (self.place, self.key, self.etag, str(self.size), "")
        digest = hashlib.sha256()
        for part in parts:
            raw = part.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
        return digest.digest()[:16]

    @property
    def chunk_count(self) -> int:
        """Number of chunks of the whole object; 0 for an empty one."""
        return -(-self.size // CHUNK_SIZE)

    def chunk_length(self, number: int) -> int:
        """Bytes of chunk `number`: CHUNK_SIZE, or less for the last."""
        return min(CHUNK_SIZE, self.size - number * CHUNK_SIZE)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object as a listing or a HEAD tells it. `mtime_ns` is nanoseconds since the epoch; `version_id` is known from
    a listing of versions only."""

    key: str
    etag: str
    size: int
    mtime_ns: int
    storage_class: str = ""
    version_id: str = ""

    @property
    def possible(self) -> bool:
        """Whether the kernel can be told of it: it counts bytes and seconds in 64 bits with a sign."""
        return 0 <= self.size < 1 << 63 and abs(self.mtime_ns) < 10**9 << 63


@dataclass(frozen=True, slots=True)
class Checksums:
    """What is known of all bytes of an object: SHA-256 in lower-case hexadecimal, empty for not known, and CRC64-NVME
    as a number, None for not known."""

    sha256: str = ""
    crc64nvme: int | None = None

    @property
    def strongest(self) -> str:
        """The name of the best digest that is known, empty for none."""
        return "sha256" if self.sha256 else "crc64nvme" if self.crc64nvme is not None else ""


@dataclass(frozen=True, slots=True)
class Listing:
    """A complete listing of one prefix: the objects right below it and the common prefixes, each ending in `/`.

    `listed_at` is wall-clock seconds when the request was sent, so that a later mount can tell its age.
    """

    prefix: str
    objects: Sequence[ObjectInfo]
    prefixes: Sequence[str]
    listed_at: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """All objects below a prefix at any depth whose keys come after `after`, in the order of their keys, as far as one
    request brings: to the end (`complete`), or to somewhere. `listed_at` as in a `Listing`."""

    prefix: str
    after: str
    objects: Sequence[ObjectInfo]
    complete: bool
    listed_at: float


def chunk_range(start: int, stop: int) -> range:
    """The chunks that bytes [start, stop) touch."""
    if stop <= start:
        return range(0)
    return range(start // CHUNK_SIZE, -(-stop // CHUNK_SIZE))


def align_down(offset: int, unit: int = CHUNK_SIZE) -> int:
    """The last multiple of `unit` at or before `offset`."""
    return offset - offset % unit


def align_up(offset: int, unit: int = CHUNK_SIZE) -> int:
    """The first multiple of `unit` at or after `offset`."""
    return -(-offset // unit) * unit


def runs(numbers: Iterable[int], most: int) -> Iterator[range]:
    """Ascending chunk numbers as runs of adjacent ones that do not cross a multiple of `most`.

    The grid of multiples makes spans of different readers coincide instead of overlap.
    """
    first = stop = -1
    for number in numbers:
        if number == stop and number % most:
            stop += 1
            continue
        if first >= 0:
            yield range(first, stop)
        first, stop = number, number + 1
    if first >= 0:
        yield range(first, stop)


Pieces = tuple[memoryview | bytes, ...]
"""Bytes as they lie in memory, one piece after another."""


def size_of(pieces: Pieces) -> int:
    """How many bytes those are."""
    return len(pieces[0]) if len(pieces) == 1 else sum(map(len, pieces))


def tail(views: Sequence[memoryview], done: int) -> list[memoryview]:
    """The buffers without their first `done` bytes: what is left to fill, or to write."""
    rest: list[memoryview] = []
    for view in views:
        if done < len(view):
            rest.append(view[done:] if done else view)
        done = max(0, done - len(view))
    return rest
