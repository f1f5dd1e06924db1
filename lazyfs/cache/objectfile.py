"""Object files: one sparse file for each object version, every chunk at its own offset.

Why not a file for a chunk: disk reads are contiguous, 1 TB is a few thousand files, and a complete file can be digested
or handed to the kernel to read by itself. Names are `<2 hex>/<object_id hex>.<generation hex>`: never a key.
Whole chunks and blocks go past the page cache (O_DIRECT) where the filesystem can: the kernel keeps the mount's own
pages, so these would be second copies, and a GB written costs 0.8 CPU seconds less. What is not a multiple of 4 KiB,
the end of a file, goes through the page cache.

Must not know what is present; the index does. Any thread; descriptors are shared and closed when the last user is gone.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from lazyfs.cache.records import Run
from lazyfs.objects import CHUNK_SIZE, ObjectVersion, tail

OPEN_FILES = 128
"""Descriptors kept open for reading; an open costs about 10 us, a read of one 64 KiB block about as much."""

PAGE_SIZE = 4096
"""What O_DIRECT lengths, offsets and addresses are multiples of, on every filesystem (open(2))."""

_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, linux/falloc.h."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def punch(descriptor: int, start: int, length: int, name: str) -> None:
    """Give the blocks of bytes [start, start + length) back; OSError, with the file's name, where that is not
    possible."""
    if _libc.fallocate(descriptor, _KEEP_SIZE_PUNCH_HOLE, start, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} (punching a hole)", name)


class _Descriptor:
    """An open file that closes itself when nobody refers to it any more, in whatever thread that is."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class Scratch:
    """A buffer for each thread, used again: O_DIRECT refuses one that does not begin at a page, and Python's own begin
    anywhere."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def view(self, size: int) -> memoryview:
        """The first `size` bytes of this thread's buffer, which are this caller's until the next call."""
        whole: memoryview | None = getattr(self._of_thread, "whole", None)
        if whole is None or len(whole) < size:
            whole = self._of_thread.whole = memoryview(mmap.mmap(-1, -(-size // PAGE_SIZE) * PAGE_SIZE))
        return whole[:size]


class ObjectFiles:
    """The object files below `root`, which exists. Raises OSError.

    The directory is held open and never looked up again: a daemon whose cache was deleted, or set aside by another,
    gets errors and cannot write into the one that came after.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._at = _Descriptor(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
        self._open: OrderedDict[tuple[bytes, int, int], _Descriptor] = OrderedDict()
        self._direct = True
        self._lock = threading.Lock()

    def path(self, object_id: bytes, generation: int) -> Path:
        """Where the object file is, if there is one."""
        return self._root / _name(object_id, generation)

    def found(self) -> dict[tuple[bytes, int], int]:
        """Every (object_id, generation) that has a file, and its disk bytes; other files are left out. Reads all
        directories."""
        sizes = {}
        for path in self._root.glob("??/*"):
            with contextlib.suppress(ValueError, FileNotFoundError):
                key = bytes.fromhex(path.stem), int(path.suffix[1:], 16)
                if path == self.path(*key):
                    sizes[key] = path.lstat().st_blocks * 512
        return sizes

    def read(self, object_id: bytes, generation: int, offset: int, into: Sequence[memoryview]) -> bool:
        """Fill the buffers from `offset` on; False if the file ends before that. For O_DIRECT, buffers must be aligned
        to pages; those of `Memory` and of `Scratch` are."""
        if len(into) == 1 and self._direct and not len(into[0]) % PAGE_SIZE:
            # A touch, for which the way below took as long as a third of the disk's part.
            try:
                descriptor = self._descriptor(object_id, generation, os.O_DIRECT)  # held, so that it stays open
                if os.preadv(descriptor.number, into, offset) == len(into[0]):
                    return True
            except OSError as error:
                self._direct_failed(error)
        whole = _aligned(into) if self._direct else 0
        if whole:
            try:
                done = _transfer(os.preadv, self._descriptor(object_id, generation, os.O_DIRECT), into[:whole], offset)
            except OSError as error:
                self._direct_failed(error)
                whole = done = 0
            if done < sum(len(view) for view in into[:whole]):
                return False
            offset += done
        rest = into[whole:]
        if not rest:
            return True
        descriptor = self._descriptor(object_id, generation, 0)
        return _transfer(os.preadv, descriptor, rest, offset) == sum(len(view) for view in rest)

    def to_write(self, version: ObjectVersion, generation: int) -> "ToWrite":
        """The object file, for pieces to be written to it. Opens nothing yet."""
        return ToWrite(self, _name(version.object_id, generation), version.size)

    def _direct_failed(self, error: OSError) -> None:
        """Go on without O_DIRECT where the filesystem refuses it; raise every other error."""
        if error.errno != errno.EINVAL:
            raise error
        self._direct = False

    def clear(self, run: Run) -> None:
        """Give the run's blocks back to the filesystem. A file that is not there counts as cleared.

        Where holes cannot be punched the bytes stay until the file goes; they are still not counted as present.
        BlockingIOError for a file that is lent: who reads it would read zeros.
        """
        name = _name(run.object_id, run.generation)
        if run.whole:
            with self._lock:
                for flags in (0, os.O_DIRECT):
                    self._open.pop((run.object_id, run.generation, flags), None)
            with contextlib.suppress(FileNotFoundError):
                # Cut first: else its blocks would live as long as another daemon has it open, unseen by every bound.
                descriptor = self._opened(name, os.O_WRONLY)
                fcntl.flock(descriptor.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor.number, 0)
                folder, file = name.split("/")
                at = self._folder(folder)  # a name of its own: it is closed when nobody refers to it
                os.unlink(file, dir_fd=at.number)
            return
        try:
            descriptor = self._opened(name, os.O_WRONLY)
        except FileNotFoundError:
            return
        fcntl.flock(descriptor.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        start, length = run.first * CHUNK_SIZE, (run.stop - run.first) * CHUNK_SIZE
        punch(descriptor.number, start, length, name)

    def lend(self, object_id: bytes, generation: int, size: int) -> int | None:
        """A descriptor of the object file, for somebody who reads it past the index, if it is `size` bytes long. Until
        its last copy is closed, those of the kernel too, nothing in the file is cleared: the lock is of the open file
        and not of the process (flock(2)), and outlives a daemon that is killed while the kernel reads on."""
        try:
            descriptor = self._opened(_name(object_id, generation), os.O_RDONLY)
            fcntl.flock(descriptor.number, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):
            return None
        return os.dup(descriptor.number) if os.fstat(descriptor.number).st_size == size else None

    def is_lent(self, object_id: bytes, generation: int) -> bool:
        """Whether somebody, in whatever process, reads the object file past the index."""
        try:
            descriptor = self._opened(_name(object_id, generation), os.O_RDONLY)
            fcntl.flock(descriptor.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Forget the open descriptors."""
        with self._lock:
            self._open.clear()

    def _descriptor(self, object_id: bytes, generation: int, flags: int) -> _Descriptor:
        key = (object_id, generation, flags)
        with self._lock:
            descriptor = self._open.get(key)
            if descriptor is not None:
                self._open.move_to_end(key)
                return descriptor
        descriptor = self._opened(_name(object_id, generation), os.O_RDONLY | flags)
        if not flags:
            # Blocks are read one at a time and far apart; what lies around them is not wanted.
            os.posix_fadvise(descriptor.number, 0, 0, os.POSIX_FADV_RANDOM)
        with self._lock:
            self._open[key] = descriptor
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        return descriptor

    def _writable(self, name: str, size: int, flags: int) -> _Descriptor:
        """The object file, open for writing, of its full size."""
        flags |= os.O_WRONLY | os.O_CREAT
        try:
            descriptor = self._opened(name, flags)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.dirname(name), 0o700, dir_fd=self._at.number)
            descriptor = self._opened(name, flags)
        if os.fstat(descriptor.number).st_size < size:
            os.ftruncate(descriptor.number, size)
        return descriptor

    def _opened(self, name: str, flags: int) -> _Descriptor:
        """Nothing but a plain file with no other name, by way of no link; a pipe in its place is not waited for."""
        folder, file = name.split("/")
        at = self._folder(folder)
        found = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=at.number)
        descriptor = _Descriptor(found)
        status = os.fstat(found)
        # No other name, but none at all is fine: somebody has evicted it since.
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise OSError(errno.EPERM, "not a plain file of the cache", name)
        return descriptor

    def _folder(self, name: str) -> _Descriptor:
        """Opened on its own: O_NOFOLLOW is for the last name of a path only."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return _Descriptor(os.open(name, flags, dir_fd=self._at.number))


class ToWrite:
    """An object file to which pieces are written, one after another: made sparse and of its full `size` if it is not
    there, opened for the first piece, closed when nobody refers to it.

    Opened for each piece it cost the writer five more system calls, and after each of them a wait for the interpreter:
    while 32 processes read a cold GiB, of which a batch of 64 chunks has 30 pieces, he could not follow, chunks were
    not kept, and those that waited for him were memory that readers lacked.
    """

    __slots__ = ("_files", "_name", "_open", "_size")

    def __init__(self, files: ObjectFiles, name: str, size: int) -> None:
        self._files = files
        self._name = name
        self._size = size
        self._open: dict[int, _Descriptor] = {}

    def write(self, offset: int, chunks: Sequence[memoryview]) -> None:
        """Write these bytes from `offset` on. Not synced. OSError."""
        whole = _aligned(chunks) if self._files._direct else 0
        if whole:
            try:
                offset += _transfer(os.pwritev, self._descriptor(os.O_DIRECT), chunks[:whole], offset)
            except OSError as error:
                self._files._direct_failed(error)
                whole = 0
        if chunks[whole:]:
            _transfer(os.pwritev, self._descriptor(0), chunks[whole:], offset)

    def _descriptor(self, flags: int) -> _Descriptor:
        found = self._open.get(flags)
        if found is None:
            found = self._open[flags] = self._files._writable(self._name, self._size, flags)
        return found


def _name(object_id: bytes, generation: int) -> str:
    digits = object_id.hex()
    return f"{digits[:2]}/{digits}.{generation:08x}"


def _aligned(views: Sequence[memoryview]) -> int:
    """How many of the buffers, from the first on, have a length that O_DIRECT can transfer."""
    count = 0
    while count < len(views) and len(views[count]) % PAGE_SIZE == 0:
        count += 1
    return count


def _transfer(call: Callable[..., int], descriptor: _Descriptor, views: Sequence[memoryview], offset: int) -> int:
    """preadv or pwritev until all is done, or the file ends; the number of bytes."""
    done, size = 0, sum(len(view) for view in views)
    while done < size:
        count = call(descriptor.number, tail(views, done) if done else views, offset + done)
        if count == 0:
            break
        done += count
    return done
