"""The pages' server: what is asked and answered, and clients that are slow or mean harm."""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import h11
import pytest
import trio

from lazyfs.service import http

PORT = ("127.0.0.1", 0)


async def page(request: http.Request) -> http.Answer:
    """What it was asked."""
    return http.Answer(json.dumps({"path": request.path, **request.headers}).encode(), "application/json")


async def broken(_: http.Request) -> http.Answer:
    """A defect."""
    raise ZeroDivisionError


ROUTES: http.Routes = {"/page": page, "/broken": broken}


@asynccontextmanager
async def serving(patience: float = http.PATIENCE) -> AsyncIterator[tuple[str, int]]:
    """A server, and where it is."""
    listening = socket.create_server(PORT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(http.serve, listening, ROUTES, patience=patience))
        yield listening.getsockname()
        nursery.cancel_scope.cancel()


async def all_of(stream: trio.SocketStream) -> bytes:
    """What comes until the end, of whatever kind."""
    found = b""
    try:
        with trio.fail_after(20):
            while piece := await stream.receive_some(65536):
                found += piece
    except trio.BrokenResourceError:
        pass
    return found


async def exchange(at: tuple[str, int], request: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body, as h11 reads them."""
    async with await trio.open_tcp_stream(*at) as stream:
        await stream.send_all(request)
        client = h11.Connection(h11.CLIENT)
        method = "HEAD" if request.startswith(b"HEAD") else "GET"
        client.send(h11.Request(method=method, target="/", headers=[("host", "h")]))
        client.receive_data(await all_of(stream))
        client.receive_data(b"")
        head = client.next_event()
        assert isinstance(head, h11.Response)
        body = client.next_event()
        return head.status_code, dict(head.headers), bytes(body.data) if isinstance(body, h11.Data) else b""


def asking(target: str, method: str = "GET", more: str = "") -> bytes:
    """A request."""
    return f"{method} {target} HTTP/1.1\r\nHost: h\r\n{more}\r\n".encode()


async def test_pages_by_their_path() -> None:
    """GET and HEAD, with a query or without; anything else is a sentence."""
    async with serving() as at:
        status, headers, body = await exchange(at, asking("/page?x=1", more="X-Y: z\r\n"))
        assert (status, headers[b"content-type"]) == (200, b"application/json")
        assert json.loads(body) == {"path": "/page", "host": "h", "x-y": "z"}
        head = await exchange(at, asking("/page", "HEAD"))
        assert (head[0], head[2]) == (200, b"")
        assert int(head[1][b"content-length"]) > 0
        status, _, body = await exchange(at, asking("/elsewhere"))
        assert (status, body) == (404, b"There is no such page; there are /broken, /page.\n")
        for method in ("POST", "DELETE", "OPTIONS"):
            more = "Content-Length: 200000\r\n" if method == "POST" else ""
            status, headers, body = await exchange(at, asking("/page", method, more) + b"x" * 200_000 * bool(more))
            assert (status, headers[b"allow"], body.count(b"\n")) == (405, b"GET, HEAD", 1)


async def test_a_defect_is_told_and_the_next_is_served(caplog: pytest.LogCaptureFixture) -> None:
    """In the log with its place, to the client as a sentence."""
    async with serving() as at:
        assert (await exchange(at, asking("/broken")))[::2] == (500, b"A defect of lazyfs; its log says where.\n")
        assert (await exchange(at, asking("/page")))[0] == 200
    assert "a defect while /broken was made" in caplog.text


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /page HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 431),
        (b"\x16\x03\x01 what TLS says\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    ],
)
async def test_what_is_no_request(request_: bytes, status: int) -> None:
    """Bounded, and answered as far as there is somebody to answer."""
    async with serving() as at:
        assert (await exchange(at, request_))[0] == status


async def test_slow_clients_are_let_go() -> None:
    """One that says nothing, and one that does not end its head."""
    async with serving(patience=0.3) as at:
        for said in (b"", b"GET /page HTT"):
            async with await trio.open_tcp_stream(*at) as stream:
                await stream.send_all(said)
                assert await all_of(stream) == b""


async def test_the_newest_of_many_connections_is_served() -> None:
    """Though more than there may be are open and silent, for as long as they like."""
    async with serving() as at:
        silent = [await trio.open_tcp_stream(*at) for _ in range(http.MOST_CONNECTIONS + 8)]
        assert (await exchange(at, asking("/page")))[0] == 200
        assert await all_of(silent[0]) == b""
        for stream in silent:
            await trio.aclose_forcefully(stream)


async def test_clients_that_are_gone() -> None:
    """Reset in the middle of everything."""
    async with serving() as at:
        for _ in range(20):
            stream = await trio.open_tcp_stream(*at)
            await stream.send_all(asking("/page"))
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await stream.aclose()
        assert (await exchange(at, asking("/page")))[0] == 200
