"""What two processes of one mount say to each other: JSON, a message a line, over a socket that one has inherited.

Must not know what is said.
"""

import contextlib
import json
import socket
from typing import Any

import trio

from lazyfs.errors import SetupError

LARGEST_STATE = 1 << 30
"""Bytes of a message."""

Message = dict[str, Any]


class Channel:
    """One side's end of the socket."""

    def __init__(self, end: socket.socket) -> None:
        self.descriptor = end.fileno()
        """The number of the socket."""
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
        more: bytes | bytearray = self._buffer
        while b"\n" not in more:
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

    async def gone(self) -> None:
        """Return when the other side has closed its end; whatever it says before that is not heard."""
        with contextlib.suppress(trio.BrokenResourceError):
            while await self._stream.receive_some(1 << 10):
                pass

    async def close(self) -> None:
        """No more messages."""
        with contextlib.suppress(trio.BrokenResourceError):
            await self._stream.aclose()
