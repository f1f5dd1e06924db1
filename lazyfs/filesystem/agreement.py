"""FUSE_INIT: what the kernel and libfuse agree on, once for a mount, though several processes serve it in turn.

Its job: have libfuse answer the kernel's first request in a place where the answer can be seen, completed and kept, and
have it answer the same request again in the next process, to which the kernel sends none. Must not know pyfuse3.

How: libfuse reads its requests from, and writes its answers to, a descriptor by number. For the first request that
number is one end of a socket. What libfuse says there is taken, and then the number is the kernel's descriptor.
"""

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

import trio

from lazyfs.errors import SetupError

FIRST_REQUEST = 64 * 1024
"""Bytes of buffer for the first request, and for libfuse's answer to it; the kernel refuses to fill one of less than 8
KiB (FUSE_MIN_READ_BUFFER)."""

PATIENCE = 10.0
"""Seconds in which the kernel sends FUSE_INIT: it does so within mount(2)."""

UNIQUE = struct.Struct("=Q")
AT_UNIQUE = 8
"""Where a request and an answer say which request it is: fuse_in_header, fuse_out_header."""

MAX_WRITE, AT_MAX_WRITE = struct.Struct("=I"), 36
"""In the answer: fuse_out_header, and 20 bytes of fuse_init_out. It is 256 pages with libfuse 3.14, so 16 MiB on a
machine with pages of 64 KiB."""

HEADERS = 4096
"""Bytes of a buffer beyond max_write. The kernel wants room for fuse_in_header and fuse_write_in, 80 bytes, and refuses
to fill a smaller buffer with any request (fs/fuse/dev.c, fuse_dev_do_read)."""

NOTICE = struct.Struct("=IiQ")
"""fuse_out_header of what answers no request: its length, what it is, 0."""

NOTIFY_RESEND = 7
"""FUSE_NOTIFY_RESEND, include/uapi/linux/fuse.h; fuse_resend in fs/fuse/dev.c. It is about requests only: no page and
no name is touched by it."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """The kernel's first request of a mount, and libfuse's own answer to it."""

    request: bytes
    answer: bytes

    def same(self, answer: bytes) -> bool:
        """Whether this is the same answer."""
        return answer[:AT_UNIQUE] + answer[AT_UNIQUE + 8 :] == self.answer[:AT_UNIQUE] + self.answer[AT_UNIQUE + 8 :]

    @property
    def largest_request(self) -> int:
        """Bytes of buffer that the kernel wants for every request from now on."""
        return int(MAX_WRITE.unpack_from(self.answer, AT_MAX_WRITE)[0]) + HEADERS


def first_request(session: int) -> bytes:
    """The request that waits in a descriptor that was mounted just now. `SetupError` if there is none."""
    waiting = select.poll()
    waiting.register(session, select.POLLIN)
    try:
        if waiting.poll(PATIENCE * 1000):
            return os.read(session, FIRST_REQUEST)
    except OSError as error:
        raise SetupError(f"the mount was gone before it was served: {error.strerror}") from None
    raise SetupError("the kernel says nothing about the mount; is the descriptor served by another process?")


class Introduction:
    """The descriptor number `session` answers one request of ours, until `end`."""

    def __init__(self, session: int, request: bytes) -> None:
        self._session = session
        self.kernel = os.dup(session)
        """What the number stood for, and will stand for again."""
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        with theirs:
            os.dup2(theirs.fileno(), session, inheritable=False)
        self._ours.send(request)

    async def answer(self) -> bytes:
        """What libfuse says."""
        while True:
            try:
                return self._ours.recv(FIRST_REQUEST)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._ours)

    def end(self) -> None:
        """The number stands for the kernel's descriptor from here on; nobody may be waiting for it to be readable."""
        os.dup2(self.kernel, self._session, inheritable=False)
        self.close()

    def close(self) -> None:
        """Let go of what is not needed any more."""
        self._ours.close()
        with contextlib.suppress(OSError):
            os.close(self.kernel)


def send(kernel: int, answer: bytes, complete: Callable[[bytearray], None] | None) -> None:
    """Give the kernel its answer, completed."""
    words = bytearray(answer)
    if complete is not None:
        complete(words)
    try:
        os.write(kernel, words)
    except OSError as error:
        raise SetupError(f"the kernel does not take the answer to its first request: {error.strerror}") from None


def send_again(kernel: int) -> None:
    """Have the kernel send once more all that was read from it and is not answered, under numbers of its own; answers
    to the numbers from before are not taken any more. OSError with EINVAL before Linux 6.9."""
    os.write(kernel, NOTICE.pack(NOTICE.size, NOTIFY_RESEND, 0))
