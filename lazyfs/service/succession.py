"""A mount handed over to the next process, which may run newer code: `lazyfs upgrade`.

Its job: start the next process, let it become ready beside this one, give it what the kernel counts on
(`filesystem.moving`) in the moment in which nobody reads requests, and go on as if nothing had been if it fails at any
step before it serves. Must not know what the mount is made of.

Both sides speak JSON, a message a line, over a socket that the next process inherits with the mount's descriptor:

    first  -> next    hello     where the mount is, and which descriptor it is
    next   -> first   prepared  sources listed, cache open
    first  -> next    state     nobody reads requests now; all but reads are answered
    next   -> first   serving   it reads requests
    first  -> next    yours     sockets and logs are closed here: open yours

What the first has read it answers itself, over the same descriptor, and ends when the last of it is answered.

Why no process of systemd keeps the descriptor for a daemon that crashes (FDSTORE=1): the kernel waits for answers to
what the dead one had read, and while anybody holds the connection it waits for ever; and the numbers that the kernel
goes on with are known to nobody any more. Closed with the daemon, readers get an error at once and the next mount
clears the place.
"""

import base64
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from lazyfs import __version__
from lazyfs.errors import SetupError
from lazyfs.filesystem.agreement import Agreement
from lazyfs.filesystem.session import Session
from lazyfs.service.notify import listens, notify

log = logging.getLogger(__name__)

PREPARING = 120.0
"""Seconds for the next process to import, open the cache, and list its sources, while this one serves."""

SWITCHING = 20.0
"""Seconds without anybody who reads requests: for the last answers but those to reads, and for the next process to
restore and begin. What is asked meanwhile waits in the kernel."""

LOOK = 0.002
"""Seconds between two looks whether all is answered."""

HIDDEN_OPTIONS = ("--successor-fd", "--ready-fd")

LARGEST_STATE = 1 << 30

Message = dict[str, Any]


