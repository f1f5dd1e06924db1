"""CrtStore against a server that goes wrong, over HTTP and TLS: which failure each answer becomes.

The first read of a store goes by botocore, so each test's store has read once before.
"""

from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from lazyfs.errors import AccessDenied, ArchivedObject, NotFound, ObjectChanged, SetupError, StoreError, Transient
from lazyfs.objects import KIB, MIB, ObjectVersion
from lazyfs.stores.base import Claim
from lazyfs.stores.crt import CrtStore
from tests.rooms.building import pattern
from tests.servers.certificates import Certificates
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault

DATA = pattern(3 * MIB + 99)
START, STOP = 300 * KIB, 2900 * KIB


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority of the test's own."""
    return Certificates.at(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, certificates: Certificates, _aws: None) -> Iterator[FastS3Server]:
    """A server with one object."""
    context = certificates.context() if request.param == "https" else None
    with FastS3Server(ssl_context=context) as running:
        running.put("models", "k", DATA)
        yield running


@pytest.fixture
async def store(server: FastS3Server, certificates: Certificates) -> AsyncIterator[CrtStore]:
    """The store under test, past its first read, the log empty."""
    made = CrtStore("models", endpoint_url=server.url, ca_bundle=str(certificates.ca), max_connections=3)
    await Reading().run(made, version_of(server))
    server.take_log()
    yield made
    made.close()


def version_of(server: FastS3Server) -> ObjectVersion:
    """The version that the server holds."""
    found = server.objects.get("models", "k")
    assert found is not None
    return ObjectVersion("p", "k", found.etag, found.size)


class Reading:
    """One read into two buffers: what came into them, and the counts that arrived."""

    def __init__(self, start: int = START, stop: int = STOP) -> None:
        self.start = start
        self.buffer = bytearray(stop - start)
        self.counts: list[int] = []
        self.claim = Claim(urgent=True)

    async def run(self, store: CrtStore, version: ObjectVersion) -> None:
        """Read, and hold what arrived to be right, whatever becomes of the read."""
        view = memoryview(self.buffer)
        middle = len(view) // 3
        try:
            await store.read(version, self.start, [view[:middle], view[middle:]], self.counts.append, self.claim)
        finally:
            arrived = self.counts[-1] if self.counts else 0
            assert self.counts == sorted(set(self.counts))
            assert self.buffer[:arrived] == DATA[self.start : self.start + arrived]


async def refused(server: FastS3Server, store: CrtStore, fault: Fault) -> tuple[StoreError, int]:
    """The failure that a read under this fault ends in, and how many bytes had arrived. The next read is right."""
    version = version_of(server)
    server.fault = lambda request: fault
    reading = Reading()
    with pytest.raises(StoreError) as caught:
        await reading.run(store, version)
    server.fault = None
    again = Reading()
    await again.run(store, version)
    assert again.buffer == DATA[START:STOP]
    return caught.value, reading.counts[-1] if reading.counts else 0


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(whole=True), Transient),
        (Fault(content_range=f"bytes {START + 1}-{STOP}/{len(DATA)}"), Transient),
        (Fault(content_range="bytes nonsense"), Transient),
        (Fault(content_range=f"bytes {START}-{STOP - 1}/{len(DATA) + 1}"), ObjectChanged),
        (Fault(etag='"another"'), ObjectChanged),
        (Fault(without=("ETag",)), Transient),
        (Fault(page=b"<html>log in</html>"), Transient),
        (Fault(page=b"default backend - 404", status=404), Transient),
        (Fault(gzip=True), Transient),
        (Fault(gzip=True, framing="chunks"), Transient),
        (Fault(gzip=True, framing="close"), Transient),
        (Fault(status=307, code="TemporaryRedirect", headers={"x-amz-bucket-region": "us-west-1"}), Transient),
        (Fault(headers={"Content-Length": "5"}), Transient),
        (Fault(status=400, code="InvalidRequest"), StoreError),
        (Fault(status=403, code="AccessDenied"), AccessDenied),
        (Fault(status=403, code="InvalidObjectState"), ArchivedObject),
        (Fault(status=400, code="ExpiredToken"), Transient),
        (Fault(status=404, code="NoSuchKey"), NotFound),
        (Fault(status=412, code="PreconditionFailed"), ObjectChanged),
        (Fault(status=416, code="InvalidRange"), ObjectChanged),
        (Fault(status=429, code="TooManyRequests"), Transient),
        (Fault(status=500, code="InternalError"), Transient),
        (Fault(status=503, code="SlowDown"), Transient),
        (Fault(hang_up=True), Transient),
        (Fault(hang_up=True, reset=True), Transient),
        (Fault(close_after=0), Transient),
    ],
    ids=str,
)
async def test_what_a_wrong_answer_becomes(
    server: FastS3Server, store: CrtStore, fault: Fault, kind: type[StoreError]
) -> None:
    """Exactly that failure, with a text, before any byte was counted."""
    error, arrived = await refused(server, store, fault)
    assert type(error) is kind
    assert str(error)
    assert arrived == 0
    assert getattr(error, "slow_down", False) == (fault.status in (429, 503))


