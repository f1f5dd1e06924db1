"""What every store promises, asked of all of them: the fake, both S3 engines against three servers and over TLS,
and patience around each.

Here the fake is held to what real servers do, so that the tests behind it may believe it.
"""

import contextlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from lazyfs.errors import AccessDenied, NotFound, ObjectChanged, StoreError
from lazyfs.objects import KIB, MIB, ObjectVersion
from lazyfs.stores.base import Claim, Store
from lazyfs.stores.crt import CrtStore
from lazyfs.stores.fetch import PatientStore
from lazyfs.stores.s3 import S3Store
from tests.rooms.building import pattern
from tests.rooms.memory_store import MemoryStore
from tests.servers.certificates import Certificates
from tests.servers.clients import S3Endpoint
from tests.servers.fast import FastS3Server
from tests.servers.moto_server import MotoServer
from tests.servers.swift import SwiftServer

BUCKET = "contract"
DATA = pattern(1000 * KIB + 7)
ODD_NAMES = ("plain", "a b+c", "100%25 &=?#", "ümlaut 日本 🦙", "e\u0301", "quotes'\"<x>", "..", ".", "~", "-", "%2F")


class Put(Protocol):
    """How a test stores an object, whatever the store."""

    def __call__(self, key: str, data: bytes) -> object:
        """Store, replacing what was there."""
        ...


@dataclass(frozen=True)
class Stand:
    """A store under test, how objects get into it, and a prefix of the test's own."""

    store: Store
    put: Put
    delete: Any
    prefix: str
    missing: type[StoreError] = NotFound
    without: frozenset[str] = frozenset()
    """Names that the server cannot have, or list."""

    async def version(self, name: str, data: bytes) -> ObjectVersion:
        """Store an object below the prefix; its version as the store tells it."""
        self.put(self.prefix + name, data)
        info = await self.store.stat(self.prefix + name)
        return ObjectVersion("p", info.key, info.etag, info.size)

    async def read(self, version: ObjectVersion, start: int, *lengths: int) -> tuple[bytes, list[int]]:
        """What a read puts into buffers of these lengths, and the counts that arrived."""
        buffers = [memoryview(bytearray(length)) for length in lengths]
        counts: list[int] = []
        await self.store.read(version, start, buffers, counts.append, Claim(urgent=True))
        return b"".join(buffers), counts


def started(kind: str) -> S3Endpoint:
    """A server of this kind."""
    if kind == "moto":
        pytest.importorskip("moto.server")
        return MotoServer()
    return FastS3Server().start()


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    """The server that checks signatures."""
    pytest.importorskip("swift")
    with SwiftServer(tmp_path_factory.mktemp("swift")) as server:
        yield server


