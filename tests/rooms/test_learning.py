"""A GET that botocore makes while a first listing is waited for, and does not send: what is learned from it is what a
GET that is sent shows, and nobody hears of it."""

import io
import threading
from typing import Any

import botocore.exceptions
import pytest
import urllib3
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders

from lazyfs.errors import StoreError
from lazyfs.stores.s3 import S3Store
from lazyfs.stores.signing import Pattern, Signer
from tests.rooms.raw_server import RawServer, Say, answer, scripted
from tests.rooms.test_signing import DATA, OPTIONS, Offline, _alone, check_signature, reading, version
from tests.servers.fast import FastS3Server

__all__ = ["_alone"]

LISTED = b"""<?xml version="1.0"?><ListBucketResult><Name>models</Name><Prefix></Prefix><KeyCount>0</KeyCount>
<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>"""


def listed(request: Any, **_: Any) -> AWSResponse:
    """The answer to a listing that goes nowhere."""
    raw = urllib3.HTTPResponse(io.BytesIO(LISTED), status=200, preload_content=False)
    return AWSResponse(request.url, 200, HTTPHeaders(), raw)


@pytest.mark.parametrize("name", [*OPTIONS, "not signed"])
async def test_it_shows_what_one_that_is_sent_shows(name: str) -> None:
    """Whatever the options; and it is not sent, or counted."""
    options: dict[str, Any] = {"no_sign_request": True} if name == "not signed" else OPTIONS[name][0]
    offline = Offline(**options)
    offline.store._client.meta.events.register_last("before-send.s3.ListObjectsV2", listed)
    await offline.store.list("")
    assert offline.sent == []
    counted = offline.store.traffic.statistics().requests
    assert {key: count for key, count in counted.items() if count} == {("ListObjectsV2", "200"): 1}
    assert offline.store.way.known is not None
    found = offline.store.way.known[0]
    assert found == offline.learned()
    assert len(offline.sent) == 1, "the next one is sent"
    offline.store.close()


async def test_the_first_read_after_a_listing_does_not_go_botocores_way() -> None:
    """It is one request."""
    with FastS3Server() as server:
        server.put("models", "k", DATA, etag='"e"')
        store = S3Store("models", endpoint_url=server.url)
        for _ in range(2):
            assert [one.key for one in (await store.list("")).objects] == ["k"]
        assert await reading(store, version()) == DATA
        first, again, get = server.take_log()
        assert (first.kind, again.kind, get.kind) == ("LIST", "LIST", "GET")
        assert "amz-sdk-request" in first.headers
        assert "amz-sdk-request" not in get.headers
        store.close()


async def test_a_stretch_is_a_listing_too() -> None:
    """Which a mount of many directories asks for first."""
    with FastS3Server() as server:
        server.put("models", "k", DATA, etag='"e"')
        store = S3Store("models", endpoint_url=server.url)
        await store.stretch("", "")
        assert store.way.known is not None
        store.close()


@pytest.mark.parametrize(
    ("status", "code"), [("400", "AuthorizationHeaderMalformed"), ("400", "IllegalLocationConstraintException")]
)
async def test_nothing_is_learned_where_the_bucket_is_elsewhere(status: str, code: str) -> None:
    """The listing was sent on, and the GET that was not sent is signed for where it is not: the first one goes
    botocore's way, which knows where by then, and no request is sent twice."""
    home = "eu-west-1"
    text = f"<Error><Code>{code}</Code><Message>m</Message><Region>{home}</Region></Error>".encode()

    def spoken(request: bytes) -> Say:
        if f"/{home}/s3/aws4_request".encode() not in request:
            return Say((answer(text, f"x-amz-bucket-region: {home}", status=f"HTTP/1.1 {status} x"),))
        if b"list-type=2" in request:
            return Say((answer(LISTED, status="HTTP/1.1 200 OK"),))
        return Say((answer(DATA, 'ETag: "e"', status="HTTP/1.1 200 OK"),))

    with RawServer(spoken) as server:
        store = S3Store("models", endpoint_url=server.url, region="us-west-2")
        await store.list("")
        assert store.way.known is None
        server.requests.clear()
        for _ in range(2):
            assert await reading(store, version()) == DATA
        first, second = (request for _, request in server.requests)
        assert b"amz-sdk-request" in first
        assert b"amz-sdk-request" not in second
        check_signature(second + b"\r\n\r\n")
        store.close()


async def test_a_server_that_has_another_way_of_saying_it() -> None:
    """The answer to the first GET has no length: botocore asks again, and from then on all go its way."""
    listed = answer(LISTED, status="HTTP/1.1 200 OK")
    unusual = answer(DATA, 'ETag: "e"', f"Content-Range: bytes 0-{len(DATA) - 1}/{len(DATA)}", length=None)
    with scripted(listed, *[Say((unusual,), close=True)] * 3) as server:
        store = S3Store("models", endpoint_url=server.url)
        await store.list("")
        for _ in range(2):
            assert await reading(store, version()) == DATA
        assert store.way.known is None
        assert [b"amz-sdk-request" in request for _, request in server.requests] == [True, False, True, True]
        store.close()


async def test_a_listing_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is learned, nor raised anywhere else; the next one that works is rehearsed beside."""
    loud: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", loud.append)
    with FastS3Server() as server:
        server.put("models", "k", DATA, etag='"e"')
        store = S3Store("models", endpoint_url=server.url)
        ready = store._connection.ready

        def unready() -> tuple[Any, Signer]:
            raise botocore.exceptions.SSOTokenLoadError(error_msg="log in")

        for _ in range(2):
            monkeypatch.setattr(store._connection, "ready", unready)
            with pytest.raises(StoreError, match="log in"):
                await store.list("")
            assert store.way.known is None
        monkeypatch.setattr(store._connection, "ready", ready)
        await store.list("")
        assert store.way.known is not None
        store.close()
    assert loud == []


@pytest.mark.parametrize("bucket", ["models", "models--usw2-az1--x-s3"])
async def test_what_would_send_something_is_not_rehearsed(bucket: str) -> None:
    """A session of S3 Express is asked for by a request, and its GETs cannot be done alike."""
    offline = Offline(bucket, region="us-west-2")
    asked: list[str] = []

    def asking(request: Any, **_: Any) -> None:
        asked.append(request.url)

    offline.store._client.meta.events.register("before-send.s3", asking)
    shown: list[Pattern] = []
    offline.store.way._rehearse(offline.store._for_objects, shown)
    assert (asked, len(shown)) == ([], bucket == "models")
    offline.store.close()


async def test_where_all_goes_by_botocore_nothing_is_rehearsed() -> None:
    """Nor learned."""
    with FastS3Server() as server:
        server.put("models", "k", DATA, etag='"e"')
        store = S3Store("models", endpoint_url=server.url, quick=False)
        await store.list("")
        await reading(store, version())
        assert store.way.known is None
        store.close()
