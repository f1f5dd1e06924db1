"""A proxy between a client and any S3 server, that lets requests through or goes wrong on command.

    with SwiftServer(directory) as swift, FaultProxy(swift) as proxy:
        proxy.fault = first(2, Fault(status=503, code="SlowDown"))
        ...
        with proxy.outage():
            ...

Its job: to make a server that is right do what it does on a bad day. Requests go on as they came, so that their
signatures stay right, over one connection to the server for each connection of a client; answers come back as they
come, changed as a `faults.Fault` says. A request that a fault answers by itself (`status`, `page`, `hang_up`) goes no
further.

Must not know what is stored; speaks plain HTTP to the server, and to clients TLS if it is given a context.
"""

import contextlib
import http.client
import re
import ssl
import threading
from collections.abc import Iterator, Mapping

from tests.servers.answers import Answer
from tests.servers.clients import S3Endpoint
from tests.servers.faults import Fault
from tests.servers.records import Request
from tests.servers.sending import send_answer
from tests.servers.serving import Answering, Serving
from tests.servers.wire import Head, Wire

TIMEOUT = 60.0
"""Seconds without a byte after which the server is given up, and with it the client's connection."""

_HOP = {"connection", "content-length", "expect", "keep-alive", "transfer-encoding"}
"""Headers that are one connection's affair (RFC 9110 7.6.1), and the length, which is said anew."""


class FaultProxy(Serving):
    """One proxy on 127.0.0.1, with the credentials of the server behind it. Gates, delays, faults and the log are those
    of `serving.Serving`; a request that the server never saw is in the log as well."""

    def __init__(self, server: S3Endpoint, *, port: int = 0, ssl_context: ssl.SSLContext | None = None) -> None:
        """Nothing is bound before `start`, and nothing is asked of the server."""
        super().__init__(port=port, ssl_context=ssl_context)
        self.access_key, self.secret_key, self.region = server.access_key, server.secret_key, server.region
        self.server = server
        self.dropped = 0
        """Connections that were accepted and closed in outages, unheard."""
        self._dropping = False
        # A connection of a client has a thread, and that has a connection to the server.
        self._own = threading.local()

    @contextlib.contextmanager
    def outage(self, *, refuse: bool = True) -> Iterator[None]:
        """Until the end of the block nobody is answered: connections break, and new ones are refused, or accepted and
        dropped. Gates open for good where connections are refused."""
        if refuse:
            self.stop()
        else:
            self._dropping = True
            with self._lock:
                wires = list(self._wires)
            for wire in wires:
                wire.abort()
        try:
            yield
        finally:
            self._dropping = False
            self.start()

    def _serve(self, wire: Wire) -> None:
        if self._dropping:
            with self._lock:
                self.dropped += 1
            wire.abort()
        try:
            super()._serve(wire)
        finally:
            self._leave()

    def _span(self, bucket: str, key: str, header: str) -> tuple[int, int] | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", header)
        return (int(match[1]), int(match[2]) + 1) if match else None

    def _reply(
        self, wire: Wire, head: Head, request: Request, body: bytes, fault: Fault, answering: Answering
    ) -> bool:
        if (instead := self._instead(request, fault)) is not None:
            answering(instead.status)
            return send_answer(wire, request.method, instead, fault, lambda: None)
        keep = False
        response = self._ask(head, self._headers_anew(head) if fault.whole and request.range else head.headers, body)
        try:
            answer = _relayed(request.method, response)
            answering(answer.status)
            keep = send_answer(wire, request.method, answer, fault, lambda: None)
            if keep:
                response.read()  # nothing is left of it, which http.client has to see before the next request
        finally:
            response.close()
            if not keep:
                self._leave()
        return keep

    def _ask(self, head: Head, headers: Mapping[str, str], body: bytes) -> http.client.HTTPResponse:
        """Send it on. OSError if the server does not answer, also over a new connection where an old one was closed."""
        while True:
            connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
            old = connection is not None
            if connection is None:
                host = self.server.url.removeprefix("http://")
                connection = self._own.connection = http.client.HTTPConnection(host, timeout=TIMEOUT)
            try:
                connection.putrequest(head.method, head.target, skip_host=True, skip_accept_encoding=True)
                for name, value in headers.items():
                    if name.lower() not in _HOP:
                        connection.putheader(name, value.encode("latin-1"))
                if body or head.method in ("PUT", "POST"):
                    connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body or None)
                return connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                self._leave()
                if not old:
                    raise ConnectionAbortedError("the server does not answer") from error

    def _leave(self) -> None:
        """Give up the connection to the server."""
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is not None:
            connection.close()
        self._own.connection = None

    def _headers_anew(self, head: Head) -> dict[str, str]:
        """Of a GET of the whole object: the range that was asked for is part of the client's signature."""
        # Not at the top, as in `clients`.
        from botocore.auth import S3SigV4Auth  # noqa: PLC0415
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415
        from botocore.credentials import Credentials  # noqa: PLC0415

        request = AWSRequest(head.method, self.server.url + head.target)
        S3SigV4Auth(Credentials(self.access_key, self.secret_key), "s3", self.region).add_auth(request)
        return {"Host": self.server.url.removeprefix("http://"), **dict(request.headers.items())}


def _relayed(method: str, response: http.client.HTTPResponse) -> Answer:
    """The server's answer, as far as its head is here."""
    headers = {_spelled(name): value for name, value in response.getheaders() if name.lower() not in _HOP}
    length = response.getheader("Content-Length")
    if length is None:
        data = response.read()
        return Answer(response.status, headers, data, 0, len(data))
    return Answer(response.status, headers, response, 0, int(length))


def _spelled(name: str) -> str:
    """A header's name as our own servers spell it, so that a fault finds it."""
    return "ETag" if name.lower() == "etag" else name if name.lower().startswith("x-amz-") else name.title()
