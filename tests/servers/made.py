"""An object of any size whose bytes are made when they are asked for: 5 TiB take no room.

Its bytes are those of `tests.mounts.contents.pages`: each 16 say the version and the number of their page.
"""

import io
from dataclasses import dataclass

import numpy as np

PAGE = 4096
PIECE = 1 << 20
"""Most bytes that are made at once."""


@dataclass(frozen=True, slots=True)
class Made:
    """`size` bytes of version `version`."""

    version: int
    size: int

    def piece(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop)."""
        stop = min(stop, self.size)
        first, last = start // PAGE, -(-stop // PAGE)
        words = np.empty((max(0, last - first), PAGE // 16, 2), dtype="<u8")
        words[:, :, 0] = self.version
        words[:, :, 1] = np.arange(first, last, dtype="<u8")[:, None]
        return words.tobytes()[start - first * PAGE : stop - first * PAGE]

    def open(self, start: int) -> io.BufferedIOBase:
        """A stream that is at `start`."""
        return _Stream(self, start)


class _Stream(io.BufferedIOBase):
    def __init__(self, made: Made, at: int) -> None:
        self._made = made
        self._at = at

    def read1(self, size: int = -1) -> bytes:
        stop = self._at + (PIECE if size < 0 else min(size, PIECE))
        found = self._made.piece(self._at, stop)
        self._at += len(found)
        return found
