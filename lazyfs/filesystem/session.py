"""The FUSE session of a process: mounted or taken over, answered, ended or handed over. With `fuse.py` the only
importer of pyfuse3.

Its job: begin and end what the kernel sees; what is answered is `fuse.Operations`'s. Loop thread only.

Handing over: a session can stop reading requests while those that it has read are still answered, over the same
descriptor as before; meanwhile another process reads the next ones from a copy of it, or this one goes on.
`pyfuse3.terminate` is no way to stop for that: libfuse drops what it reads after it (fuse_lowlevel.c,
fuse_session_receive_buf: `if (fuse_session_exited(se)) return 0`), and who asked would wait for ever. So pyfuse3's
tasks are told instead, when they want to wait for the next request, that there will be none; each ends then. They wait
for it in `device`, which answers the reads among the requests by itself.
"""

import contextlib
import os
import select
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pyfuse3
import trio

from lazyfs import errors
from lazyfs.filesystem.agreement import AT_UNIQUE, UNIQUE, Agreement, Introduction, first_request, send, send_again
from lazyfs.filesystem.device import Device
from lazyfs.filesystem.fuse import Operations
from lazyfs.filesystem.options import advice
from lazyfs.filesystem.passthrough import completed_init

MAX_TASKS = 512
"""Requests but reads that are handled at once; while all of them wait, nothing is read from the kernel."""

LOOK = 0.002
"""Seconds between two looks whether all is answered."""

TURNS = 4
"""Turns of the loop after which every task that was about to read has read."""

MOST_TURNS = 2048
"""Turns of the loop after which libfuse has got all pieces of what was read, unless all tasks are busy: then inodes
that the kernel forgot just now are remembered, which costs their memory."""

NOBODYS = 1 << 63
"""The number of a request that the kernel did not send: its own count from 2 upwards, in steps of 2."""


