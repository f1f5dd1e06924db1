"""What is learned from a GET of botocore's, and the GETs that are written after it: beside botocore's own for the same
input, counted again by a SigV4 of our own, and asked of Swift, which is strict about it."""

import dataclasses
import datetime
import hashlib
import hmac
import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders

from lazyfs.errors import AccessDenied, StoreError, Transient
from lazyfs.objects import ObjectVersion
from lazyfs.stores.base import Claim
from lazyfs.stores.s3 import S3Store
from lazyfs.stores.signing import Pattern
from tests.rooms.raw_server import RawServer, Say, answer, nothing_left_open, scripted
from tests.servers.clients import S3Endpoint
from tests.servers.fast import FastS3Server
from tests.servers.swift import SwiftServer

DATA = b"0123456789"
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
PLAIN_KEYS = ["k", "a/b.bin", "a b+c", "100%25 &=?#", "%2F", "ümlaut 日本 🦙", "e\u0301", "quotes'\"<x>", "versionId=1"]
PUNCTUATION = ["~-._!*();:@$,[]{}|^`\\", "/lead", "//", "a//b", "..", ".", "../x", "a/../b", "tail/"]
KEYS = [*PLAIN_KEYS, *PUNCTUATION, "a\tb", "line\r\nX-Evil: 1", "\x7f\x01"]


@pytest.fixture(autouse=True)
def _alone(_aws: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No proxy of the machine's, and no socket is closed by being forgotten."""
    for scheme in ("http", "https", "all", "no", "ftp"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)
    with nothing_left_open():
        yield


def version(key: str = "k", etag: str = '"e"', version_id: str = "") -> ObjectVersion:
    """Of an object that holds DATA."""
    return ObjectVersion("p", key, etag, len(DATA), version_id)


async def reading(store: S3Store, of: ObjectVersion) -> bytes:
    """All of it, by `store.read`."""
    buffer = bytearray(of.size)
    await store.read(of, 0, [memoryview(buffer)], lambda count: None, Claim(urgent=True))
    return bytes(buffer)


def by_botocore(store: S3Store, of: ObjectVersion) -> None:
    """The same by botocore."""
    store.read_by_botocore(of, 0, [memoryview(bytearray(of.size))], lambda count: None, Claim(urgent=True))


class Offline:
    """A store whose botocore is answered here: any host can be tried. `sent` has each URL and its headers."""

    def __init__(self, bucket: str = "models", **options: Any) -> None:
        self.sent: list[tuple[str, dict[str, str]]] = []
        self.store = S3Store(bucket, **options)
        # After the signer's own, which must see the request too.
        self.store._client.meta.events.register_last("before-send.s3.GetObject", self._answer)

    def _answer(self, request: Any, **_: Any) -> AWSResponse:
        told = {n: v.decode() if isinstance(v, bytes) else v for n, v in request.headers.items()}
        self.sent.append((request.url, {n.lower(): v for n, v in told.items()}))
        said = HTTPHeaders.from_dict({"ETag": told["If-Match"], "Content-Range": "bytes 0-9/10"})
        raw = urllib3.HTTPResponse(io.BytesIO(DATA), status=206, preload_content=False)
        return AWSResponse(request.url, 206, said, raw)

    def learned(self, of: ObjectVersion | None = None) -> Pattern | None:
        """What a read by botocore shows."""
        by_botocore(self.store, of or version())
        return self.store.signer.learn((of or version()).key)


def parsed(request: bytes) -> tuple[str, dict[str, str]]:
    """Target and headers of a request; fails if there is anything else in it, or a header twice."""
    first, *lines = request.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    match = re.fullmatch(r"GET (/[!-~]*) HTTP/1\.1", first)
    assert match, first
    pairs = [line.split(": ", 1) for line in lines]
    headers = {name.lower(): value for name, value in pairs}
    assert len(headers) == len(pairs)
    return match[1], headers


def check_signature(request: bytes, secret: str = S3Endpoint.secret_key) -> dict[str, str]:
    """Count the signature again from the bytes as they are sent, after AWS's description; the headers it covers."""
    target, headers = parsed(request)
    match = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=(.*)/(\d{8})/([^/]*)/(s3)/aws4_request, "
        r"SignedHeaders=([^,]*), Signature=([0-9a-f]{64})",
        headers["authorization"],
    )
    assert match
    _, day, region, service, names, signature = match.groups()
    path, _, query = target.partition("?")
    canonical = ["GET", path, query, *(f"{n}:{' '.join(headers[n].split())}" for n in names.split(";")), "", names]
    canonical.append(headers["x-amz-content-sha256"])
    hashed = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    scope = f"{day}/{region}/{service}/aws4_request"
    key = f"AWS4{secret}".encode()
    for part in (day, region, service, "aws4_request", f"AWS4-HMAC-SHA256\n{headers['x-amz-date']}\n{scope}\n{hashed}"):
        key = hmac.digest(key, part.encode(), "sha256")
    assert key.hex() == signature
    return {name: headers[name] for name in names.split(";")}


