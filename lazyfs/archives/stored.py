"""A stored object as a file for libraries that read files: its bytes come from a function, a piece at a time.

Must not know where they come from. Blocks; one thread at a time.
"""

import io
from collections.abc import Callable

from lazyfs.objects import MIB

PIECE = 4 * MIB
"""Bytes asked for at once by who reads one after the other; a library asks for a MiB."""


class StoredFile(io.RawIOBase):
    """`size` bytes, of which `fetch(start, stop)` gives any. The first failure of that is kept in `failed`, for a
    library in C says only that reading failed. `piece`: the least that is asked for."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes | bytearray], *, piece: int = PIECE) -> None:
        self._size = size
        self._fetch = fetch
        self._piece = piece
        self._at = 0
        self._start = 0
        self._held: bytes | bytearray = b""
        self.failed: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, less only at the end."""
        stop = self._size if size < 0 else min(self._at + size, self._size)
        if self._at >= stop:
            return b""
        if not self._start <= self._at or stop > self._start + len(self._held):
            self._held = b""  # so that there are not two at once
            try:
                self._held = self._fetch(self._at, min(max(stop, self._at + self._piece), self._size))
            except BaseException as error:
                self.failed = self.failed or error
                raise
            self._start = self._at
        found = bytes(memoryview(self._held)[self._at - self._start : stop - self._start])
        self._at = stop
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As for any file; beyond the end nothing is read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """The offset of the next byte."""
        return self._at

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True