async def test_a_body_that_breaks(server: FastS3Server, store: CrtStore) -> None:
    """Every byte that came before is good, and counted."""
    error, arrived = await refused(server, store, Fault(close_after=1300 * KIB))
    assert type(error) is Transient
    assert arrived == 1300 * KIB


async def test_a_read_is_one_request(server: FastS3Server, store: CrtStore) -> None:
    """Ranged, conditional and signed, on one connection while reads follow each other; told at each MiB and the end."""
    version = version_of(server)
    for _ in range(3):
        reading = Reading()
        await reading.run(store, version)
        assert reading.buffer == DATA[START:STOP]
        assert len(reading.counts) == 4
        assert reading.counts[-1] == STOP - START
    requests = server.take_log()
    assert [(one.kind, one.range, one.status) for one in requests] == [("GET", (START, STOP), 206)] * 3
    assert {one.headers["if-match"] for one in requests} == {version.etag}
    assert all(one.headers["authorization"].startswith("AWS4-HMAC-SHA256 ") for one in requests)
    assert len({one.connection for one in requests}) == 1


@pytest.mark.parametrize("framing", ["chunks", "close"])
async def test_a_body_without_a_length(server: FastS3Server, store: CrtStore, framing: str) -> None:
    """In chunks it is received; one that ends with the connection awscrt takes for none, and botocore asks for it."""
    server.fault = lambda request: Fault(framing="chunks" if framing == "chunks" else "close")
    reading = Reading()
    await reading.run(store, version_of(server))
    assert reading.buffer == DATA[START:STOP]
    by_botocore = ["amz-sdk-request" in request.headers for request in server.take_log()]
    assert sorted(by_botocore) == ([False] if framing == "chunks" else [False, True])


async def test_a_redirect_is_botocores(server: FastS3Server, store: CrtStore) -> None:
    """What is neither the range nor an error of S3's is asked again the slow way, within the same read."""
    asked: list[str] = []

    def once(request: object) -> Fault | None:
        asked.append("")
        return Fault(status=400, code="AuthorizationHeaderMalformed") if len(asked) == 1 else None

    server.fault = once
    reading = Reading()
    await reading.run(store, version_of(server))
    assert reading.buffer == DATA[START:STOP]
    assert len(asked) == 2


