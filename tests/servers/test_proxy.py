"""The proxy: what it does to an answer on command, and that it does nothing else. `test_servers` puts a real server
behind it through everything that servers do."""

import contextlib
import gzip
import http.client
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.servers.certificates import Certificates
from tests.servers.clients import S3Endpoint
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault, first, moved
from tests.servers.processes import free_ports
from tests.servers.proxy import FaultProxy
from tests.servers.serving import Serving

DATA = bytes(range(256)) * 4096
RANGE = {"Range": "bytes=1000-1999"}
WANTED = DATA[1000:2000]
BROKEN = (http.client.IncompleteRead, ConnectionError, http.client.RemoteDisconnected)


@pytest.fixture
def server() -> Iterator[FastS3Server]:
    """The server behind the proxy."""
    with FastS3Server() as running:
        running.put("b", "k", DATA)
        yield running


@pytest.fixture
def proxy(server: FastS3Server) -> Iterator[FaultProxy]:
    with FaultProxy(server) as running:
        yield running


class Client(contextlib.closing[http.client.HTTPConnection]):
    """One connection without boto3."""

    def __init__(self, server: S3Endpoint) -> None:
        self.connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
        super().__init__(self.connection)

    def ask(self, method: str = "GET", target: str = "/b/k", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a request; IncompleteRead where the body ends early."""
        self.connection.request(method, target, headers=headers)
        answer = self.connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def asked(server: S3Endpoint, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request over a connection of its own."""
    client = Client(server)
    with client:
        return client.ask(method, **headers)


def test_requests_of_a_connection_are_one_connection_to_the_server(server: FastS3Server, proxy: FaultProxy) -> None:
    """Both are kept, whatever is asked; and what is asked and answered is what it is without a proxy."""
    direct, through = Client(server), Client(proxy)
    targets = (("GET", "/b/k"), ("HEAD", "/b/k"), ("GET", "/b?list-type=2&prefix=%6b"), ("GET", "/b/none"))
    with direct, through:
        for method, target in targets:
            expected, found = direct.ask(method, target, **RANGE), through.ask(method, target, **RANGE)
            assert found[::2] == expected[::2]
            assert {n: v for n, v in found[1].items() if n != "Date"} == {
                n: v for n, v in expected[1].items() if n != "Date"
            }
    # As they came: an answer may be here before its end is noted.
    entries = sorted(server.take_log(), key=lambda request: request.started)
    log, host = entries[1::2], {"host": proxy.url.removeprefix("http://")}
    assert [(one.kind, one.query, one.headers) for one in log] == [
        (one.kind, one.query, {**one.headers, **host}) for one in entries[::2]
    ]
    assert len({one.connection for one in log}) == 1
    seen = sorted(proxy.take_log(), key=lambda request: request.started)
    assert [(one.kind, one.status, one.bytes_sent) for one in seen] == [
        (one.kind, one.status, one.bytes_sent) for one in log
    ]
    assert seen[0].range == (1000, 2000)


def test_an_answer_is_passed_on_as_it_comes(server: FastS3Server, proxy: FaultProxy) -> None:
    """And ends early where the server ends it."""
    rest = threading.Event()
    server.fault = lambda request: Fault(stall_after=1000, until=rest)
    client = Client(proxy)
    with client:
        client.connection.request("GET", "/b/k")
        answer = client.connection.getresponse()
        assert answer.read(1000) == DATA[:1000]
        rest.set()
        assert answer.read() == DATA[1000:]
    server.fault = lambda request: Fault(close_after=5000)
    with pytest.raises(http.client.IncompleteRead) as caught:
        asked(proxy)
    assert caught.value.partial == DATA[:5000]


def test_a_server_that_comes_back(server: FastS3Server, proxy: FaultProxy) -> None:
    """Is asked over a new connection, while the client's stays; one that is gone is a connection that breaks."""
    client = Client(proxy)
    with client:
        assert client.ask()[2] == DATA
        server.stop()
        server.start()
        assert client.ask()[2] == DATA
        assert proxy.counters.connections == 1
        server.stop()
        with pytest.raises(BROKEN):
            client.ask()


@pytest.fixture(params=["server", "proxy"])
def either(request: pytest.FixtureRequest) -> Serving:
    """What says what is wrong: our own server, or the proxy before it."""
    found: Serving = request.getfixturevalue(request.param)
    return found


Expected = tuple[int, dict[str, str | None], Callable[[bytes], bool]]
FAULTS: dict[str, tuple[Fault, Expected]] = {
    "500": (Fault(status=500), (500, {}, lambda body: b"<Code>InternalError<" in body)),
    "slow down": (
        Fault(status=503, code="SlowDown", headers={"Retry-After": "1"}),
        (503, {"Retry-After": "1"}, lambda body: b"<Code>SlowDown<" in body),
    ),
    "somebody else's page": (
        Fault(page=b"<html>log in</html>"),
        (200, {"ETag": None, "Content-Range": None}, lambda body: body == b"<html>log in</html>"),
    ),
    "wrong bytes": (
        Fault(wrong_bytes=True),
        (206, {"Content-Length": "1000"}, lambda body: body == bytes([WANTED[0] ^ 0xFF]) + WANTED[1:]),
    ),
    "wrong range": (
        Fault(content_range="bytes 5-6/7"),
        (206, {"Content-Range": "bytes 5-6/7"}, lambda body: body == WANTED),
    ),
    "whole object": (
        Fault(whole=True),
        (200, {"Content-Range": None, "Content-Length": str(len(DATA))}, lambda body: body == DATA),
    ),
    "no length, until the end": (
        Fault(framing="close"),
        (206, {"Content-Length": None, "Transfer-Encoding": None}, lambda body: body == WANTED),
    ),
    "no length, in chunks": (
        Fault(framing="chunks"),
        (206, {"Content-Length": None, "Transfer-Encoding": "chunked"}, lambda body: body == WANTED),
    ),
    "wrong ETag": (Fault(etag='"other"'), (206, {"ETag": '"other"'}, lambda body: body == WANTED)),
    "no ETag": (Fault(without=("ETag",)), (206, {"ETag": None}, lambda body: body == WANTED)),
    "compressed": (
        Fault(gzip=True),
        (206, {"Content-Encoding": "gzip"}, lambda body: gzip.decompress(body) == WANTED),
    ),
    "compressed in chunks": (
        Fault(gzip=True, framing="chunks"),
        (206, {"Content-Length": None}, lambda body: gzip.decompress(body) == WANTED),
    ),
    "wrong bytes in chunks": (
        Fault(wrong_bytes=True, framing="chunks"),
        (206, {}, lambda body: body == bytes([WANTED[0] ^ 0xFF]) + WANTED[1:]),
    ),
    "slow drip": (Fault(rate=10_000), (206, {}, lambda body: body == WANTED)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_an_answer_has_wrong_with_it(either: Serving, name: str) -> None:
    """Once; the next answer is right, over the same connection where that is left."""
    fault, (status, headers, right) = FAULTS[name]
    either.fault = first(1, fault)
    client = Client(either)
    with client:
        found = client.ask(**RANGE)
        assert found[0] == status
        assert {header: found[1].get(header) for header in headers} == headers
        assert right(found[2])
        assert client.ask(**RANGE)[2] == WANTED
    assert [one.status for one in either.take_log()] == [status, 206]
    assert either.counters.connections == (2 if fault.framing == "close" else 1)


@pytest.mark.parametrize("fault", [Fault(framing="close"), Fault(framing="chunks"), Fault(gzip=True, framing="close")])
def test_a_head_has_no_body(either: Serving, fault: Fault) -> None:
    """However the end of that would be told."""
    either.fault = first(1, fault, lambda request: request.kind == "HEAD")
    status, headers, body = asked(either, "HEAD")
    assert (status, headers.get("Content-Length"), body) == (200, None, b"")
    assert asked(either, "HEAD")[1]["Content-Length"] == str(len(DATA))


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_body_that_breaks(either: Serving, framing: str, reset: bool) -> None:
    """After so many bytes, by FIN or by RST, without an answer or in the middle of one."""
    fault = Fault(close_after=500, reset=reset, framing="chunks" if framing == "chunks" else "length")
    either.fault = first(1, fault)
    with pytest.raises(BROKEN):
        asked(either, **RANGE)
    either.fault = first(1, Fault(hang_up=True, reset=reset))
    with pytest.raises(BROKEN):
        asked(either, **RANGE)
    assert asked(either, **RANGE)[2] == WANTED
    assert [(one.status, one.bytes_sent) for one in either.take_log()] == [(206, 500), (0, 0), (206, 1000)]


@pytest.mark.parametrize("framing", ["length", "close"])
def test_a_stall_and_its_end(either: Serving, framing: str) -> None:
    rest = threading.Event()
    fault = Fault(stall_after=400, until=rest, framing="close" if framing == "close" else "length")
    either.fault = first(1, fault)
    client = Client(either)
    with client:
        client.connection.request("GET", "/b/k", headers=RANGE)
        answer = client.connection.getresponse()
        assert answer.read(400) == WANTED[:400]
        rest.set()
        assert answer.read() == WANTED[400:]


def test_a_redirect_names_the_request(server: FastS3Server, proxy: FaultProxy) -> None:
    """At the server it is said to be at; with the region in which the bucket is said to be, or without."""
    proxy.fault = lambda request: moved(request, server.url, 307)
    client = Client(proxy)
    with client:
        status, headers, body = client.ask(target="/b/a%20b%2Bc?versionId=x%26y")
        assert (status, headers["Location"]) == (307, f"{server.url}/b/a%20b%2Bc?versionId=x%26y")
        assert b"<Code>TemporaryRedirect<" in body
        proxy.fault = lambda request: moved(request, server.url, 301, region="eu-west-1")
        status, headers, _ = client.ask("HEAD", "/b")
        assert (status, headers["Location"], headers["x-amz-bucket-region"]) == (301, f"{server.url}/b", "eu-west-1")
    assert server.take_log() == []


@pytest.mark.parametrize("refuse", [True, False])
def test_an_outage(proxy: FaultProxy, refuse: bool) -> None:
    """Breaks what is under way, gives no answer while it lasts, and is over when it ends, at the same address."""
    url, client = proxy.url, Client(proxy)
    proxy.fault = first(1, Fault(stall_after=100))
    with client:
        client.connection.request("GET", "/b/k")
        answer = client.connection.getresponse()
        assert answer.read(100) == DATA[:100]
        with proxy.outage(refuse=refuse):
            with pytest.raises(BROKEN):
                answer.read()
            for _ in range(3):
                with pytest.raises(ConnectionRefusedError if refuse else BROKEN):
                    asked(proxy)
        assert proxy.dropped == (0 if refuse else 3)
        assert proxy.url == url
        assert asked(proxy)[2] == DATA


def test_a_gate_holds_before_the_server_is_asked(server: FastS3Server, proxy: FaultProxy) -> None:
    got: list[bytes] = []
    with proxy.hold() as gate:
        thread = threading.Thread(target=lambda: got.append(asked(proxy)[2]))
        thread.start()
        gate.wait_for(1)
        assert server.take_log() == []
        gate.release()
        thread.join(10)
    assert got == [DATA]


def test_signed_requests_at_a_real_server(swift: S3Endpoint) -> None:
    """Who checks signatures lets through what the proxy passes on, and the whole object in place of a range."""
    with FaultProxy(swift) as proxy:
        s3 = proxy.client()
        s3.create_bucket(Bucket="proxied")
        etag = s3.put_object(Bucket="proxied", Key="a b/ü", Body=DATA)["ETag"]
        ask = {"Bucket": "proxied", "Key": "a b/ü", "Range": "bytes=1000-1999"}
        for fault, status, data in ((None, 206, WANTED), (Fault(whole=True), 200, DATA)):
            proxy.fault = first(1, fault) if fault else None
            answer = s3.get_object(**ask)
            assert (answer["ResponseMetadata"]["HTTPStatusCode"], answer["ETag"]) == (status, etag)
            assert answer["Body"].read() == data
        s3.close()


def test_tls_in_front(server: FastS3Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    certificates = Certificates.at(tmp_path_factory.mktemp("certificates"))
    with FaultProxy(server, ssl_context=certificates.context()) as proxy:
        s3 = proxy.client(verify=str(certificates.ca))
        assert s3.get_object(Bucket="b", Key="k")["Body"].read() == DATA
        s3.close()


def test_nobody_behind_it() -> None:
    """A server that is not there is a connection that breaks."""

    class Nobody(S3Endpoint):
        url = f"http://127.0.0.1:{free_ports(1)[0]}"

    with FaultProxy(Nobody()) as proxy, pytest.raises(BROKEN):
        asked(proxy)
