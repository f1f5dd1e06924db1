"""The contract of every store, asked of our own server with the ways of others, one after another: lazyfs is told
nothing about most of them. And what each way is answered with."""

import base64
import contextlib
import dataclasses
import functools
import gzip
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from lazyfs.config import PROVIDERS as KNOWN
from lazyfs.errors import AccessDenied, NotFound, Transient, Unordered
from lazyfs.objects import ObjectVersion
from lazyfs.stores.base import Claim
from lazyfs.stores.crt import CrtStore
from lazyfs.stores.fetch import PatientStore
from lazyfs.stores.lister import Lister
from lazyfs.stores.profiles import PROFILES, V1, V1_PLAIN, V2, Dialect, profile_of
from lazyfs.stores.s3 import S3Store
from tests.rooms import test_store_contract as contract
from tests.rooms.test_signing import Offline
from tests.servers.answers import Answer
from tests.servers.faults import Fault
from tests.servers.quirks import PROVIDERS, QUIRKS, Quirks, QuirkyServer
from tests.servers.records import Request

pytestmark = pytest.mark.usefixtures("_aws")

BUCKET = "quirks"

test_a_range_is_exactly_its_bytes = contract.test_a_range_is_exactly_its_bytes
test_an_overwritten_object_has_changed = contract.test_an_overwritten_object_has_changed
test_what_is_not_there = contract.test_what_is_not_there
test_a_listing_and_a_stat_agree = contract.test_a_listing_and_a_stat_agree
test_odd_keys_come_as_they_are = contract.test_odd_keys_come_as_they_are
test_a_listing_is_one_level_deep = contract.test_a_listing_is_one_level_deep
test_a_prefix_without_objects_is_empty = contract.test_a_prefix_without_objects_is_empty
test_a_stretch_is_what_comes_after_a_key = contract.test_a_stretch_is_what_comes_after_a_key
test_all_pages_of_a_listing = contract.test_all_pages_of_a_listing


@contextlib.contextmanager
def made(quirks: Quirks, *, crt: bool = False, **options: Any) -> Iterator[tuple[QuirkyServer, S3Store | CrtStore]]:
    """A server with these ways, and a store of its bucket."""
    with QuirkyServer(quirks) as server:
        server.add_bucket(BUCKET)
        store = (CrtStore if crt else S3Store)(BUCKET, endpoint_url=server.url, **options)
        yield server, store
        store.close()


@pytest.fixture(scope="module", params=QUIRKS)
def origin(request: pytest.FixtureRequest, _aws: None) -> Iterator[Any]:
    """As that of the contract, for one quirk."""
    name = request.param
    with made(QUIRKS[name], provider=PROVIDERS.get(name, "auto")) as (server, store):
        yield (
            store,
            lambda key, data: server.put(BUCKET, key, data),
            lambda key: server.delete(BUCKET, key),
            QUIRKS[name],
        )


@pytest.fixture
def stand(origin: Any, request: pytest.FixtureRequest) -> contract.Stand:
    """The store; what is around it knows nothing of servers."""
    store, put, delete, quirks = origin
    prefix = f"{request.node.name}/".replace("[", "-").replace("]", "")
    without = frozenset({"marker/"}) if quirks.bare_markers else frozenset[str]()
    return contract.Stand(store, put, delete, prefix, AccessDenied if quirks.hidden else NotFound, without)


def _way(store: S3Store | CrtStore) -> Dialect:
    assert isinstance(store, S3Store)
    assert isinstance(store._lister, Lister)
    return store._lister._ways[store._lister._way]


