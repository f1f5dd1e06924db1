"""A small HTTP server on trio streams, for GETs of a few pages: the only importer of h11, which speaks HTTP for it.

Its job: connections, their bounds, and a table of routes. A client may be slow, or mean harm: a head is bounded by h11,
a connection in time and to one request, connections in number, where the newest is served and the oldest makes room,
and in how many are taken a second. Must not know what the pages say.

Concurrency: one task for each connection, in whatever trio loop `serve` runs.
"""

import contextlib
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import unquote

import h11
import trio

log = logging.getLogger(__name__)

LONGEST_HEAD = 16 * 1024
"""Bytes of a request line and headers, as h11 counts them."""

MOST_CONNECTIONS = 32

PATIENCE = 10.0
"""Seconds for a connection, from its beginning to the last byte of its answer."""

PAUSE = 0.01
"""Seconds between two connections that are taken: at most 100 a second, whatever somebody tries, for the interpreter
that serves them is the mount's."""

LONGEST_BODY = 64 * 1024
"""Bytes of a request's body that are read and dropped, so that its sender sees the answer before the end."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for: `path` decoded, `query` as it came, headers with names in lower case."""

    path: str
    headers: Mapping[str, str]
    query: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered. `headers` besides the type and length."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Answer]]
Routes = Mapping[str, Handler]
"""What answers a GET, or a HEAD, by path."""


def sentence(status: int, words: str) -> Answer:
    """An answer for people."""
    return Answer(f"{words}\n".encode(), status=status)


async def serve(listening: socket.socket, routes: Routes, *, patience: float = PATIENCE) -> None:
    """Serve for ever, each connection for `patience` seconds at most. The socket is closed at the end."""
    under_way: dict[trio.CancelScope, None] = {}
    listening.setblocking(False)
    with trio.socket.from_stdlib_socket(listening) as taking:
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    taken, _ = await taking.accept()
                except OSError as error:
                    # As trio.serve_listeners: a client that has gone, or no descriptors, which may come back.
                    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                        await trio.sleep(0.1)
                    continue
                while len(under_way) >= MOST_CONNECTIONS:
                    oldest = next(iter(under_way))
                    del under_way[oldest]
                    oldest.cancel()
                scope = trio.CancelScope(deadline=trio.current_time() + patience)
                under_way[scope] = None
                nursery.start_soon(_connection, trio.SocketStream(taken), routes, scope, under_way)
                await trio.sleep(PAUSE)


async def _connection(
    stream: trio.SocketStream, routes: Routes, scope: trio.CancelScope, under_way: dict[trio.CancelScope, None]
) -> None:
    """One request and its answer."""
    try:
        with scope, contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            await _exchange(stream, routes)
    except Exception:
        log.exception("a defect while a page was served")
    finally:
        under_way.pop(scope, None)
        await trio.aclose_forcefully(stream)


async def _exchange(stream: trio.SocketStream, routes: Routes) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
    try:
        asked = await _next(connection, stream)
        if not isinstance(asked, h11.Request):
            return
        answer = await _answer(asked, routes)
        if connection.they_are_waiting_for_100_continue is False:
            await _drop_body(connection, stream)
    except h11.RemoteProtocolError as error:
        asked, answer = None, sentence(error.error_status_hint, "This is not a request that can be answered.")
    if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    headers = {
        "content-type": answer.content_type,
        "content-length": str(len(answer.body)),
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        **answer.headers,
        "connection": "close",
    }
    reason = HTTPStatus(answer.status).phrase.encode()
    head = h11.Response(status_code=answer.status, headers=list(headers.items()), reason=reason)
    data = connection.send(head) or b""
    if asked is None or asked.method != b"HEAD":
        data += connection.send(h11.Data(data=answer.body)) or b""
    await stream.send_all(data + (connection.send(h11.EndOfMessage()) or b""))
    await stream.send_eof()
    # What the client still sends would turn the end of the connection into a reset, and the answer would be lost.
    for _ in range(LONGEST_BODY // 4096):
        if not await stream.receive_some(4096):
            break


async def _next(connection: h11.Connection, stream: trio.SocketStream) -> object:
    while True:
        event = connection.next_event()
        if event is not h11.NEED_DATA:
            return event
        connection.receive_data(await stream.receive_some(4096))


async def _drop_body(connection: h11.Connection, stream: trio.SocketStream) -> None:
    size = 0
    while size < LONGEST_BODY:
        event = await _next(connection, stream)
        if not isinstance(event, h11.Data):
            return
        size += len(event.data)


async def _answer(asked: h11.Request, routes: Routes) -> Answer:
    target, _, query = asked.target.decode("latin-1").partition("?")
    path = unquote(target)
    handler = routes.get(path)
    if handler is None:
        return sentence(404, f"There is no such page; there are {', '.join(sorted(routes))}.")
    if asked.method not in (b"GET", b"HEAD"):
        allowed = sentence(405, "Pages here can be read by GET or HEAD, and nothing can be changed.")
        return Answer(allowed.body, status=405, headers={"allow": "GET, HEAD"})
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in asked.headers}
    try:
        return await handler(Request(path, headers, query))
    except Exception:
        log.exception("a defect while %s was made", path)
        return sentence(500, "A defect of lazyfs; its log says where.")
