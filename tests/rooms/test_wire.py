"""Wires against a server that sends exactly the bytes of a script: what is read, what is refused, what is used again.

Everything waits for an event or for bytes; the clock plays a part only where silence itself is what is tried.
"""

import itertools
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from lazyfs.errors import Transient
from lazyfs.objects import KIB, MIB
from lazyfs.stores.calls import Call
from lazyfs.stores.wire import FEW, HEAD_PIECE, LONGEST_ERROR, LONGEST_HEAD, Head, Wire, Wires
from tests.rooms.building import pattern
from tests.rooms.raw_server import CHUNKED, LAST, PATIENCE, RawServer, Say, answer, chunked, nothing_left_open, scripted
from tests.servers.certificates import Certificates

DATA = pattern(300 * KIB)


def connected(server: RawServer, tls: ssl.SSLContext | None = None) -> Wire:
    """A wire to it."""
    return Wire("127.0.0.1", server.port, tls)


def body_of(wire: Wire, head: Head, size: int) -> bytes:
    """The body, received in two buffers."""
    buffer = bytearray(size)
    counts: list[int] = []
    view = memoryview(buffer)
    wire.fill(head, [view[: size // 3], view[size // 3 :]], counts.append)
    assert counts == sorted(set(counts))
    assert counts[-1] == size
    return bytes(buffer)


REQUEST = b"GET / HTTP/1.1\r\n\r\n"


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    """No socket is closed by being forgotten."""
    with nothing_left_open():
        yield


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of the server that speaks TLS."""
    return Certificates.at(tmp_path_factory.mktemp("certificates"))


def trusting(certificates: Certificates) -> ssl.SSLContext:
    """The client's side."""
    return ssl.create_default_context(cafile=certificates.ca)


Tls = tuple[ssl.SSLContext, ssl.SSLContext] | tuple[None, None]


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest, certificates: Certificates) -> Tls:
    """The client's side and the server's."""
    return (None, None) if request.param == "plain" else (trusting(certificates), certificates.context())


@pytest.fixture
def _short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyfs.stores.wire.STALL_TIMEOUT", 0.05)


@pytest.mark.parametrize(
    ("sent", "status", "said", "keeps"),
    [
        (answer(b"abc"), 206, {}, True),
        (answer(b"abc", status="HTTP/1.1 200"), 200, {}, True),
        (answer(b"abc", 'ETAG:  "x" ', "x-y:"), 206, {"etag": '"x"', "x-y": ""}, True),
        (answer(b"abc", "Connection: keep-alive"), 206, {}, True),
        (answer(b"abc", "Connection: Close"), 206, {}, False),
        (answer(b"abc", "Connection: te, close"), 206, {}, False),
        (answer(b"abc", "Connection: te", "Connection: close"), 206, {}, False),
        (answer(b"abc", status="HTTP/1.0 206 x"), 206, {}, False),
        (answer(b"abc", "Connection: keep-alive", status="HTTP/1.0 206 x"), 206, {}, True),
        (answer(b"abc", length=None), 206, {}, False),
        (answer(b"abc", "Transfer-Encoding: chunked"), 206, {}, False),
        (answer(b"abc", "Content-Length: 4"), 206, {"content-length": "3, 4"}, False),
        (answer(b"abc", "Content-Length: x", length=None), 206, {}, False),
        (answer(b"abc, and one that nobody asked for", length=3), 206, {}, False),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"abc"), 206, {}, True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 103 x\r\nLink: y\r\n\r\n" + answer(b"abc"), 206, {}, True),
    ],
)
@pytest.mark.parametrize("pieces", [False, True])
def test_a_head_and_whether_another_may_follow(
    sent: bytes, status: int, said: dict[str, str], keeps: bool, pieces: bool
) -> None:
    """In one piece, body and all, or byte by byte."""
    parts = tuple(sent[n : n + 1] for n in range(len(sent))) if pieces else (sent,)
    with scripted(Say(parts)) as server:
        wire = connected(server)
        head = wire.ask(REQUEST)
        assert head.status == status
        assert said.items() <= head.headers.items()
        assert body_of(wire, head, 3) == b"abc"
        if not pieces:
            assert head.keeps == keeps
        wire.close()
    assert server.requests == [(1, REQUEST[:-4])]


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"", "unanswered"),
        (b"HTTP/1.1 206 x\r\nContent-Le", "in the head"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 20 x\r\n\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 206 x\r\n" + b"x: y\r\n" * LONGEST_HEAD, "does not end"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, "does not come"),
    ],
)
def test_what_is_no_answer(sent: bytes, told: str) -> None:
    """Is a connection that broke, whatever it was that spoke; and what does not end is not read for ever."""
    with scripted(Say((sent,), close=True)) as server:
        wire = connected(server)
        with pytest.raises(Transient, match=told):
            wire.ask(REQUEST)
        wire.close()


