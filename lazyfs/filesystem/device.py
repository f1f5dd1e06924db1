"""The requests of a mount, as they come out of /dev/fuse: reads are answered here, everything else by libfuse.

Why not reads by libfuse too: pyfuse3 answers with the interpreter held, and the kernel copies an answer of 1 MiB into
pages that nobody has touched yet, which takes 0.4 to 1.4 ms; meanwhile no thread of this process receives or writes a
byte. With os.writev(2) they do: a cold file is read at 1.03 GB/s instead of 0.78, and by 32 processes that map it at
0.57 instead of 0.49, for less CPU. In threads of their own, two or one, the answers were slower than on the loop.

Its job: read each request, answer reads, and let libfuse have the rest. Must not know pyfuse3, nor what is read.

How libfuse gets a request that it has not read: it reads from a descriptor by number. From the moment at which its task
is told that there is a request until it has read it, that number is one end of a socket in which the request lies;
before and after, it is the kernel's, so that answers go there without us. All of that is one step of one task. Answers
are diverted alike where the kernel is to be told more than libfuse knows (`complete`). Where it may have pipes of more
than 1 MiB (fs.pipe-max-size, CAP_SYS_RESOURCE), libfuse splices its request out of the socket instead of reading it.

Rules from the kernel (fs/fuse/dev.c, include/uapi/linux/fuse.h): a read of the descriptor gives one request, and fails
with EINVAL when the buffer could not hold a write of the size that was agreed; ENOENT when one was taken back, ENODEV
after the unmount. An answer to what was taken back fails with ENOENT. A FUSE_INTERRUPT wants no answer; pyfuse3 does
nothing about it, and neither do we.
"""

import errno
import logging
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence

import trio

from lazyfs.objects import Pieces, size_of

log = logging.getLogger(__name__)

Answer = Pieces | int
"""The bytes of a read, in pieces, or the errno that it fails with."""

Change = Callable[[bytearray], None]

OUT = struct.Struct("=IiQ")
"""fuse_out_header: length, negative errno, unique."""

REQUEST = struct.Struct("=4xIQ24xQQI")
"""Of fuse_in_header the opcode and unique; of fuse_read_in, which follows it, handle, offset and size."""

READ, INTERRUPT, BATCH_FORGET = 15, 36, 42
"""enum fuse_opcode."""

BODY = 40
"""Where what follows fuse_in_header begins."""

FORGET_HEAD, FORGET_ONE = struct.Struct("=II"), 16
"""fuse_batch_forget_in: how many follow, 0; and the size of a fuse_forget_one."""

FORGETS = 2048
"""Inodes forgotten in one request to libfuse. The kernel sends as many as fit into the buffer, which is more than a
socket takes in one piece."""

LARGEST_ANSWER = 1 << 16
"""Of libfuse in a step in which it is diverted: to an open, or to what has no handler of ours. All others are given
after `received`, and go to the kernel."""

AT_ONCE = 8
"""Reads that are answered, or begun, in one turn of the loop; four small ones count as one, and take as long."""

LARGE = 64 * 1024
"""After an answer of this size the next request is likely there already: the kernel reads ahead. After a smaller one it
comes when the reader has looked at it."""

LINGER = 0.0002
"""Seconds in which the loop waits for the next request itself after a small read, if nothing is on its way: who
touches a mapped file here and there asks again within 0.1 ms, and trio's way round takes 15 us. It sleeps, and does not
spin."""

FD_SETSIZE = 1024
"""select(2) knows descriptors below this."""


