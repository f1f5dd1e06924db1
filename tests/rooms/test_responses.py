"""S3Store against a server that goes wrong: which failure each answer becomes, and that what arrived was right."""

import http.client
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from lazyfs.errors import (
    AccessDenied,
    ArchivedObject,
    NotFound,
    ObjectChanged,
    SetupError,
    StoreError,
    Transient,
)
from lazyfs.objects import KIB, MIB, ObjectVersion
from lazyfs.stores import s3 as s3_module
from lazyfs.stores.base import Claim
from lazyfs.stores.s3 import S3Store
from tests.rooms.building import pattern
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault

DATA = pattern(2 * MIB + 99)
START, STOP = 300 * KIB, 1900 * KIB


@pytest.fixture
def server(_aws: None) -> Iterator[FastS3Server]:
    """A server with one object."""
    with FastS3Server() as running:
        running.put("models", "k", DATA)
        yield running


@pytest.fixture(params=["botocore", "wire"])
async def store(server: FastS3Server, request: pytest.FixtureRequest) -> AsyncIterator[S3Store]:
    """The store under test, whose reads go by botocore, or over a wire since it learned how."""
    made = S3Store("models", endpoint_url=server.url, quick=request.param == "wire")
    await Reading().run(made, version_at(server))
    assert (made.way.known is not None) == (request.param == "wire")
    server.take_log()
    yield made
    made.close()


def version_at(server: FastS3Server, key: str = "k") -> ObjectVersion:
    """The version that the server holds."""
    found = server.objects.get("models", key)
    assert found is not None
    return ObjectVersion("p", key, found.etag, found.size)


class Reading:
    """One read into two buffers: what came into them, and the counts that arrived."""

    def __init__(self, start: int = START, stop: int = STOP) -> None:
        self.start = start
        self.buffer = bytearray(stop - start)
        self.counts: list[int] = [0]

    async def run(self, store: S3Store, version: ObjectVersion) -> None:
        """Read, and hold what arrived to be right, whatever becomes of the read."""
        view = memoryview(self.buffer)
        middle = len(view) // 3
        try:
            claim = Claim(urgent=True)
            await store.read(version, self.start, [view[:middle], view[middle:]], self.counts.append, claim)
        finally:
            arrived = self.counts[-1]
            assert self.counts == sorted(self.counts)
            assert self.buffer[:arrived] == DATA[self.start : self.start + arrived]