async def test_renewed_credentials_are_taken(
    server: FastS3Server, store: CrtStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each request, never frozen: the next GET is signed with what botocore has then."""
    credentials = store._s3.signer._credentials
    monkeypatch.setattr(credentials, "access_key", "renewed")
    await Reading().run(store, version_of(server))
    (request,) = server.take_log()
    assert "Credential=renewed/" in request.headers["authorization"]


async def test_a_severed_read(server: FastS3Server, store: CrtStore) -> None:
    """Ends as a broken connection does; when it is over there is nothing to sever."""
    reading = Reading()
    with server.hold() as gate:
        async with trio.open_nursery() as nursery:

            async def sever() -> None:
                await trio.to_thread.run_sync(gate.wait_for)
                assert reading.claim.sever is not None
                reading.claim.sever()

            nursery.start_soon(sever)
            with pytest.raises(Transient):
                await reading.run(store, version_of(server))
    assert reading.claim.sever is None


async def test_a_cancelled_read_is_over_when_it_ends(server: FastS3Server, store: CrtStore) -> None:
    """A body that stalls is broken off; the buffer is nobody's then, and may be resized."""
    server.fault = lambda request: Fault(stall_after=1500 * KIB)
    reading = Reading()
    reached = trio.Event()
    token = trio.lowlevel.current_trio_token()
    counts = reading.counts.append

    def note(count: int) -> None:
        counts(count)
        token.run_sync_soon(reached.set)

    view = memoryview(reading.buffer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.read, version_of(server), START, [view], note, reading.claim)
        await reached.wait()
        nursery.cancel_scope.cancel()
    arrived = reading.counts[-1]
    assert reading.buffer[:arrived] == DATA[START : START + arrived]
    view.release()
    reading.buffer.clear()


async def test_a_silent_connection_is_given_up(
    server: FastS3Server, store: CrtStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After STALL_TIMEOUT without a byte, with what came before counted."""
    monkeypatch.setattr("lazyfs.stores.crt.STALL_TIMEOUT", 0.2)
    error, arrived = await refused(server, store, Fault(stall_after=1200 * KIB))
    assert "no byte came" in str(error)
    assert arrived == 1200 * KIB


async def test_a_server_that_is_gone(server: FastS3Server, store: CrtStore) -> None:
    """No connection is a failure like another."""
    version = version_of(server)
    server.stop()
    with pytest.raises(Transient):
        await Reading().run(store, version)
    server.start()
    await Reading().run(store, version)


async def test_reads_at_once_are_bounded_and_right(server: FastS3Server, store: CrtStore) -> None:
    """No more than `max_connections` are on the wire, each in its own buffer."""
    readings = [Reading(n * 100 * KIB, n * 100 * KIB + 90 * KIB) for n in range(20)]
    async with trio.open_nursery() as nursery:
        for reading in readings:
            nursery.start_soon(reading.run, store, version_of(server))
    assert all(one.buffer == DATA[one.start : one.start + 90 * KIB] for one in readings)
    assert server.counters.most_at_once <= 3


async def test_options_reach_the_request(server: FastS3Server, certificates: Certificates) -> None:
    """Unsigned, requester pays, expected owner: what a bucket may demand is sent with every request."""
    store = CrtStore(
        "models",
        endpoint_url=server.url,
        ca_bundle=str(certificates.ca),
        no_sign_request=True,
        requester_pays=True,
        expected_bucket_owner="123456789012",
    )
    for _ in range(2):
        await Reading().run(store, version_of(server))
    requests = server.take_log()
    assert len(requests) == 2
    assert requests[0].connection != requests[1].connection
    for request in requests:
        assert "authorization" not in request.headers
        assert request.headers["x-amz-request-payer"] == "requester"
        assert request.headers["x-amz-expected-bucket-owner"] == "123456789012"
    store.close()


@pytest.mark.slow  # s2n, awscrt's TLS, sits out 10 to 30 s after a handshake that failed
@pytest.mark.usefixtures("_aws")
async def test_an_unknown_authority_is_not_trusted(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By awscrt no more than by botocore: no request is sent to such a server."""
    strange = Certificates.at(tmp_path_factory.mktemp("strange"))
    with FastS3Server(ssl_context=certificates.context()) as server:
        server.put("models", "k", DATA)
        store = CrtStore("models", endpoint_url=server.url, ca_bundle=str(certificates.ca))
        await Reading().run(store, version_of(server))
        server.take_log()
        wary = CrtStore("models", endpoint_url=server.url, ca_bundle=str(strange.ca))
        wary._pattern = store._pattern
        with pytest.raises(Transient, match="TLS"):
            await Reading().run(wary, version_of(server))
        assert server.take_log() == []
        store.close()
        wary.close()


@pytest.mark.usefixtures("_aws")
def test_a_bundle_that_is_none() -> None:
    """One sentence before anything is sent."""
    with pytest.raises(SetupError, match="CA bundle"):
        CrtStore("models", ca_bundle="/nowhere/ca.pem")
