"""The descriptor of a mount: reads are answered past libfuse, and libfuse gets all other requests, whole and in order.

The kernel is one end of a socket that keeps messages apart, as /dev/fuse does; libfuse is a task that reads and writes
the session's number.
"""

import errno
import itertools
import os
import select
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from lazyfs.filesystem.agreement import Agreement
from lazyfs.filesystem.device import AT_ONCE, FORGETS, LARGE, OUT, Answer, Device

LOOKUP, GETATTR, OPEN, FORGET_ALL, LSEEK = 1, 3, 14, 42, 46
LARGEST = 1 << 20
IN = struct.Struct("=IIQQIIIHH")
"""fuse_in_header, as include/uapi/linux/fuse.h has it; written here anew, so that the module's own is compared."""

READ_IN = struct.Struct("=QQIIQII")
"""fuse_read_in: handle, offset, size, read_flags, lock_owner, flags, padding."""


def request(opcode: int, unique: int, body: bytes = b"", node: int = 1) -> bytes:
    """One as the kernel writes it."""
    return IN.pack(IN.size + len(body), opcode, unique, node, 1000, 1000, 4242, 0, 0) + body


def read_request(unique: int, handle: int, offset: int, size: int) -> bytes:
    """A FUSE_READ."""
    return request(15, unique, READ_IN.pack(handle, offset, size, 1, 7, 0o100000, 0))


def reply(unique: int, data: bytes = b"", error: int = 0) -> bytes:
    """What the kernel is to be answered."""
    return OUT.pack(OUT.size + len(data), -error, unique) + data


class Kernel:
    """The other end of a device, and what reads of it come to: `at_once` and `late` by (handle, offset, size).
    `done_when` are the answers that came before each call of `done`, if it `collects` them."""

    def __init__(self) -> None:
        self.end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.end.setblocking(False)  # the device's end is as /dev/fuse is when it is mounted: it blocks
        for end in (self.end, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.session = theirs.detach()
        self.at_once: dict[tuple[int, int, int], Answer] = {}
        self.late: dict[tuple[int, int, int], Answer] = {}
        self.gate = trio.Event()
        self.asked: list[tuple[int, int, int]] = []
        self.done_when: list[list[bytes]] = []
        self.collects = False
        self.is_quiet = False

    def now(self, *what: int) -> Answer | None:
        """See `Device`."""
        self.asked.append((what[0], what[1], what[2]))
        return self.at_once.get((what[0], what[1], what[2]))

    def done(self) -> None:
        """See `Device`."""
        if self.collects:
            self.done_when.append(self.said())

    async def later(self, *what: int) -> Answer:
        """See `Device`."""
        await self.gate.wait()
        return self.late[what[0], what[1], what[2]]

    def quiet(self) -> bool:
        """See `Device`."""
        return self.is_quiet

    def device(self, nursery: trio.Nursery) -> Device:
        """One of this kernel's."""
        return Device(
            self.session,
            now=self.now,
            done=self.done,
            later=self.later,
            quiet=self.quiet,
            nursery=nursery,
            largest=LARGEST,
        )

    def said(self) -> list[bytes]:
        """The answers so far."""
        found = []
        while True:
            try:
                found.append(self.end.recv(1 << 21))
            except BlockingIOError:
                return found


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Kernel, Device, list[bytes]]]:
    """A device, and a task that stands for pyfuse3's: it appends what libfuse reads to the list, and answers it."""
    kernel, heard = Kernel(), list[bytes]()
    async with trio.open_nursery() as nursery:
        device = kernel.device(nursery)

        async def libfuse() -> None:
            while True:
                try:
                    await device.wait()
                except trio.ClosedResourceError:
                    return
                heard.append(os.read(kernel.session, 1 << 21))
                opcode, unique = struct.unpack_from("=4xIQ", heard[-1])
                if opcode not in (LSEEK, FORGET_ALL):  # the one libfuse answers by itself, the other nobody does
                    device.received()
                if opcode != FORGET_ALL:
                    os.write(kernel.session, reply(unique, b"libfuse"))
                await trio.lowlevel.checkpoint()

        nursery.start_soon(libfuse)
        yield kernel, device, heard
        await trio.testing.wait_all_tasks_blocked()
        device.pause()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    device.close()
    kernel.end.close()
    os.close(kernel.session)