async def refused(server: FastS3Server, store: S3Store, fault: Fault) -> tuple[StoreError, int]:
    """The failure that a read under this fault ends in, and how many bytes had arrived. The next read is right."""
    version = version_at(server)
    server.fault = lambda request: fault if request.kind == "GET" else None
    reading = Reading()
    with pytest.raises(StoreError) as caught:
        await reading.run(store, version)
    server.fault = None
    again = Reading()
    await again.run(store, version)
    assert again.buffer == DATA[START:STOP]
    return caught.value, reading.counts[-1]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(whole=True), Transient),
        (Fault(content_range=f"bytes {START + 1}-{STOP}/{len(DATA)}"), Transient),
        (Fault(content_range=f"bytes {START}-{STOP - 2}/{len(DATA)}"), Transient),
        (Fault(content_range="bytes nonsense"), Transient),
        (Fault(content_range=f"bytes {START}-{STOP - 1}/{len(DATA) + 1}"), ObjectChanged),
        (Fault(etag='"another"'), ObjectChanged),
        (Fault(without=("ETag",)), Transient),
        (Fault(page=b""), Transient),
        (Fault(page=b"<html>log in</html>"), Transient),
        (Fault(page=b"default backend - 404", status=404), Transient),
        (Fault(page=b"<html/>", status=408), Transient),
        (Fault(page=b"<html/>", status=421), Transient),
        (Fault(page=b"<html/>", status=425), Transient),
        (Fault(page=b"<html/>", status=400), StoreError),
        (Fault(page=b"<html/>", status=403), AccessDenied),
        (Fault(gzip=True), Transient),
        (Fault(gzip=True, framing="chunks"), Transient),
        (Fault(gzip=True, framing="close"), Transient),
        (Fault(headers={"Content-Encoding": "gzip"}, framing="close"), Transient),
        (Fault(headers={"Transfer-Encoding": "gzip, chunked"}, without=("Content-Length",)), Transient),
        (Fault(status=301, code="PermanentRedirect", headers={"Location": "http://elsewhere/"}), Transient),
        (Fault(status=307, code="TemporaryRedirect", headers={"x-amz-bucket-region": "us-west-1"}), Transient),
        (Fault(headers={"Content-Length": "5"}), Transient),
        (Fault(status=400, code="InvalidRequest"), StoreError),
        (Fault(status=401, code="Unauthorized"), AccessDenied),
        (Fault(status=403, code="AccessDenied"), AccessDenied),
        (Fault(status=403, code="SignatureDoesNotMatch"), AccessDenied),
        (Fault(status=403, code="InvalidObjectState"), ArchivedObject),
        (Fault(status=403, code="RequestTimeTooSkewed"), Transient),
        (Fault(status=400, code="ExpiredToken"), Transient),
        (Fault(status=400, code="RequestTimeout"), Transient),
        (Fault(status=404, code="NoSuchKey"), NotFound),
        (Fault(status=404, code="NoSuchBucket"), NotFound),
        (Fault(status=412, code="PreconditionFailed"), ObjectChanged),
        (Fault(status=416, code="InvalidRange"), ObjectChanged),
        (Fault(status=429, code="TooManyRequests"), Transient),
        (Fault(status=500, code="InternalError"), Transient),
        (Fault(status=502, code="BadGateway"), Transient),
        (Fault(status=503, code="SlowDown"), Transient),
        (Fault(status=504, code="GatewayTimeout"), Transient),
        (Fault(hang_up=True), Transient),
        (Fault(hang_up=True, reset=True), Transient),
        (Fault(close_after=0), Transient),
    ],
    ids=str,
)
async def test_what_a_wrong_answer_becomes(
    server: FastS3Server, store: S3Store, fault: Fault, kind: type[StoreError]
) -> None:
    """Exactly that failure, with a text, before any byte was counted."""
    error, arrived = await refused(server, store, fault)
    assert type(error) is kind
    assert str(error)
    assert arrived == 0


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (429, "TooManyRequests"), (503, "ServiceUnavailable")])
async def test_a_store_that_asks_for_fewer_requests(
    server: FastS3Server, store: S3Store, status: int, code: str
) -> None:
    """Is heard, and told from one that is broken."""
    slow, _ = await refused(server, store, Fault(status=status, code=code))
    broken, _ = await refused(server, store, Fault(status=500))
    assert isinstance(slow, Transient)
    assert isinstance(broken, Transient)
    assert (slow.slow_down, broken.slow_down) == (True, False)


@pytest.mark.parametrize("reset", [False, True])
async def test_a_body_that_breaks(server: FastS3Server, store: S3Store, reset: bool) -> None:
    """What arrived before is good; when the body just ends that is every byte, a reset may take a piece along."""
    error, arrived = await refused(server, store, Fault(close_after=1000 * KIB, reset=reset))
    assert type(error) is Transient
    assert arrived <= 1000 * KIB if reset else arrived == 1000 * KIB


async def test_a_whole_object_may_come_with_200(server: FastS3Server, store: S3Store) -> None:
    """Where all of it was asked for, a server that ignores ranges has done as it was asked."""
    server.fault = lambda request: Fault(whole=True)
    reading = Reading(0, len(DATA))
    await reading.run(store, version_at(server))
    assert reading.buffer == DATA


async def test_an_object_that_is_stored_compressed(server: FastS3Server, store: S3Store) -> None:
    """Comes as it is stored, whatever it says of itself."""
    server.fault = lambda request: Fault(headers={"Content-Encoding": "gzip"})
    reading = Reading()
    await reading.run(store, version_at(server))
    assert reading.buffer == DATA[START:STOP]


@pytest.mark.parametrize("framing", ["chunks", "close"])
async def test_a_whole_object_without_a_length(server: FastS3Server, store: S3Store, framing: str) -> None:
    """Is not the object as far as one can know: some servers send it decompressed like that."""
    server.fault = lambda request: Fault(whole=True, framing="chunks" if framing == "chunks" else "close")
    reading = Reading(0, len(DATA))
    with pytest.raises(Transient):
        await reading.run(store, version_at(server))
    assert reading.counts == [0]


