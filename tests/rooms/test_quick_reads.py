"""Reads of S3Store over wires, against a server that sends exactly the bytes of a script: what becomes of answers that
S3 does not give, that connections are used again and none is forgotten, and that a read is severed by its own claim.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from lazyfs.errors import AccessDenied, NotFound, ObjectChanged, StoreError, Transient
from lazyfs.objects import KIB, ObjectVersion
from lazyfs.stores.base import Claim
from lazyfs.stores.crt import CrtStore
from lazyfs.stores.s3 import S3Store
from lazyfs.stores.wire import Wires
from tests.rooms.building import pattern
from tests.rooms.raw_server import CHUNKED, LAST, PATIENCE, RawServer, Say, answer, chunked, nothing_left_open, scripted

DATA = pattern(300 * KIB)


@pytest.fixture(autouse=True)
def _nothing_is_left_open(_aws: None) -> Iterator[None]:
    """No socket is closed by being forgotten."""
    with nothing_left_open():
        yield


VERSION = ObjectVersion("p", "k", '"e"', len(DATA))


def ranged(start: int, stop: int, *, more: tuple[str, ...] = (), body: bytes | None = None, **how: Any) -> bytes:
    """The right answer to that range, unless told otherwise."""
    said = (f"Content-Range: bytes {start}-{stop - 1}/{len(DATA)}", 'ETag: "e"', *more)
    return answer(DATA[start:stop] if body is None else body, *said, **how)


async def reading(store: S3Store | CrtStore, start: int = 0, stop: int = 100, claim: Claim | None = None) -> None:
    """A read, held to be right if it ends well."""
    buffer = bytearray(stop - start)
    await store.read(VERSION, start, [memoryview(buffer)], lambda count: None, claim or Claim(urgent=True))
    assert buffer == DATA[start:stop]


def error(status: str, code: str) -> tuple[bytes, ...]:
    """As S3 sends it: in chunks, and whoever reads the head alone has not seen the word."""
    text = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()
    return answer(b"", *CHUNKED, status=f"HTTP/1.1 {status} x", length=None), chunked(text), LAST


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (ranged(1, 101), Transient),
        (ranged(0, 100, length=99), Transient),
        (ranged(0, 100, body=DATA[:50], length=100), Transient),
        (ranged(0, 100, length=int("9" * 30)), Transient),
        (ranged(0, 100).replace(b'"e"', b'"f"'), ObjectChanged),
        (answer(DATA[:100], 'ETag: "e"'), Transient),
        (answer(DATA, 'ETag: "e"', status="HTTP/1.1 200 OK"), Transient),
        (b"nonsense\r\n\r\n", Transient),
        (error("400", "ExpiredToken"), Transient),
        (error("403", "AccessDenied"), AccessDenied),
        (error("404", "NoSuchKey"), NotFound),
        (error("503", "SlowDown"), Transient),
        (error("400", "InvalidRequest"), StoreError),
        (answer(b"", status="HTTP/1.1 403 x", length=None), AccessDenied),
    ],
)
async def test_a_wrong_answer_costs_its_connection(wrong: bytes | tuple[bytes, ...], kind: type[StoreError]) -> None:
    """One request, that failure, and every wire is closed or idle: the next answer is not what was left of this one."""
    said = Say(wrong if isinstance(wrong, tuple) else (wrong,), close=True)
    with scripted(ranged(0, 100), said, ranged(100, 200), ranged(200, 300)) as server:
        store = S3Store("models", endpoint_url=server.url)
        await reading(store)
        with pytest.raises(StoreError) as caught:
            await reading(store)
        assert type(caught.value) is kind
        await reading(store, 100, 200)
        await reading(store, 200, 300)
        assert [number for number, _ in server.requests] == [1, 2, 3, 3]
        store.close()


@pytest.mark.parametrize(
    "how", [{"length": None}, {"more": CHUNKED, "length": None, "body": chunked(DATA[:100]) + LAST}]
)
async def test_a_body_without_a_length_goes_by_botocore_from_then_on(how: dict[str, Any]) -> None:
    """Asked for twice once, and not each time."""
    odd = Say((ranged(0, 100, **how),), close=True)
    with scripted(ranged(0, 100), odd, odd, odd, odd) as server:
        store = S3Store("models", endpoint_url=server.url)
        for _ in range(4):
            try:
                await reading(store)
            except Transient:  # on a connection that the server closed only then; nothing was asked
                await reading(store)
        assert [b"amz-sdk-request" in request for _, request in server.requests] == [True, False, True, True, True]
        store.close()


async def test_a_claim_severs_its_own_read_only() -> None:
    """While the answer is awaited it fails; afterwards nothing happens, though the same wire is at work."""
    waiting = threading.Event()
    severs: list[Callable[[], None] | None] = []
    claim, other = Claim(urgent=True), Claim(urgent=True)
    said: list[bytes | threading.Event] = [*[ranged(0, 100)] * 3, waiting]

    def spoken(_: bytes) -> Say:
        severs.append(claim.sever)
        if len(severs) == 3 and severs[1] is not None:
            severs[1]()  # of the read before, on this wire
        if len(severs) == 4 and other.sever is not None:
            other.sever()
        return Say((said[len(severs) - 1],), close=len(severs) == 4)

    with RawServer(spoken) as server:
        store = S3Store("models", endpoint_url=server.url)
        for _ in range(3):
            await reading(store, claim=claim)
        assert [sever is None for sever in severs] == [True, False, False]
        with pytest.raises(Transient, match="unanswered"):
            await reading(store, claim=other)
        assert (claim.sever, other.sever) == (None, None)
        assert [number for number, _ in server.requests] == [1, 2, 2, 2]
        waiting.set()
        store.close()


@pytest.mark.parametrize("engine", [S3Store, CrtStore])
async def test_connections_that_were_forgotten_on_the_way_cost_one_silence(
    engine: type[S3Store] | type[CrtStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firewall that drops what it does not know says nothing on any of them: one read fails after the bound on
    silence, all that have rested for longer are closed, and the next read opens a new one."""
    for module in ("client", "wire", "crt"):
        monkeypatch.setattr(f"lazyfs.stores.{module}.STALL_TIMEOUT", 0.2)
    connection, together, never = threading.local(), threading.Barrier(4), threading.Event()
    opened: list[int] = []
    known = 1 << 30

    class Forgetful(RawServer):
        def _converse(self, number: int, plain: socket.socket) -> None:
            connection.number = number
            opened.append(number)
            super()._converse(number, plain)

    def spoken(request: bytes) -> Say:
        if b"bytes=100-" in request:
            together.wait(PATIENCE)
            return Say((ranged(100, 200),))
        return Say((never,)) if known <= len(opened) and connection.number <= known else Say((ranged(0, 100),))

    with Forgetful(spoken) as server:
        store = engine("models", endpoint_url=server.url)
        await reading(store)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(reading, store, 100, 200)
        known = len(opened)
        assert known >= 4
        with pytest.raises(Transient):
            await reading(store)
        await reading(store)
        assert len(opened) == known + 1
        never.set()
        store.close()