@pytest.mark.parametrize(
    ("head", "body", "close", "read"),
    [
        (answer(b"", length=9), (b"<Code>x", b"yz"), False, b"<Code>xyz"),
        (answer(b"<Co", length=9), (b"de>xyz",), False, b"<Code>xyz"),
        (answer(b"", length=0), (), False, b""),
        (answer(b"", length=None), (b"<Code>", b"xyz"), True, b"<Code>xyz"),
        (answer(b"", *CHUNKED, length=None), (chunked(b"<Code>"), chunked(b"xyz"), LAST), False, b"<Code>xyz"),
        (answer(b"9\r\n<Co", *CHUNKED, length=None), (b"de>xyz\r\n", LAST), False, b"<Code>xyz"),
        (answer(b"", *CHUNKED, length=5), (chunked(b"<Code>xyz"), LAST), False, b"<Code>xyz"),
        (answer(b"", *CHUNKED, length=None), (b"this is no chunk\r\n",), False, b""),
        (answer(b"", *CHUNKED, length=None), (b"-5\r\n" * 99,), False, b""),
    ],
)
def test_the_body_of_an_error(head: bytes, body: tuple[bytes, ...], close: bool, read: bytes) -> None:
    """However it is sent: with a length, in chunks as S3 does it, until the end; and split anywhere."""
    asked = threading.Event()
    with scripted(Say((head, asked, *body), close=close)) as server:
        wire = connected(server)
        found = wire.ask(REQUEST)
        asked.set()
        assert wire.rest(found) == read
        wire.close()


@pytest.mark.parametrize("head", [answer(b"abc", length=10), answer(b"fff\r\nabc", *CHUNKED, length=None)])
def test_an_error_whose_body_breaks(head: bytes) -> None:
    """Is not judged by the half of it."""
    with scripted(Say((head,), close=True)) as server:
        wire = connected(server)
        found = wire.ask(REQUEST)
        with pytest.raises(Transient, match="status 206, and its body ended"):
            wire.rest(found)
        wire.close()


@pytest.mark.parametrize("how", [("Content-Length: 99999999",), CHUNKED, ()])
def test_an_error_that_is_long(how: tuple[str, ...]) -> None:
    """Is read as far as it may matter, and not to its end, which does not come."""
    with scripted(Say((answer(b"", *how, length=None) + (b"ffffff\r\n" if how == CHUNKED else b"") + DATA,))) as server:
        wire = connected(server)
        body = wire.rest(wire.ask(REQUEST))
        wire.close()
    assert LONGEST_ERROR - 16 <= len(body) < LONGEST_ERROR + 8 * KIB
    assert body == DATA[: len(body)]


@pytest.mark.usefixtures("_short_silence")
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 20", answer(b"", length=10), answer(b"abc", length=10)])
def test_silence(tls: Tls, sent: bytes) -> None:
    """In the head, before the body or in it, is the end of the connection; the error's body too."""
    never = threading.Event()
    with scripted(Say((sent, never)), Say((sent, never)), tls=tls[1]) as server:
        for read in (lambda wire, head: body_of(wire, head, 10), lambda wire, head: wire.rest(head)):
            wire = connected(server, tls[0])
            with pytest.raises((Transient, TimeoutError)):
                read(wire, wire.ask(REQUEST))
            wire.close()
        never.set()


@pytest.mark.usefixtures("_short_silence")
def test_what_came_before_a_silence_is_told(tls: Tls) -> None:
    """Whoever goes on from there needs it: where every connection breaks before a MiB nothing would ever be read."""
    never = threading.Event()
    with scripted(Say((answer(DATA[: 100 * KIB], length=len(DATA)), never)), tls=tls[1]) as server:
        wire = connected(server, tls[0])
        buffer, counts = bytearray(len(DATA)), [0]
        with pytest.raises((Transient, TimeoutError)):
            wire.fill(wire.ask(REQUEST), [memoryview(buffer)], counts.append)
        assert counts[-1] == 100 * KIB
        assert buffer[: 100 * KIB] == DATA[: 100 * KIB]
        never.set()
        wire.close()