@pytest.mark.parametrize("store", ["wire"], indirect=True)
@pytest.mark.parametrize("framing", ["chunks", "close"])
async def test_bodies_without_a_length_are_asked_for_twice_once(
    server: FastS3Server, store: S3Store, framing: str
) -> None:
    """Then botocore sends all GETs, and wires do again from the first answer on that has a length."""
    fault = Fault(framing="chunks" if framing == "chunks" else "close")
    for wrong, asked in ((fault, ["wire", "botocore"]), (fault, ["botocore"]), (None, ["botocore"]), (None, ["wire"])):
        server.fault = lambda request, wrong=wrong: wrong
        reading = Reading()
        await reading.run(store, version_at(server))
        assert reading.buffer == DATA[START:STOP]
        log = server.take_log()
        by = ["botocore" if "amz-sdk-request" in request.headers else "wire" for request in log]
        assert sorted(by, reverse=True) == asked


async def test_a_weak_or_bare_etag_is_the_same(server: FastS3Server, store: S3Store) -> None:
    """Some servers spell it with quotes in one answer and without in another."""
    version = version_at(server)
    for spelled in (version.etag.strip('"'), "W/" + version.etag):
        server.fault = lambda request, spelled=spelled: Fault(etag=spelled)
        await Reading().run(store, version)


async def test_a_read_is_one_request(server: FastS3Server, store: S3Store) -> None:
    """Ranged and conditional, on one connection for reads one after another; nothing is asked again here."""
    version = version_at(server)
    for _ in range(3):
        await Reading().run(store, version)
    requests = server.take_log()
    assert [(one.kind, one.range, one.status) for one in requests] == [("GET", (START, STOP), 206)] * 3
    assert {one.headers["if-match"] for one in requests} == {version.etag}
    assert len({one.connection for one in requests}) == 1
    await refused(server, store, Fault(status=503))
    assert [one.status for one in server.take_log()] == [503, 206]


async def test_a_broken_connection_is_not_used_again(server: FastS3Server, store: S3Store) -> None:
    """Bytes of a body that was given up do not become the next answer."""
    await refused(server, store, Fault(content_range="bytes nonsense"))
    first, second = server.take_log()
    assert first.connection != second.connection


async def test_a_server_that_is_gone(server: FastS3Server, store: S3Store) -> None:
    """No connection is a failure like another, for every kind of request."""
    version = version_at(server)
    server.stop()
    with pytest.raises(Transient):
        await Reading().run(store, version)
    with pytest.raises(Transient):
        await store.list("")
    with pytest.raises(Transient):
        await store.stat("k")


async def test_a_listing_that_fails_half_way_is_an_error(server: FastS3Server, store: S3Store) -> None:
    """Never the first page alone."""
    for number in range(1001):
        server.put("models", f"many/{number:04}", b"")
    server.fault = lambda request: Fault(status=503, code="SlowDown") if "continuation-token" in request.query else None
    with pytest.raises(Transient):
        await store.list("many/")
    with pytest.raises(Transient):
        await store.total_size("many/")
    server.fault = None
    assert len((await store.list("many/")).objects) == 1001


async def test_the_root_may_hold_any_key(server: FastS3Server, store: S3Store) -> None:
    """A leading slash, dots, names that are no paths."""
    for key in ("/lead", "..", "../x", "//", "a\tb", "%2F"):
        server.put("models", key, key.encode())
    listing = await store.list("")
    assert {info.key for info in listing.objects} == {"k", "..", "a\tb", "%2F"}
    assert set(listing.prefixes) == {"/", "../"}
    assert (await store.list("/")).prefixes == ("//",)
    assert [info.key for info in (await store.list("//")).objects] == ["//"]


async def test_no_request_for_an_impossible_key(server: FastS3Server, store: S3Store) -> None:
    """boto3 refuses an empty key by itself; that is a name that is not there."""
    with pytest.raises(NotFound):
        await store.stat("")
    assert server.take_log() == []


async def test_reads_at_once_are_bounded_and_right(server: FastS3Server) -> None:
    """No more than `max_connections` are on the wire, each in its own buffer."""
    store = S3Store("models", endpoint_url=server.url, max_connections=3)
    version = version_at(server)
    readings = [Reading(n * 100 * KIB, n * 100 * KIB + 90 * KIB) for n in range(20)]
    async with trio.open_nursery() as nursery:
        for reading in readings:
            nursery.start_soon(reading.run, store, version)
    assert all(one.buffer == DATA[one.start : one.start + 90 * KIB] for one in readings)
    assert server.counters.most_at_once <= 3
    store.close()


async def test_options_reach_the_request(server: FastS3Server) -> None:
    """Unsigned, requester pays, expected owner: what a bucket may demand is sent with every request."""
    store = S3Store(
        "models",
        endpoint_url=server.url,
        no_sign_request=True,
        requester_pays=True,
        expected_bucket_owner="123456789012",
    )
    await Reading().run(store, version_at(server))
    await store.list("")
    await store.stat("k")
    for request in server.take_log():
        assert "authorization" not in request.headers
        assert request.headers["x-amz-request-payer"] == "requester"
        assert request.headers["x-amz-expected-bucket-owner"] == "123456789012"
    store.close()


