"""The processes that served a mount before this one, and still answer what they have read.

Its job: notice when one has answered all, or is gone before that, and then have the kernel ask this process for what is
left, so that no reader waits for ever. Must not know what they answer.

Each is heard over the socket over which it handed the mount over. It says one word more, and its end says that it is
gone; ours says to it that nobody serves the mount any more.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Iterable, Mapping

import trio

from lazyfs.errors import SetupError
from lazyfs.filesystem.session import Session
from lazyfs.service.channel import Channel

log = logging.getLogger(__name__)

ANSWERED = "answered"
"""What a process says that has answered all it had read."""


class Formers:
    """Those of one mount, which `session` serves now. Loop thread only."""

    def __init__(self, session: Session, nursery: trio.Nursery) -> None:
        self._session = session
        self._nursery = nursery
        self._followed: dict[int, tuple[Channel, trio.CancelScope]] = {}

    def follow(self, channel: Channel) -> None:
        """Wait for what the process at the other end says last."""
        scope = trio.CancelScope()
        self._followed[channel.descriptor] = channel, scope
        self._nursery.start_soon(self._follow, channel, scope)

    async def _follow(self, channel: Channel, scope: trio.CancelScope) -> None:
        answered = False
        with scope, contextlib.suppress(SetupError):
            await channel.receive(ANSWERED)
            answered = True
        await channel.close()
        if scope.cancelled_caught:
            return
        self._followed.pop(channel.descriptor, None)
        if answered:
            log.info("the process that served the mount before has answered all that it had read")
        else:
            log.warning("the process that served the mount before is gone; the kernel is told to ask this one again")
            try:
                await self._session.ask_again()
            except SetupError as error:
                log.error("%s", error)

    def copies(self) -> dict[int, int]:
        """A copy of each one's descriptor, for the next process, and the number that it has here."""
        return {os.dup(number): number for number in self._followed}

    def leave(self, copies: Mapping[int, int]) -> list[int]:
        """Another process follows them from here on: those of its copies that are still to be followed."""
        left = [copy for copy, number in copies.items() if number in self._followed]
        for _, scope in self._followed.values():
            scope.cancel()
        self._followed.clear()
        return left


def taken_over(copies: Iterable[int], left: Iterable[int]) -> list[Channel]:
    """In the next process: those that are to be followed; the others are closed."""
    followed = set(left)
    found = []
    for number in copies:
        end = socket.socket(fileno=number)
        if number in followed:
            found.append(Channel(end))
        else:
            end.close()
    return found
