"""From an answer to bytes on the wire, with what a fault does to them on the way.

Two ways: what is in memory or in a file goes as it is, by sendfile where that can be; a stream, and a body that is
compressed or framed otherwise, goes in pieces.
"""

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path

from tests.servers.answers import Answer
from tests.servers.faults import Fault
from tests.servers.made import Made
from tests.servers.objects import Object
from tests.servers.wire import PIECE_SIZE, Wire

Rate = Callable[[], float | None]
"""Bytes per second now; None is no limit."""


def send_answer(wire: Wire, method: str, answer: Answer, fault: Fault, rate: Rate) -> bool:
    """Send the answer at `rate()` bytes per second, changed as `fault` says.

    False if the connection is to be closed now. OSError if the client is gone, or a stream ends before its time.
    """
    pace = (lambda: fault.rate) if fault.rate else rate
    bodiless = method == "HEAD" or answer.status in (204, 304)
    streamed = isinstance(answer.content, io.BufferedIOBase)
    if not bodiless and (streamed or fault.gzip or fault.framing != "length"):
        return _send_pieces(wire, answer, fault, pace)
    start, stop = answer.start, answer.stop
    head = _head(answer, fault, stop - start)
    if bodiless:
        stop = start
    if fault.close_after is not None:
        stop = min(stop, start + fault.close_after)
    pause = stop if fault.stall_after is None else start + fault.stall_after
    content = b"" if isinstance(answer.content, io.BufferedIOBase) else _stored(answer.content)

    wire.send(head, more=min(pause, stop) > start)
    if fault.wrong_bytes and min(pause, stop) > start:
        wire.send_body(bytes([_byte_at(content, start) ^ 0xFF]), 0, 1, pace)
        start += 1
    wire.send_body(content, start, min(pause, stop), pace)
    if pause < stop:
        if not wire.stall(fault.until):
            return False
        wire.send_body(content, pause, stop, pace)
    return _ended(wire, fault)


def _send_pieces(wire: Wire, answer: Answer, fault: Fault, pace: Rate) -> bool:
    pieces = _pieces(answer.content, answer.start, answer.stop)
    length = answer.stop - answer.start
    if fault.wrong_bytes:
        pieces = _inverted(pieces)
    if fault.gzip and fault.framing == "length":
        pieces = iter([whole := gzip.compress(b"".join(pieces), mtime=0)])
        length = len(whole)
    elif fault.gzip:
        pieces = _compressed(pieces)
    if fault.framing == "chunks":
        pieces = _chunks(pieces)
    wire.send(_head(answer, fault, length), more=False)
    sent, limit = 0, sys.maxsize if fault.close_after is None else fault.close_after
    pause = sys.maxsize if fault.stall_after is None else fault.stall_after
    for piece in pieces:
        left = memoryview(piece)[: limit - sent]
        if sent + len(left) > pause:
            wire.send_body(bytes(left[: pause - sent]), 0, pause - sent, pace)
            if not wire.stall(fault.until):
                return False
            left, sent, pause = left[pause - sent :], pause, sys.maxsize
        wire.send_body(bytes(left), 0, len(left), pace)
        sent += len(left)
        if sent == limit:
            break
    return _ended(wire, fault)


def _ended(wire: Wire, fault: Fault) -> bool:
    """Whether the connection goes on after the body."""
    if fault.reset:
        wire.reset()
    return fault.close_after is None and not fault.reset and fault.framing != "close"


def _head(answer: Answer, fault: Fault, length: int) -> bytes:
    headers = {
        "Content-Length": str(length),
        "Date": formatdate(usegmt=True),
        "x-amz-request-id": "0000000000000000",
        **answer.headers,
    }
    if fault.gzip:
        headers["Content-Encoding"] = "gzip"
    if fault.framing != "length":
        del headers["Content-Length"]
    if fault.framing == "chunks":
        headers["Transfer-Encoding"] = "chunked"
    headers |= _claims(answer, fault)
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines.extend(f"{name}: {value}" for name, value in headers.items() if name not in fault.without)
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _claims(answer: Answer, fault: Fault) -> dict[str, str]:
    claims = dict(fault.headers)
    if fault.etag is not None and "ETag" in answer.headers:
        claims["ETag"] = fault.etag
    if fault.content_range is not None:
        claims["Content-Range"] = fault.content_range
    return claims


def _stored(content: Object | bytes) -> bytes | Path:
    stored = content if isinstance(content, bytes) else content.content
    if isinstance(stored, Made):
        raise TypeError("what is made up goes as a stream")
    return stored


def _pieces(content: Object | bytes | io.BufferedIOBase, start: int, stop: int) -> Iterator[bytes]:
    """Bytes [start, stop), as soon as they are there."""
    if isinstance(content, io.BufferedIOBase):
        while start < stop:
            piece = content.read1(min(PIECE_SIZE, stop - start))
            if not piece:
                raise ConnectionAbortedError("the stream ended early")
            start += len(piece)
            yield piece
        return
    stored = _stored(content)
    if isinstance(stored, Path):
        with stored.open("rb") as file:
            file.seek(start)
            yield from _pieces(file, start, stop)
    else:
        yield stored[start:stop]


def _inverted(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The first byte is wrong."""
    for piece in pieces:
        yield bytes([piece[0] ^ 0xFF]) + piece[1:] if piece else piece
        break
    yield from pieces


def _compressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """As gzip does it, piece by piece."""
    squeeze = zlib.compressobj(wbits=31)
    for piece in pieces:
        yield squeeze.compress(piece) + squeeze.flush(zlib.Z_SYNC_FLUSH)
    yield squeeze.flush()


def _chunks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Each in a chunk of its own, and the last, which is empty."""
    for piece in pieces:
        if piece:
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def _byte_at(content: bytes | Path, offset: int) -> int:
    if isinstance(content, bytes):
        return content[offset]
    with content.open("rb", buffering=0) as file:
        file.seek(offset)
        return file.read(1)[0]