async def test_without_credentials_it_says_what_to_do(
    server: FastS3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And sends nothing."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AccessDenied, match="--no-sign-request"):
        await S3Store("models", endpoint_url=server.url).list("")
    assert server.take_log() == []


@pytest.mark.usefixtures("_aws")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"profile": "nobody"}, "nobody"), ({"endpoint_url": "not a url"}, "not a url")],
)
def test_a_set_up_that_cannot_work(arguments: dict[str, str], said: str) -> None:
    """One sentence before anything is sent."""
    with pytest.raises(SetupError, match=said):
        S3Store("models", **arguments)  # type: ignore[arg-type]


async def test_a_listing_of_which_a_byte_comes_now_and_then_is_given_up(
    server: FastS3Server, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No time-out of sockets ends it, and it holds up no other; one of several pages has as long for each."""
    monkeypatch.setattr("lazyfs.stores.s3.LONGEST_ANSWER", 0.5)
    never = threading.Event()
    for number in range(2500):
        server.put("models", f"many/{number:04d}", b"")
    server.fault = lambda request: Fault(stall_after=100, until=never) if request.kind == "LIST" else None
    for _ in range(9):  # more than may be under way at once
        with pytest.raises(Transient, match="no end of an answer"):
            await store.list("k")
    server.fault = lambda request: Fault(rate=1e6) if request.kind == "LIST" else None
    monkeypatch.setattr("lazyfs.stores.s3.LONGEST_ANSWER", 5.0)
    assert len((await store.list("many/")).objects) == 2500
    never.set()
    with trio.fail_after(30):
        while s3_module._UNBOUNDED.borrowed_tokens:  # noqa: ASYNC110 - by threads to which an answer is still to come
            await trio.sleep(0.01)


@pytest.mark.parametrize("store", ["botocore"], indirect=True)
async def test_a_read_by_botocore_can_be_severed(server: FastS3Server, store: S3Store) -> None:
    """While its body comes, and what arrived is good; the next one is another's affair."""
    never = threading.Event()
    server.fault = lambda request: Fault(stall_after=900 * KIB, until=never) if request.kind == "GET" else None
    claim, reading = Claim(urgent=True), Reading()
    view = memoryview(reading.buffer)
    severed: list[bool] = []

    def arrived(count: int) -> None:
        reading.counts.append(count)
        if count >= 800 * KIB and not severed:
            assert claim.sever is not None
            severed.append(True)
            claim.sever()

    with pytest.raises(Transient):
        await store.read(version_at(server), START, [view], arrived, claim)
    assert claim.sever is None
    assert view[: reading.counts[-1]] == DATA[START : START + reading.counts[-1]]
    server.fault = None
    never.set()
    again = Reading()
    await again.run(store, version_at(server))
    assert again.buffer == DATA[START:STOP]


@pytest.mark.parametrize("quick", [False, True])
async def test_what_came_before_a_silence_counts(
    server: FastS3Server, monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    """All of it, and where botocore reads it, of which nobody says how much came of the piece that broke, all but the
    little that pieces are."""
    for module in ("client", "wire"):
        monkeypatch.setattr(f"lazyfs.stores.{module}.STALL_TIMEOUT", 0.2)
    store = S3Store("models", endpoint_url=server.url, quick=quick)
    await Reading().run(store, version_at(server))
    error, arrived = await refused(server, store, Fault(stall_after=900 * KIB))
    assert type(error) is Transient
    assert arrived == 900 * KIB if quick else 836 * KIB <= arrived <= 900 * KIB
    store.close()


@pytest.mark.parametrize("store", ["botocore"], indirect=True)
async def test_the_fast_way_into_the_buffer_is_taken(
    server: FastS3Server, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where reads go by botocore, the body is received by http.client, below urllib3: an update that hides it would
    cost a fifth more CPU."""
    taken: list[int] = []
    readinto = http.client.HTTPResponse.readinto

    def counted(self: http.client.HTTPResponse, view: memoryview) -> int:
        count = readinto(self, view)
        taken.append(count)
        return count

    monkeypatch.setattr(http.client.HTTPResponse, "readinto", counted)
    await Reading().run(store, version_at(server))
    assert sum(taken) == STOP - START