AMAZON = "s3.eu-central-1.amazonaws.com"
OPTIONS: dict[str, tuple[dict[str, Any], tuple[str, int], str]] = {
    "plain": ({"endpoint_url": "http://127.0.0.1:9000"}, ("127.0.0.1", 9000), "127.0.0.1:9000"),
    "usual port": ({"endpoint_url": "http://a.example:80"}, ("a.example", 80), "a.example"),
    "usual port of TLS": ({"endpoint_url": "https://a.example:443"}, ("a.example", 443), "a.example"),
    "another port of TLS": ({"endpoint_url": "https://a.example:80"}, ("a.example", 80), "a.example:80"),
    "capitals": ({"endpoint_url": "http://A.Example:9000"}, ("a.example", 9000), "a.example:9000"),
    "path": ({"endpoint_url": "http://a.example/s3/v 1/"}, ("a.example", 80), "a.example"),
    "IPv6": ({"endpoint_url": "http://[::1]:9000"}, ("::1", 9000), "[::1]:9000"),
    "IPv6 and usual port": ({"endpoint_url": "https://[2001:db8::1]"}, ("2001:db8::1", 443), "[2001:db8::1]"),
    "virtual host": ({"region": "eu-central-1"}, (f"models.{AMAZON}", 443), f"models.{AMAZON}"),
    "path style": ({"region": "eu-central-1", "force_path_style": True}, (AMAZON, 443), AMAZON),
    "payer and owner": (
        {"region": "eu-central-1", "requester_pays": True, "expected_bucket_owner": "123456789012"},
        (f"models.{AMAZON}", 443),
        f"models.{AMAZON}",
    ),
}
"""Options, whom the connection is to, and what Host says."""


