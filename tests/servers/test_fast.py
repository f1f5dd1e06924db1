"""What only our own server does: its log, delays, faults and gates, and TLS."""

import http.client
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from tests.servers.answers import parse_range
from tests.servers.certificates import Certificates
from tests.servers.clients import S3Endpoint
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault, first
from tests.servers.records import Request
from tests.servers.wire import decode_aws_chunked

DATA = bytes(range(256)) * 4096


@pytest.fixture
def server() -> Iterator[FastS3Server]:
    with FastS3Server() as running:
        running.put("b", "k", DATA)
        yield running


@pytest.fixture
def s3(server: FastS3Server) -> Iterator[Any]:
    client = server.client()
    yield client
    client.close()


def asked(server: S3Endpoint, target: str = "/b/k", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a GET without boto3; IncompleteRead where the body ends early."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", target, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def asked_for(server: FastS3Server) -> list[Request]:
    """The log in the order of asking: it is in that of ending, and a client may have an answer and the next one before
    the server has noted the first."""
    return sorted(server.take_log(), key=lambda request: request.started)


def test_the_log_is_exact_at_once(server: FastS3Server) -> None:
    for number in range(200):
        asked(server, Range=f"bytes={number}-")
        (entry,) = server.take_log()
        assert (entry.kind, entry.bucket, entry.key, entry.status) == ("GET", "b", "k", 206)
        assert (entry.range, entry.bytes_sent) == ((number, len(DATA)), len(DATA) - number)
        assert entry.started <= entry.ended
        assert entry.headers["range"] == f"bytes={number}-"
    counters = server.counters
    assert (counters.requests, counters.gets, counters.connections, counters.most_at_once) == (
        200,
        200,
        200,
        1,
    )


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=5-", (5, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=3-100", (3, 10)),
        ("bytes=3-2", None),
        ("bytes=0-1,3-4", None),
        ("bytes=a-b", None),
        ("bytes=-", None),
        ("lines=0-1", None),
    ],
)
def test_ranges(header: str, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == expected


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_ranges_without_a_byte(header: str, size: int) -> None:
    with pytest.raises(ValueError, match="of"):
        parse_range(header, size)


def test_absolute_form_and_dot_segments(server: FastS3Server) -> None:
    server.put("b", "../k", b"up")
    assert asked(server, f"{server.url}/b/k")[2] == DATA
    assert asked(server, "/b/../k")[2] == b"up"


def test_aws_chunked_bodies(server: FastS3Server) -> None:
    body = b"3;chunk-signature=0\r\nabc\r\n2\r\nde\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n"
    assert decode_aws_chunked(body) == (b"abcde", {"x-amz-checksum-crc32": "AAAA"})
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:])) + b"0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as sock:
        sock.sendall(b"PUT /b/up HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Encoding: aws-chunked\r\n")
        sock.sendall(b"X-Amz-Decoded-Content-Length: 5\r\nConnection: close\r\n\r\n" + chunked)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    assert asked(server, "/b/up")[2] == b"abcde"
    _, headers, _ = asked(server, "/b/up", x_amz_checksum_mode="ENABLED")
    assert headers["x-amz-checksum-crc32"] == "AAAA"
    assert "x-amz-checksum-crc32" not in asked(server, "/b/up")[1]


