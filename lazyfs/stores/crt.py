"""S3 through awscrt, Amazon's HTTP client in C: another engine for the same GETs, the only importer of awscrt.http.

Its job: ranged GETs over connections that one thread of awscrt's serves, whatever their number; the trio loop is woken
when one is over. Listing, stat, credentials and the first GET are `s3.S3Store`'s, from which `signing` learns what the
next ones look like; whatever is unusual (a proxy, another way of signing, a redirect) stays there.

Why awscrt.http and not awscrt.s3, over TLS, in CPU seconds for each GB received: its S3Client costs 1.07 and not 1.5,
but holds 280 MiB for 32 spans of 8 MiB, tells nothing before a span is whole, and cuts ranges that are not on its grid
into several requests. One thread and not two (2.3), for both want the interpreter for every 16 KiB that come.

Concurrency: `CrtStore` on the trio loop; the three callbacks of an `_Exchange` on awscrt's thread, one after another.
Invariants: between `_on_complete` and the end of a read nobody writes to its buffers or uses its connection; a
connection is idle, or has one exchange, or is closed.
"""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio
from awscrt.exceptions import AwsCrtError
from awscrt.http import HttpClientConnection, HttpClientStream, HttpHeaders, HttpRequest
from awscrt.io import (
    ClientBootstrap,
    ClientTlsContext,
    DefaultHostResolver,
    EventLoopGroup,
    SocketOptions,
    TlsContextOptions,
)

from lazyfs.errors import SetupError, StoreError, Transient
from lazyfs.objects import Checksums, Listing, ObjectInfo, ObjectVersion, Stretch
from lazyfs.stores.answers import RangeAnswer, coding, element, failure
from lazyfs.stores.base import Arrived, Claim
from lazyfs.stores.border import translated
from lazyfs.stores.quick import told_of
from lazyfs.stores.s3 import S3Store
from lazyfs.stores.signing import Pattern
from lazyfs.stores.traffic import GET, Trip
from lazyfs.stores.versions import VersionIds
from lazyfs.stores.wire import CONNECT_TIMEOUT, LONGEST_ERROR, PIECE_SIZE, STALL_TIMEOUT


class _Elsewhere(Exception):
    """The answer is for botocore to deal with, and nothing of it has arrived."""