class Session:
    """The one FUSE session of this process, between `__init__` (mounted) and `close` (unmounted)."""

    def __init__(
        self,
        operations: Operations,
        mountpoint: str,
        options: set[str],
        *,
        taken: Agreement | None = None,
        unmount: Callable[[], None] | None = None,
    ) -> None:
        """Mount at `mountpoint`, or serve the mount behind /dev/fd/N: a new one, or one that another process served
        with this agreement (`taken`). `unmount`: how a mount is taken away at the end that this libfuse did not make;
        None for one that is not ours."""
        self._operations = operations
        self._options = options
        self._unmount = unmount
        self._own = taken is not None
        self._nursery: trio.Nursery | None = None
        self._device: Device | None = None
        self._paused: trio.Event | None = None
        self.agreement = taken
        self._begin(mountpoint)
        if taken is None:
            request = first_request(self.descriptor)
        else:
            request = taken.request[:AT_UNIQUE] + UNIQUE.pack(NOBODYS) + taken.request[AT_UNIQUE + 8 :]
        self._introduction = Introduction(self.descriptor, request)
        self._request = request

    def _begin(self, mountpoint: str) -> None:
        before = descriptors()
        try:
            pyfuse3.init(self._operations, mountpoint, self._options)
        except (RuntimeError, OSError) as error:
            raise errors.SetupError(f"cannot mount at {mountpoint}: {error}; {advice(self._options)}") from None
        named = mountpoint.removeprefix("/dev/fd/")
        self.descriptor = int(named) if named.isdigit() else (descriptors() - before).pop()
        """What requests are read from and answered to."""

    async def run(self) -> None:
        """Answer the kernel until the filesystem is unmounted or `stop` is called, and all that was read is answered.
        `SetupError` if kernel and libfuse do not agree."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._serve()

    async def _serve(self) -> None:
        await self._agree()
        self._device = self._open_device()
        self._operations.begun.set()
        await self._answer()

    def _open_device(self) -> Device:
        operations = self._operations
        nursery, agreement = self._nursery, self.agreement
        assert nursery is not None  # noqa: S101 - this runs in it
        assert agreement is not None  # noqa: S101 - after `_agree`
        device = Device(
            self.descriptor,
            now=operations.read_now,
            done=operations.read_done,
            later=operations.read_later,
            quiet=operations.quiet,
            nursery=nursery,
            largest=agreement.largest_request,
        )
        operations.received = device.received
        if operations.passthrough is not None:
            operations.passthrough.serve(device)

        async def wait(_: object) -> None:
            await device.wait()

        def notify_closing(_: object) -> None:
            device.pause()

        # As pyfuse3.asyncio puts its own there: trio as pyfuse3's tasks see it.
        _pyfuse3.trio = _copied(
            trio, lowlevel=_copied(trio.lowlevel, wait_readable=wait, notify_closing=notify_closing)
        )
        return device

    async def _answer(self) -> None:
        await _main()
        if self._paused is not None:
            await self._paused.wait()

    async def _agree(self) -> None:
        introduction, ended = self._introduction, trio.Event()

        async def answer_one() -> None:
            await _main()
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_one)
            answer = await introduction.answer()
            while not ended.is_set():  # its tasks wait one after the other
                trio.lowlevel.notify_closing(self.descriptor)
                await trio.lowlevel.checkpoint()
        if self.agreement is None:
            self.agreement = Agreement(self._request, answer)
            passthrough = self._operations.passthrough
            send(introduction.kernel, answer, None if passthrough is None else completed_init)
        elif not self.agreement.same(answer):
            introduction.close()
            raise errors.SetupError("this libfuse agrees with the kernel on other terms than the one before it")
        introduction.end()

    async def unmounted(self) -> None:
        """Return once the kernel has let go of the mount; `run` still waits for the requests that it handles then."""
        with select.epoll() as gone:
            for number in descriptors():
                with contextlib.suppress(OSError):
                    # No events but EPOLLERR, which fs/fuse/dev.c gives when the connection is gone.
                    gone.register(number, 0)
            await trio.lowlevel.wait_readable(gone.fileno())

    def stop(self) -> None:
        """Make `run` return."""
        pyfuse3.terminate()

    async def pause(self) -> None:
        """Read no more requests; those that were read are answered. `run` goes on until `resume` or `give_up`."""
        self._paused = trio.Event()
        if self._device is not None:
            self._device.pause()
        with trio.CancelScope(shield=True):
            for turn in range(MOST_TURNS):
                # A task that was told of a request before this does read it.
                if turn >= TURNS and not (self._device is not None and self._device.pieces):
                    break
                await trio.lowlevel.checkpoint()

    def give_up(self) -> None:
        """After `pause`: `run` returns when all is answered."""
        if self._paused is not None:
            self._paused.set()

    def resume(self) -> None:
        """After `pause`: read requests again, unless the session was ended meanwhile."""
        if self._nursery is None or self._paused is None:
            raise RuntimeError("a session that was not paused cannot go on")
        paused, self._paused = self._paused, None
        if self._device is None:
            return
        self._device.resume()
        self._nursery.start_soon(self._answer)
        paused.set()

    async def ask_again(self) -> None:
        """Have the kernel ask once more what a process that is gone has read and not answered. It asks all else that is
        not answered once more as well, so this waits for what may not be done twice: all but reads. `SetupError` if the
        kernel cannot."""
        while self._operations.calls.under_way:  # noqa: ASYNC110 - nothing else asks, and no call shall pay for it
            await trio.sleep(LOOK)
        if self._device is None:
            return  # the session has ended, and its descriptor may be another file by now
        try:
            send_again(self.descriptor)
        except OSError as error:
            raise errors.SetupError(
                f"the kernel cannot ask again what a process that is gone had begun (from Linux 6.9 on it can: "
                f"{error.strerror}); whoever waits for that waits until the mount is aborted, see "
                "/sys/fs/fuse/connections"
            ) from None

    def close(self) -> None:
        """Unmount, if that has not happened, and end the session."""
        if self._own and self._unmount is not None:
            self._unmount()
        self._let_go()
        pyfuse3.close(unmount=True)

    def leave(self) -> None:
        """End the session in this process only: another one serves the mount."""
        self._let_go()
        pyfuse3.close(unmount=False)

    def _let_go(self) -> None:
        if self._device is not None:
            self._device.close()
            self._device = None
            _pyfuse3.trio = trio
            if self._operations.passthrough is not None:
                self._operations.passthrough.leave()


def _copied(module: ModuleType, **changed: object) -> SimpleNamespace:
    return SimpleNamespace(**{name: getattr(module, name) for name in dir(module)} | changed)


_pyfuse3: Any = pyfuse3

async def _main() -> None:
    await cast(Any, pyfuse3.main)(max_tasks=MAX_TASKS)


def descriptors() -> set[int]:
    """Those of /dev/fuse that this process has."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.add(int(name))
    return found
