"""gzip with an index of places at which unpacking can begin: the only importer of indexed_gzip.

Its job: make the index in one pass over all of it, which compares the checksums that gzip has; then give unpacked bytes
from anywhere. Blocks, without the interpreter's lock while it unpacks. Must not know archives.

A gzip that is cut off has no checksum to compare with, and passes for one that ends there: whoever knows what is in it
has to see that its end is there.

Of each place the index holds the 32 KiB before it. Whatever was read last, a read of the library's begins at the place
before it, so that what lies between two places is unpacked at once, and held for who reads on.
"""

import io
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from indexed_gzip import IndexedGzipFile, NoHandleError, NotCoveredError, ZranError

from lazyfs.archives.members import Damaged
from lazyfs.archives.pieces import Pieces
from lazyfs.archives.stored import StoredFile
from lazyfs.objects import GIB, MIB, align_up

T = TypeVar("T")

MAGIC = b"\x1f\x8b\x08"

SPACING = 4 * MIB
"""Unpacked bytes between two places; a touch unpacks half of it for nothing, in 8 ms."""
MOST_SPACING = 32 * MIB
USUAL_PLACES = 512
"""Of an object whose size asks for more, places lie farther apart: an index is 16 MiB then, up to 16 GiB of object."""
MOST_PLACES = 4096
"""128 MiB, beyond which no archive is shown."""

ALWAYS_FINE = GIB
"""Bytes that any archive may unpack to, however small it is."""
MOST_RATIO = 64
"""Beyond that: how many times its own size. Weights and text compress to a tenth at best, zeros to a thousandth."""

STEP = 64 * MIB
"""Unpacked bytes after which the bounds are looked at."""

LONGEST_PIECE = 2 * MOST_SPACING
"""Between two places lie a spacing, and what is left of a block of deflate."""

LONGEST_INDEX = MOST_PLACES * (32 * 1024 + 32) + MIB


def spacing(size: int) -> int:
    """How far apart the places are, in unpacked bytes, for an object of so many bytes."""
    return min(MOST_SPACING, max(SPACING, align_up(size // USUAL_PLACES, MIB)))


def bound(size: int) -> int:
    """The most that an object of `size` bytes may unpack to."""
    return min(max(ALWAYS_FINE, MOST_RATIO * size), MOST_PLACES * spacing(size))


class Unpacked:
    """The unpacked bytes of one object; the failures are those of `stored`, and `Damaged`."""

    def __init__(self, stored: StoredFile, size: int, index: bytes | None = None) -> None:
        """`index`: what `indexed` gave of an object of these bytes, `size` of them."""
        self._stored = stored
        self._size = size
        self._file = IndexedGzipFile(
            fileobj=stored, spacing=spacing(size), readbuf_size=MIB, buffer_size=MIB, auto_build=index is None
        )
        self._pieces: Pieces | None = None
        if index is not None:
            self._guarded(lambda: self._file.import_index(fileobj=io.BytesIO(index)))
            self._pieces = Pieces(self._cuts(), self._fill)

    def index_all(self) -> bytes:
        """Go through all of it; the index. `Damaged` if gzip's checksums do not hold, or it unpacks to too much."""
        most, at = bound(self._size), 0
        while True:
            at += STEP
            reached = self.seek(at)
            if reached > most:
                raise Damaged(f"unpacks to more than {most} bytes, which no archive of its size does")
            if reached < at:
                break
        self._cuts()
        return self._guarded(self._export)

    def _cuts(self) -> list[int]:
        """The places, and the end."""
        found = sorted({0, *(unpacked for unpacked, _ in self._file.seek_points()), self._end()})
        if any(after - one > LONGEST_PIECE for one, after in pairwise(found)):
            raise Damaged("is one piece that cannot be unpacked from within, as few programs write it")
        return found

    def _export(self) -> bytes:
        found = io.BytesIO()
        self._file.export_index(fileobj=found)
        return found.getvalue()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, less only at the end."""
        return self._guarded(lambda: bytes(self._file.read(size)))

    def seek(self, offset: int) -> int:
        """Go there; the offset, which is that of the end if there is less."""
        return self._guarded(lambda: int(self._file.seek(offset)))

    def tell(self) -> int:
        """The offset of the next byte."""
        return self._guarded(lambda: int(self._file.tell()))

    def read_into(self, start: int, into: Sequence[memoryview]) -> None:
        """Fill `into` with what is there from `start` on; `Damaged` if there is less. Of one with an index."""
        if self._pieces is not None:
            self._pieces.read_into(start, into)

    def _fill(self, start: int, view: memoryview) -> None:
        self.seek(start)
        done = 0
        while done < len(view):
            count = self._guarded(lambda: int(self._file.raw.readinto(view[done:])))  # noqa: B023 - called at once
            if not count:
                raise Damaged(f"ends before byte {start + len(view)} of what it unpacks to")
            done += count

    def _end(self) -> int:
        return self._guarded(lambda: int(self._file.seek(0, io.SEEK_END)))

    def _guarded(self, step: Callable[[], T]) -> T:
        try:
            return step()
        except (ZranError, NoHandleError, NotCoveredError, OSError, EOFError, ValueError) as error:
            failed, self._stored.failed = self._stored.failed, None
            if failed is not None:
                raise failed from None
            raise Damaged(f"cannot be unpacked ({error})") from None
