"""What an answer to a ranged GET means, however it was sent: right, or which of our failures.

Pure; every engine that speaks to S3 asks here, so that all of them refuse the same answers. Must not know how bytes
come.
"""

import base64
import html
import re
from dataclasses import dataclass

from lazyfs.errors import AccessDenied, ArchivedObject, NotFound, ObjectChanged, StoreError, Transient
from lazyfs.objects import Checksums, ObjectVersion

_SLOW_DOWN = {"SlowDown", "503", "429", "TooManyRequests", "RequestLimitExceeded", "ThrottlingException", "Throttling"}
_RENEWABLE = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed"}


@dataclass(frozen=True, slots=True)
class RangeAnswer:
    """The head of an answer. `length` is the Content-Length, None where there was none."""

    status: int
    etag: str = ""
    content_range: str = ""
    length: int | None = None


def check_range(answer: RangeAnswer, version: ObjectVersion, start: int, stop: int) -> None:
    """Status, range, length and ETag must all agree, or this raises. If-Match is not honoured everywhere, some servers
    send 200 with a Content-Range, others 200 with the whole object; only the first two are a range."""
    if opaque(answer.etag) != opaque(version.etag):
        raise ObjectChanged(f"{version.key}: the object is now {answer.etag}, not {version.etag}")
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.content_range)
    whole = answer.status == 200 and match is None and start == 0 and stop == version.size
    right = match is not None and (int(match[1]), int(match[2]) + 1) == (start, stop) and answer.status in (200, 206)
    if not whole and not right:
        raise Transient(f"asked for bytes {start}-{stop - 1}, got status {answer.status} {answer.content_range[:80]!r}")
    if match is not None and match[3] != "*" and int(match[3]) != version.size:
        raise ObjectChanged(f"{version.key}: the object now has {match[3]} bytes, not {version.size}")
    if answer.length is not None and answer.length != stop - start:
        raise Transient(f"asked for {stop - start} bytes, the server announces {answer.length}")


def full_checksums(kind: str, sha256: str, crc64nvme: str) -> Checksums:
    """The checksums of a whole object out of the headers of a HEAD, in base64 as S3 writes them; `kind` is
    x-amz-checksum-type. A COMPOSITE one, of the checksums of the parts of an upload, says nothing about the bytes as
    one row; it ends in `-` and the number of parts. What is no checksum is none."""
    if kind.upper() == "COMPOSITE":
        return Checksums()
    whole, part = _unbase64(sha256, 32), _unbase64(crc64nvme, 8)
    return Checksums(whole.hex(), int.from_bytes(part, "big") if part else None)


def _unbase64(text: str, length: int) -> bytes:
    try:
        found = base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        return b""
    return found if len(found) == length else b""


def opaque(etag: str) -> str:
    """An ETag for comparison: some servers leave the quotes out in one place and not in another."""
    return etag.removeprefix("W/").strip('"')


def element(body: bytes, name: str) -> str:
    """The text of an element of S3's error document, empty if it is not there."""
    match = re.search(f"<{name}>([^<]*)</{name}>", body.decode("utf-8", "replace"))
    return html.unescape(match[1]) if match else ""


def failure(status: int, code: str, message: str) -> StoreError:
    """The failure that an error answer is; `code` is S3's own word for it, which counts for more than the status."""
    text = f"{code or status}: {message}"
    if code == "InvalidObjectState":
        return ArchivedObject(f"{text} (restore the object first)")
    if status in (412, 416) or code in {"PreconditionFailed", "InvalidRange"}:
        return ObjectChanged(text)
    if code in _RENEWABLE or code == "RequestTimeout":
        return Transient(text)
    if status == 404 or code in {"NoSuchKey", "NoSuchBucket", "NoSuchVersion"}:
        return NotFound(text)
    if code in _SLOW_DOWN or status in (429, 503):
        return Transient(text, slow_down=True)
    if status in (401, 403):
        return AccessDenied(text)
    if status >= 500 or status == 0:
        return Transient(text)
    return StoreError(text)
