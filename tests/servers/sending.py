"""From an answer to bytes on the wire, with what a fault does to them on the way."""

from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path

from tests.servers.answers import Answer
from tests.servers.faults import Fault
from tests.servers.wire import Wire


def send_answer(wire: Wire, method: str, answer: Answer, fault: Fault, rate: Callable[[], float | None]) -> bool:
    """Send the answer at `rate()` bytes per second, changed as `fault` says.

    False if the connection is to be closed now. OSError if the client is gone.
    """
    start, stop = answer.start, answer.stop
    headers = {
        "Content-Length": str(stop - start),
        "Date": formatdate(usegmt=True),
        "x-amz-request-id": "0000000000000000",
        **answer.headers,
        **_claims(answer, fault),
    }
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines.extend(f"{name}: {value}" for name, value in headers.items())
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
    if method == "HEAD" or answer.status in (204, 304):
        stop = start
    if fault.close_after is not None:
        stop = min(stop, start + fault.close_after)
    pause = stop if fault.stall_after is None else start + fault.stall_after
    content = answer.content if isinstance(answer.content, bytes) else answer.content.content
    pace = (lambda: fault.rate) if fault.rate else rate

    wire.send(head, more=min(pause, stop) > start)
    if fault.wrong_bytes and min(pause, stop) > start:
        wire.send_body(bytes([_byte_at(content, start) ^ 0xFF]), 0, 1, pace)
        start += 1
    wire.send_body(content, start, min(pause, stop), pace)
    if pause < stop:
        if not wire.stall(fault.until):
            return False
        wire.send_body(content, pause, stop, pace)
    if fault.reset:
        wire.reset()
    return fault.close_after is None and not fault.reset


def _claims(answer: Answer, fault: Fault) -> dict[str, str]:
    claims = dict(fault.headers)
    if fault.etag is not None and "ETag" in answer.headers:
        claims["ETag"] = fault.etag
    if fault.content_range is not None:
        claims["Content-Range"] = fault.content_range
    return claims


def _byte_at(content: bytes | Path, offset: int) -> int:
    if isinstance(content, bytes):
        return content[offset]
    with content.open("rb", buffering=0) as file:
        file.seek(offset)
        return file.read(1)[0]