def test_where_few_are_waited_for_what_is_here_is_told(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it: the server sends no more until it was, and for a piece that is not full nobody waits."""
    monkeypatch.setattr("lazyfs.stores.wire.STALL_TIMEOUT", 10 * PATIENCE)
    told = threading.Event()
    said = Say((answer(DATA[: 100 * KIB], length=len(DATA)), told, DATA[100 * KIB :]))
    with scripted(said, tls=tls[1]) as server:
        wire = connected(server, tls[0])
        buffer, counts = bytearray(len(DATA)), list[int]()

        def arrived(count: int) -> None:
            counts.append(count)
            if count >= 100 * KIB:
                told.set()

        wire.fill(wire.ask(REQUEST), [memoryview(buffer)], arrived, lambda: FEW)
        wire.close()
    assert buffer == DATA
    assert 100 * KIB in counts


def test_what_comes_slowly_is_told_as_often_over_tls(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel tells of it without TLS: else a slow connection seems to bring nothing."""
    with scripted(answer(DATA), tls=certificates.context()) as server:
        wire = connected(server, trusting(certificates))
        head = wire.ask(REQUEST)
        clock = itertools.count(0.0, 15.0)
        monkeypatch.setattr("lazyfs.stores.wire.time", SimpleNamespace(monotonic=lambda: next(clock)))
        buffer, counts = bytearray(len(DATA)), list[int]()
        wire.fill(head, [memoryview(buffer)], counts.append)
        wire.close()
    assert buffer == DATA
    assert len(counts) >= len(DATA) // (32 * KIB), "every second record of 16 KiB"


def test_a_connection_whose_other_side_is_gone_is_noticed_while_it_is_idle() -> None:
    """By the kernel, in a minute and a half instead of two hours."""
    with scripted() as server:
        wire = connected(server)
        options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
        assert [wire._socket.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [60, 10, 3]
        assert wire._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        wire.close()


def test_those_that_rested_for_longer_go_with_one_that_failed() -> None:
    """What was used since is kept."""
    with scripted() as server:
        wires = Wires("127.0.0.1", server.port, None, most=4)
        old, failed, young = (wires.take() for _ in range(3))
        for wire in (old, failed):
            wires.give_back(wire)
        assert wires.take() is failed
        wires.give_back(young)
        wires.distrust(failed)
        failed.close()
        assert [wire._socket.fileno() >= 0 for wire in (old, young)] == [False, True]
        assert wires.take() is young
        young.close()


@pytest.mark.usefixtures("_short_silence")
def test_a_body_that_drips_is_no_silence() -> None:
    """The time-out is for one byte: what came by then counts, and the next is waited for as long again."""
    done = threading.Event()
    with scripted(Say((answer(b"", length=4), done))) as server:
        wire = connected(server)
        head = wire.ask(REQUEST)
        counts: list[int] = []

        def drip(count: int = 0) -> None:
            counts.append(count)
            if count < 4:
                server._open[0].sendall(b"abcd"[count : count + 1])

        drip()
        buffer = bytearray(4)
        wire.fill(head, [memoryview(buffer)], drip)
        done.set()
        assert (bytes(buffer), counts) == (b"abcd", [0, 1, 2, 3, 4])
        wire.close()


@pytest.mark.parametrize(
    ("most", "told"), [(4, [[1, 5, 7, 8], [1, 5, 7, 8]]), (1, [[*range(1, 9)], [*range(1, 9)]])]
)
def test_pieces_that_come_quickly_are_received_together(
    most: int, told: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two bodies on one connection: the first piece alone, for nobody knows yet; then four at a time, and the last
    one alone, for which the kernel must wake whoever waits at each byte: it would wait for more than comes. All of a
    body is in the kernel before it is received, which gives less than it is asked for now and then if it must wait."""
    piece = 16 * KIB
    for name, value in (("PIECE_SIZE", piece), ("LOW_WATER", piece), ("TOGETHER", 1e9)):
        monkeypatch.setattr(f"lazyfs.stores.wire.{name}", value)
    bodies = [DATA[: 8 * piece], DATA[8 * piece : 16 * piece]]
    found: list[list[int]] = []
    with scripted(*map(answer, bodies)) as server:
        wire = connected(server)
        wire._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
        for body in bodies:
            buffer, counts = memoryview(bytearray(len(body))), list[int]()

            def arrived(count: int, counts: list[int] = counts, size: int = len(body)) -> None:
                before = counts[-1] if counts else 0
                low = wire._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
                assert low == (piece if count <= size - piece else 1), (before, count)
                counts.append(count)

            views = [buffer[at : at + piece] for at in range(0, len(body), piece)]
            head = wire.ask(REQUEST)
            while len(wire._socket.recv(MIB, socket.MSG_PEEK)) + len(head.rest) < len(body):
                time.sleep(0.001)
            wire.fill(head, views, arrived, lambda: most * piece)
            assert buffer == body
            found.append([count // piece for count in counts])
        wire.close()
    assert found == told


@pytest.mark.parametrize("sent", [0, 1, 100 * KIB + 1])
def test_a_body_that_ends_early(tls: Tls, sent: int) -> None:
    """Says after how many bytes, and those are right."""
    said = Say((answer(DATA[:sent], length=len(DATA)),), close=True)
    with scripted(said, tls=tls[1]) as server:
        wire = connected(server, tls[0])
        buffer, counts = bytearray(len(DATA)), [0]
        with pytest.raises(Transient, match=f"after {sent} bytes"):
            wire.fill(wire.ask(REQUEST), [memoryview(buffer)], counts.append)
        wire.close()
    assert buffer == DATA[:sent] + bytes(len(DATA) - sent)
    assert sent - HEAD_PIECE <= counts[-1] <= sent


def arrival(wire: Wire) -> None:
    """Wait until something came that nobody asked for, the end included."""
    assert select.select([wire._socket], [], [], PATIENCE)[0]


@pytest.mark.parametrize("said", [Say((answer(b"abc"),), close=True), Say((answer(b"ab"), threading.Event(), b"c"))])
def test_a_wire_that_was_closed_or_spoke_while_idle(said: Say) -> None:
    """Is not used again, and the one that takes its place is."""
    with scripted(said, answer(b"new")) as server:
        wires = Wires("127.0.0.1", server.port, None, most=2)
        first = wires.take()
        head = first.ask(REQUEST)
        body_of(first, head, head.length or 0)
        assert head.keeps
        wires.give_back(first)
        for part in said.parts:
            if isinstance(part, threading.Event):
                part.set()
        arrival(first)
        second = wires.take()
        assert second is not first
        assert first._socket.fileno() == -1
        assert body_of(second, second.ask(REQUEST), 3) == b"new"
        wires.give_back(second)
        assert wires.take() is second
        second.close()
    assert [number for number, _ in server.requests] == [1, 2]


def test_more_than_was_asked_for_in_one_record(certificates: Certificates) -> None:
    """What TLS has decrypted already is not on the socket any more, and would begin the next answer."""
    asked = threading.Event()
    extra = answer(b"stale")
    with scripted(Say((answer(b"", length=3), asked, b"abc" + extra)), tls=certificates.context()) as server:
        wires = Wires("127.0.0.1", server.port, trusting(certificates), most=1)
        wire = wires.take()
        head = wire.ask(REQUEST)
        asked.set()
        assert body_of(wire, head, 3) == b"abc"
        wires.give_back(wire)
        other = wires.take()
        assert other is not wire
        assert wire._socket.fileno() == -1
        other.close()
        assert len(server._open) == 2


def test_a_connection_that_cannot_be_made(certificates: Certificates) -> None:
    """Not one that is refused, nor a server of another name, nor one that is not trusted, leaves a socket behind."""
    with scripted() as server:
        gone = server.port
    with pytest.raises(OSError, match="refused"):
        Wire("127.0.0.1", gone)
    with scripted(tls=certificates.context()) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            Wire("127.0.0.1", server.port, ssl.create_default_context())
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            Wire("127.1", server.port, trusting(certificates))  # its address, and not its name


def test_a_call_is_severed_while_it_lasts_and_not_after() -> None:
    """For then the wire is somebody else's."""
    with scripted(answer(b"abc"), answer(b"def"), Say((threading.Event(),))) as server:
        wire = connected(server)
        call = Call(wire)
        assert body_of(wire, wire.ask(REQUEST), 3) == b"abc"
        call.over()
        call.sever()
        assert wire.idle()
        call = Call(wire)
        assert body_of(wire, wire.ask(REQUEST), 3) == b"def"
        # After the last byte, and before it is over: nothing failed, and nobody else gets it.
        call.sever()
        call.over()
        wires = Wires("127.0.0.1", server.port, None, most=1)
        wires.give_back(wire)
        second = wires.take()
        assert second is not wire
        call = Call(second)
        threading.Thread(target=call.sever).start()
        with pytest.raises((Transient, OSError)):
            second.ask(REQUEST)
        second.close()


def test_a_severed_body_is_right_as_far_as_it_came(tls: Tls) -> None:
    """Severed while more of it lies in the kernel, encrypted or not; none of that is taken for the body."""
    asked, never = threading.Event(), threading.Event()
    with scripted(Say((answer(b"", length=2 * len(DATA)), asked, DATA, never)), tls=tls[1]) as server:
        wire = connected(server, tls[0])
        call = Call(wire)
        head = wire.ask(REQUEST)
        asked.set()
        buffer = bytearray(2 * len(DATA))
        views = [memoryview(buffer)[:KIB], memoryview(buffer)[KIB:]]
        counts: list[int] = []

        def sever_early(count: int) -> None:
            counts.append(count)
            if count == KIB:
                arrival(wire)
                call.sever()

        with pytest.raises((Transient, OSError)):
            wire.fill(head, views, sever_early)
        never.set()
        wire.close()
    assert counts[0] == KIB
    right = next((n for n in range(len(DATA)) if buffer[n] != DATA[n]), len(DATA))
    assert right >= counts[-1]
    assert not any(buffer[right:])