class CrtStore:
    """One bucket, as `s3.S3Store`; takes the same options."""

    def __init__(self, bucket: str, *, max_connections: int = 32, **options: Any) -> None:
        """Make the clients. Sends nothing. `SetupError` as `S3Store`, and for a CA bundle that cannot be used."""
        self._s3 = S3Store(bucket, max_connections=max_connections, quick=False, **options)
        self._gets = trio.CapacityLimiter(max_connections)
        # A hop to sign, which blocks only when botocore renews the credentials; not behind the GETs of a store.
        self._signings = trio.CapacityLimiter(8)
        loops = EventLoopGroup(1)
        self._bootstrap = ClientBootstrap(loops, DefaultHostResolver(loops))
        self._sockets = SocketOptions()
        self._sockets.connect_timeout_ms = int(CONNECT_TIMEOUT * 1000)
        self._tls = _trust(self._s3.way.authorities)
        self._pattern: Pattern | None = None
        self._idle: list[HttpClientConnection] = []

    async def list(self, prefix: str) -> Listing:
        """See `base.Store.list`."""
        return await self._s3.list(prefix)

    async def stretch(self, prefix: str, after: str) -> Stretch:
        """See `base.Store.stretch`."""
        return await self._s3.stretch(prefix, after)

    async def total_size(self, prefix: str) -> int:
        """See `base.Store.total_size`."""
        return await self._s3.total_size(prefix)

    async def stat(self, key: str) -> ObjectInfo:
        """See `base.Store.stat`."""
        return await self._s3.stat(key)

    async def checksums(self, version: ObjectVersion) -> Checksums:
        """See `base.Store.checksums`."""
        return await self._s3.checksums(version)

    @property
    def version_ids(self) -> VersionIds:
        """See `versions.Origin.version_ids`."""
        return self._s3.version_ids

    async def find_version(self, version: ObjectVersion) -> str:
        """See `versions.Origin.find_version`."""
        return await self._s3.find_version(version)

    def close(self) -> None:
        """Close the connections that are idle."""
        while self._idle:
            self._idle.pop().close()
        self._s3.close()

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """See `base.Store.read`: one ranged GET with If-Match."""
        trip = self._s3.traffic.trip(GET)
        async with self._gets:
            pattern = self._pattern
            if pattern is not None:
                with contextlib.suppress(_Elsewhere), trip:
                    await self._read(pattern, version, start, into, arrived, claim, trip)
                    return
            # Not abandoned when cancelled: the thread writes into buffers that belong to somebody else.
            await trio.to_thread.run_sync(translated, self._read_first, version, start, into, arrived, claim)

    def _read_first(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """By botocore, and learn from it; both in one thread, for the signer remembers by thread."""
        self._s3.read_by_botocore(version, start, into, arrived, claim)
        self._pattern = self._s3.signer.learn(version.key)

    async def _read(
        self, pattern: Pattern, version: ObjectVersion, start: int,
        into: Sequence[memoryview], arrived: Arrived, claim: Claim, trip: Trip,
    ) -> None:  # fmt: skip
        stop = start + sum(len(view) for view in into)
        sign = partial(self._s3.signer.request, pattern, version, start, stop)
        request = _parsed(await trio.to_thread.run_sync(translated, sign, limiter=self._signings))
        connection = await self._connection(pattern)
        rested = [*self._idle]  # for longer than this one, if it did
        token, over = trio.lowlevel.current_trio_token(), trio.Event()

        def wake() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(over.set)

        try:
            trip.sent(waited=True)
            check = partial(self.version_ids.check, version=version, start=start, stop=stop)
            exchange = _Exchange(connection, request, trip, check, into, arrived, wake, lambda: told_of(claim))
            claim.sever = exchange.sever
            exchange.activate()
        except AwsCrtError as error:
            # The other side closed it while it was idle.
            claim.sever = None
            connection.close()
            self._distrust(rested)
            raise Transient(f"{error.name}: {error.message}") from error
        try:
            await exchange.finished(over)
        finally:
            claim.sever = None
            if exchange.failed is not None and not exchange.answered:
                self._distrust(rested)
            if exchange.keeps and connection.is_open():
                self._idle.append(connection)
            else:
                connection.close()
        if exchange.failed is not None:
            raise exchange.failed

    def _distrust(self, connections: Sequence[HttpClientConnection]) -> None:
        """Close those of them that are idle: see `Wires.distrust`."""
        for one in connections:
            if one in self._idle:
                self._idle.remove(one)
                one.close()

    async def _connection(self, pattern: Pattern) -> HttpClientConnection:
        """One that is open as far as one can see: the one used last, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open() and (connection.host_name, connection.port) == (pattern.host, pattern.port):
                return connection
            connection.close()
        tls = None
        if pattern.tls:
            tls = self._tls.new_connection_options()
            tls.set_server_name(pattern.host)
        token, over = trio.lowlevel.current_trio_token(), trio.Event()

        def wake(_: object) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(over.set)

        future = HttpClientConnection.new(pattern.host, pattern.port, self._bootstrap, self._sockets, tls)
        future.add_done_callback(wake)
        # Bounded by awscrt: 10 s to connect, 10 s for TLS; after a TLS failure s2n keeps silent for 10 to 30 s more.
        with trio.CancelScope(shield=True):
            await over.wait()
        try:
            made: HttpClientConnection = future.result()
        except AwsCrtError as error:
            raise Transient(f"{error.name}: {error.message}") from error
        return made


class _Exchange(HttpClientStream):  # type: ignore[misc]  # awscrt is not annotated
    """One GET, its answer checked and received into the buffers. After `_on_complete`, `failed` says how it ended."""

    __slots__ = (
        "_arrived", "_check", "_error", "_head", "_last", "_lock", "_most", "_offset", "_over", "_received", "_told",
        "_trip", "_views", "_wake", "answered", "failed", "keeps",
    )  # fmt: skip

    def __init__(
        self,
        connection: HttpClientConnection,
        request: HttpRequest,
        trip: Trip,
        check: Callable[[RangeAnswer], None],
        into: Sequence[memoryview],
        arrived: Arrived,
        wake: Callable[[], None],
        most: Callable[[], int],
    ) -> None:
        """`check` raises if the head is not that of the answer; `wake` is called once, when all is over; `most` is for
        how many bytes `arrived` is called at the latest."""
        self._trip, self._check, self._arrived, self._wake, self._most = trip, check, arrived, wake, most
        self._views = [view for view in reversed(into) if len(view)]
        self._offset = self._received = self._told = 0
        self._error: bytearray | None = None
        self._head = RangeAnswer(0)
        self._last = time.monotonic()
        self._lock = threading.Lock()
        self._over = False
        self.failed: Exception | None = None
        self.keeps = self.answered = False
        # Last: the base makes the stream, whose callbacks need all of the above.
        super().__init__(connection, request)

    async def finished(self, over: trio.Event) -> None:
        """Wait until nobody writes to the buffers any more; a silent or cancelled exchange is broken off first."""
        try:
            while not over.is_set():
                left = self._last + STALL_TIMEOUT - time.monotonic()
                if left <= 0:
                    self.failed = self.failed or Transient(f"no byte came for {STALL_TIMEOUT} s")
                    self.sever()
                    break
                with trio.move_on_after(left):
                    await over.wait()
        except trio.Cancelled:
            self.sever()
            raise
        finally:
            # awscrt completes every stream of a connection that is closed.
            with trio.CancelScope(shield=True):
                await over.wait()

    def sever(self) -> None:
        """Break it off, from any thread; nothing happens once it is over."""
        with self._lock:
            if not self._over:
                self.connection.close()

    def _on_response(self, status_code: int, name_value_pairs: list[tuple[str, str]]) -> None:
        self._last, self.answered = time.monotonic(), True
        self._trip.answered(status_code)
        headers = {name.lower(): value for name, value in name_value_pairs}
        text = headers.get("content-length", "")
        # Python refuses more than 4,300 digits, and an exception here would leave nobody to wake the reader.
        length = int(text) if re.fullmatch("[0-9]{1,4000}", text) else None
        etag, found, known = (headers.get(name, "") for name in ("etag", "content-range", "x-amz-version-id"))
        self._head = RangeAnswer(status_code, etag, found, length, coding(headers), known)
        self.keeps = headers.get("connection", "").lower() != "close"
        if status_code not in (200, 206):
            self._error = bytearray()
            return
        if length is None and "transfer-encoding" not in headers:
            self._give_up(_Elsewhere())  # a body that ends with the connection has none for awscrt
            return
        try:
            self._check(self._head)
        except StoreError as error:
            self._give_up(error)
        else:
            self._arrived(0)

    def _on_body(self, chunk: bytes) -> None:
        self._last = time.monotonic()
        if self.failed is not None:
            return
        if self._error is not None:
            self._error += chunk[: LONGEST_ERROR - len(self._error)]
            return
        taken, size = 0, len(chunk)
        while taken < size and self._views:
            view, offset = self._views[-1], self._offset
            count = min(size - taken, len(view) - offset)
            view[offset : offset + count] = chunk if count == size else chunk[taken : taken + count]
            taken += count
            self._offset = offset + count
            if self._offset == len(view):
                self._views.pop()
                self._offset = 0
        self._received += taken
        if taken < size:
            self._give_up(Transient("the body goes on after the range"))
        elif self._received - self._told >= min(PIECE_SIZE, self._most()):
            self._tell()

    def _on_complete(self, error_code: int) -> None:
        with self._lock:
            self._over = True
        if self.failed is None:
            self.failed = self._ending(error_code)
        self.keeps = self.keeps and error_code == 0
        if self._error is None:
            self._tell()
        self._views.clear()
        self._wake()

    def _ending(self, error_code: int) -> Exception | None:
        if error_code:
            return Transient(f"the connection broke after {self._received} bytes (awscrt error {error_code})")
        if self._error is not None:
            status, code = self._head.status, element(bytes(self._error), "Code")
            if status < 400 or code == "AuthorizationHeaderMalformed":
                return _Elsewhere()
            return failure(status, code, element(bytes(self._error), "Message"))
        return Transient(f"the body ended after {self._received} bytes") if self._views else None

    def _give_up(self, error: Exception) -> None:
        self.failed = error
        self.keeps = False
        self.sever()

    def _tell(self) -> None:
        if self._received > self._told:
            self._told = self._received
            self._arrived(self._told)


def _parsed(raw: bytes) -> HttpRequest:
    """A request as awscrt wants it, from how it goes over the wire."""
    first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    pairs = [tuple(line.split(": ", 1)) for line in lines]
    return HttpRequest(method, target, HttpHeaders(pairs))


def _trust(path: str | None) -> ClientTlsContext:
    """As awscrt wants to be told whom botocore trusts."""
    options = TlsContextOptions()
    try:
        if path is None:
            options.verify_peer = False
        elif Path(path).is_dir():
            options.override_default_trust_store_from_path(ca_dirpath=path)
        else:
            options.override_default_trust_store(Path(path).read_bytes())
        return ClientTlsContext(options)
    except (OSError, AwsCrtError) as error:
        raise SetupError(f"cannot use the CA bundle {path}: {error}") from error