def test_files_are_served_where_they_are(server: FastS3Server, tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(DATA)
    entry = server.add_file("b", "dir//../big", path)
    assert entry.etag.endswith('-1"')
    assert asked(server, "/b/dir//../big")[2] == DATA
    assert asked(server, "/b/dir//../big", Range="bytes=-7")[2] == DATA[-7:]


def test_signatures(s3: Any, server: FastS3Server) -> None:
    server.require_signature = S3Endpoint.access_key
    s3.head_object(Bucket="b", Key="k")
    assert b"<Code>AccessDenied<" in asked(server)[2]
    assert b"<Code>SignatureDoesNotMatch<" in asked(server, Authorization="Basic eDp5")[2]
    server.require_signature = "another"
    with pytest.raises(botocore.exceptions.ClientError, match="InvalidAccessKeyId"):
        s3.get_object(Bucket="b", Key="k")


def test_an_archived_object(server: FastS3Server) -> None:
    server.put("b", "old", b"x", headers={"x-amz-storage-class": "GLACIER"})
    assert b"InvalidObjectState" in asked(server, "/b/old")[2]
    assert b"<StorageClass>GLACIER<" in asked(server, "/b?list-type=2")[2]


def test_faults_of_the_head(server: FastS3Server) -> None:
    ask = {"Range": "bytes=0-9"}
    server.fault = lambda request: Fault(status=503, code="SlowDown", headers={"Retry-After": "1"})
    status, headers, body = asked(server, **ask)
    assert (status, headers["Retry-After"], b"<Code>SlowDown<" in body) == (503, "1", True)
    server.fault = lambda request: Fault(whole=True, etag='"other"')
    status, headers, body = asked(server, **ask)
    assert (status, headers["ETag"], body) == (200, '"other"', DATA)
    server.fault = lambda request: Fault(content_range="bytes 5-14/99", wrong_bytes=True)
    status, headers, body = asked(server, **ask)
    assert (status, headers["Content-Range"]) == (206, "bytes 5-14/99")
    assert body == bytes([DATA[0] ^ 0xFF]) + DATA[1:10]
    server.fault = lambda request: Fault(hang_up=True)
    with pytest.raises(ConnectionError):
        asked(server, **ask)
    assert [request.status for request in asked_for(server)] == [503, 200, 206, 0]


def test_faults_of_the_body(server: FastS3Server) -> None:
    server.fault = first(1, Fault(close_after=1000))
    with pytest.raises(http.client.IncompleteRead) as caught:
        asked(server)
    assert caught.value.partial == DATA[:1000]
    assert asked(server)[2] == DATA
    server.fault = lambda request: Fault(close_after=1000, reset=True)
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        asked(server)
    assert [request.bytes_sent for request in asked_for(server)] == [1000, len(DATA), 1000]


def test_a_stall_and_its_end(server: FastS3Server) -> None:
    until = threading.Event()
    server.fault = lambda request: Fault(stall_after=1000, until=until)
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    connection.request("GET", "/b/k")
    answer = connection.getresponse()
    assert answer.read(1000) == DATA[:1000]
    until.set()
    assert answer.read() == DATA[1000:]
    connection.close()
    server.fault = lambda request: Fault(stall_after=0)
    connection.request("GET", "/b/k")
    connection.getresponse().close()
    connection.close()
    assert [request.bytes_sent for request in server.take_log(settle=10)] == [len(DATA), 0]


def test_a_gate_holds_what_matches(server: FastS3Server) -> None:
    server.put("b", "other", b"x")
    with server.hold(lambda request: request.range == (0, 10)) as gate:
        got: list[bytes] = []
        ask = {"Range": "bytes=0-9"}
        threads = [threading.Thread(target=lambda: got.append(asked(server, **ask)[2])) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert [request.key for request in gate.wait_for(3)] == ["k"] * 3
        assert asked(server, "/b/other")[2] == b"x"
        assert [request.key for request in server.take_log()] == ["other"]
        server.put("b", "k", DATA[::-1])  # what is held is answered with what is there afterwards
        gate.release(1)
        gate.release()
        for thread in threads:
            thread.join(10)
        assert got == [DATA[::-1][:10]] * 3
    assert len(server.take_log()) == 3


def test_delay_and_rate(server: FastS3Server) -> None:
    server.first_byte_delay = 0.05
    server.delay_for = lambda request: 0.05 if request.range else 0.0
    server.connection_rate = len(DATA) / 0.2
    begun = time.monotonic()
    asked(server)
    plain = time.monotonic() - begun
    asked(server, Range="bytes=0-0")
    short = time.monotonic() - begun - plain
    assert plain >= 0.24
    assert short >= 0.1
    assert plain < 2


def test_stop_ends_what_is_held_or_stalled(server: FastS3Server) -> None:
    server.put("b", "stalled", DATA)
    server.fault = lambda request: Fault(stall_after=10) if request.key == "stalled" else None
    ends: list[BaseException] = []

    def ask(key: str) -> None:
        try:
            asked(server, f"/b/{key}")
        except (ConnectionError, http.client.HTTPException) as error:
            ends.append(error)

    threads = [threading.Thread(target=ask, args=(key,)) for key in ("k", "stalled")]
    gate = server.hold(lambda request: request.key == "k")
    for thread in threads:
        thread.start()
    gate.wait_for(1)
    server.stop()
    for thread in threads:
        thread.join(10)
    assert len(ends) == 2
    assert server.counters.open_connections == 0


def test_start_again_on_the_same_port(server: FastS3Server) -> None:
    url = server.url
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        asked(server)
    server.start()
    assert server.url == url
    assert asked(server)[2] == DATA


def test_version_one_of_listing_pages(server: FastS3Server, s3: Any) -> None:
    for key in ("a/1", "a/2", "c", "d/1"):
        server.put("list", key, b"")
    pages = s3.get_paginator("list_objects").paginate(Bucket="list", Delimiter="/", PaginationConfig={"PageSize": 1})
    found = [entry.get("Key") or entry["Prefix"] for page in pages for entry in _entries(page)]
    assert found == ["a/", "c", "d/"]


def _entries(page: dict[str, Any]) -> itertools.chain[dict[str, str]]:
    return itertools.chain(page.get("Contents", ()), page.get("CommonPrefixes", ()))


def test_tls(tmp_path: Path) -> None:
    certificates, big = Certificates.at(tmp_path), tmp_path / "big"
    big.write_bytes(DATA)
    with FastS3Server(ssl_context=certificates.context()) as server:
        server.add_file("b", "big", big)
        s3 = server.client(verify=str(certificates.ca))
        s3.put_object(Bucket="b", Key="k", Body=DATA)  # over TLS boto3 sends aws-chunked inside chunked
        assert server.take_log()[0].headers["content-encoding"] == "aws-chunked"
        for name in ("k", "big"):
            assert s3.get_object(Bucket="b", Key=name)["Body"].read() == DATA
        assert s3.get_object(Bucket="b", Key="big", Range="bytes=7-300000")["Body"].read() == DATA[7:300001]
        s3.close()
