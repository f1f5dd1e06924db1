"""One ranged GET written by us and sent over a wire of ours: `signing` and `wire` put together.

Its job: tell an answer that is the range from one that is a failure and from one that is for botocore to deal with.
Must not know botocore. Blocks; in whatever thread the store runs it.
"""

from collections.abc import Callable, Sequence

from lazyfs.errors import Transient
from lazyfs.objects import ObjectVersion
from lazyfs.stores.answers import RangeAnswer, element, failure
from lazyfs.stores.base import Arrived, Claim
from lazyfs.stores.calls import Call
from lazyfs.stores.signing import Pattern, Signer
from lazyfs.stores.traffic import Trip
from lazyfs.stores.wire import FEW, MOST, PIECE_SIZE, Wires


def told_of(claim: Claim) -> int:
    """Bytes between two `arrived` at most."""
    return FEW if claim.few else PIECE_SIZE if claim.urgent else MOST


def read_quickly(
    signer: Signer,
    pattern: Pattern,
    wires: Wires,
    version: ObjectVersion,
    start: int,
    into: Sequence[memoryview],
    arrived: Arrived,
    claim: Claim,
    trip: Trip,
    check: Callable[[RangeAnswer, ObjectVersion, int, int], None],
) -> bool:
    """One GET over a wire, whose answer `check` finds right or raises; False if it is for botocore to deal with, and
    nothing has arrived."""
    stop = start + sum(len(view) for view in into)
    request = signer.request(pattern, version, start, stop)
    wire = wires.take()
    trip.sent(waited=True)
    call = Call(wire)
    claim.sever = call.sever
    used_up = False
    try:
        try:
            head = wire.ask(request)
        except (Transient, OSError):
            wires.distrust(wire)
            raise
        trip.answered(head.status)
        if head.status not in (200, 206):
            if head.status < 400:
                return False  # the bucket is elsewhere; botocore finds it
            body = wire.rest(head)
            used_up = head.keeps and len(body) == head.length
            code = element(body, "Code")
            if code == "AuthorizationHeaderMalformed":
                return False  # it is elsewhere, too
            raise failure(head.status, code, element(body, "Message"))
        if not head.plain:
            return False
        found = head.headers
        etag, span, known = (found.get(name, "") for name in ("etag", "content-range", "x-amz-version-id"))
        check(RangeAnswer(head.status, etag, span, head.length, version_id=known), version, start, stop)
        arrived(0)
        wire.fill(head, into, arrived, lambda: told_of(claim))
        used_up = head.keeps
    finally:
        claim.sever = None
        call.over()
        if used_up:
            wires.give_back(wire)
        else:
            wire.close()
    return True
