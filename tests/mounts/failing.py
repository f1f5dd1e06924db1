"""A disk that fails at the n-th call: `failing_calls.c` in one daemon, told from here what to do.

    failing = Failing(tmp_path, cache)
    mount = mounter.mount(..., env=failing.environment(...))
    with failing.at("pwrite", errno.ENOSPC, 3):
        ...

Only calls on files below `cache` count and fail. Must not know what the daemon does with them.
"""

import contextlib
import errno
import mmap
import os
import struct
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

KINDS = ("pwrite", "pread", "open", "open to write", "fallocate", "ftruncate", "fsync", "mkdir", "unlink")
WRITING = ("pwrite", "open to write", "fallocate", "ftruncate", "mkdir", "unlink")
"""KINDS as in `failing_calls.c`; each with its variants by vector, directory and 64 bit name."""

EVER = 1 << 62
HELD = -1
_FIELDS = struct.Struct("<4q")
_COUNTS = struct.Struct(f"<{len(KINDS)}q")
SOURCE = Path(__file__).with_name("failing_calls.c")


class Failing:
    """The library, built, and the memory it shares with whoever loads it."""

    def __init__(self, work: Path, below: Path) -> None:
        self._below = below
        self._library = work / "failing_calls.so"
        if not self._library.exists():
            command = ["gcc", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-o", str(self._library)]
            subprocess.run([*command, str(SOURCE), "-ldl"], check=True, timeout=60)
        self._path = work / "failing_calls.control"
        self._path.write_bytes(bytes(mmap.PAGESIZE))
        with self._path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self.never()

    def environment(self, usual: Mapping[str, str]) -> dict[str, str]:
        """For a process in which calls are to fail."""
        return {
            **usual,
            "LD_PRELOAD": str(self._library),
            "LAZYFS_FAIL_CONTROL": str(self._path),
            "LAZYFS_FAIL_BELOW": str(self._below),
        }

    def counts(self) -> dict[str, int]:
        """Calls of each kind so far, failed ones included."""
        return dict(zip(KINDS, _COUNTS.unpack_from(self._shared, _FIELDS.size), strict=True))

    def failed(self) -> dict[str, int]:
        """How many of them failed because it was said so."""
        return dict(zip(KINDS, _COUNTS.unpack_from(self._shared, _FIELDS.size + _COUNTS.size), strict=True))

    def reset(self) -> None:
        """Count calls from 0 again, for a process that is about to start."""
        _COUNTS.pack_into(self._shared, _FIELDS.size, *([0] * len(KINDS)))

    def never(self) -> None:
        """Nothing fails."""
        _FIELDS.pack_into(self._shared, 0, 0, 0, 0, 0)

    @contextlib.contextmanager
    def at(self, kind: str, number: int, nth: int, times: int = 1) -> Iterator[None]:
        """From now on the `nth` call of the kind, counted from 1, and `times` - 1 after it fail with errno `number`."""
        first = self.counts()[kind] + nth
        _FIELDS.pack_into(self._shared, 0, 1 << KINDS.index(kind), number, first, min(EVER, first + times - 1))
        try:
            yield
        finally:
            self.never()


    @contextlib.contextmanager
    def always(self, kinds: Collection[str], number: int) -> Iterator[None]:
        """Every call of these kinds fails."""
        _FIELDS.pack_into(self._shared, 0, sum(1 << KINDS.index(kind) for kind in kinds), number, 0, EVER)
        try:
            yield
        finally:
            self.never()


    @contextlib.contextmanager
    def held(self, kind: str) -> Iterator[Callable[[], bool]]:
        """Every call of the kind waits until the end of the block; gives what says whether one does."""
        before = self.failed()[kind]
        with self.always([kind], HELD):
            yield lambda: self.failed()[kind] > before


def describe(kind: str, number: int, nth: int, times: int) -> str:
    """One fault in words."""
    which = f"call {nth} and all after it" if times == EVER else f"call {nth}, {times} times"
    return f"{errno.errorcode[number]} at {kind}, {which}: {os.strerror(number)}"