class Channel:
    """One side's end of the socket."""

    def __init__(self, end: socket.socket) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(end))
        self._buffer = bytearray()

    async def send(self, name: str, **more: object) -> None:
        """A message. `SetupError` if the other side is gone."""
        try:
            await self._stream.send_all(json.dumps({"message": name, **more}).encode() + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise SetupError("the other process has ended") from None

    async def receive(self, name: str) -> Message:
        """The next message, which must be this one. `SetupError` with what the other side says instead, or if it has
        ended."""
        while b"\n" not in self._buffer:
            try:
                more = await self._stream.receive_some(1 << 20)
            except trio.BrokenResourceError:
                more = b""
            if not more or len(self._buffer) > LARGEST_STATE:
                raise SetupError("the other process has ended; its log says why")
            self._buffer += more
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = bytearray(rest)
        found = dict(json.loads(line))
        if found["message"] != name:
            raise SetupError(str(found.get("words") or f"the other process says {found['message']!r}"))
        return found

    async def close(self) -> None:
        """No more messages."""
        with contextlib.suppress(trio.BrokenResourceError):
            await self._stream.aclose()


# ---- the process that serves the mount now


def successor_command(python: str, arguments: list[str], descriptor: int) -> list[str]:
    """The same command once more, for a process that inherits `descriptor`."""
    same = [word for word in arguments if not word.startswith(HIDDEN_OPTIONS)]
    at = same.index("mount") + 1
    return [python, "-m", "lazyfs", *same[:at], f"--successor-fd={descriptor}", *same[at:]]


def why_not(*, handed: bool, arguments: list[str]) -> str:
    """Why this process cannot hand its mount over, in a sentence; empty if it can."""
    if handed:
        return "`lazyfs mount-fd` takes the mount away when its command ends; start both anew"
    if os.getpid() == 1:
        return "it is the first process of its container, which ends with it; start another container"
    if not listens() and not any(word.startswith(HIDDEN_OPTIONS) for word in arguments):
        return (
            "it runs in somebody's foreground, who would take its end for the mount's; "
            "run it in the background or as a service of systemd"
        )
    return ""


class Predecessor:
    """Hands a mount over. `idle`: all but reads is answered. `state` is what the kernel counts on then. `moved` is
    called when the other process serves, and returns once what cannot be shared is closed. `why_not` says, in a
    sentence, why this process cannot; else it is empty."""

    def __init__(
        self,
        *,
        mountpoint: str,
        session: Session,
        idle: Callable[[], bool],
        state: Callable[[], Mapping[str, Any]],
        moved: Callable[[int], Awaitable[None]],
        why_not: str,
        nursery: trio.Nursery,
    ) -> None:
        self._mountpoint = mountpoint
        self._session = session
        self._idle = idle
        self._state = state
        self._moved = moved
        self._why_not = why_not
        self._nursery = nursery
        self._step = ""
        self._trouble = ""

    def ask(self, python: str) -> dict[str, str]:
        """Begin to, with this interpreter, in hexadecimal; with this process's own if that is empty. `SetupError` if
        that cannot be."""
        if self._why_not:
            raise SetupError(f"this mount cannot be handed over: {self._why_not}")
        if not self._step:
            self._step, self._trouble = "starting", ""
            self._nursery.start_soon(self._run, os.fsdecode(bytes.fromhex(python)) or sys.executable)
        return self.progress()

    def progress(self) -> dict[str, str]:
        """What is being done, empty for nothing, and why the last attempt came to nothing."""
        return {"step": self._step, "trouble": self._trouble}

    async def _run(self, python: str) -> None:
        try:
            await self._hand_over(python)
        except (SetupError, OSError, trio.TooSlowError) as error:
            self._trouble = str(error) or "it took too long"
            log.error("the mount is not handed over, and goes on: %s", self._trouble)
        finally:
            self._step = ""

    async def _hand_over(self, python: str) -> None:
        ours, theirs = socket.socketpair()
        kernel = os.dup(self._session.descriptor)
        try:
            command = successor_command(python, sys.argv[1:], theirs.fileno())
            environment = {name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"}
            process = await trio.to_thread.run_sync(_started, command, environment, (theirs.fileno(), kernel))
        finally:
            theirs.close()
            os.close(kernel)
        channel = Channel(ours)
        try:
            with trio.fail_after(PREPARING):
                await channel.send("hello", mountpoint=self._mountpoint, descriptor=kernel, version=__version__)
                await channel.receive("prepared")
            await self._switch(channel)
        except BaseException:
            process.kill()
            await trio.to_thread.run_sync(process.wait)
            raise
        log.info("the mount is served by process %d now; this one answers what it has read", process.pid)
        await self._moved(process.pid)
        with contextlib.suppress(SetupError):
            await channel.send("yours")
        await channel.close()

    async def _switch(self, channel: Channel) -> None:
        self._step = "switching"
        self._session.pause()
        try:
            with trio.fail_after(SWITCHING):
                # What was about to be read is read in the loop's next turns.
                await trio.sleep(LOOK)
                while not self._idle():  # noqa: ASYNC110 - nothing else asks, and no call shall pay for it
                    await trio.sleep(LOOK)
                agreement = self._session.agreement
                assert agreement is not None  # noqa: S101 - the mount is served
                await channel.send(
                    "state",
                    request=base64.b64encode(agreement.request).decode(),
                    answer=base64.b64encode(agreement.answer).decode(),
                    state=self._state(),
                )
                await channel.receive("serving")
        except BaseException:
            self._session.resume()
            raise
        self._session.give_up()


def _started(command: list[str], environment: dict[str, str], passed: tuple[int, ...]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, pass_fds=passed)


# ---- the process that takes the mount over


class Successor:
    """Takes over the mount that another process serves. Made before any loop runs."""

    def __init__(self, descriptor: int) -> None:
        """`descriptor` is the socket. `SetupError` unless it is one, with a process that hands a mount over."""
        try:
            os.set_inheritable(descriptor, False)
            self._socket = socket.socket(fileno=descriptor)
            words = b""
            while not words.endswith(b"\n"):
                more = self._socket.recv(1)
                if not more:
                    raise SetupError("nobody hands a mount over")
                words += more
            hello = json.loads(words)
            self.mountpoint, self.descriptor = str(hello["mountpoint"]), int(hello["descriptor"])
            os.set_inheritable(self.descriptor, False)
        except (OSError, ValueError, KeyError, TypeError):
            raise SetupError("nobody hands a mount over; `lazyfs upgrade` has one handed over") from None
        self._channel: Channel | None = None

    async def prepared(self) -> tuple[Agreement, Mapping[str, Any]]:
        """Say that this process could serve, and get what it needs to."""
        self._channel = Channel(self._socket)
        await self._channel.send("prepared", version=__version__)
        found = await self._channel.receive("state")
        agreement = Agreement(base64.b64decode(found["request"]), base64.b64decode(found["answer"]))
        return agreement, found["state"]

    async def serving(self) -> None:
        """Say that this process serves, and wait until the other one has closed what cannot be shared."""
        assert self._channel is not None  # noqa: S101 - `prepared` came before
        await self._channel.send("serving")
        with contextlib.suppress(SetupError):
            await self._channel.receive("yours")
        await self._channel.close()

    async def failed(self, error: Exception) -> None:
        """Say why not."""
        if self._channel is not None:
            with contextlib.suppress(SetupError):
                await self._channel.send("failed", words=str(error))


def now_main(process: int) -> None:
    """Tell systemd whose process the service is now (sd_notify(3))."""
    notify(f"MAINPID={process}")