SERVERS = ["fast", "tls", "moto", "swift"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """For the server that speaks TLS."""
    return Certificates.at(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module", params=["memory", *SERVERS, *(f"{server}-crt" for server in SERVERS)])
def origin(request: pytest.FixtureRequest, certificates: Certificates, _aws: None) -> Iterator[Any]:
    """The store, put and delete of one origin, one for the module: a client takes 50 ms to make, Swift seconds."""
    if request.param == "memory":
        memory = MemoryStore()
        yield memory, memory.put, memory.delete
        return
    with contextlib.ExitStack() as stack:
        kind, _, engine = request.param.partition("-")
        trusted = str(certificates.ca) if kind == "tls" else None
        if kind == "swift":
            server = request.getfixturevalue("swift")
        elif kind == "tls":
            server = stack.enter_context(FastS3Server(ssl_context=certificates.context()))
        else:
            server = stack.enter_context(started(kind))
        bucket = f"{BUCKET}{engine}"
        client = server.client(verify=trusted)
        client.create_bucket(Bucket=bucket)
        made = CrtStore if engine else S3Store
        store: S3Store | CrtStore = made(bucket, endpoint_url=server.url, ca_bundle=trusted)
        yield (
            store,
            lambda key, data: client.put_object(Bucket=bucket, Key=key, Body=data),
            lambda key: client.delete_object(Bucket=bucket, Key=key),
        )
        store.close()
        client.close()


@pytest.fixture(params=["plain", "patient"])
def stand(origin: Any, request: pytest.FixtureRequest) -> Stand:
    """The store itself, and patience around it, which is a store too."""
    store, put, delete = origin
    if request.param == "patient":
        store = PatientStore(store, connections=4, retry_budget=1.0)
    return Stand(store, put, delete, f"{request.node.name}/".replace("[", "-").replace("]", ""))


@pytest.mark.parametrize(
    ("start", "lengths"),
    [
        (0, (len(DATA),)),
        (0, (1,)),
        (400 * KIB + 3, (70 * KIB,)),
        (len(DATA) - 1, (1,)),
        (len(DATA) - 100, (30, 70)),
        (5, (1, 300 * KIB, 299, 300 * KIB)),
    ],
)
async def test_a_range_is_exactly_its_bytes(stand: Stand, start: int, lengths: tuple[int, ...]) -> None:
    """From the beginning, the middle and the end, one byte and all, across buffers of any length."""
    version = await stand.version("k", DATA)
    data, counts = await stand.read(version, start, *lengths)
    assert data == DATA[start : start + sum(lengths)]
    assert counts == sorted(set(counts))
    assert (counts[0], counts[-1]) == (0, sum(lengths))


async def test_a_few_bytes_are_told_of_as_they_come(stand: Stand) -> None:
    """Where somebody waits for them, by every way in which a store reads: of 3 MiB never more than a quarter of one at
    once."""
    data = DATA * (3 * MIB // len(DATA) + 1)
    version = await stand.version("k", data)
    claim = Claim(urgent=True)
    claim.few = True
    for _ in range(2):
        buffers = [memoryview(bytearray(MIB)) for _ in range(3)]
        counts: list[int] = []
        await stand.store.read(version, 0, buffers, counts.append, claim)
        assert b"".join(buffers) == data[: 3 * MIB]
        assert max(count - before for before, count in itertools.pairwise(counts)) <= 256 * KIB


async def test_an_overwritten_object_has_changed(stand: Stand) -> None:
    """Not a byte of the new one arrives, the same size or another; the new version can be read."""
    old = await stand.version("k", b"old bytes")
    for data in (b"new bytes", b"longer new bytes", b"new"):
        new = await stand.version("k", data)
        assert new.etag != old.etag
        buffer = bytearray(9)
        counts: list[int] = []
        with pytest.raises(ObjectChanged):
            await stand.store.read(old, 0, [memoryview(buffer)], counts.append, Claim(urgent=True))
        assert (bytes(buffer), counts) == (bytes(9), [])
        assert (await stand.read(new, 0, len(data)))[0] == data


async def test_what_is_not_there(stand: Stand) -> None:
    """A key that never was, and one that is gone."""
    with pytest.raises(stand.missing):
        await stand.store.stat(stand.prefix + "never")
    version = await stand.version("k", b"data")
    stand.delete(version.key)
    with pytest.raises(stand.missing):
        await stand.store.stat(version.key)
    with pytest.raises(stand.missing):
        await stand.read(version, 0, 4)


async def test_a_listing_and_a_stat_agree(stand: Stand) -> None:
    """Key, ETag as it is spelled, size and time: an inode made from one is the inode made from the other."""
    for name in ("a", "b"):
        stand.put(stand.prefix + name, DATA[: ord(name)])
    listing = await stand.store.list(stand.prefix)
    assert [(info.key, info.size) for info in listing.objects] == [(stand.prefix + "a", 97), (stand.prefix + "b", 98)]
    for info in listing.objects:
        found = await stand.store.stat(info.key)
        assert (found.key, found.size, found.mtime_ns) == (info.key, info.size, info.mtime_ns)
        assert found.etag.strip('"') == info.etag.strip('"')
        assert info.mtime_ns > 0
        assert info.mtime_ns % 10**9 == 0
        version = ObjectVersion("p", info.key, info.etag, info.size)
        assert (await stand.read(version, 0, info.size))[0] == DATA[: info.size]


async def test_odd_keys_come_as_they_are(stand: Stand) -> None:
    """Blanks, plus, percent, Unicode in either form, dots: listed, found and read under their own names."""
    names = [name for name in ODD_NAMES if name not in stand.without]
    for name in names:
        stand.put(stand.prefix + name, name.encode())
    listing = await stand.store.list(stand.prefix)
    assert {info.key for info in listing.objects} == {stand.prefix + name for name in names}
    for info in listing.objects:
        version = ObjectVersion("p", info.key, info.etag, info.size)
        assert (await stand.read(version, 0, info.size))[0] == info.key.removeprefix(stand.prefix).encode()
        assert (await stand.store.stat(info.key)).size == info.size


async def test_a_listing_is_one_level_deep(stand: Stand) -> None:
    """What is below a slash is a common prefix, once; a marker is an object of its own prefix; `//` is two levels."""
    for name in ("a", "a/b", "a/c/d", "marker/", "twice//x", "../up", "ä /z"):
        stand.put(stand.prefix + name, b"12")
    top = await stand.store.list(stand.prefix)
    assert top.prefix == stand.prefix
    assert [info.key for info in top.objects] == [stand.prefix + "a"]
    assert set(top.prefixes) == {stand.prefix + name for name in ("a/", "marker/", "twice/", "../", "ä /")}
    below = await stand.store.list(stand.prefix + "a/")
    assert [info.key for info in below.objects] == [stand.prefix + "a/b"]
    assert below.prefixes == (stand.prefix + "a/c/",)
    markers = [] if "marker/" in stand.without else [stand.prefix + "marker/"]
    assert [i.key for i in (await stand.store.list(stand.prefix + "marker/")).objects] == markers
    assert (await stand.store.list(stand.prefix + "twice/")).prefixes == (stand.prefix + "twice//",)
    assert await stand.store.total_size(stand.prefix) == 14
    assert await stand.store.total_size(stand.prefix + "a/") == 4


async def test_a_prefix_without_objects_is_empty(stand: Stand) -> None:
    """That is an answer and no error."""
    listing = await stand.store.list(stand.prefix + "nothing/")
    assert (listing.objects, listing.prefixes) == ((), ())
    assert await stand.store.total_size(stand.prefix + "nothing/") == 0


async def test_a_stretch_is_what_comes_after_a_key(stand: Stand) -> None:
    """In the order of the keys, at any depth; the key itself is not part of it, and need not be there."""
    for name in ("a", "a-b/x", "a/b", "a/c/d", "a0", "ä /z"):
        stand.put(stand.prefix + name, b"12")

    async def names(after: str) -> list[str]:
        found = await stand.store.stretch(stand.prefix, stand.prefix + after if after else "")
        assert found.complete
        return [info.key.removeprefix(stand.prefix) for info in found.objects]

    assert await names("") == ["a", "a-b/x", "a/b", "a/c/d", "a0", "ä /z"]
    assert await names("a") == ["a-b/x", "a/b", "a/c/d", "a0", "ä /z"]
    assert await names("a/bb") == ["a/c/d", "a0", "ä /z"]
    assert await names("ö") == []


async def test_all_pages_of_a_listing(stand: Stand, request: pytest.FixtureRequest) -> None:
    """More keys and prefixes than one answer holds, each of them once."""
    if "swift" in request.node.name:
        pytest.skip("a minute of puts; tests/servers holds Swift's pages to those of the others")
    if "crt" in request.node.name:
        pytest.skip("a thousand puts more for what it has S3Store do; shorter listings are tried with it here")
    names = [f"{number:05}" for number in range(1005)] + [f"dir {number:05}/x" for number in range(30)]
    if await stand.store.total_size("pages/") == 0:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda name: stand.put(f"pages/{name}", b"1"), names))
    listing = await stand.store.list("pages/")
    assert [info.key for info in listing.objects] == [f"pages/{name}" for name in names[:1005]]
    assert list(listing.prefixes) == [f"pages/{name.removesuffix('x')}" for name in names[1005:]]
    first = await stand.store.stretch("pages/", "")
    assert [info.key for info in first.objects] == [f"pages/{name}" for name in names[:1000]]
    assert not first.complete
    rest = await stand.store.stretch("pages/", first.objects[-1].key)
    assert [info.key for info in rest.objects] == [f"pages/{name}" for name in names[1000:]]
    assert rest.complete
    assert await stand.store.total_size("pages/") == len(names)


@pytest.mark.usefixtures("_aws")
async def test_a_wrong_secret_is_denied(swift: SwiftServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And said at once: patience does not ask again."""
    client = swift.client()
    client.create_bucket(Bucket="secret")
    etag = client.put_object(Bucket="secret", Key="k", Body=b"data")["ETag"]
    client.close()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not it")
    store = PatientStore(S3Store("secret", endpoint_url=swift.url), connections=1, retry_budget=60)
    with pytest.raises(AccessDenied):
        await store.list("")
    with pytest.raises(AccessDenied):
        await store.stat("k")
    with pytest.raises(AccessDenied):
        await Stand(store, MemoryStore().put, None, "").read(ObjectVersion("p", "k", etag, 4), 0, 4)
    assert store.statistics().retries == 0


@pytest.mark.usefixtures("_aws")
async def test_a_missing_bucket_is_not_found(swift: SwiftServer) -> None:
    """Which a mount must be able to tell from an empty one."""
    with pytest.raises(NotFound):
        await S3Store("no-such-bucket", endpoint_url=swift.url).list("")