class Device(trio.abc.Instrument):
    """The descriptor of one session. Loop thread only. It sees the end of each step of a task: made and taken away for
    each request, an instrument costs ten times as much as one that looks at a flag."""

    def __init__(
        self,
        session: int,
        *,
        now: Callable[[int, int, int], Answer | None],
        done: Callable[[], None],
        later: Callable[[int, int, int], Awaitable[Answer]],
        quiet: Callable[[], bool],
        nursery: trio.Nursery,
        largest: int,
    ) -> None:
        """`session`: the number that libfuse uses, the kernel's descriptor, of which all copies become non-blocking.
        `now` answers a read (handle, offset, size) at once, and `done` is called when the kernel has that answer; where
        `now` gives None, `later` does, in a task of `nursery`. What they give is good until the next await. `quiet`:
        nothing is on its way, so that the loop may wait for a reader. `largest`: bytes of buffer that a request
        needs."""
        self._session = session
        self.kernel = os.dup(session)
        """The same, by a number that is never anything else."""
        os.set_blocking(self.kernel, False)
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._now, self._done, self._later, self._quiet = now, done, later, quiet
        self._nursery = nursery
        self._buffer = bytearray(largest)
        self._pieces: deque[bytes] = deque()
        self._diverted = False
        self._change: Change | None = None
        self._closed = False
        self._waiting = 0
        trio.lowlevel.add_instrument(self)

    def pause(self) -> None:
        """Read no more requests until `resume`; who waits for one is told by `trio.ClosedResourceError`, once all
        `pieces` of what was read are given out."""
        self._closed = True
        trio.lowlevel.notify_closing(self.kernel)

    def resume(self) -> None:
        """Undo `pause`."""
        self._closed = False

    @property
    def pieces(self) -> int:
        """How many parts of a request that was read libfuse did not get yet."""
        return len(self._pieces)

    def close(self) -> None:
        """Let go of the descriptor. Who waits for a request is told as by `pause`; a read that is not answered will not
        be."""
        self._pieces.clear()
        self.pause()
        trio.lowlevel.remove_instrument(self)
        self._ours.close()
        self._theirs.close()
        os.close(self.kernel)
        self.kernel = -1  # the number may be another file's soon

    async def wait(self) -> None:
        """Answer reads until there is another request, which libfuse can read when this returns, in the same step, or
        the mount has ended, which libfuse finds when it reads."""
        taken, size = 0, LARGE
        while self._pieces or not self._closed:
            if self._pieces:
                self._give(self._pieces.popleft())
                return
            try:
                length = os.readv(self.kernel, (self._buffer,))
            except BlockingIOError:
                if size >= LARGE or not self._soon():
                    await trio.lowlevel.wait_readable(self.kernel)
                    taken = 0
                size = LARGE
                continue
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return
                raise
            opcode, unique, handle, offset, wanted = REQUEST.unpack_from(self._buffer)
            if opcode == BATCH_FORGET:
                self._pieces.extend(_pieces(memoryview(self._buffer)[:length]))
                continue
            if opcode != READ:
                if opcode == INTERRUPT:
                    continue
                self._give(memoryview(self._buffer)[:length])
                return
            answer = self._now(handle, offset, wanted)
            if answer is None:
                self._waiting += 1
                self._nursery.start_soon(self._answer_later, unique, handle, offset, wanted)
                size = LARGE  # there will be
            else:
                size = self._answer(unique, answer)
                self._done()
            taken += 4 if size >= LARGE else 1
            if taken >= 4 * AT_ONCE:
                taken = 0
                await trio.lowlevel.checkpoint()
        raise trio.ClosedResourceError

    def _soon(self) -> bool:
        """Whether the next request is here within a moment, in which nothing else is done."""
        if self._waiting or self.kernel >= FD_SETSIZE or not self._quiet():
            return False
        return bool(select.select((self.kernel,), (), (), LINGER)[0])

    async def _answer_later(self, unique: int, handle: int, offset: int, length: int) -> None:
        """Answer a read when that is possible, in a task of its own. However many wait, all else is answered: each is a
        thread of somebody's, or one of the kernel's max_background."""
        try:
            self._answer(unique, await self._later(handle, offset, length))
        finally:
            self._waiting -= 1

    def _answer(self, unique: int, answer: Answer) -> int:
        """Answer a read; with how many bytes."""
        if isinstance(answer, int):
            self._write((OUT.pack(OUT.size, -answer, unique),))
            return 0
        size = size_of(answer)
        self._write((OUT.pack(OUT.size + size, 0, unique), *answer))
        return size

    def _write(self, words: Sequence[bytes | bytearray | memoryview]) -> None:
        if self.kernel < 0:
            return
        try:
            os.writev(self.kernel, words)
        except OSError as error:
            # Nobody waits for it any more, or the mount is gone.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                log.error("the kernel does not take an answer: %s", error)

    # ---- what is libfuse's

    def _give(self, request: bytes | memoryview) -> None:
        """Have libfuse find this request, in this step."""
        self._divert()
        self._ours.send(request)

    def received(self) -> None:
        """libfuse has read its request: from now on it speaks to the kernel."""
        if self._diverted and self._change is None:
            self._restore()

    def complete(self, change: Change) -> None:
        """Have the answer that libfuse gives in the rest of this task's step changed on its way to the kernel, if it is
        no failure."""
        self._divert()
        self._change = change

    def _divert(self) -> None:
        if not self._diverted:
            self._diverted = True
            os.dup2(self._theirs.fileno(), self._session, inheritable=False)

    def _restore(self) -> None:
        self._diverted = False
        os.dup2(self.kernel, self._session, inheritable=False)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """What libfuse said in the step goes to the kernel, before any other task runs."""
        if self._diverted:
            self._restore()
            self._pass_on()

    def _pass_on(self) -> None:
        change, self._change = self._change, None
        while True:
            try:
                answer = bytearray(self._ours.recv(LARGEST_ANSWER))
            except BlockingIOError:
                return
            if change is not None and OUT.unpack_from(answer)[1] == 0:
                change(answer)
            change = None
            self._write((answer,))


def _pieces(request: memoryview) -> Iterator[bytes]:
    """A request that forgets many inodes, in pieces that a socket takes."""
    count = FORGET_HEAD.unpack_from(request, BODY)[0]
    begin = BODY + FORGET_HEAD.size
    for first in range(0, count, FORGETS):
        some = request[begin + first * FORGET_ONE : begin + min(first + FORGETS, count) * FORGET_ONE]
        size = struct.pack("=I", begin + len(some))
        yield size + request[4:BODY].tobytes() + FORGET_HEAD.pack(len(some) // FORGET_ONE, 0) + some.tobytes()
