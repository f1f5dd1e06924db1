"""A mount handed over to the next process, which may run newer code: `lazyfs upgrade`.

Its job: start the next process, let it become ready beside this one, give it what the kernel counts on
(`filesystem.moving`) in the moment in which nobody reads requests, and go on as if nothing had been if it fails at any
step before it serves. Must not know what the mount is made of.

Both sides speak JSON, a message a line, over a socket that the next process inherits with the mount's descriptor:

    first  -> next    hello     where the mount is, and which descriptor it is
    next   -> first   prepared  sources listed, cache open
    first  -> next    state     nobody reads requests now; all but reads are answered
    next   -> first   serving   it reads requests
    first  -> next    yours     sockets and logs are closed here: open yours; and who else still answers
    first  -> next    answered  all that was read here

What the first has read it answers itself, over the same descriptor, and ends when the last of it is answered. If it
ends before, the next process has the kernel ask again (`formers.py`); if nobody serves the mount any more, so does it.

Why no process of systemd keeps the descriptor for a daemon that crashes (FDSTORE=1): the numbers that the kernel goes
on with are known to nobody any more, and to write each of them down before it is given out would cost every lookup a
write that survives a crash. Closed with the daemon, readers get an error at once, the next mount clears the place.
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
from lazyfs.filesystem.session import LOOK, Session
from lazyfs.service.channel import Channel
from lazyfs.service.formers import ANSWERED, Formers, taken_over
from lazyfs.service.notify import listens, notify

log = logging.getLogger(__name__)

PREPARING = 120.0
"""Seconds for the next process to import, open the cache, and list its sources, while this one serves."""

SWITCHING = 20.0
"""Seconds without anybody who reads requests: for the last answers but those to reads, and for the next process to
restore and begin. What is asked meanwhile waits in the kernel."""

SLOW_ANSWERS = 120.0
"""Seconds that answers which S3 is slow to give, but for those to reads, are waited for while the mount is served."""

PAUSE = 0.5
"""Seconds without anybody who reads requests for the answers that were begun just before."""

PAUSES = 5
"""How often that is tried: readers wait each time."""

LAST_READS = 2.0
"""Seconds that an end waits for reads under way; their readers get an error after that, as mapped ones SIGBUS."""

HIDDEN_OPTIONS = ("--successor-fd", "--ready-fd")

# ---- the process that serves the mount now


def successor_command(python: str, arguments: list[str], descriptor: int) -> list[str]:
    """The same command once more, for a process that inherits `descriptor`."""
    same = [word for word in arguments if not word.startswith(HIDDEN_OPTIONS)]
    at = same.index("mount") + 1
    # -P: not what is called lazyfs in whatever directory the first one was started in.
    return [python, "-P", "-m", "lazyfs", *same[:at], f"--successor-fd={descriptor}", *same[at:]]


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
    called when the other process serves, and returns once what cannot be shared is closed. `formers` are handed over as
    well. `why_not` says, in a sentence, why this process cannot; else it is empty."""

    def __init__(
        self,
        *,
        mountpoint: str,
        session: Session,
        idle: Callable[[], bool],
        state: Callable[[], Mapping[str, Any]],
        moved: Callable[[int], Awaitable[None]],
        formers: Formers,
        why_not: str,
        nursery: trio.Nursery,
    ) -> None:
        self._mountpoint = mountpoint
        self._session = session
        self._idle = idle
        self._state = state
        self._moved = moved
        self._formers = formers
        self._why_not = why_not
        self._nursery = nursery
        self._successor: Channel | None = None
        self._handed_over = trio.Event()
        self._step = ""
        self._trouble = ""

    def ask(self, python: str) -> dict[str, str]:
        """Begin to, with this interpreter, in hexadecimal; with this process's own if that is empty. `SetupError` if
        that cannot be."""
        if self._why_not:
            raise SetupError(f"this mount cannot be handed over: {self._why_not}")
        try:
            interpreter = os.fsdecode(bytes.fromhex(python)) or sys.executable
        except ValueError:
            raise SetupError(f"{python!r} is no path in hexadecimal; use `lazyfs upgrade`, which writes one") from None
        if not self._step:
            self._step, self._trouble = "starting", ""
            self._nursery.start_soon(self._run, interpreter)
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
        kernel, copies = os.dup(self._session.descriptor), self._formers.copies()
        passed = (theirs.fileno(), kernel, *copies)
        try:
            command = successor_command(python, sys.argv[1:], theirs.fileno())
            environment = {name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"}
            process = await trio.to_thread.run_sync(_started, command, environment, passed)
        finally:
            theirs.close()
            for number in (kernel, *copies):
                os.close(number)
        channel, told = Channel(ours), False
        try:
            with trio.fail_after(PREPARING):
                hello = {"mountpoint": self._mountpoint, "descriptor": kernel, "formers": list(copies)}
                await channel.send("hello", **hello, version=__version__)
                await channel.receive("prepared")
            await self._quiet()
            told = True
            await self._switch(channel)
        except BaseException:
            process.kill()
            await trio.to_thread.run_sync(process.wait)
            await channel.close()
            if told:  # it may have read some of what was asked since
                try:
                    await self._session.ask_again()
                except SetupError as error:
                    log.error("%s", error)
            raise
        log.info("the mount is served by process %d now; this one answers what it has read", process.pid)
        self._successor = channel
        await self._moved(process.pid)
        with contextlib.suppress(SetupError):
            await channel.send("yours", formers=self._formers.leave(copies))
        self._handed_over.set()

    async def _quiet(self) -> None:
        """Return when nobody reads requests, and all that was read but reads is answered. While S3 is slow to answer,
        the mount is served."""
        with trio.move_on_after(SLOW_ANSWERS):
            for _ in range(PAUSES):
                self._step = "waiting"
                while not self._idle():  # noqa: ASYNC110 - nothing else asks, and no call shall pay for it
                    await trio.sleep(LOOK)
                self._step = "switching"
                if await self._paused():
                    return
        raise SetupError("S3 is slow to answer who looks up names just now; try again later")

    async def _paused(self) -> bool:
        """Read no more requests, if all but reads is answered soon."""
        await self._session.pause()
        quiet = False
        try:
            with trio.move_on_after(PAUSE):
                while not self._idle():  # noqa: ASYNC110 - as above
                    await trio.sleep(LOOK)
                quiet = True
        finally:
            if not quiet:
                self._session.resume()
        return quiet

    async def _switch(self, channel: Channel) -> None:
        try:
            with trio.fail_after(SWITCHING):
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

    async def finish(self, ended: trio.Event, asked: trio.Event, give_up: Callable[[], None]) -> None:
        """After the mount is handed over: return when what was read here is answered, which sets `ended`, and say so.
        `give_up` has the rest not answered: when this process is `asked` to end, and when the other one has ended and
        nobody serves the mount."""
        await self._handed_over.wait()
        channel, all_answered = self._successor, True
        assert channel is not None  # noqa: S101 - the mount is handed over

        async def end_when_asked() -> None:
            nonlocal all_answered
            await asked.wait()
            all_answered = False
            give_up()

        async def end_with_it() -> None:
            await channel.gone()
            log.info("the process that serves the mount has ended, and so does this one")
            with trio.move_on_after(LAST_READS):
                await ended.wait()
            give_up()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_when_asked)
            nursery.start_soon(end_with_it)
            await ended.wait()
            nursery.cancel_scope.cancel()
        if all_answered:
            with contextlib.suppress(SetupError):
                await channel.send(ANSWERED)
        await channel.close()


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
            self._copies = [int(number) for number in hello.get("formers", ())]
            for number in (self.descriptor, *self._copies):
                os.set_inheritable(number, False)
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

    async def serving(self, formers: Formers) -> None:
        """Say that this process serves, and wait until the other one has closed what cannot be shared. It and those
        before it that still answer are `formers` from here on; one that is gone leaves the mount to this process."""
        assert self._channel is not None  # noqa: S101 - `prepared` came before
        left = self._copies
        with contextlib.suppress(SetupError):
            await self._channel.send("serving")
            left = (await self._channel.receive("yours")).get("formers", [])
        for channel in [self._channel, *taken_over(self._copies, left)]:
            formers.follow(channel)

    async def failed(self, error: Exception) -> None:
        """Say why not."""
        if self._channel is not None:
            with contextlib.suppress(SetupError):
                await self._channel.send("failed", words=str(error))


def now_main(process: int) -> None:
    """Tell systemd whose process the service is now (sd_notify(3))."""
    notify(f"MAINPID={process}")
