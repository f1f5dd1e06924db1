"""HTTP/1.1 over sockets that block in the kernel: one request, one head, a body received where it belongs.

Its job: the least work for a ranged GET. boto3's own way costs 1.3 ms of the interpreter for each request, and takes
and gives up the interpreter for every piece that the network delivers; here one call with MSG_WAITALL fills a piece
while other threads run, or several of them where they come quickly, and the kernel is told to wake its thread for a
MiB and not for each packet (SO_RCVLOWAT, socket(7)). Must not know S3; whatever is unusual (a redirect, a chunked body)
is for the caller, who has a slower way for it.

With TLS a record of 16 KiB is one call, and costs the interpreter twice; still 1.05 CPU seconds a GB, where boto3 takes
2, and awscrt, which calls back for each record, 1.5 to 1.7.

Concurrency: `Wires` from any thread, a `Wire` from one thread at a time, `Call.sever` from any.
"""

import contextlib
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lazyfs.errors import Transient
from lazyfs.objects import KIB, MIB, tail

CONNECT_TIMEOUT = 10.0
KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}
"""Seconds of silence before the kernel asks an idle connection whether the other side is there, those between two
questions, and how many (tcp(7), whose own are two hours). What is between forgets a connection after 4 to 6 minutes,
and some tell nobody."""

STALL_TIMEOUT: float = 20
"""Seconds without a byte after which a connection is given up. A bound on silence, not on the whole transfer."""

PIECE_SIZE = 1024 * KIB
"""Bytes received between two `arrived` of a connection that is slow, or new. With 256 KiB a cold read was 14 % slower:
each piece is a hand-over of the interpreter to and from its thread."""

MOST_PIECES = 4
TOGETHER = 0.15
"""Pieces received by one call, and seconds that they may take, as the last ones of the same body came. A cold read of
a GiB over 32 connections of 90 MB/s, of which each had a third on two busy cores, had 0.93 GB/s with one, 0.98 with
two, and 1.01 with four."""

MOST = MOST_PIECES * PIECE_SIZE
FEW = 64 * KIB
"""Bytes between two `arrived` at most, and those where somebody waits for a few: a block of a chunk, 0.7 ms of 90 MB/s.
"""

LOW_WATER = MIB
"""Bytes that wait in the kernel before the thread is woken. The same read had 0.82 GB/s without, 0.84 with 256 KiB,
0.86 with 512, and 0.90 with a MiB, for 16 % less CPU; over TLS, where bytes are lost when a wait for so many ends, it
made no difference beyond that of two runs."""

LONGEST_HEAD = 64 * KIB
LONGEST_ERROR = 64 * KIB
"""Bytes of a head, and of the body of an error, that are read at all."""

HEAD_PIECE = 4 * KIB
"""Bytes asked for while the head is incomplete; what of the body comes with them is copied, so it is little."""

MOST_INTERIM = 8
"""Heads below 200 before the one that counts. Servers send none or one."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers, names in lower case. `rest` is what came of the body with them."""

    status: int
    headers: dict[str, str]
    rest: bytes

    @property
    def length(self) -> int | None:
        """The Content-Length; None where there is none, or no number that Python reads (4,300 digits)."""
        text = self.headers.get("content-length", "")
        return int(text) if re.fullmatch("[0-9]{1,4000}", text) else None

    @property
    def plain(self) -> bool:
        """Whether the body is as long as the Content-Length says, with nothing round it."""
        return "transfer-encoding" not in self.headers and self.length is not None

    @property
    def keeps(self) -> bool:
        """Whether another request may follow on this connection: not if more came than was announced, for who knows
        whose answer that is."""
        length = self.length
        kept = "close" not in self.headers.get("connection", "").lower()
        return kept and self.plain and length is not None and len(self.rest) <= length


