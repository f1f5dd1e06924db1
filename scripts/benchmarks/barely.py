"""`bare.c` once more, in Python: the least that a daemon in Python can be.

    python -m scripts.benchmarks.barely PORT PATH SIZE CONNECTIONS PART MEMORY NAME MOUNTPOINT

Numbers as there. One file, received by plain HTTP with a fixed number of connections, a thread for each, into memory
that is used again, and read once from its first byte to its last; one thread answers the kernel, without libfuse. It
keeps, verifies, plans and retries nothing. What the row `bare` measures with it is what the interpreter itself costs a
daemon: hardly anything. What a daemon in Python takes beyond that is what it does.

The kernel's protocol is that of include/uapi/linux/fuse.h, version 7.31; how a mount's descriptor comes from
fusermount3 is in libfuse's lib/mount.c.
"""

import contextlib
import errno
import mmap
import os
import select
import socket
import stat
import struct
import subprocess
import sys
import threading

REQUEST = struct.Struct("=IIQQIIII")
"""fuse_in_header: length, opcode, unique, inode, and who asks."""
ANSWER = struct.Struct("=IiQ")
"""fuse_out_header: length, negative errno, unique."""
READ_IN = struct.Struct("=QQI")
INIT_OUT = struct.Struct("=IIIIHHIIHHI7I")
ENTRY_OUT = struct.Struct("=QQQQII")
ATTRIBUTES = struct.Struct("=QQQQQQIIIIIIIIII")

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, OPENDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET = (
    1, 2, 3, 14, 15, 18, 25, 26, 27, 29, 36, 42,
)  # fmt: skip
ASYNC_READ, PARALLEL_DIROPS, MAX_PAGES = 1 << 0, 1 << 18, 1 << 22
KEEP_CACHE = 1 << 1

NODE, LASTING, PIECE, TOGETHER = 2, 3600, 1 << 20, 4 << 20
"""The file's inode, seconds for which its attributes are good, bytes of a read, bytes received by one call."""


