r"""What every HTTP server of ours here does, whatever it answers: accept, a thread for each connection, the log, gates,
delays, and asking what goes wrong.

Its job: from a listening socket to one request with its fault, and the record of how that ended. Must not know where
answers come from: `fast` has them, `proxy` fetches them.

Concurrency: hooks and gates are called in the threads of connections, with no lock held.
"""

import contextlib
import dataclasses
import errno
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Self

from tests.servers import answers
from tests.servers.answers import Answer
from tests.servers.clients import S3Endpoint
from tests.servers.faults import Fault, FaultHook, Gate
from tests.servers.records import Counters, Journal, Request
from tests.servers.wire import BadRequest, Head, Wire

Answering = Callable[[int], None]
"""Called with the status just before the first byte of an answer goes to the client."""

_PASSING_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED)

SETTLE = 2.0
"""Seconds that reading the log waits for answers under way; see `take_log`."""


class Serving(S3Endpoint):
    """One server on 127.0.0.1. All settings may be changed while it runs and hold for the next request.

    first_byte_delay: seconds between a request and the head of its answer.
    delay_for: more of it, by request.
    fault: what goes wrong, by request; see `faults`.
    """

    def __init__(self, *, port: int, ssl_context: ssl.SSLContext | None) -> None:
        """Nothing is bound before `start`. Port 0 is a free one, which is kept when it is started again."""
        self.first_byte_delay = 0.0
        self.delay_for: Callable[[Request], float] | None = None
        self.fault: FaultHook | None = None
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
        request = self._arrival(number, head)
        self._journal.arrived()
        wire.body_sent = 0
        answering, status = False, 0

        def begin(code: int) -> None:
            nonlocal answering, status
            answering, status = True, code
            self._journal.answering()

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
            keep = head.headers.get("connection", "").lower() != "close"
            return self._reply(wire, head, request, body, fault, begin) and keep
        finally:
            ended = time.monotonic()
            done = dataclasses.replace(request, status=status, bytes_sent=wire.body_sent, ended=ended)
            self._journal.ended(done, answered=answering)

    @staticmethod
    def _instead(request: Request, fault: Fault) -> Answer | None:
        """What a fault answers by itself."""
        if fault.page is not None:
            return answers.page(fault.page, fault.status or 200)
        return None if fault.status is None else answers.failure(fault.status, fault.code, request.key)

    def _arrival(self, number: int, head: Head) -> Request:
        started = time.monotonic()
        bucket, _, key = head.path[1:].partition("/")
        span = self._span(bucket, key, head.headers["range"]) if "range" in head.headers else None
        return Request(head.method, bucket, key, head.query, head.headers, number, started, span)

    def _span(self, bucket: str, key: str, header: str) -> tuple[int, int] | None:
        """What a Range header asks for; None if that is not known or cannot be."""
        raise NotImplementedError

    def _reply(
        self, wire: Wire, head: Head, request: Request, body: bytes, fault: Fault, answering: Answering
    ) -> bool:
        """Answer the request; False if the connection is to be closed."""
        raise NotImplementedError