@pytest.fixture(params=["bytes", "view", "pieces"])
def kind(request: pytest.FixtureRequest) -> Callable[[bytes], Answer]:
    """What a read may be answered with."""
    kinds: dict[str, Callable[[bytes], Answer]] = {
        "bytes": lambda data: (data,),
        "view": lambda data: (memoryview(data),),
        "pieces": lambda data: (memoryview(data)[:5], data[5:]),
    }
    return kinds[request.param]


async def test_a_read_is_answered_past_libfuse(kind: Callable[[bytes], Answer]) -> None:
    """Its bytes under its number, and libfuse hears nothing of it."""
    async with served() as (kernel, _, heard):
        kernel.at_once[5, 4096, 8192] = kind(bytes(range(256)) * 32)
        kernel.end.send(read_request(10, 5, 4096, 8192))
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.said() == [reply(10, bytes(range(256)) * 32)]
        assert kernel.asked == [(5, 4096, 8192)]
        assert heard == []


async def test_what_a_read_leaves_is_done_when_the_kernel_has_the_answer() -> None:
    """Once for each that was answered at once, and not for one that waits."""
    async with served() as (kernel, _, _heard):
        kernel.at_once[5, 0, 9], kernel.late[5, 9, 9], kernel.at_once[5, 18, 9] = (b"first",), (b"later",), errno.EIO
        kernel.collects = True
        kernel.gate.set()
        for number, offset in enumerate((0, 9, 18), 5):
            kernel.end.send(read_request(2 * number, 5, offset, 9))
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.done_when == [[reply(10, b"first")], [reply(14, error=errno.EIO)]]
        assert kernel.said() == [reply(12, b"later")]


async def test_an_errno_is_an_answer() -> None:
    """At once or later, and nothing follows it."""
    async with served() as (kernel, _, heard):
        kernel.at_once[5, 0, 1], kernel.late[5, 1, 1] = errno.ESTALE, errno.EIO
        kernel.gate.set()
        kernel.end.send(read_request(10, 5, 0, 1))
        kernel.end.send(read_request(12, 5, 1, 1))
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.said() == [reply(10, error=errno.ESTALE), reply(12, error=errno.EIO)]
        assert heard == []


async def test_a_read_that_waits_holds_nobody() -> None:
    """What comes after it, reads and others, is answered before it."""
    async with served() as (kernel, _, heard):
        kernel.late[1, 0, 3], kernel.at_once[1, 3, 3] = (b"abc",), (b"def",)
        for one in (read_request(10, 1, 0, 3), request(LOOKUP, 12, b"name\0"), read_request(14, 1, 3, 3)):
            kernel.end.send(one)
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.said() == [reply(12, b"libfuse"), reply(14, b"def")]
        kernel.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.said() == [reply(10, b"abc")]
        assert heard == [request(LOOKUP, 12, b"name\0")]


async def test_libfuse_gets_all_else_in_order() -> None:
    """Requests as they were, one after the other, and what it answers reaches the kernel; interrupts are left out."""
    codes = (LOOKUP, GETATTR, LSEEK, LOOKUP)
    wanted = [request(opcode, 2 * number, bytes(number)) for number, opcode in enumerate(codes, 1)]
    async with served() as (kernel, _, heard):
        for one in (*wanted[:2], request(36, 3, struct.pack("=Q", 2)), *wanted[2:]):
            kernel.end.send(one)
        await trio.testing.wait_all_tasks_blocked()
        assert heard == wanted
        assert kernel.said() == [reply(2 * number, b"libfuse") for number in range(1, 5)]


@pytest.mark.parametrize("count", [1, FORGETS, FORGETS + 1, 3 * FORGETS])
async def test_forgets_come_in_pieces(count: int) -> None:
    """Every inode once, in requests that a socket takes, each of the size and count that it says."""
    inodes = [(inode, inode % 7 + 1) for inode in range(2, count + 2)]
    body = struct.pack("=II", count, 0) + b"".join(struct.pack("=QQ", *one) for one in inodes)
    async with served() as (kernel, _, heard):
        kernel.end.send(request(FORGET_ALL, 4, body))
        kernel.end.send(request(LOOKUP, 6))
        await trio.testing.wait_all_tasks_blocked()
        *forgets, last = heard
        found = []
        for one in forgets:
            size, said = struct.unpack_from("=I", one)[0], struct.unpack_from("=I", one, IN.size)[0]
            assert size == len(one) == IN.size + 8 + 16 * said <= IN.size + 8 + 16 * FORGETS
            assert one[4 : IN.size] == request(FORGET_ALL, 4)[4:]
            found += list(struct.iter_unpack("=QQ", one[IN.size + 8 :]))
        assert found == inodes
        assert last == request(LOOKUP, 6)