class Parts:
    """Which part of the file is in which slot of memory, and how much of it."""

    def __init__(self, size: int, part: int, memory: int) -> None:
        self.size, self.part, self.slots = size, part, memory // part
        whole = mmap.mmap(-1, self.slots * part, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):
            whole.madvise(mmap.MADV_HUGEPAGE)
        for page in range(0, len(whole), mmap.PAGESIZE):
            whole[page] = 1
        self.view = memoryview(whole)
        self.received, self.holds = [0] * self.slots, [-1] * self.slots
        self.taken = self.consumed = 0
        self.changed = threading.Condition()

    def take(self) -> int | None:
        """The next part to receive, once a slot is free for it; None after the last."""
        with self.changed:
            while self.taken * self.part < self.size and self.taken >= self.consumed // self.part - 2 + self.slots:
                self.changed.wait()
            if self.taken * self.part >= self.size:
                return None
            number = self.taken
            self.taken += 1
            self.received[number % self.slots], self.holds[number % self.slots] = 0, number
            return number

    def pieces(self, start: int, stop: int) -> list[memoryview] | None:
        """Bytes [start, stop), if they are here."""
        found = []
        for number in range(start // self.part, -(-stop // self.part)):
            slot, base = number % self.slots, number * self.part
            low, high = max(start - base, 0), min(stop - base, self.part)
            if self.holds[slot] != number or self.received[slot] < high:
                return None
            found.append(self.view[slot * self.part + low : slot * self.part + high])
        return found

    def passed(self, offset: int) -> None:
        """The kernel has all before this offset, or will ask for no more of it."""
        before, self.consumed = self.consumed, max(self.consumed, offset)
        if before // self.part != self.consumed // self.part:
            with self.changed:
                self.changed.notify_all()


class Daemon:
    """One mount of one file."""

    def __init__(self, port: int, path: str, parts: Parts, connections: int, name: str, mountpoint: str) -> None:
        self._port, self._path, self._parts = port, path.encode(), parts
        self._connections, self._name = connections, name.encode()
        ours, theirs = socket.socketpair()
        command = ["fusermount3", "-o", "ro", "--", mountpoint]
        env = os.environ | {"_FUSE_COMMFD": str(theirs.fileno())}
        subprocess.run(command, env=env, pass_fds=[theirs.fileno()], check=True, timeout=30)
        _, (self._kernel, *_), _, _ = socket.recv_fds(ours, 1, 1)
        os.set_blocking(self._kernel, False)
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK)
        self._waiting: dict[int, tuple[int, int]] = {}

    def serve(self) -> None:
        """Answer the kernel until the mount has ended."""
        buffer, poll = bytearray(2 * PIECE), select.poll()
        for descriptor in (self._kernel, self._woken):
            poll.register(descriptor, select.POLLIN)
        while True:
            try:
                size = os.readv(self._kernel, (buffer,))
            except BlockingIOError:
                poll.poll()
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, PIECE)
                for unique in list(self._waiting):
                    self._try(unique)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno != errno.ENOENT:
                    raise
            else:
                self._answer(memoryview(buffer)[:size])

    def _answer(self, request: memoryview) -> None:
        _, opcode, unique, inode, *_ = REQUEST.unpack_from(request)
        if opcode == READ:
            _, offset, length = READ_IN.unpack_from(request, REQUEST.size)
            self._waiting[unique] = offset, min(offset + length, self._parts.size)
            self._try(unique)
        elif opcode == LOOKUP and bytes(request[REQUEST.size :]).rstrip(b"\0") == self._name:
            self._say(unique, ENTRY_OUT.pack(NODE, 0, LASTING, LASTING, 0, 0) + self._attributes(NODE))
        elif opcode == GETATTR:
            self._say(unique, struct.pack("=QII", LASTING, 0, 0) + self._attributes(inode))
        elif opcode in (OPEN, OPENDIR):
            for _ in range(self._connections if opcode == OPEN else 0):
                threading.Thread(target=self._receive, daemon=True).start()
            self._say(unique, struct.pack("=QIi", 0, KEEP_CACHE, 0))
        elif opcode == INIT:
            flags = struct.unpack_from("=I", request, REQUEST.size + 12)[0] & (ASYNC_READ | PARALLEL_DIROPS | MAX_PAGES)
            pages = PIECE // mmap.PAGESIZE
            self._say(unique, INIT_OUT.pack(7, 31, PIECE, flags, 128, 96, PIECE, 1, pages, 0, 0, *[0] * 7))
        elif opcode in (RELEASE, FLUSH, RELEASEDIR):
            self._say(unique)
        elif opcode not in (FORGET, BATCH_FORGET, INTERRUPT):
            self._say(unique, failed=errno.ENOENT if opcode == LOOKUP else errno.ENOSYS)

    def _try(self, unique: int) -> None:
        """Answer a read if its bytes are here."""
        start, stop = self._waiting[unique]
        found = self._parts.pieces(start, stop)
        if found is not None:
            del self._waiting[unique]
            self._say(unique, *found)
            self._parts.passed(start)

    def _say(self, unique: int, *words: bytes | memoryview, failed: int = 0) -> None:
        with contextlib.suppress(FileNotFoundError):  # nobody waits for it any more
            os.writev(self._kernel, (ANSWER.pack(ANSWER.size + sum(map(len, words)), -failed, unique), *words))

    def _attributes(self, inode: int) -> bytes:
        size, mode = (self._parts.size, stat.S_IFREG | 0o444) if inode == NODE else (0, stat.S_IFDIR | 0o555)
        return ATTRIBUTES.pack(inode, size, -(-size // 512), *[0] * 6, mode, 1, 0, 0, 0, 4096, 0)

    def _receive(self) -> None:
        """One connection: part after part."""
        parts, connection = self._parts, socket.create_connection(("127.0.0.1", self._port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (number := parts.take()) is not None:
            slot, start = number % parts.slots, number * parts.part
            length = min(parts.part, parts.size - start)
            wanted = b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nRange: bytes=%d-%d\r\n\r\n"
            connection.sendall(wanted % (self._path, start, start + length - 1))
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            if not head.startswith(b"HTTP/1.1 206"):
                os._exit(1)
            body = head.partition(b"\r\n\r\n")[2]
            begin, done = slot * parts.part, len(body)
            parts.view[begin : begin + done] = body
            while done < length:
                size = min(TOGETHER, length - done)
                # As in lazyfs.stores.wire: the thread is woken for a MiB, where more comes after it.
                low = PIECE if length - done - size >= PIECE else 1
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low)
                count = connection.recv_into(parts.view[begin + done : begin + done + size], 0, socket.MSG_WAITALL)
                if not count:
                    os._exit(1)
                done += count
                parts.received[slot] = done
                if self._waiting:
                    with contextlib.suppress(BlockingIOError):
                        os.write(self._wake, b"\0")


def main() -> None:
    """See above."""
    port, path, size, connections, part, memory, name, mountpoint = sys.argv[1:]
    parts = Parts(int(size), int(part), int(memory))
    Daemon(int(port), path, parts, int(connections), name, mountpoint).serve()


if __name__ == "__main__":
    main()
