"""The contract of every store, asked of servers that others wrote and that take their time to start: Ceph's radosgw and
`rclone serve s3`; and by ListObjects, also of Swift. Only in --full."""

from collections.abc import Iterator
from typing import Any

import pytest

from lazyfs.errors import AccessDenied, ObjectChanged
from lazyfs.objects import ObjectVersion
from lazyfs.stores.base import Claim
from lazyfs.stores.crt import CrtStore
from lazyfs.stores.profiles import PROFILES, V1, V1_PLAIN, Profile
from lazyfs.stores.s3 import S3Store
from tests.rooms import test_store_contract as contract
from tests.servers.clients import S3Endpoint
from tests.servers.radosgw import TREE, RadosgwServer
from tests.servers.rclone import RcloneServer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_aws")]

BUCKET = "contract"
swift = contract.swift

test_a_range_is_exactly_its_bytes = contract.test_a_range_is_exactly_its_bytes
test_an_overwritten_object_has_changed = contract.test_an_overwritten_object_has_changed
test_what_is_not_there = contract.test_what_is_not_there
test_a_listing_and_a_stat_agree = contract.test_a_listing_and_a_stat_agree
test_odd_keys_come_as_they_are = contract.test_odd_keys_come_as_they_are
test_a_prefix_without_objects_is_empty = contract.test_a_prefix_without_objects_is_empty
test_all_pages_of_a_listing = contract.test_all_pages_of_a_listing


@pytest.fixture(scope="module")
def radosgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RadosgwServer]:
    """Ceph."""
    if not TREE.exists():
        pytest.skip("radosgw is not here; scripts/test --full unpacks it where there are Debian packages")
    with RadosgwServer(tmp_path_factory.mktemp("radosgw")) as server:
        yield server


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RcloneServer]:
    """Of rclone."""
    with RcloneServer(tmp_path_factory.mktemp("rclone")) as server:
        yield server


def stores(server: S3Endpoint, *, crt: bool = False, **options: Any) -> Iterator[Any]:
    """A store of the server's bucket, which is made if it is not there, and how objects get into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        client = server.client(request_checksum_calculation="when_required")
        if not any(bucket["Name"] == BUCKET for bucket in client.list_buckets()["Buckets"]):
            client.create_bucket(Bucket=BUCKET)
        store = (CrtStore if crt else S3Store)(BUCKET, endpoint_url=server.url, **options)
        yield (
            store,
            lambda key, data: client.put_object(Bucket=BUCKET, Key=key, Body=data),
            lambda key: client.delete_object(Bucket=BUCKET, Key=key),
        )
        store.close()
        client.close()


FIRST = {"v1": Profile(listing=(V1,)), "v1 plain": Profile(listing=(V1_PLAIN,))}
"""Profiles that ask for nothing but ListObjects."""

ORIGINS = ["rclone", "rclone-crt", "radosgw-ceph", "radosgw-other", "radosgw-crt"]
ORIGINS += [f"{server}-{way}" for server in ("rclone", "radosgw", "swift") for way in FIRST]


@pytest.fixture(scope="module", params=ORIGINS)
def origin(request: pytest.FixtureRequest, _aws: None) -> Iterator[Any]:
    """Server and how it is asked: by the engine, or the profile."""
    name, _, way = request.param.partition("-")
    server = request.getfixturevalue(name)
    options: dict[str, Any] = {"crt": True} if way == "crt" else {"provider": way or "auto"}
    with pytest.MonkeyPatch.context() as patch:
        for each, profile in FIRST.items():
            patch.setitem(PROFILES, each, profile)
        for made in stores(server, **options):
            yield (*made, name)


@pytest.fixture
def stand(origin: Any, request: pytest.FixtureRequest) -> contract.Stand:
    """The store."""
    store, put, delete, name = origin
    without = frozenset({"..", "."}) if name == "rclone" else frozenset[str]()
    prefix = f"{request.node.name}/".replace("[", "-").replace("]", "")
    return contract.Stand(store, put, delete, prefix, without=without)


def _is_rclone(request: pytest.FixtureRequest) -> bool:
    return "rclone" in request.node.name


async def test_a_listing_is_one_level_deep(stand: contract.Stand, request: pytest.FixtureRequest) -> None:
    """As in the contract; with the names that rclone can have."""
    if not _is_rclone(request):
        await contract.test_a_listing_is_one_level_deep(stand)
        return
    for name in ("a", "b/c", "b/d/e", "ä /z"):
        stand.put(stand.prefix + name, b"12")
    top = await stand.store.list(stand.prefix)
    assert [info.key for info in top.objects] == [stand.prefix + "a"]
    assert set(top.prefixes) == {stand.prefix + name for name in ("b/", "ä /")}
    below = await stand.store.list(stand.prefix + "b/")
    assert ([info.key for info in below.objects], below.prefixes) == (
        [stand.prefix + "b/c"],
        (stand.prefix + "b/d/",),
    )
    assert await stand.store.total_size(stand.prefix) == 8


async def test_a_stretch_is_what_comes_after_a_key(stand: contract.Stand, request: pytest.FixtureRequest) -> None:
    """As in the contract; with the names that rclone can have."""
    if not _is_rclone(request):
        await contract.test_a_stretch_is_what_comes_after_a_key(stand)
        return
    for name in ("a-b/x", "a/b", "a/c/d", "a0", "ä /z"):
        stand.put(stand.prefix + name, b"12")

    async def names(after: str) -> list[str]:
        found = await stand.store.stretch(stand.prefix, stand.prefix + after if after else "")
        assert found.complete
        return [info.key.removeprefix(stand.prefix) for info in found.objects]

    assert await names("") == ["a-b/x", "a/b", "a/c/d", "a0", "ä /z"]
    assert await names("a") == ["a-b/x", "a/b", "a/c/d", "a0", "ä /z"]
    assert await names("a/bb") == ["a/c/d", "a0", "ä /z"]


async def test_an_old_version_is_read_from_ceph(radosgw: RadosgwServer) -> None:
    """Its id is found in the list of versions, with keys as they are."""
    for store, put, _ in stores(radosgw, provider="ceph"):
        client = radosgw.client()
        client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        key = "versions/a b+c%20"
        put(key, b"old bytes")
        info = await store.stat(key)
        version = ObjectVersion("p", key, info.etag, info.size)
        put(key, b"new bytes")
        buffer = bytearray(9)
        with pytest.raises(ObjectChanged):
            await store.read(version, 0, [memoryview(buffer)], lambda _: None, Claim(urgent=True))
        found = await store.find_version(version)
        assert found
        pinned = ObjectVersion("p", key, info.etag, info.size, found)
        await store.read(pinned, 0, [memoryview(buffer)], lambda _: None, Claim(urgent=True))
        assert buffer == b"old bytes"
        client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Suspended"})
        client.close()


@pytest.mark.parametrize("name", ["radosgw", "rclone"])
async def test_a_wrong_secret_is_denied(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their words as in S3's."""
    server = request.getfixturevalue(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not that one")
    store = S3Store(BUCKET, endpoint_url=server.url)
    with pytest.raises(AccessDenied):
        await store.list("")
    store.close()
