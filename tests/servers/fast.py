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
import errno
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from tests.servers import answers, objects, operations
from tests.servers.answers import Answer
from tests.servers.clients import S3Endpoint
from tests.servers.faults import Fault, FaultHook, Gate
from tests.servers.records import Counters, Journal, Request
from tests.servers.sending import send_answer
from tests.servers.wire import BadRequest, Head, Wire

Control = Callable[[str, str, bytes], Answer]
"""What answers `/_control/`: method, the rest of the path and body in, the answer out."""

_PASSING_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED)

SETTLE = 2.0
"""Seconds that reading the log waits for answers under way; see `take_log`."""


class FastS3Server(S3Endpoint):
    """One server on 127.0.0.1. All settings may be changed while it runs and hold for the next request.

    first_byte_delay: seconds between a request and the head of its answer.
    delay_for: more of it, by request.
    connection_rate: bytes per second of a body, on each connection.
    fault: what goes wrong, by request; see `faults`.
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
        self.first_byte_delay = first_byte_delay
        self.connection_rate = connection_rate
        self.delay_for: Callable[[Request], float] | None = None
        self.fault: FaultHook | None = None
        self.require_signature = require_signature
        self.objects = objects.ObjectTable()
        self.control: Control | None = None
        self._journal = Journal()
        self._gates: list[Gate] = []
        self._tls = ssl_context
        self._port = port
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._wires: dict[Wire, threading.Thread] = {}
        self._acceptor: threading.Thread | None = None

    def start(self) -> Self:
        """Bind and serve; after `stop` again, on the same port and with the same objects.

        Nothing happens if it runs.
        """
        if self._listener is not None:
            return self
        listener = socket.create_server(("127.0.0.1", self._port), backlog=512)
        self._port = listener.getsockname()[1]
        self._listener = listener
        self._stopping = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, args=(listener, self._stopping), daemon=True)
        self._acceptor.start()
        return self

    def stop(self) -> None:
        """Close all connections at once, open all gates, wait for the threads, at most 5 seconds for each."""
        if self._listener is None or self._acceptor is None:
            return
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._listener = None
        self._acceptor.join(5)
        with self._lock:
            wires = dict(self._wires)
            gates = list(self._gates)
        for wire in wires:
            wire.abort()
        for gate in gates:
            gate.release()
        for thread in wires.values():
            thread.join(5)

    def __enter__(self) -> Self:
        return self.start()

    @property
    def url(self) -> str:
        """The endpoint, without a slash at its end."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

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

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object; nothing happens if it is not there."""
        self.objects.delete(bucket, key)

    def hold(self, matching: Callable[[Request], bool] | None = None) -> Gate:
        """A gate that holds the requests that match (by default: GETs of objects) until its `release`."""
        gate = Gate(matching or (lambda request: request.kind == "GET"))
        with self._lock:
            self._gates.append(gate)
        return gate

    @property
    def log(self) -> list[Request]:
        """The requests that ended since the last `take_log`, in the order they ended.

        Waits as `take_log` does.
        """
        return self._journal.entries(clear=False, settle=SETTLE)

    def take_log(self, settle: float = SETTLE) -> list[Request]:
        """`log`, and forget it.

        A client may have its last byte before the server has noted the request. So this waits up to `settle`
        seconds for answers under way, stalled ones included; requests still delayed or held are neither
        waited for nor listed.
        """
        return self._journal.entries(clear=True, settle=settle)

    @property
    def counters(self) -> Counters:
        """Sums since the server was made."""
        return self._journal.counters()

    def _accept(self, listener: socket.socket, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                sock, _ = listener.accept()
            except OSError as error:
                if error.errno not in _PASSING_ERRORS or stopping.wait(0.05):
                    return
                continue
            wire = Wire(sock, stopping)
            thread = threading.Thread(target=self._serve, args=(wire,), daemon=True)
            with self._lock:
                self._wires[wire] = thread
            thread.start()

    def _serve(self, wire: Wire) -> None:
        number = self._journal.connected()
        try:
            if self._tls is not None:
                wire.secure(self._tls)
            while (head := wire.read_head()) is not None and not self._stopping.is_set():
                if not self._exchange(wire, number, head, wire.read_body(head)):
                    break
        except (OSError, BadRequest):
            pass  # the client went away or speaks something else: the connection ends, and no failure of ours
        finally:
            with self._lock:
                del self._wires[wire]
            self._journal.disconnected()
            wire.close()

    def _exchange(self, wire: Wire, number: int, head: Head, body: bytes) -> bool:
        """One request and its answer; False if the connection is to be closed."""
        if self.control is not None and head.path.startswith("/_control/"):
            answer = self.control(head.method, head.path.removeprefix("/_control/"), body)
            send_answer(wire, head.method, answer, Fault(), lambda: None)
            return True
        request = self._arrival(number, head)
        self._journal.arrived()
        wire.body_sent = 0
        answering, status = False, 0
        try:
            for gate in tuple(self._gates):
                gate.admit(request)
            pause = self.first_byte_delay + (self.delay_for(request) if self.delay_for else 0.0)
            if pause > 0 and self._stopping.wait(pause):
                return False
            fault = (self.fault(request) if self.fault else None) or Fault()
            if fault.hang_up:
                if fault.reset:
                    wire.reset()
                return False
            answer = self._answer(request, body, fault)
            answering, status = True, answer.status
            self._journal.answering()
            keep = head.headers.get("connection", "").lower() != "close"
            return send_answer(wire, request.method, answer, fault, lambda: self.connection_rate) and keep
        finally:
            ended = time.monotonic()
            done = dataclasses.replace(request, status=status, bytes_sent=wire.body_sent, ended=ended)
            self._journal.ended(done, answered=answering)

    def _arrival(self, number: int, head: Head) -> Request:
        started = time.monotonic()
        bucket, _, key = head.path[1:].partition("/")
        span = None
        if "range" in head.headers and (entry := self.objects.get(bucket, key)) is not None:
            with contextlib.suppress(ValueError):
                span = answers.parse_range(head.headers["range"], entry.size)
        return Request(head.method, bucket, key, head.query, head.headers, number, started, span)

    def _answer(self, request: Request, body: bytes, fault: Fault) -> Answer:
        if fault.status is not None:
            return answers.failure(fault.status, fault.code, request.key)
        if self.require_signature and (refusal := answers.check_signature(request, self.require_signature)):
            return refusal
        if fault.whole:
            headers = {name: value for name, value in request.headers.items() if name != "range"}
            request = dataclasses.replace(request, headers=headers)
        return operations.perform(request, body, self.objects)


if __name__ == "__main__":
    from tests.servers.remote import main

    main()
