"""Object files: one sparse file for each object version, every chunk at its own offset.

Why not a file for a chunk: disk reads are contiguous, 1 TB is a few thousand files, and a complete file can be digested
or handed to the kernel to read by itself. Names are `<2 hex>/<object_id hex>.<generation hex>`: never a key.
Must not know what is present; the index does. Any thread; descriptors are shared and closed when the last user is gone.
"""

import contextlib
import ctypes
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from lazyfs.cache.records import Run
from lazyfs.objects import CHUNK_SIZE, ObjectVersion, tail

OPEN_FILES = 128
"""Descriptors kept open for reading; an open costs about 10 us, a read of one 64 KiB block about as much."""

_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, linux/falloc.h."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class _Descriptor:
    """An open file that closes itself when nobody refers to it any more, in whatever thread that is."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class ObjectFiles:
    """The object files below `root`, which exists. Raises OSError."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, object_id: bytes, generation: int) -> Path:
        """Where the object file is, if there is one."""
        name = object_id.hex()
        return self._root / name[:2] / f"{name}.{generation:08x}"

    def read(self, object_id: bytes, generation: int, offset: int, into: Sequence[memoryview]) -> bool:
        """Fill the buffers from `offset` on; False if the file ends before that."""
        descriptor = self._descriptor(object_id, generation)
        done, size = 0, sum(len(view) for view in into)
        while done < size:
            count = os.preadv(descriptor.number, tail(into, done), offset + done)
            if count == 0:
                return False
            done += count
        return True

    def write(self, version: ObjectVersion, generation: int, first: int, chunks: Sequence[memoryview]) -> None:
        """Write adjacent chunks from chunk `first` on, making the sparse file if it is not there. Not synced."""
        path = self.path(version.object_id, generation)
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(mode=0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = _Descriptor(os.open(path, flags, 0o600))
        if os.fstat(descriptor.number).st_size < version.size:
            os.ftruncate(descriptor.number, version.size)
        done, size = 0, sum(len(view) for view in chunks)
        while done < size:
            done += os.pwritev(descriptor.number, tail(chunks, done), first * CHUNK_SIZE + done)

    def clear(self, run: Run) -> None:
        """Give the run's blocks back to the filesystem. A file that is not there counts as cleared.

        Where holes cannot be punched the bytes stay until the file goes; they are still not counted as present.
        """
        path = self.path(run.object_id, run.generation)
        if run.whole:
            with self._lock:
                self._open.pop(path.name, None)
            path.unlink(missing_ok=True)
            return
        try:
            descriptor = _Descriptor(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
        except FileNotFoundError:
            return
        start, length = run.first * CHUNK_SIZE, (run.stop - run.first) * CHUNK_SIZE
        if _libc.fallocate(descriptor.number, _KEEP_SIZE_PUNCH_HOLE, start, length) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{os.strerror(number)} (punching a hole)", str(path))

    def close(self) -> None:
        """Forget the open descriptors."""
        with self._lock:
            self._open.clear()

    def _descriptor(self, object_id: bytes, generation: int) -> _Descriptor:
        path = self.path(object_id, generation)
        with self._lock:
            descriptor = self._open.get(path.name)
            if descriptor is not None:
                self._open.move_to_end(path.name)
                return descriptor
        descriptor = _Descriptor(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
        with self._lock:
            self._open[path.name] = descriptor
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        return descriptor