async def step_by_step(kernel: Kernel, device: Device) -> None:
    """Have the device's next request read here, where a test goes on in the same step."""
    device.pause()
    await trio.testing.wait_all_tasks_blocked()
    device.resume()
    kernel.end.send(request(OPEN, 2))
    await device.wait()
    assert os.read(kernel.session, LARGEST) == request(OPEN, 2)


async def test_an_answer_of_libfuse_may_be_long() -> None:
    """Once it has its request, it speaks to the kernel itself, in that step too: a directory of a MiB does not fit into
    a socket."""
    async with served() as (kernel, device, _):
        await step_by_step(kernel, device)
        device.received()
        os.write(kernel.session, reply(2, bytes(600_000)))
        assert [len(one) for one in kernel.said()] == [OUT.size + 600_000]
        assert os.fstat(kernel.session).st_ino == os.fstat(device.kernel).st_ino


@pytest.mark.parametrize("received", ["before", "after"])
async def test_an_open_is_completed_in_its_step(received: str) -> None:
    """libfuse reads it, the handler is called and completes it, and libfuse answers, all in one step; the next answer
    is as libfuse gives it."""
    async with served() as (kernel, device, _):
        await step_by_step(kernel, device)
        if received == "before":
            device.received()
        device.complete(lambda answer: answer.__setitem__(slice(-1, None), b"!"))
        if received == "after":
            device.received()
        os.write(kernel.session, reply(2, b"open?"))
        assert kernel.said() == []
        await trio.lowlevel.checkpoint()
        assert kernel.said() == [reply(2, b"open!")]
        kernel.end.send(request(LSEEK, 4))
        await device.wait()
        assert os.read(kernel.session, LARGEST) == request(LSEEK, 4)
        os.write(kernel.session, reply(4, b"?" * 50_000))
        await trio.lowlevel.checkpoint()
        assert kernel.said() == [reply(4, b"?" * 50_000)]


async def test_an_answer_is_completed_on_its_way() -> None:
    """The next one of the same step, and no failure; what other tasks say meanwhile does not exist, and later answers
    are as they were."""

    def changed(answer: bytearray) -> None:
        answer[-1:] = b"!"

    async with served() as (kernel, device, _):
        device.complete(changed)
        os.write(kernel.session, reply(2, b"a?"))
        os.write(kernel.session, reply(4, b"b?"))
        assert kernel.said() == []  # the step is not over
        await trio.lowlevel.checkpoint()
        assert kernel.said() == [reply(2, b"a!"), reply(4, b"b?")]
        device.complete(changed)
        os.write(kernel.session, reply(6, b"c?", error=errno.ESTALE))
        await trio.lowlevel.checkpoint()
        os.write(kernel.session, reply(8, b"d?"))
        assert kernel.said() == [reply(6, b"c?", error=errno.ESTALE), reply(8, b"d?")]


async def test_a_pause_leaves_requests_where_they_are() -> None:
    """Nothing is read any more, what was read is answered, and after it the next task reads on."""
    async with served() as (kernel, device, heard):
        kernel.late[1, 0, 3] = (b"abc",)
        kernel.end.send(read_request(10, 1, 0, 3))
        await trio.testing.wait_all_tasks_blocked()
        device.pause()
        await trio.testing.wait_all_tasks_blocked()
        kernel.end.send(request(LOOKUP, 12))
        kernel.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.said() == [reply(10, b"abc")]
        assert heard == []
        with pytest.raises(trio.ClosedResourceError):
            await device.wait()
        device.resume()
        await device.wait()
        assert os.read(kernel.session, 4096) == request(LOOKUP, 12)