async def test_first_reads_at_once_share_their_wires() -> None:
    """Each of them learns; the wires that the first has made are not forgotten with a connection in them."""
    together = threading.Barrier(4)

    def spoken(request: bytes) -> Say:
        if b"amz-sdk-request" in request:
            together.wait(PATIENCE)
        return Say((ranged(0, 100),))

    with RawServer(spoken) as server:
        store = S3Store("models", endpoint_url=server.url)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(reading, store)
        quick = store.way.known
        assert quick is not None
        await reading(store)
        assert len(quick[1]._idle) == 1
        # What was learned is of no use any more: all are closed, and one that is under way when it comes back.
        store.way.learn("k", plain=False)
        assert store.way.known is None
        assert quick[1]._idle == []
        store.close()


def test_most_are_kept_and_none_after_the_end() -> None:
    """The third of two is closed, and so is one that comes back when all was closed."""
    with scripted() as server:
        wires = Wires("127.0.0.1", server.port, None, most=2)
        taken = [wires.take() for _ in range(3)]
        for wire in taken:
            wires.give_back(wire)
        assert [wire._socket.fileno() >= 0 for wire in taken] == [True, True, False]
        late = wires.take()
        wires.close()
        assert late._socket.fileno() >= 0
        wires.give_back(late)
        assert all(wire._socket.fileno() == -1 for wire in taken)