class Wire:
    """One connection, over TLS if `tls` is given; that checks the certificate against `host`."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Connect. OSError if that fails."""
        plain = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT)
        try:
            self._prepare(plain, host, tls)
        except BaseException:
            plain.close()
            raise

    def _prepare(self, plain: socket.socket, host: str, tls: ssl.SSLContext | None) -> None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            plain.setsockopt(socket.IPPROTO_TCP, option, value)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = plain
        # What is raised by the next receive: it broke the last one, which had bytes.
        self._broken: OSError | None = None
        self.rested = 0.0
        """When it was given back last, by time.monotonic(); 0 before that."""
        self._receive = self._receive_plain
        # What SO_RCVLOWAT is; 0 where it stays as it is.
        self._low = 1
        if tls is not None:
            self._socket = tls.wrap_socket(plain, server_hostname=host)
            self._socket.settimeout(STALL_TIMEOUT)
            self._receive, self._low = self._receive_tls, 0
            return
        # Blocking for the kernel, with its own clock: Python's time-outs poll before each receive, and MSG_WAITALL
        # means nothing to a socket that does not block. On expiry recv gives what it has, or EAGAIN if that is nothing
        # (tcp_recvmsg), which makes this a bound on silence for any piece.
        plain.settimeout(None)
        clock = struct.pack("ll", int(STALL_TIMEOUT), int(STALL_TIMEOUT % 1 * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            plain.setsockopt(socket.SOL_SOCKET, option, clock)

    def idle(self) -> bool:
        """Whether the other side has said nothing, not even goodbye, since the last answer."""
        # A record may have brought more than was asked for: that is here already, where poll does not look.
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def ask(self, request: bytes) -> Head:
        """Send a request and read the head of its answer."""
        self._socket.sendall(request)
        data = b""
        for _ in range(MOST_INTERIM + 1):
            head = self._head(data)
            if head.status >= 200:
                return head
            data = head.rest
        raise Transient("the answer does not come")

    def fill(
        self,
        head: Head,
        into: Sequence[memoryview],
        arrived: Callable[[int], None],
        most: Callable[[], int] = lambda: MOST,
    ) -> None:
        """Put the body into the buffers, in order; `arrived` with the bytes so far after each piece, or after several
        that come quickly, and never after more than `most` says then. Where that is few, what is here is told, and
        nothing is waited for: a piece that is not full may have all that somebody wants."""
        size, rest, received = sum(map(len, into)), memoryview(head.rest), 0
        for view in into:
            count = min(len(rest), len(view))
            view[:count] = rest[:count]
            rest, received = rest[count:], received + count
        left = tail(into, received)
        if not left:
            arrived(received)
        quick = 1
        while left:
            at_most = most()
            pieces = _pieces(left, min(at_most, PIECE_SIZE * quick))
            wanted = sum(map(len, pieces))
            self._expect(wanted, size - received - wanted)
            began = time.monotonic()
            count = self._receive(pieces, at_most > FEW)
            if not count:
                raise Transient(f"the body ended after {received} bytes")
            each = max(1e-9, time.monotonic() - began) * PIECE_SIZE / count
            quick = max(1, min(MOST_PIECES, int(TOGETHER / each)))
            received += count
            arrived(received)
            left = tail(left, count)

    def _expect(self, wanted: int, more: int) -> None:
        """Have the kernel wake the thread that receives for a lot at a time, if it waits for many bytes and enough come
        after them: with less, the last of them would never wake it. Where they come slowly recv returns what is there
        when its clock has run off, so nothing is lost; it does not wait again for the little that is then missing."""
        low = LOW_WATER if more >= LOW_WATER and wanted >= LOW_WATER // 2 else 1
        if self._low and low != self._low:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low)
            self._low = low

    def rest(self, head: Head) -> bytes:
        """The body of an error, as far as it is read at all. S3 sends them in chunks, and what the failure is depends
        on the word in it."""
        data = bytearray(head.rest)
        chunked = "transfer-encoding" in head.headers
        announced = LONGEST_ERROR if chunked or head.length is None else head.length
        while True:
            body, whole = _unchunked(data) if chunked else (bytes(data), False)
            if whole or len(data) >= min(announced, LONGEST_ERROR):
                return body
            piece = self._some()
            if piece:
                data += piece
            elif not chunked and head.length is None:
                return body  # it ends with the connection
            else:
                raise Transient(f"status {head.status}, and its body ended after {len(data)} bytes")

    def shut(self) -> None:
        """End what happens on the connection, from any thread; who receives from it sees its end."""
        # Not SSLSocket's own, which forgets the TLS: a receive in another thread would then give what was encrypted.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def _receive_plain(self, into: Sequence[memoryview], full: bool) -> int:
        try:
            return self._socket.recvmsg_into(into, 0, socket.MSG_WAITALL if full else 0)[0]
        except BlockingIOError:
            raise Transient(f"no byte came for {STALL_TIMEOUT:g} s") from None

    def _receive_tls(self, into: Sequence[memoryview], full: bool) -> int:
        """As the other one, what came before a silence is counted, and what comes slowly as often as there."""
        if self._broken is not None:
            raise self._broken
        receive, view, offset = self._socket.recv_into, into[0], 0
        last = time.monotonic() + STALL_TIMEOUT
        try:
            while offset < len(view) and (count := receive(view[offset:])):
                offset += count
                if not full or time.monotonic() > last:
                    break
        except OSError as error:
            if not offset:
                raise
            self._broken = error
        return offset

    def _some(self) -> bytes:
        """A few bytes, none at the end."""
        try:
            return self._socket.recv(HEAD_PIECE)
        except (BlockingIOError, TimeoutError):
            raise Transient(f"no byte came for {STALL_TIMEOUT:g} s") from None

    def _head(self, before: bytes) -> Head:
        """The next head, which begins with `before`."""
        data = bytearray(before)
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > LONGEST_HEAD:
                raise Transient("the head of the answer does not end")
            piece = self._some()
            if not piece:
                raise Transient("the connection was closed " + ("in the head of the answer" if data else "unanswered"))
            data += piece
        lines = data[:end].decode("latin-1").split("\r\n")
        match = re.match(r"HTTP/1\.[01] (\d{3})(?: |$)", lines[0])
        if match is None:
            raise Transient(f"not an HTTP answer: {lines[0][:80]!r}")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            name, value = name.lower(), value.strip()
            # Said twice it is a list, as in RFC 9110 5.3; two lengths are then no number.
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if lines[0].startswith("HTTP/1.0"):
            headers.setdefault("connection", "close")
        return Head(int(match[1]), headers, bytes(data[end + 4 :]))


def _pieces(left: Sequence[memoryview], most: int) -> list[memoryview]:
    """The buffers that are filled next, `most` bytes of them, and the last one alone: `_expect` can do nothing for
    that."""
    pieces, size = [left[0][:most]], len(left[0])
    for view in left[1:-1]:
        size += len(view)
        if size > most:
            break
        pieces.append(view)
    return pieces


def _unchunked(data: bytes | bytearray) -> tuple[bytes, bool]:
    """What is in the chunks that are here, and whether the last has come. What is not chunks ends them."""
    body, at = bytearray(), 0
    while (end := data.find(b"\r\n", at)) >= 0:
        size = re.match(rb"[0-9A-Fa-f]{1,8}", data[at:end])
        if size is None or not int(size[0], 16):
            return bytes(body), True
        at = end + 2 + int(size[0], 16) + 2
        body += data[end + 2 : at - 2]
    return bytes(body), False


class Wires:
    """Connections to one host and port that are used again; `most` are kept while idle."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, *, most: int) -> None:
        self._to = (host, port, tls)
        self._most = most
        self._idle: list[Wire] = []
        self._lock = threading.Lock()

    def take(self) -> Wire:
        """A connection that is open as far as one can see: the one used last, or a new one."""
        while True:
            with self._lock:
                wire = self._idle.pop() if self._idle else None
            if wire is None:
                return Wire(*self._to)
            if wire.idle():
                return wire
            wire.close()

    def distrust(self, wire: Wire) -> None:
        """A wire that had rested here was broken, or silent, before an answer: those that have rested for longer are
        closed. Where somebody on the way has forgotten all of them without a word, each would cost a request, and a
        bound on silence."""
        with self._lock:
            old = [one for one in self._idle if one.rested <= wire.rested]
            self._idle = [one for one in self._idle if one.rested > wire.rested]
        for one in old:
            one.close()

    def give_back(self, wire: Wire) -> None:
        """Its answer was read to the end."""
        wire.rested = time.monotonic()
        with self._lock:
            if len(self._idle) < self._most:
                self._idle.append(wire)
                return
        wire.close()

    def close(self) -> None:
        """Close those that are idle, and from now on each that is given back."""
        with self._lock:
            idle, self._idle, self._most = self._idle, [], 0
        for wire in idle:
            wire.close()
