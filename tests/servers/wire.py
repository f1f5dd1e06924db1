"""HTTP/1.1 over one accepted socket: reading requests, sending bodies from memory or by sendfile, at a given
pace.

Its job: few system calls and no copies. Must not know S3, apart from the aws-chunked encoding, which is a
framing. One thread uses a `Wire`; `abort` may be called from another.
"""

import contextlib
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote_to_bytes

PIECE_SIZE = 256 * 1024
"""Bytes sent at once where the pace is limited or where TLS needs them in memory."""

LONGEST_HEAD = 64 * 1024
"""Bytes of request line and headers; a Swift or AWS takes 8 KiB of each."""


class BadRequest(Exception):
    """The client does not speak HTTP/1.1 as this server knows it. The connection ends."""


@dataclass(frozen=True, slots=True)
class Head:
    """Request line and headers. `path` is decoded and as the client sent it: no dot segment is resolved. `target` is
    path and query as they came, for who has to send them on."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    target: str


def parse_head(raw: bytes) -> Head:
    """Parse what came before the empty line.

    A target may be in absolute form (RFC 9112 3.2.2; some SDKs send it).
    """
    lines = raw.split(b"\r\n")
    try:
        method, target, _ = lines[0].decode("ascii").split(" ")
    except ValueError as error:
        raise BadRequest(f"request line {lines[0]!r}") from error
    if not target.startswith("/"):
        scheme, found, rest = target.partition("://")
        slash = rest.find("/")
        if scheme not in ("http", "https") or not found:
            raise BadRequest(f"target {target!r}")
        target = rest[slash:] if slash >= 0 else "/"
    path, _, query = target.partition("?")
    headers = {}
    for line in lines[1:]:
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    try:
        decoded = unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"path {path!r}") from error
    return Head(method, decoded, dict(parse_qsl(query, keep_blank_values=True)), headers, target)


def decode_aws_chunked(body: bytes) -> tuple[bytes, dict[str, str]]:
    """The bytes and the trailers of an aws-chunked body. Signatures of chunks are not checked."""
    parts = []
    position = 0
    while True:
        line, position = _line(body, position)
        size = _number(line.partition(b";")[0], 16)
        if size == 0:
            break
        parts.append(body[position : position + size])
        position += size + 2
    trailers = {}
    while position < len(body):
        line, position = _line(body, position)
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            trailers[name.strip().lower()] = value.strip()
    return b"".join(parts), trailers


def _number(text: str | bytes, base: int) -> int:
    try:
        return int(text, base)
    except ValueError as error:
        raise BadRequest(f"length {text!r}") from error


def _line(body: bytes, position: int) -> tuple[bytes, int]:
    end = body.find(b"\r\n", position)
    return (body[position:], len(body)) if end < 0 else (body[position:end], end + 2)


class Wire:
    """One connection. `body_sent` counts the bytes of the current answer's body."""

    def __init__(self, sock: socket.socket, stopping: threading.Event) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._stopping = stopping
        self._received = b""
        self.body_sent = 0

    def secure(self, context: ssl.SSLContext) -> None:
        """The TLS handshake. From here on bodies are copied through user space."""
        # Two steps, so that `abort` finds the socket that is in use.
        self._socket = secured = context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
        secured.do_handshake()

    def read_head(self) -> Head | None:
        """The next request; None when the client has closed the connection."""
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            if len(self._received) > LONGEST_HEAD:
                raise BadRequest("head too long")
            if not self._receive():
                return None
        raw, self._received = self._received[:end], self._received[end + 4 :]
        return parse_head(raw)

    def read_body(self, head: Head) -> bytes:
        """The body of a request, freed of its transfer coding, not of aws-chunked."""
        if head.headers.get("expect", "").lower() == "100-continue":
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if head.headers.get("transfer-encoding", "").lower() != "chunked":
            return self._take(_number(head.headers.get("content-length") or "0", 10))
        parts = []
        while size := _number(self._take_line().partition(b";")[0], 16):
            parts.append(self._take(size))
            self._take_line()
        while self._take_line():
            pass
        return b"".join(parts)

    def send(self, head: bytes, more: bool) -> None:
        """The head of an answer; with `more` the kernel waits for a body to fill the segment (MSG_MORE)."""
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.sendall(head)
        else:
            self._socket.sendall(head, socket.MSG_MORE if more else 0)

    def send_body(self, content: bytes | Path, start: int, stop: int, rate: Callable[[], float | None]) -> None:
        """Bytes [start, stop) of `content`, at `rate()` bytes per second, which may change meanwhile; None is
        no limit.

        OSError if the client goes away, and if the file is shorter than it was (the answer cannot be
        completed).
        """
        if start >= stop:
            return
        if isinstance(content, bytes):
            view = memoryview(content)
            self._paced(start, stop, rate, lambda offset, count: self._send_some(view[offset : offset + count]))
            return
        file = os.open(content, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if isinstance(self._socket, ssl.SSLSocket):
                buffer = memoryview(bytearray(min(PIECE_SIZE, stop - start)))

                def copy(offset: int, count: int) -> int:
                    return self._send_some(buffer[: os.preadv(file, [buffer[:count]], offset)])

                self._paced(start, stop, rate, copy)
            else:
                out = self._socket.fileno()
                self._paced(start, stop, rate, lambda offset, count: os.sendfile(out, file, offset, count))
        finally:
            os.close(file)

    def _paced(self, start: int, stop: int, rate: Callable[[], float | None], some: Callable[[int, int], int]) -> None:
        due = time.monotonic()
        while start < stop:
            limit = rate()
            count = stop - start
            if limit:
                # Pieces of at most 10 ms, so that the client sees a stream and not bursts.
                count = min(count, PIECE_SIZE, max(1024, int(limit / 100)))
            sent = some(start, count)
            if sent == 0:
                raise ConnectionAbortedError("the file is shorter than it was")
            start += sent
            self.body_sent += sent
            if limit:
                # Time overslept is made up for, up to 50 ms; time that the client took is not.
                due = max(due + sent / limit, time.monotonic() - 0.05)
                self._rest(due - time.monotonic())

    def _rest(self, seconds: float) -> None:
        if seconds > 0 and self._stopping.wait(seconds):
            raise ConnectionAbortedError("the server stops")

    def _send_some(self, data: memoryview) -> int:
        if isinstance(self._socket, ssl.SSLSocket):
            return self._socket.send(data[:PIECE_SIZE])
        return self._socket.send(data)

    def stall(self, until: threading.Event | None) -> bool:
        """Send nothing until the event is set (True), or the client goes away or the server stops (False)."""
        poller = select.poll()
        poller.register(self._socket.fileno(), select.POLLRDHUP)
        while not self._stopping.is_set():
            if until is not None and until.wait(0.01):
                return True
            if poller.poll(0 if until is not None else 10):
                return False
        return False

    def reset(self) -> None:
        """Make the close an RST: what was sent and not yet read by the client is lost to it."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def abort(self) -> None:
        """Wake the thread that uses this wire; everything it does from now on fails."""
        with contextlib.suppress(OSError):
            # Of the plain socket: SSLSocket.shutdown would drop the TLS state under the other thread.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _receive(self) -> bool:
        data = self._socket.recv(64 * 1024)
        self._received += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        taken = bytearray(self._received[:size])
        self._received = self._received[size:]
        while len(taken) < size:
            data = self._socket.recv(min(1 << 20, size - len(taken)))
            if not data:
                raise BadRequest("the body ended early")
            taken += data
        return bytes(taken)

    def _take_line(self) -> bytes:
        while (end := self._received.find(b"\r\n")) < 0:
            if len(self._received) > LONGEST_HEAD or not self._receive():
                raise BadRequest("the body ended early")
        line, self._received = self._received[:end], self._received[end + 2 :]
        return line