@pytest.mark.parametrize("token", [None, "session/token+=="])
@pytest.mark.parametrize("name", OPTIONS)
def test_as_botocore_for_every_option_and_key(name: str, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Target, headers and signature are those of botocore, but for what it tells of its own attempts; the signature is
    right for the Host that is sent, and covers it, the range, the condition and all that S3 is told."""
    # botocore signs by awscrt where that is installed, else by its Python.
    monkeypatch.setattr("lazyfs.stores.signing._now", lambda: NOW)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: NOW)
    monkeypatch.setattr("botocore.crt.auth.get_current_datetime", lambda **_: NOW)
    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    options, server, authority = OPTIONS[name]
    offline = Offline(**options)
    pattern = offline.learned()
    assert pattern is not None
    assert (pattern.host, pattern.port) == server
    for key in KEYS:
        for version_id in ("", "v/1+=.~ü"):
            of = version(key, version_id=version_id)
            by_botocore(offline.store, of)
            request = offline.store.signer.request(pattern, of, 0, len(DATA))
            url, theirs = offline.sent[-1]
            target, ours = parsed(request)
            # Its host as it was given, which never goes over the wire; a dot segment is nothing special in S3.
            assert target == "/" + url.split("/", 3)[3]
            assert (ours.pop("host"), ours.pop("accept-encoding")) == (authority, "identity")
            assert ours == {
                n: v for n, v in theirs.items() if n not in ("host", "amz-sdk-request", "amz-sdk-invocation-id")
            }
            signed = check_signature(request)
            assert {"host", "range", "if-match"} | {n for n in ours if n.startswith("x-amz-")} == set(signed)
            assert signed.get("x-amz-security-token") == token
    offline.store.close()


def test_not_signed() -> None:
    """Where nothing is signed, though there are credentials, the options are told all the same."""
    offline = Offline(no_sign_request=True, **OPTIONS["payer and owner"][0])
    pattern = offline.learned()
    assert pattern is not None
    _, headers = parsed(offline.store.signer.request(pattern, version(), 2, 5))
    headers.pop("user-agent")
    assert headers == {
        "host": f"models.{AMAZON}",
        "accept-encoding": "identity",
        "range": "bytes=2-4",
        "if-match": '"e"',
        "x-amz-request-payer": "requester",
        "x-amz-expected-bucket-owner": "123456789012",
    }
    offline.store.close()


def test_what_is_not_learned() -> None:
    """Another way of signing; another key than the one that was sent; a read whose URL says more. A version is fine."""
    offline = Offline(**OPTIONS["plain"][0])
    signer = offline.store.signer
    pattern = offline.learned(version("a/b", version_id="v"))
    assert pattern == offline.learned()
    assert pattern is not None
    assert (pattern.base, pattern.region) == ("/models", "us-east-1")
    url, headers = offline.sent[-1]
    seen = signer._seen
    for changed in (
        {"version": "v4-s3express"},
        {"version": "s3v4a"},
        {"request": (url + "?partNumber=1", headers)},
        {"request": (url + "?versionId=1&partNumber=1", headers)},
        {"request": (url, {**headers, "authorization": "AWS4-ECDSA-P256-SHA256 Credential=a/b"})},
    ):
        before = dict(vars(seen))
        vars(seen).update(changed)
        assert signer.learn("k") is None, changed
        vars(seen).update(before)
    assert signer.learn("other") is None
    assert signer.learn("k") == pattern
    offline.store.close()


@pytest.mark.parametrize(
    "etag", ['"e"\r\nX-Evil: 1', '"e"\r\n Range: bytes=0-', '"\n"', '"\r"', '"\0"', '"\x7f"', '"日"']
)
async def test_an_etag_that_would_write_headers(etag: str) -> None:
    """From a listing that means harm: refused for good, by either way, and nothing is sent."""
    with scripted(answer(DATA, 'ETag: "e"', status="HTTP/1.1 200 OK")) as server:
        store = S3Store("models", endpoint_url=server.url)
        for learned in (False, True):
            assert (store.way.known is not None) == learned
            with pytest.raises(StoreError, match="ETag") as caught:
                await reading(store, version(etag=etag))
            assert not isinstance(caught.value, Transient)
            if not learned:
                assert server.requests == []
                await reading(store, version())
        assert store.way.known is not None
        with pytest.raises(StoreError, match="ETag"):
            store.signer.request(store.way.known[0], version(etag=etag), 0, 1)
        assert len(server.requests) == 1
        store.close()


async def test_credentials_that_are_rotated() -> None:
    """Each request is signed with those of its moment: a token that comes, another, and none again."""
    with FastS3Server() as server:
        server.put("models", "k", DATA, etag='"e"')
        store = S3Store("models", endpoint_url=server.url)
        credentials = store.signer._credentials
        credentials.token = "of the first request"
        await reading(store, version())
        server.take_log()
        for number, token in enumerate((None, "one", "two", None)):
            credentials.access_key, credentials.secret_key, credentials.token = f"key{number}", f"secret{number}", token
            server.require_signature = f"key{number}"
            assert await reading(store, version()) == DATA
            (request,) = server.take_log()
            assert "amz-sdk-request" not in request.headers
            assert request.headers.get("x-amz-security-token") == token
            assert store.way.known is not None
            check_signature(store.signer.request(store.way.known[0], version(), 0, 1), f"secret{number}")
        server.require_signature = "another"
        with pytest.raises(AccessDenied):
            await reading(store, version())
        store.close()


@pytest.mark.parametrize(
    ("status", "code"),
    [("400", "AuthorizationHeaderMalformed"), ("301", "PermanentRedirect"), ("307", "TemporaryRedirect")],
)
async def test_a_bucket_in_another_region(status: str, code: str) -> None:
    """botocore finds out where, also when it moves later; from then on each read is one request, signed for there."""
    home = "eu-west-1"
    text = f"<Error><Code>{code}</Code><Message>m</Message><Region>eu-west-1</Region></Error>".encode()

    def spoken(request: bytes) -> Say:
        if f"/{home}/s3/aws4_request".encode() in request:
            return Say((answer(DATA, 'ETag: "e"', status="HTTP/1.1 200 OK"),))
        moved = f"x-amz-bucket-region: {home}"
        said = text.replace(b"eu-west-1", home.encode())
        return Say((answer(b"" if request.startswith(b"HEAD") else said, moved, status=f"HTTP/1.1 {status} x"),))

    with RawServer(spoken) as server:
        store = S3Store("models", endpoint_url=server.url, region="us-west-2")
        for home in ("eu-west-1", "ap-south-1"):
            assert await reading(store, version()) == DATA
            assert store.way.known is not None
            assert store.way.known[0].region == home
            server.requests.clear()
            assert await reading(store, version()) == DATA
            assert [b"amz-sdk-request" in request for _, request in server.requests] == [False]
            check_signature(server.requests[0][1] + b"\r\n\r\n")
        store.close()


@pytest.mark.parametrize(
    ("variables", "proxied"),
    [
        ({"HTTP_PROXY": "server"}, True),
        ({"http_proxy": "server"}, True),
        ({"HTTP_PROXY": "server", "NO_PROXY": "other.example"}, True),
        ({"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}, False),
        ({"HTTPS_PROXY": "http://127.0.0.1:1"}, False),
        ({"ALL_PROXY": "http://127.0.0.1:1", "NO_PROXY": "other.example"}, False),
    ],
)
async def test_a_proxy(variables: dict[str, str], proxied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the environment, where it is for this endpoint: all goes through it, by botocore. As botocore sees it."""
    said = [answer(DATA, 'ETag: "e"', status="HTTP/1.1 200 OK")] * 3
    with scripted(*said) as server:
        for name, value in variables.items():
            monkeypatch.setenv(name, server.url if value == "server" else value)
        store = S3Store("models", endpoint_url="http://models.example" if proxied else server.url)
        for _ in range(3):
            assert await reading(store, version()) == DATA
        assert (store.way.known is None) == proxied
        whole = [request.startswith(b"GET http://models.example/models/k ") for _, request in server.requests]
        assert whole == [proxied] * 3
        store.close()


async def test_swift_takes_every_key_version_and_option(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that counts the signature itself: what is written after botocore is right, and only that is sent."""
    pytest.importorskip("swift")
    with SwiftServer(tmp_path_factory.mktemp("swift")) as server:
        client = server.client()
        client.create_bucket(Bucket="signed")
        client.put_bucket_versioning(Bucket="signed", VersioningConfiguration={"Status": "Enabled"})
        store = S3Store("signed", endpoint_url=server.url, requester_pays=True)
        written = client.put_object(Bucket="signed", Key="k", Body=DATA)
        await reading(store, version(etag=written["ETag"]))
        assert store.way.known is not None

        def never(*_: object) -> None:
            raise AssertionError("it went by botocore")

        monkeypatch.setattr(store, "read_by_botocore", never)
        for key in KEYS:
            first = client.put_object(Bucket="signed", Key=key, Body=key.encode())
            client.put_object(Bucket="signed", Key=key, Body=DATA)
            old = ObjectVersion("p", key, first["ETag"], len(key.encode()), first["VersionId"])
            assert await reading(store, old) == key.encode()
            new = dataclasses.replace(version(key), etag=client.head_object(Bucket="signed", Key=key)["ETag"])
            assert await reading(store, new) == DATA
        store.close()
        client.close()
