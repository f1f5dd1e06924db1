"""What an answer to a ranged GET means, however it was sent: right, or which of our failures.

Pure; every engine that speaks to S3 asks here, so that all of them refuse the same answers. Must not know how bytes
come.
"""

import base64
import html
import re
from collections.abc import Mapping
from dataclasses import dataclass

from lazyfs.errors import AccessDenied, ArchivedObject, NotFound, ObjectChanged, StoreError, Transient
from lazyfs.objects import Checksums, ObjectVersion

_SLOW_DOWN = {"SlowDown", "503", "429", "TooManyRequests", "RequestLimitExceeded", "ThrottlingException", "Throttling"}
_ANOTHER_TIME = {408, 421, 425}
"""The request did not come in time, came to the wrong server, or came too early (RFC 9110 15.5.9 and 15.5.20, RFC 8470
5.2): S3 has no such answers, and whoever on the way gives them means that it may be sent again."""

_RENEWABLE = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed"}


_ENCRYPTION = re.compile(
    "(encryption parameters are not applicable)|form of server side encryption|customer provided key|"
    "secret key was invalid|encryption parameters did not match", re.IGNORECASE
)
"""How S3, MinIO and Ceph say that a key of the customer's is wanted, is wrong, or (the first) is not wanted."""

_KEY_WANTED = "the object is encrypted with a key of its owner's; mount with that one, --sse-customer-key-file"
_KEY_UNWANTED = "the object is not encrypted with a customer's key; mount without --sse-customer-key-file to read it"

_IN_PARTS = re.compile("-[0-9]+$")
"""The end of the ETag of a multipart upload."""

MOST_WORDS = 1000
"""Letters of what a server says about a failure that are repeated. Fewer than the 4,300 digits from which Python
refuses to read a number, which an `&#...;` could be."""


@dataclass(frozen=True, slots=True)
class RangeAnswer:
    """The head of an answer. `length` is the Content-Length, None where there was none; `coding` see below;
    `version_id` is x-amz-version-id."""

    status: int
    etag: str = ""
    content_range: str = ""
    length: int | None = None
    coding: str = ""
    version_id: str = ""


def coding(headers: Mapping[str, str]) -> str:
    """What the body is said to be other than the plain bytes of the range, from headers with names in lower case: a
    Content-Encoding, which may be the object's own, and a Transfer-Encoding besides chunked, which is not asked for."""
    transfer = headers.get("transfer-encoding", "").lower()
    found = [headers.get("content-encoding", "").lower(), "" if transfer == "chunked" else transfer]
    return ", ".join(word for word in found if word not in ("", "identity"))


def check_range(answer: RangeAnswer, version: ObjectVersion, start: int, stop: int) -> None:
    """Status, range, length and ETag must all agree, or this raises. If-Match is not honoured everywhere, some servers
    send 200 with a Content-Range, others 200 with the whole object; only the first two are a range.

    `ObjectChanged` only on the word of an answer that is one about an object: a page of somebody on the way, or an
    answer whose ETag got lost there, says nothing about it. An object that is stored encoded comes as it is stored;
    where the length is not told, that cannot be known from what a proxy compresses on the way.
    """
    match = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", answer.content_range)
    whole = answer.status == 200 and start == 0 and stop == version.size and answer.length is not None
    asked = f"asked for bytes {start}-{stop - 1}, got status {answer.status} {answer.content_range[:80]!r}"
    if not answer.content_range and not whole:
        raise Transient(asked)
    if opaque(answer.etag) != opaque(version.etag):
        if not answer.etag:
            raise Transient(f"{asked} without an ETag")
        raise ObjectChanged(f"{version.key!r}: the object is now {answer.etag[:80]}, not {version.etag}")
    right = match is not None and (int(match[1]), int(match[2]) + 1) == (start, stop) and answer.status in (200, 206)
    if not right and (match is not None or not whole):
        raise Transient(asked)
    if match is not None and match[3] != "*" and int(match[3]) != version.size:
        raise ObjectChanged(f"{version.key!r}: the object now has {match[3]} bytes, not {version.size}")
    if answer.length is not None and answer.length != stop - start:
        raise Transient(f"asked for {stop - start} bytes, the server announces {answer.length}")
    if answer.length is None and answer.coding:
        raise Transient(f"asked for bytes {start}-{stop - 1} as they are, and they come encoded: {answer.coding[:80]}")


def full_checksums(kind: str, sha256: str, crc64nvme: str, etag: str = "") -> Checksums:
    """The checksums of a whole object out of the headers of a HEAD, in base64 as S3 writes them; `kind` is
    x-amz-checksum-type. A COMPOSITE one, of the checksums of the parts of an upload, says nothing about the bytes as
    one row; it ends in `-` and the number of parts. What is no checksum is none.

    There are servers that say neither (Garage): the SHA256 of an object in parts, which the ETag tells, is not taken
    then. A CRC64NVME is always of the whole."""
    if kind.upper() == "COMPOSITE":
        return Checksums()
    if not kind and _IN_PARTS.search(opaque(etag)):
        sha256 = ""
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
    return html.unescape(match[1][:MOST_WORDS]) if match else ""


def failure(status: int, code: str, message: str) -> StoreError:
    """The failure that an error answer is; `code` is S3's own word for it, which counts for more than the status.

    Without that word a 404 is somebody's on the way who does not find S3 now, as a load balancer whose servers restart;
    and a redirect that botocore could not follow is asked again, since where it leads may change.
    """
    text = f"{code or status}: {message or 'no word of S3 with it'}"[:MOST_WORDS]
    if code == "InvalidObjectState":
        return ArchivedObject(text)
    if status == 400 and (word := _ENCRYPTION.search(message)):
        return AccessDenied(f"{text} ({_KEY_UNWANTED if word[1] else _KEY_WANTED})")
    if status in (412, 416) or code in {"PreconditionFailed", "InvalidRange"}:
        return ObjectChanged(text)
    if code in _RENEWABLE or code == "RequestTimeout":
        return Transient(text)
    if 300 <= status < 400 or status in _ANOTHER_TIME or (status == 404 and code in {"", "404"}):
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
