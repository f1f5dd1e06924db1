"""What was asked of S3 and what came: requests by operation and status, how long each took, when S3 last answered.

Its job: counts, whoever sends; botocore's requests count themselves by its events (`watch`), those of the other engines
by a `Trip`. Must not know boto3, nor what is asked for: no key, no bucket, and no status that a server made up, so that
the counts stay few.

Concurrency: any thread; a lock of its own, taken twice for a request.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from lazyfs.tallies import SLOW, Spread, Tally

T = TypeVar("T")

GET, HEAD, LIST = "GetObject", "HeadObject", "ListObjectsV2"
OPERATIONS = (GET, HEAD, LIST)
OTHER = "other"

UNANSWERED = "none"
"""The status of a request to which no answer came."""

BROKEN = "broken"
"""The status of an answer whose body did not come to its end, or was not what was asked for."""

USUAL_FAILURES = (UNANSWERED, BROKEN, "403", "500", "503")

_KNOWN = frozenset(status.value for status in HTTPStatus)


@dataclass(frozen=True, slots=True)
class TrafficStatistics:
    """Since the start. `requests` and `seconds` by (operation, status), `first_byte` by operation, `connection` how
    long a GET waited for a thread and a connection of its own; `quiet` is seconds since S3 last answered with anything
    but a failure of its own (5xx), or since the start."""

    requests: dict[tuple[str, str], int]
    seconds: dict[tuple[str, str], Spread]
    first_byte: dict[str, Spread]
    connection: Spread
    quiet: float


class Traffic:
    """The traffic of one mount, with all of its buckets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # A counter that is there before its first count is one whose first count is seen as an increase.
        usual = {(GET, "206"): 0, (HEAD, "200"): 0, (LIST, "200"): 0}
        failed = {(operation, status): 0 for operation in OPERATIONS for status in USUAL_FAILURES}
        self._requests: Counter[tuple[str, str]] = Counter(usual | failed)
        self._seconds = {key: Tally(SLOW) for key in usual}
        self._first_byte = {operation: Tally(SLOW) for operation in OPERATIONS}
        self._connection = Tally(SLOW)
        self._answered = time.monotonic()
        self._under_way = threading.local()

    def statistics(self) -> TrafficStatistics:
        """A frozen copy of the counters."""
        with self._lock:
            return TrafficStatistics(
                dict(self._requests),
                {key: tally.state() for key, tally in self._seconds.items()},
                {operation: tally.state() for operation, tally in self._first_byte.items()},
                self._connection.state(),
                time.monotonic() - self._answered,
            )

    def watch(self, client: Any) -> None:
        """Count every request that this client of botocore's sends. Of a GET the end is told by `body_ended`."""
        client.meta.events.register("before-send.s3", self._sending, unique_id="lazyfs-traffic-sent")
        client.meta.events.register("response-received.s3", self._received, unique_id="lazyfs-traffic-received")

    def telling(self, sent: Callable[[], None], function: Callable[..., T], *args: Any) -> T:
        """Call, and `sent` whenever this thread sends a request by botocore meanwhile."""
        self._under_way.tell = sent
        try:
            return function(*args)
        finally:
            self._under_way.tell = None

    def body_ended(self, *, whole: bool) -> None:
        """The body of the GET that this thread sent by botocore came to its end, or did not."""
        trip: Trip | None = getattr(self._under_way, "trip", None)
        if trip is not None:
            self._under_way.trip = None
            trip.over(whole=whole)

    def trip(self, operation: str) -> "Trip":
        """A request that is about to be sent, by what is none of botocore's."""
        return Trip(self, operation)

    def _sending(self, request: Any, event_name: str = "", **_: Any) -> None:
        name = event_name.rpartition(".")[2]
        tell: Callable[[], None] | None = getattr(self._under_way, "tell", None)
        if tell is not None:
            tell()
        self._under_way.trip = trip = Trip(self, name if name in OPERATIONS else OTHER)
        trip.sent()

    def _received(self, response_dict: dict[str, Any] | None = None, **_: Any) -> None:
        trip: Trip | None = getattr(self._under_way, "trip", None)
        if trip is None:
            return
        status = None if response_dict is None else int(response_dict["status_code"])
        if status is not None:
            trip.answered(status)
        if trip.operation != GET or status not in (200, 206):
            self._under_way.trip = None
            trip.over(whole=status is not None)

    def _note_answer(self, operation: str, status: int, seconds: float) -> None:
        with self._lock:
            if operation in self._first_byte:
                self._first_byte[operation].add(seconds)
            if status < 500:
                self._answered = time.monotonic()

    def _note_wait(self, seconds: float) -> None:
        with self._lock:
            self._connection.add(seconds)

    def _note_end(self, operation: str, status: str, seconds: float) -> None:
        with self._lock:
            key = (operation, status)
            self._requests[key] += 1
            if key not in self._seconds:
                self._seconds[key] = Tally(SLOW)
            self._seconds[key].add(seconds)


class Trip:
    """One request of one thread at a time: made when it is wanted, then `sent`, `answered`, `over`, each at most once;
    one that is never over is not counted. As a context it is over with it, whole unless something was raised."""

    __slots__ = ("_over", "_sent", "_status", "_traffic", "_wanted", "operation")

    def __init__(self, traffic: Traffic, operation: str) -> None:
        self._traffic = traffic
        self._wanted = self._sent = time.perf_counter()
        self._status = UNANSWERED
        self._over = False
        self.operation = operation

    def __enter__(self) -> "Trip":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.over(whole=kind is None)

    def sent(self, *, waited: bool = False) -> None:
        """It goes out now. `waited`: what was before was waiting for a connection, and counts as that."""
        self._sent = time.perf_counter()
        if waited:
            self._traffic._note_wait(self._sent - self._wanted)

    def answered(self, status: int) -> None:
        """The head of the answer is here."""
        self._status = str(status) if status in _KNOWN else OTHER
        self._traffic._note_answer(self.operation, status, time.perf_counter() - self._sent)

    def over(self, *, whole: bool) -> None:
        """All of it is here, or no more will be. Only the first time counts."""
        if self._over:
            return
        self._over = True
        status = BROKEN if self._status[0] == "2" and not whole else self._status
        self._traffic._note_end(self.operation, status, time.perf_counter() - self._sent)
