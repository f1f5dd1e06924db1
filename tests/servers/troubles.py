"""What goes wrong between a client and S3, by name: the rows of the tables in tests.

Its job: to say of each trouble what it does to an answer, and for which kinds of requests that answer is as good as a
right one. Must not know who asks, nor what becomes of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.servers.faults import Fault, moved
from tests.servers.records import Request

ANY = frozenset({"LIST", "HEAD", "GET"})
NONE: frozenset[str] = frozenset()
BODILESS = frozenset({"HEAD"})
RANGED = frozenset({"LIST", "HEAD"})
"""Kinds of requests to which no trouble of a range can happen."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """`fault` of a request; `harmless` for these kinds, whose answer is right all the same or is asked for again by
    botocore itself."""

    fault: Callable[[Request], Fault]
    harmless: frozenset[str] = NONE


def _always(fault: Fault, harmless: frozenset[str] = NONE) -> Trouble:
    return Trouble(lambda request: fault, harmless)


def _after(request: Request) -> int:
    """Bytes after which a body breaks: listings are short."""
    return 100 if request.kind == "LIST" else 300_000


PASSING: dict[str, Trouble] = {
    "500": _always(Fault(status=500)),
    "503 SlowDown": _always(Fault(status=503, code="SlowDown")),
    "429": _always(Fault(status=429, code="TooManyRequests")),
    "502 with a page": _always(Fault(page=b"<html><body>Bad<br>Gateway", status=502)),
    # After a HEAD that was a 400 botocore looks whether the bucket has moved, and asks again.
    "400 ExpiredToken": _always(Fault(status=400, code="ExpiredToken"), BODILESS),
    "403 ExpiredToken": _always(Fault(status=403, code="ExpiredToken")),
    "403 RequestTimeTooSkewed": _always(Fault(status=403, code="RequestTimeTooSkewed")),
    "no answer": _always(Fault(hang_up=True)),
    "reset": _always(Fault(hang_up=True, reset=True)),
    "reset in the body": Trouble(lambda request: Fault(close_after=_after(request), reset=True), BODILESS),
    "end in the body": Trouble(lambda request: Fault(close_after=_after(request)), BODILESS),
    "end in a body of unknown length": Trouble(lambda request: Fault(close_after=_after(request), framing="close")),
    "end between chunks": Trouble(lambda request: Fault(close_after=_after(request), framing="chunks")),
    "slow drip": Trouble(lambda request: Fault(rate=10e3 if request.kind == "LIST" else 4e6), ANY),
    "no length": _always(Fault(framing="close"), frozenset({"LIST", "GET"})),
    "chunks": _always(Fault(framing="chunks"), frozenset({"LIST", "GET"})),
    "another range": _always(Fault(content_range="bytes 0-41/42"), RANGED),
    "no range": _always(Fault(content_range="bytes nonsense"), RANGED),
    "the whole object": _always(Fault(whole=True), RANGED),
    "no ETag": _always(Fault(without=("ETag",)), frozenset({"LIST"})),
    "gzip": _always(Fault(gzip=True), BODILESS),
    "gzip of unknown length": _always(Fault(gzip=True, framing="close")),
    "gzip in chunks": _always(Fault(gzip=True, framing="chunks")),
    "somebody else's page": _always(Fault(page=b"<html><body>Log in</body></html>")),
    "nothing": _always(Fault(page=b"")),
    # botocore looks for the bucket, and asks again.
    "301": Trouble(lambda request: moved(request, "http://127.0.0.1:9", 301), ANY),
    "301 with a region": Trouble(lambda request: moved(request, "http://127.0.0.1:9", 301, region="eu-west-1"), ANY),
    "307": Trouble(lambda request: moved(request, "http://127.0.0.1:9", 307), ANY),
    "307 with a region": Trouble(lambda request: moved(request, "http://127.0.0.1:9", 307, region="eu-west-1"), ANY),
}
"""What is right when it is asked again."""

FINAL: dict[str, Trouble] = {
    "404 NoSuchKey": _always(Fault(status=404, code="NoSuchKey")),
    "412": _always(Fault(status=412, code="PreconditionFailed")),
    "another ETag": _always(Fault(etag='"another"')),
    "403 AccessDenied": _always(Fault(status=403, code="AccessDenied")),
    "403 InvalidObjectState": _always(Fault(status=403, code="InvalidObjectState")),
}
"""What S3 says with authority; asking a GET again would not help."""
