"""The process that reads from a mount for a test, since a mapped read may hang or die of SIGBUS.

And never without need in the test's own process: a page fault holds the GIL, and with it an S3 server in its threads.

    with Reader() as reader:
        fd = reader.call("open_file", path)
        data = reader.call("pread", fd, 4096, 0)

A call runs one of the functions below, or `module:function`, in the child. It gives its result, raises the OSError that
the function raised, `ReaderDied` if a signal ended the child, or `ReaderHung` when the time limit has passed.
"""

import hashlib
import importlib
import mmap
import os
import pickle
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.servers.processes import ROOT, killed_with_parent

CALL_TIMEOUT = 60.0
ADVICE = {
    "normal": mmap.MADV_NORMAL,
    "random": mmap.MADV_RANDOM,
    "sequential": mmap.MADV_SEQUENTIAL,
    "willneed": mmap.MADV_WILLNEED,
    "populate_read": 22,  # MADV_POPULATE_READ, linux/mman.h; the mmap module does not have it
}


class ReaderDied(Exception):
    """The child ended by a signal, or of a defect."""


class ReaderHung(Exception):
    """The child did not answer in time."""


class Reader:
    """One child process. Not safe for threads."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mounts.reader"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=killed_with_parent(),  # noqa: PLW1509 (it only calls libc)
        )

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    def call(self, function: str, *args: Any, timeout: float = CALL_TIMEOUT) -> Any:
        """Run `function(*args)` in the child and wait for it."""
        self.begin(function, *args)
        return self.result(timeout)

    def begin(self, function: str, *args: Any) -> None:
        """Start it; `result` waits for it."""
        assert self._process.stdin is not None
        data = pickle.dumps((function, args))
        self._process.stdin.write(struct.pack("<Q", len(data)) + data)
        self._process.stdin.flush()

    def result(self, timeout: float = CALL_TIMEOUT) -> Any:
        """What the call that was begun gave."""
        deadline = time.monotonic() + timeout
        (size,) = struct.unpack("<Q", self._receive(8, deadline))
        good, value = pickle.loads(self._receive(size, deadline))
        if good:
            return value
        raise value

    def _receive(self, size: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        descriptor, parts = self._process.stdout.fileno(), bytearray()
        while len(parts) < size:
            readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                state = Path(f"/proc/{self.pid}/status").read_text().split("State:")[1].split("\n")[0]
                raise ReaderHung(f"the reader is in state {state.strip()}")
            data = os.read(descriptor, size - len(parts))
            if not data:
                status = self._process.wait(10)
                raise ReaderDied(signal.Signals(-status).name if status < 0 else f"status {status}")
            parts += data
        return bytes(parts)

    def close(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.wait(30)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# ---- what the child can do

_mappings: dict[int, mmap.mmap] = {}


def open_file(path: str) -> int:
    """A descriptor."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def open_at_random(path: str) -> int:
    """A descriptor for reads that the kernel does not widen, of which it has kept nothing."""
    fd = open_file(path)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    return fd


def pread(fd: int, size: int, offset: int) -> bytes:
    """One pread; short only where the system call is."""
    return os.pread(fd, size, offset)


def readv(fd: int, sizes: list[int], offset: int) -> list[bytes]:
    """One preadv into buffers of these sizes."""
    buffers = [bytearray(size) for size in sizes]
    left = os.preadv(fd, buffers, offset)
    found = []
    for buffer in buffers:
        found.append(bytes(buffer[: max(0, left)]))
        left -= len(buffer)
    return found


def sendfile(fd: int, size: int, offset: int) -> bytes:
    """Through the kernel into a socket, and out of it."""
    found = bytearray()
    left, right = socket.socketpair()
    with left, right:
        while len(found) < size:
            sent = os.sendfile(left.fileno(), fd, offset + len(found), min(size - len(found), 65536))
            if sent == 0:
                break
            taken = 0
            while taken < sent:
                data = right.recv(sent - taken)
                taken += len(data)
                found += data
    return bytes(found)