@pytest.mark.parametrize(
    ("here", "size", "most"), [(True, 1, 4 * AT_ONCE), (True, LARGE, AT_ONCE), (False, 1, AT_ONCE)]
)
async def test_many_reads_let_others_run(here: bool, size: int, most: int) -> None:
    """A reader that never pauses does not hold the loop, nor do many whose bytes are on their way: after so many reads
    everybody has a turn."""
    turns, count = [], 4 * most
    async with served() as (kernel, _, _):
        kernel.is_quiet = kernel.collects = True
        for number in range(count):
            (kernel.at_once if here else kernel.late)[1, number, 1] = (bytes(size),)
            kernel.end.send(read_request(2 * number + 2, 1, number, 1))
        for _ in range(8):
            await trio.lowlevel.checkpoint()
            turns.append(len(kernel.asked))
        # trio runs the tasks of a turn in any order, so ours may have none between two turns of the other.
        assert 0 < max(after - before for before, after in itertools.pairwise([0, *turns])) <= 2 * most
        assert turns[-1] == count
        kernel.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert sum(map(len, kernel.done_when)) + len(kernel.said()) == count


@pytest.mark.parametrize(
    ("size", "is_quiet", "waiting", "lingers"),
    [(4096, True, 0, True), (4096, False, 0, False), (4096, True, 1, False), (LARGE, True, 0, False)],
)
async def test_it_lingers_for_who_touches_only(
    monkeypatch: pytest.MonkeyPatch, size: int, is_quiet: bool, waiting: int, lingers: bool
) -> None:
    """After a small read while nobody else waits for anything, for a moment that nobody would notice."""
    looks: list[float] = []

    def look(_: object, __: object, ___: object, seconds: float) -> tuple[list[int], list[int], list[int]]:
        looks.append(seconds)
        return [], [], []

    async with served() as (kernel, _, _):
        kernel.is_quiet = is_quiet
        for number in range(waiting):
            kernel.late[2, number, 1] = (b"y",)
            kernel.end.send(read_request(100 + 2 * number, 2, number, 1))
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr(select, "select", look)
        kernel.at_once[1, 0, size] = (bytes(size),)
        kernel.end.send(read_request(2, 1, 0, size))
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.said() == [reply(2, bytes(size))]
        assert len(looks) == lingers
        assert all(0 < seconds < 0.001 for seconds in looks)
        kernel.gate.set()
        await trio.testing.wait_all_tasks_blocked()


async def test_a_pause_leaves_no_piece_behind() -> None:
    """What the kernel forgot in a request that was read is nothing that the next process could be told."""
    count = 5 * FORGETS
    body = struct.pack("=II", count, 0) + b"".join(struct.pack("=QQ", inode, 1) for inode in range(count))
    async with served() as (kernel, device, heard):
        kernel.end.send(request(FORGET_ALL, 4, body))
        while not heard:
            await trio.lowlevel.checkpoint()
        device.pause()
        assert 0 < device.pieces < 5
        kernel.end.send(request(LOOKUP, 6))
        await trio.testing.wait_all_tasks_blocked()
        assert device.pieces == 0
        assert sum(struct.unpack_from("=I", one, IN.size)[0] for one in heard) == count


async def test_a_closed_device_lets_go() -> None:
    """Of its descriptors, of who waits for a request, and of the number: a read that ends later is answered to nobody,
    whatever file has the number by then."""
    before = set(os.listdir("/proc/self/fd"))
    kernel = Kernel()
    async with trio.open_nursery() as nursery:
        device = kernel.device(nursery)
        kernel.late[1, 0, 3] = (b"abc",)
        kernel.end.send(read_request(10, 1, 0, 3))
        told = []

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await device.wait()
            told.append(True)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        number = device.kernel
        read, write = os.pipe()
        device.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
        with pytest.raises(KeyError):
            trio.lowlevel.remove_instrument(device)
        os.dup2(write, number)
        kernel.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert told
        for end in (write, number):
            os.close(end)
        assert os.read(read, 100) == b""
        os.close(read)
    kernel.end.close()
    os.close(kernel.session)
    assert set(os.listdir("/proc/self/fd")) == before


async def test_a_closed_device_gives_no_piece() -> None:
    """libfuse reads no more of what was read when it is closed."""
    kernel = Kernel()
    count = 2 * FORGETS
    body = struct.pack("=II", count, 0) + bytes(16 * count)
    async with trio.open_nursery() as nursery:
        device = kernel.device(nursery)
        kernel.end.send(request(FORGET_ALL, 4, body))
        await device.wait()
        assert device.pieces == 1
        device.close()
        with pytest.raises(trio.ClosedResourceError):
            await device.wait()
    kernel.end.close()
    os.close(kernel.session)


