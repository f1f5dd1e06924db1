"""A server that sends exactly the bytes of a script, and keeps what it was asked; for what no real server can be made
to say.

Must not know what it says. Concurrency: `answer` is called in the threads of connections.
"""

import contextlib
import gc
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

PATIENCE = 20.0
"""Seconds that is waited for what happens at once; only a failure takes as long."""


@dataclass(frozen=True)
class Say:
    """An answer: bytes as they are sent, and events that are waited for in between."""

    parts: tuple[bytes | threading.Event, ...]
    close: bool = False


class RawServer:
    """On a port of the loopback, a thread for each connection. `answer` is given the head of each request. `requests`
    has the number of the connection and the head of each, in order."""

    def __init__(self, answer: Callable[[bytes], Say], tls: ssl.SSLContext | None = None) -> None:
        self._answer = answer
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[tuple[int, bytes]] = []
        self._open: list[socket.socket] = []
        self._waited_for: list[threading.Event] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(sock)
            thread = threading.Thread(target=self._converse, args=(len(self._open), sock), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _converse(self, number: int, plain: socket.socket) -> None:
        sock = plain
        try:
            if self._tls is not None:
                sock = self._open[number - 1] = self._tls.wrap_socket(plain, server_side=True)
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    if not (piece := sock.recv(65536)):
                        return
                    data += piece
                request, _, data = data.partition(b"\r\n\r\n")
                self.requests.append((number, request))
                said = self._answer(request)
                for part in said.parts:
                    if isinstance(part, bytes):
                        sock.sendall(part)
                    else:
                        self._waited_for.append(part)
                        part.wait(PATIENCE)
                if said.close:
                    return
        except OSError:
            pass  # the client went away, which is what many tests are about
        finally:
            sock.close()
            plain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(PATIENCE)
        for event in self._waited_for:
            event.set()
        for sock in self._open:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join(PATIENCE)


def scripted(*answers: Say | bytes, tls: ssl.SSLContext | None = None) -> RawServer:
    """A server that gives these answers one after another, whatever it is asked."""
    left = [one if isinstance(one, Say) else Say((one,)) for one in reversed(answers)]
    return RawServer(lambda _: left.pop(), tls)


def answer(body: bytes, *headers: str, status: str = "HTTP/1.1 206 Partial Content", length: int | None = -1) -> bytes:
    """Head and body. `length` is what it announces: None nothing, -1 the truth."""
    said = [] if length is None else [f"Content-Length: {len(body) if length < 0 else length}"]
    return "\r\n".join([status, *said, *headers, "", ""]).encode() + body


def chunked(*chunks: bytes) -> bytes:
    """These chunks, without the last one."""
    return b"".join(f"{len(one):x};x=y\r\n".encode() + one + b"\r\n" for one in chunks)


LAST = b"0\r\n\r\n"
CHUNKED = ("Transfer-Encoding: chunked",)


@contextlib.contextmanager
def nothing_left_open() -> Iterator[None]:
    """Inside, no socket may be closed by being forgotten. What was there before is not looked at for garbage, which
    takes half a second where many tests were run."""
    gc.freeze()
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", ResourceWarning)
            yield
            gc.collect()
    finally:
        gc.unfreeze()
    assert [str(one.message) for one in seen if issubclass(one.category, ResourceWarning)] == []