def forked(fd: int, size: int, offset: int) -> bytes:
    """A pread by a child process on a descriptor that it has inherited."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 0
        try:
            with open(writing, "wb") as pipe:
                pipe.write(os.pread(fd, size, offset))
        except OSError as error:
            status = error.errno or 255
        os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:
        data = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise OSError(status, os.strerror(status))
    return data


def duplicate(fd: int) -> int:
    """Another descriptor of the same open file."""
    return os.dup(fd)


def close_file(fd: int) -> None:
    """Close a descriptor."""
    os.close(fd)


def map_file(fd: int, advice: str = "normal") -> None:
    """Map the whole file, to be read by `peek`; the mapping lives on when the descriptor is closed."""
    _mappings[fd] = mapped = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
    mapped.madvise(ADVICE[advice])


def peek(fd: int, size: int, offset: int) -> bytes:
    """Bytes of the mapping that was made of `fd`."""
    return _mappings[fd][offset : offset + size]


def forget_pages(fd: int) -> None:
    """Have the kernel forget what it has of the file, mapped or not, so that the next read asks the daemon."""
    if fd in _mappings:
        _mappings[fd].madvise(mmap.MADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def unmap(fd: int) -> None:
    """Forget the mapping."""
    _mappings.pop(fd).close()


def digest(path: str, piece: int = 1 << 20) -> tuple[int, str]:
    """Size and SHA-256 of a file, read from its start to its end."""
    found, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while data := file.read(piece):
            size += len(data)
            found.update(data)
    return size, found.hexdigest()


def cold_digest(path: str) -> tuple[int, str]:
    """`digest`, of what the daemon gives and not of what the kernel has kept."""
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest(path)


def mapped_digest(path: str, advice: str) -> str:
    """SHA-256 of a file, read by touching a mapping of it; at random places first for a random one."""
    fd = open_file(path)
    try:
        map_file(fd, advice)
        mapped = _mappings[fd]
        if advice == "random":
            for offset in random.Random(1).sample(range(0, len(mapped), 4096), min(64, len(mapped) // 4096)):
                assert mapped[offset : offset + 8] == os.pread(fd, 8, offset)
        with memoryview(mapped) as view:
            found = hashlib.sha256(view).hexdigest()
        unmap(fd)
    finally:
        os.close(fd)
    return found


def buffered(path: str, size: int) -> bytes:
    """The first bytes of a file, through the buffer that Python makes for it."""
    with open(path, "rb") as file:
        return file.read(size)


def mapped_pages(path: str, offsets: list[int]) -> list[bytes]:
    """A page at each of these offsets of a file, in this order, from a mapping of it without any advice."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        return [mapped[offset : offset + mmap.PAGESIZE] for offset in offsets]


def mapped_parts(path: str, count: int) -> list[str]:
    """SHA-256 of each of `count` parts of a file, each read by a process of its own from a mapping of its own."""
    size = os.stat(path).st_size
    part = -(-size // count)
    pipes = []
    for number in range(count):
        reading, writing = os.pipe()
        if os.fork() == 0:
            fd = open_file(path)
            mapped = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
            found = hashlib.sha256(memoryview(mapped)[number * part : (number + 1) * part]).hexdigest()
            os.write(writing, found.encode())
            os._exit(0)
        os.close(writing)
        pipes.append(reading)
    found_all = []
    for reading in pipes:
        with open(reading, "rb") as pipe:
            found_all.append(pipe.read().decode())
    for _ in pipes:
        os.wait()
    return found_all


def scribble(path: str) -> tuple[bytes, bytes]:
    """Write into a private mapping; the first five bytes of that, and of the file after it."""
    access = mmap.PROT_READ | mmap.PROT_WRITE
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, access) as mapped:
        mapped[:3] = b"abc"
        return mapped[:5], file.read(5)


def _serve() -> None:
    while len(head := sys.stdin.buffer.read(8)) == 8:
        function, args = pickle.loads(sys.stdin.buffer.read(struct.unpack("<Q", head)[0]))
        module, _, name = function.rpartition(":")
        call = getattr(importlib.import_module(module), name) if module else globals()[name]
        try:
            answer = (True, call(*args))
        except OSError as error:
            answer = (False, OSError(error.errno, error.strerror))
        data = pickle.dumps(answer)
        sys.stdout.buffer.write(struct.pack("<Q", len(data)) + data)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
