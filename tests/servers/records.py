"""What a server remembers of the requests it had: frozen records, a thread-safe journal, counters.

Its job: an exact log, also for a reader that asks in the microsecond after it received its last byte. Must
not know sockets or objects. Times are `time.monotonic()` in seconds, one clock for all processes of a Linux
machine.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as it arrived (`status`, `bytes_sent` and `ended` are 0) or as it ended.

    `range` is what a Range header asked for, in bytes of the object as it was on arrival, half open; None
    without one and where it cannot be satisfied. `bytes_sent` counts the body, also of an answer that broke
    off. Names in `headers` are lower case. `connection` numbers the TCP connections of a server from 1.
    """

    method: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    connection: int
    started: float
    range: tuple[int, int] | None = None
    status: int = 0
    bytes_sent: int = 0
    ended: float = 0.0

    @property
    def kind(self) -> str:
        """GET, HEAD, PUT or DELETE of an object; LIST of a bucket's objects; OTHER."""
        if self.key:
            return self.method if self.method in ("GET", "HEAD", "PUT", "DELETE") else "OTHER"
        plain = self.method == "GET" and self.bucket and not {"location", "versioning"} & self.query.keys()
        return "LIST" if plain else "OTHER"


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums since the server started, of requests that ended. `bytes_sent` are bytes of bodies.

    `connections` were accepted, `open_connections` are open now, `most_at_once` is the highest number of
    requests that were between arrival and end at one moment.
    """

    requests: int = 0
    gets: int = 0
    heads: int = 0
    lists: int = 0
    bytes_sent: int = 0
    connections: int = 0
    open_connections: int = 0
    most_at_once: int = 0


class Journal:
    """The log of one server. Safe for threads.

    Invariant: `_answering` counts the requests of which a client may have seen bytes and that are not in the
    log yet.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._log: list[Request] = []
        self._present = 0
        self._answering = 0
        self._most = 0
        self._sums = {"requests": 0, "gets": 0, "heads": 0, "lists": 0, "bytes_sent": 0}
        self._connections = 0
        self._open = 0

    def connected(self) -> int:
        """A connection was accepted; its number."""
        with self._changed:
            self._connections += 1
            self._open += 1
            return self._connections

    def disconnected(self) -> None:
        """One of the connections is gone."""
        with self._changed:
            self._open -= 1

    def arrived(self) -> None:
        """A request was read. Every arrival is followed by one `ended`."""
        with self._changed:
            self._present += 1
            self._most = max(self._most, self._present)

    def answering(self) -> None:
        """The next byte goes to the client."""
        with self._changed:
            self._answering += 1

    def ended(self, request: Request, *, answered: bool) -> None:
        """The request is over; `answered` if `answering` was called for it."""
        with self._changed:
            self._log.append(request)
            self._present -= 1
            self._answering -= answered
            self._sums["requests"] += 1
            self._sums["bytes_sent"] += request.bytes_sent
            counter = request.kind.lower() + "s"
            if counter in self._sums:
                self._sums[counter] += 1
            self._changed.notify_all()

    def entries(self, *, clear: bool, settle: float) -> list[Request]:
        """The log in the order in which requests ended, after waiting at most `settle` seconds for answers
        under way.
        """
        deadline = time.monotonic() + settle
        with self._changed:
            self._changed.wait_for(lambda: not self._answering, max(0.0, deadline - time.monotonic()))
            entries = list(self._log)
            if clear:
                self._log.clear()
            return entries

    def counters(self) -> Counters:
        """The sums so far."""
        with self._changed:
            return Counters(
                **self._sums,
                connections=self._connections,
                open_connections=self._open,
                most_at_once=self._most,
            )
