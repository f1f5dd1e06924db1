"""A GET that botocore makes while a first listing is waited for, and does not send: what is learned from it is what a
GET that is sent shows, and nobody hears of it."""

from typing import Any

import pytest

from lazyfs.errors import AccessDenied
from lazyfs.stores.crt import CrtStore
from lazyfs.stores.s3 import S3Store
from tests.rooms.raw_server import RawServer, Say, answer, scripted
from tests.rooms.test_signing import DATA, OPTIONS, Offline, _alone, check_signature, reading, version
from tests.servers.fast import FastS3Server

__all__ = ["_alone"]

LISTED = b"""<?xml version="1.0"?><ListBucketResult><Name>models</Name><Prefix></Prefix><KeyCount>0</KeyCount>
<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>"""


def rehearsed(store: S3Store) -> None:
    """As beside a first listing, for which nothing is sent here."""
    store.way.beside_rehearsal(store._for_objects, lambda: None)


@pytest.mark.parametrize("name", [*OPTIONS, "not signed"])
def test_it_shows_what_one_that_is_sent_shows(name: str) -> None:
    """Whatever the options; and it is not sent, or counted."""
    options: dict[str, Any] = {"no_sign_request": True} if name == "not signed" else OPTIONS[name][0]
    offline = Offline(**options)
    rehearsed(offline.store)
    assert offline.sent == []
    assert not any(offline.store.traffic.statistics().requests.values())
    assert offline.store.way.known is not None
    found = offline.store.way.known[0]
    assert found == offline.learned()
    assert len(offline.sent) == 1, "the next one is sent"
    offline.store.close()


@pytest.mark.parametrize("made", [S3Store, CrtStore])
async def test_the_first_read_after_a_listing_does_not_go_botocores_way(made: type[S3Store | CrtStore]) -> None:
    """It is signed right, and one request; so are those that are sent beside it."""
    with FastS3Server() as server:
        server.put("models", "k", DATA, etag='"e"')
        store = made("models", endpoint_url=server.url)
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


async def test_a_bucket_elsewhere_is_found_by_the_first_read_too() -> None:
    """What was learned before the listing was sent where the bucket is, is signed for where it is not: botocore deals
    with the answer to that, and what it shows then is right."""
    home = "eu-west-1"
    code = "AuthorizationHeaderMalformed"
    text = f"<Error><Code>{code}</Code><Message>m</Message><Region>{home}</Region></Error>".encode()

    def spoken(request: bytes) -> Say:
        if f"/{home}/s3/aws4_request".encode() not in request:
            return Say((answer(text, f"x-amz-bucket-region: {home}", status="HTTP/1.1 400 x"),))
        if b"list-type=2" in request:
            return Say((answer(LISTED, status="HTTP/1.1 200 OK"),))
        return Say((answer(DATA, 'ETag: "e"', status="HTTP/1.1 200 OK"),))

    with RawServer(spoken) as server:
        store = S3Store("models", endpoint_url=server.url, region="us-west-2")
        await store.list("")
        for _ in range(2):
            server.requests.clear()
            assert await reading(store, version()) == DATA
            assert store.way.known is not None
            assert store.way.known[0].region == home
        (request,) = [request for _, request in server.requests]
        check_signature(request + b"\r\n\r\n")
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


async def test_without_credentials_the_listing_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is learned, nor raised anywhere else."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    store = S3Store("models", endpoint_url="http://127.0.0.1:1")
    for _ in range(2):
        with pytest.raises(AccessDenied, match="no AWS credentials"):
            await store.list("")
    assert store.way.known is None
    store.close()


async def test_where_all_goes_by_botocore_nothing_is_rehearsed() -> None:
    """Nor learned."""
    with FastS3Server() as server:
        server.put("models", "k", DATA, etag='"e"')
        store = S3Store("models", endpoint_url=server.url, quick=False)
        await store.list("")
        await reading(store, version())
        assert store.way.known is None
        store.close()