def test_a_profile_for_each_name() -> None:
    """What the option takes is what the table has."""
    assert set(KNOWN) == set(PROFILES)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (None, "aws"),
        ("https://s3.eu-central-1.amazonaws.com", "aws"),
        ("https://s3.cn-north-1.amazonaws.com.cn", "aws"),
        ("https://0123.r2.cloudflarestorage.com", "r2"),
        ("https://0123.eu.r2.cloudflarestorage.com:443/", "r2"),
        ("https://storage.googleapis.com", "google"),
        ("https://s3.eu-central-1.wasabisys.com", "wasabi"),
        ("http://127.0.0.1:9000", "other"),
        ("https://minio.example.com", "other"),
        ("https://notamazonaws.com", "other"),
        ("https://amazonaws.com.example.com", "other"),
    ],
)
def test_a_host_tells_whose_it_is(url: str | None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that is safe; also when it is in the environment, as botocore takes it. What is named holds."""
    assert profile_of("auto", url) is PROFILES[name]
    assert profile_of("garage", url) is PROFILES["garage"]
    if url is not None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        assert profile_of("auto", None) is PROFILES[name]


R2 = "https://0123.r2.cloudflarestorage.com"
GOOGLE = "https://storage.googleapis.com"


@pytest.mark.parametrize(
    ("options", "url", "region"),
    [
        ({"endpoint_url": R2}, f"{R2}/models/k", "auto"),
        ({"endpoint_url": "https://g.example", "provider": "garage"}, "https://g.example/models/k", "garage"),
        ({"endpoint_url": "https://g.example", "provider": "garage", "region": "x"}, "https://g.example/models/k", "x"),
        ({"region": "us-west-2"}, "https://models.s3.us-west-2.amazonaws.com/k", "us-west-2"),
        (
            {"region": "us-west-2", "force_path_style": True},
            "https://s3.us-west-2.amazonaws.com/models/k",
            "us-west-2",
        ),
        ({"endpoint_url": GOOGLE}, f"{GOOGLE}/models/k", "us-east-1"),
    ],
)
def test_where_requests_go_and_how_they_are_signed(options: dict[str, Any], url: str, region: str) -> None:
    """By botocore and by us; Accept-Encoding is never among what is signed, and is what the profile says."""
    offline = Offline(**options)
    pattern = offline.learned()
    sent, headers = offline.sent[0]
    assert sent == url
    assert f"/{region}/s3/aws4_request" in headers["authorization"]
    assert "accept-encoding" not in headers["authorization"]
    google = "googleapis" in url
    assert headers.get("accept-encoding") == ("gzip" if google else None)
    assert pattern is not None
    ours = offline.store.signer.request(pattern, ObjectVersion("p", "k", '"e"', 10), 0, 10)
    assert f"\r\nAccept-Encoding: {'gzip' if google else 'identity'}\r\n".encode() in ours
    assert b"accept-encoding;" not in ours


@pytest.mark.parametrize(
    ("name", "way", "refusals"),
    [("ListObjects only", V1, 1), ("ListObjectsV2 is refused", V1, 1), ("no word of encoding", V1_PLAIN, 2)],
)
async def test_the_way_to_list_is_found_once(name: str, way: Dialect, refusals: int) -> None:
    """And remembered: by a stretch or a listing, whichever comes first."""
    with made(QUIRKS[name]) as (server, store):
        for number in range(3):
            server.put(BUCKET, f"{number}", b"1")
        found = await store.stretch("", "0")
        assert [info.key for info in found.objects] == ["1", "2"]
        assert len(server.take_log()) == 1 + refusals
        assert _way(store) == way
        assert [info.key for info in (await store.list("")).objects] == ["0", "1", "2"]
        assert await store.total_size("") == 3
        (first, second) = server.take_log()
        assert "list-type" not in {**first.query, **second.query}


async def test_what_passes_changes_no_way() -> None:
    """A server that is down, or refuses who asks, is asked in the same way again."""
    with made(Quirks()) as (server, store):
        for status, code in ((500, "InternalError"), (503, "SlowDown"), (403, "AccessDenied"), (400, "ExpiredToken")):
            server.fault = functools.partial(_fails, status, code)
            with pytest.raises((Transient, AccessDenied)):
                await store.list("")
        server.fault = None
        await store.list("")
        assert _way(store) == V2


def _fails(status: int, code: str, _: Request) -> Fault:
    return Fault(status=status, code=code)


class Unmoved(QuirkyServer):
    """Begins every listing at its beginning."""

    def _answer(self, request: Request, body: bytes, fault: Fault) -> Answer:
        query = {name: value for name, value in request.query.items() if name not in ("start-after", "marker")}
        return super()._answer(dataclasses.replace(request, query=query), body, fault)


async def test_keys_that_do_not_come_after_are_no_stretch() -> None:
    """From a server that knows no way to begin elsewhere: told as such, and no way is held for better."""
    with Unmoved(Quirks()) as server:
        store = S3Store(BUCKET, endpoint_url=server.url)
        for key in ("a", "b"):
            server.put(BUCKET, key, b"1")
        with pytest.raises(Unordered):
            await store.stretch("", "b")
        assert len((await store.stretch("", "")).objects) == 2
        server.take_log()
        await store.list("")
        assert server.take_log()[0].query["list-type"] == "2"
        store.close()


@pytest.mark.parametrize("crt", [False, True])
async def test_what_is_stored_as_gzip_is_read_as_it_is_stored(crt: bool) -> None:
    """Where the server is told; and where it is not, no byte of something else is ever read."""
    stored = gzip.compress(b"weights " * 100_000, mtime=0)
    with made(QUIRKS["gzip is undone"], crt=crt, provider="google") as (server, store):
        server.put(BUCKET, "k", stored)
        info = await store.stat("k")
        assert info.size == len(stored)
        version = ObjectVersion("p", "k", info.etag, info.size)
        for _ in range(2):  # by botocore, and by us
            buffer = bytearray(100)
            await store.read(version, 50, [memoryview(buffer)], lambda _: None, Claim(urgent=True))
            assert buffer == stored[50:150]
        other = S3Store(BUCKET, endpoint_url=server.url)
        buffer = bytearray(100)
        with pytest.raises(Transient):
            await other.read(version, 50, [memoryview(buffer)], lambda _: None, Claim(urgent=True))
        assert buffer == bytes(100)
        other.close()


DATA = b"some weights"
WHOLE = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
OF_PARTS = base64.b64encode(hashlib.sha256(hashlib.sha256(DATA).digest()).digest()).decode()


@pytest.mark.parametrize(
    ("provider", "headers", "etag", "taken"),
    [
        ("other", {"x-amz-checksum-sha256": WHOLE}, None, True),
        ("other", {"x-amz-checksum-sha256": WHOLE, "x-amz-checksum-type": "FULL_OBJECT"}, None, True),
        ("other", {"x-amz-checksum-sha256": OF_PARTS, "x-amz-checksum-type": "COMPOSITE"}, '"0-1"', False),
        ("other", {"x-amz-checksum-sha256": f"{OF_PARTS}-1", "x-amz-checksum-type": "COMPOSITE"}, '"0-1"', False),
        ("other", {"x-amz-checksum-sha256": OF_PARTS}, '"0-1"', False),
        ("r2", {"x-amz-checksum-sha256": WHOLE}, None, False),
        ("r2", {"x-amz-checksum-crc64nvme": "AAAAAAAAAAE="}, '"0-1"', True),
        ("garage", {"x-amz-checksum-sha256": OF_PARTS}, None, False),
        ("google", {"x-amz-checksum-crc64nvme": "AAAAAAAAAAE="}, None, False),
    ],
)
async def test_which_checksums_are_of_the_whole_object(
    provider: str, headers: dict[str, str], etag: str | None, taken: bool
) -> None:
    """One that is of the parts would be a verdict on good bytes."""
    with made(Quirks(), provider=provider) as (server, store):
        entry = server.put(BUCKET, "k", DATA, headers=headers, etag=etag)
        found = await store.checksums(ObjectVersion("p", "k", entry.etag, len(DATA)))
        assert bool(found.sha256 or found.crc64nvme) == taken


async def test_where_there_are_no_versions_none_are_asked_for() -> None:
    """What a key no longer holds is not looked for, and another time cannot be mounted."""
    with made(Quirks(), provider="r2") as (server, store):
        entry = server.put(BUCKET, "k", DATA)
        assert await store.find_version(ObjectVersion("p", "k", entry.etag, len(DATA))) == ""
        assert server.take_log() == []


async def test_patience_is_as_for_all() -> None:
    """A way that is found out is no failure that is counted."""
    with made(QUIRKS["ListObjects only"]) as (server, store):
        server.put(BUCKET, "a", b"1")
        patient = PatientStore(store, connections=1, retry_budget=1.0)
        assert len((await patient.stretch("", "0")).objects) == 1
        assert patient.statistics().retries == 0
