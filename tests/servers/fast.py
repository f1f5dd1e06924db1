r"""Our own S3 server: a thread for each connection, sendfile, an exact log, delays and failures on demand.

    with FastS3Server() as server:
        server.add_bucket("models")
        server.put("models", "a/b.bin", b"...")
        with server.hold(lambda request: request.range == (0, 4096)) as gate:
            ...

Its job: to be quicker than what is measured with it, and to do what a real server does only on a bad day.
Serves one bucket by one first path segment; knows no multipart uploads, ACLs or virtual hosts, and computes
no signatures.

    python -m tests.servers.fast --dir DIR [--port N] \
        [--first-byte-delay 0.03] [--connection-rate 90e6] [--tls DIR] [--log FILE]

runs it as a process of its own, each folder right below DIR being a bucket; see `remote.RemoteFastS3`.
The line it prints when it is ready has its `url` and, with --tls, `ca_bundle`: what a client has to trust.

Concurrency: hooks and gates are called in the threads of connections, with no lock held.
"""

import contextlib
import dataclasses
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.servers import answers, objects, operations
from tests.servers.answers import Answer
from tests.servers.faults import Fault
from tests.servers.records import Request
from tests.servers.sending import send_answer
from tests.servers.serving import Answering, Serving
from tests.servers.wire import Head, Wire

Control = Callable[[str, str, bytes], Answer]
"""What answers `/_control/`: method, the rest of the path and body in, the answer out."""


class FastS3Server(Serving):
    """One server with objects of its own. What all of ours can is in `serving.Serving`.

    connection_rate: bytes per second of a body, on each connection.
    require_signature: the access key that requests must be signed with; None takes everything.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        first_byte_delay: float = 0.0,
        connection_rate: float | None = None,
        require_signature: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Nothing is bound before `start`.

        Port 0 is a free one, which the server keeps when it is started again.
        """
        super().__init__(port=port, ssl_context=ssl_context)
        self.first_byte_delay = first_byte_delay
        self.connection_rate = connection_rate
        self.require_signature = require_signature
        self.objects = objects.ObjectTable()
        self.control: Control | None = None

    def add_bucket(self, bucket: str) -> None:
        """Make a bucket; nothing happens if it is there."""
        self.objects.add_bucket(bucket)

    def put(
        self,
        bucket: str,
        key: str,
        data: bytes,
        *,
        etag: str | None = None,
        modified: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> objects.Object:
        """Store bytes, in memory, replacing what was there; the bucket is made.

        See `objects.Object` for the rest.
        """
        self.objects.add_bucket(bucket)
        entry = objects.from_bytes(data, etag=etag, modified=modified, headers=headers)
        return self.objects.put(bucket, key, entry)

    def add_file(
        self,
        bucket: str,
        key: str,
        path: Path,
        *,
        etag: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> objects.Object:
        """Serve a file from where it is, which must not change.

        The bucket is made. OSError if there is no file.
        """
        self.objects.add_bucket(bucket)
        return self.objects.put(bucket, key, objects.from_file(path, etag=etag, headers=headers))

    def delete(self, bucket: str, key: str, *, modified: float | None = None) -> None:
        """Remove an object, with versions by a marker of that time; nothing happens if it is not there."""
        self.objects.delete(bucket, key, modified=modified)

    def _exchange(self, wire: Wire, number: int, head: Head, body: bytes) -> bool:
        if self.control is not None and head.path.startswith("/_control/"):
            answer = self.control(head.method, head.path.removeprefix("/_control/"), body)
            send_answer(wire, head.method, answer, Fault(), lambda: None)
            return True
        return super()._exchange(wire, number, head, body)

    def _span(self, bucket: str, key: str, header: str) -> tuple[int, int] | None:
        entry = self.objects.get(bucket, key)
        with contextlib.suppress(ValueError):
            return None if entry is None else answers.parse_range(header, entry.size)
        return None

    def _reply(
        self, wire: Wire, head: Head, request: Request, body: bytes, fault: Fault, answering: Answering
    ) -> bool:
        answer = self._answer(request, body, fault)
        answering(answer.status)
        return send_answer(wire, request.method, answer, fault, lambda: self.connection_rate)

    def _answer(self, request: Request, body: bytes, fault: Fault) -> Answer:
        if (instead := self._instead(request, fault)) is not None:
            return instead
        if self.require_signature and (refusal := answers.check_signature(request, self.require_signature)):
            return refusal
        if fault.whole:
            headers = {name: value for name, value in request.headers.items() if name != "range"}
            request = dataclasses.replace(request, headers=headers)
        return operations.perform(request, body, self.objects)


if __name__ == "__main__":
    from tests.servers.remote import main

    main()