async def test_a_request_that_does_not_fit_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses a buffer that could be too small, whatever waits: libfuse would not find more."""
    kernel = Kernel()

    def readv(_: int, buffers: tuple[bytearray]) -> int:
        raise OSError(errno.EINVAL if len(buffers[0]) == LARGEST else 0, "too small")

    async with trio.open_nursery() as nursery:
        device = kernel.device(nursery)
        monkeypatch.setattr(os, "readv", readv)
        with pytest.raises(OSError, match="too small") as caught:
            await device.wait()
        assert caught.value.errno == errno.EINVAL
    device.close()
    kernel.end.close()
    os.close(kernel.session)


@pytest.mark.parametrize("max_write", [128 << 10, 1 << 20, 16 << 20])
def test_a_buffer_is_as_large_as_was_agreed(max_write: int) -> None:
    """fuse_init_out: major, minor, max_readahead, flags, max_background, congestion_threshold, max_write."""
    answer = OUT.pack(80, 0, 2) + struct.pack("=IIIIHHI", 7, 39, 1 << 17, 0, 12, 9, max_write) + bytes(40)
    assert max_write + 80 <= Agreement(b"", answer).largest_request <= max_write + 4096


async def test_copies_of_the_descriptor_stay_here() -> None:
    """No child process has one, before, in and after a step with libfuse."""
    async with served() as (kernel, device, _):
        found = [os.get_inheritable(number) for number in (device.kernel, kernel.session)]
        await step_by_step(kernel, device)
        found.append(os.get_inheritable(kernel.session))
        device.received()
        found.append(os.get_inheritable(kernel.session))
        assert not any(found)


async def test_however_many_reads_wait_all_else_is_answered() -> None:
    """Those of an endpoint that does not answer hold up nobody's bytes that are here, and no lookup."""
    count = 2000
    async with served() as (kernel, _, heard):
        for number in range(count):
            kernel.late[1, number, 1] = (b"z",)
            kernel.end.send(read_request(2 * number + 2, 1, number, 1))
            await trio.testing.wait_all_tasks_blocked()
        kernel.at_once[2, 0, 1] = (b"y",)
        kernel.end.send(read_request(2 * count + 2, 2, 0, 1))
        kernel.end.send(request(LOOKUP, 2 * count + 4))
        await trio.testing.wait_all_tasks_blocked()
        assert heard == [request(LOOKUP, 2 * count + 4)]
        assert kernel.said() == [reply(2 * count + 2, b"y"), reply(2 * count + 4, b"libfuse")]


@pytest.mark.parametrize(("number", "words"), [(errno.ENOENT, 0), (errno.ENODEV, 0), (errno.EINVAL, 1)])
async def test_nobody_waits_for_the_answer_any_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int, words: int
) -> None:
    """An answer to a request that was taken back, or of a mount that is gone, and a request that is gone when it is
    read, are nothing to say; whatever else the kernel says of an answer is, and the next one is answered."""
    whole, gone = os.readv, [OSError(errno.ENOENT, "taken back")]

    def readv(descriptor: int, buffers: tuple[bytearray]) -> int:
        if gone:
            raise gone.pop()
        return whole(descriptor, buffers)

    def writev(_: int, __: object) -> int:
        raise OSError(number, "nobody waits")

    async with served() as (kernel, _, heard):
        monkeypatch.setattr(os, "readv", readv)
        monkeypatch.setattr(os, "writev", writev)
        kernel.at_once[1, 0, 1] = (b"z",)
        kernel.end.send(read_request(2, 1, 0, 1))
        await trio.testing.wait_all_tasks_blocked()
        assert not gone
        assert len(caplog.records) == words
        monkeypatch.undo()
        kernel.end.send(request(LOOKUP, 4))
        await trio.testing.wait_all_tasks_blocked()
        assert heard == [request(LOOKUP, 4)]


async def test_the_end_of_the_mount_is_libfuses_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads from the kernel's descriptor then, and meets what we met."""
    kernel = Kernel()
    async with trio.open_nursery() as nursery:
        device = kernel.device(nursery)

        def readv(_: int, __: object) -> int:
            raise OSError(errno.ENODEV, "unmounted")

        monkeypatch.setattr(os, "readv", readv)
        await device.wait()
        kernel.end.close()
        assert os.read(kernel.session, 4096) == b""
    device.close()
    os.close(kernel.session)
