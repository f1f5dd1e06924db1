"""Listings and HEADs through a proxy that goes wrong: what patience mends, and what is said with authority.

GETs are tried alike by `test_responses` and `test_crt` for each engine, and on real mounts by `mounts/test_faults`.
"""

from collections.abc import Awaitable, Callable, Iterator

import pytest

from lazyfs.errors import AccessDenied, NotFound, Transient, Unreachable
from lazyfs.objects import Checksums, ObjectVersion
from lazyfs.stores.fetch import PatientStore
from lazyfs.stores.s3 import S3Store
from tests.servers.clients import S3Endpoint
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault, first, moved
from tests.servers.proxy import FaultProxy
from tests.servers.records import Request
from tests.servers.troubles import PASSING, Trouble

SIZE = 1000
VERSION = ObjectVersion("p", "dir/k", '"e"', SIZE)
Ask = Callable[[PatientStore], Awaitable[object]]


async def _list(store: PatientStore) -> object:
    listing = await store.list("dir/")
    return [(info.key, info.size, info.etag) for info in listing.objects], listing.prefixes


async def _stat(store: PatientStore) -> object:
    info = await store.stat("dir/k")
    return info.key, info.size, info.etag


async def _checksums(store: PatientStore) -> object:
    return await store.checksums(VERSION)


async def _total(store: PatientStore) -> object:
    return await store.total_size("dir/")


ASKS: dict[str, tuple[str, Ask, str]] = {
    "list": ("LIST", _list, r"list 'dir/': "),
    "total size": ("LIST", _total, r"list 'dir/': "),
    "stat": ("HEAD", _stat, r"head 'dir/k': "),
    "checksums": ("HEAD", _checksums, r"head 'dir/k': "),
}
"""The kind of request that goes out, what asks, and how a failure names it."""


@pytest.fixture(scope="module")
def running(_aws: None) -> Iterator[tuple[FaultProxy, S3Store]]:
    """A proxy in front of a server that wants requests to be signed, with an object and one more prefix; and the store
    that asks it."""
    with FastS3Server(require_signature=S3Endpoint.access_key) as server, FaultProxy(server) as proxy:
        server.put("models", "dir/k", bytes(SIZE), etag='"e"', headers={"x-amz-checksum-crc64nvme": "AAAAAAAAAAc="})
        server.put("models", "dir/below/k", b"")
        store = S3Store("models", endpoint_url=proxy.url)
        yield proxy, store
        store.close()


@pytest.fixture
def proxy(running: tuple[FaultProxy, S3Store]) -> FaultProxy:
    """With nothing wrong yet."""
    running[0].fault = None
    running[0].take_log()
    return running[0]


@pytest.fixture
def s3(running: tuple[FaultProxy, S3Store]) -> S3Store:
    """The store behind the patience."""
    return running[1]


RIGHT = {
    "list": ([("dir/k", SIZE, '"e"')], ("dir/below/",)),
    "total size": SIZE,
    "stat": ("dir/k", SIZE, '"e"'),
    "checksums": Checksums(crc64nvme=7),
}


def patient(s3: S3Store, budget: float = 60) -> PatientStore:
    """With patience for so many seconds."""
    return PatientStore(s3, connections=1, retry_budget=budget)


def meets(kind: str, trouble: Trouble) -> Callable[[Request], Fault | None]:
    """Every request of this kind does."""
    return lambda request: trouble.fault(request) if request.kind == kind else None


def once(kind: str, trouble: Trouble) -> Callable[[Request], Fault | None]:
    """The first request of this kind does."""
    left = [trouble]
    return lambda request: left.pop().fault(request) if left and request.kind == kind else None


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("name", PASSING)
async def test_trouble_that_passes(proxy: FaultProxy, s3: S3Store, name: str, ask: str) -> None:
    """Is not seen by who asks: the answer is complete and right after one more attempt, or at once where nothing of the
    trouble touches it."""
    kind, call, _ = ASKS[ask]
    trouble, store = PASSING[name], patient(s3)
    proxy.fault = once(kind, trouble)
    assert await call(store) == RIGHT[ask]
    assert store.statistics().retries == (kind not in trouble.harmless)
    seen = [request.kind for request in proxy.take_log()]
    assert kind in seen
    assert await call(store) == RIGHT[ask], "the next one has nothing of it"


AGAIN = sorted(name for name, trouble in PASSING.items() if "LIST" not in trouble.harmless)


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("name", AGAIN)
async def test_trouble_that_lasts(proxy: FaultProxy, s3: S3Store, name: str, ask: str) -> None:
    """Is one sentence that names what was asked, how often, and the last cause; never an empty or partial answer."""
    kind, call, named = ASKS[ask]
    if kind in PASSING[name].harmless and name != "400 ExpiredToken":
        proxy.fault = meets(kind, PASSING[name])
        assert await call(patient(s3, 0)) == RIGHT[ask]
        return
    proxy.fault = PASSING[name].fault
    with pytest.raises(Unreachable, match=named + "1 attempts failed, the last with .+") as caught:
        await call(patient(s3, 0))
    assert isinstance(caught.value.__cause__, Transient)


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("refuse", [True, False])
async def test_an_outage(proxy: FaultProxy, s3: S3Store, ask: str, refuse: bool) -> None:
    """Connections that are refused, or accepted and dropped, also those that were open; after it all is right again."""
    _, call, named = ASKS[ask]
    assert await call(patient(s3)) == RIGHT[ask]
    with proxy.outage(refuse=refuse), pytest.raises(Unreachable, match=named):
        await call(patient(s3, 0.2))
    assert await call(patient(s3, 0)) == RIGHT[ask]


async def test_an_answer_that_says_so_with_authority(proxy: FaultProxy, s3: S3Store) -> None:
    """Is believed at once."""
    store = patient(s3)
    for status, code, error in ((404, "NoSuchBucket", NotFound), (403, "AccessDenied", AccessDenied)):
        proxy.fault = lambda request, status=status, code=code: Fault(status=status, code=code)
        for _, call, _ in ASKS.values():
            with pytest.raises(error):
                await call(store)
    assert store.statistics().retries == 0


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestTimeTooSkewed"])
async def test_a_head_that_is_refused_is_asked_why(proxy: FaultProxy, s3: S3Store, code: str) -> None:
    """By a GET of one byte, whose answer has room for the word: credentials that expired are no lack of rights."""
    proxy.fault = lambda request: Fault(status=403, code=code)
    with pytest.raises(Unreachable, match=code):
        await patient(s3, 0).stat("dir/k")
    assert [(one.kind, one.range) for one in proxy.take_log()] == [("HEAD", None), ("GET", (0, 1))]
    proxy.fault = first(1, Fault(status=403, code=code), lambda request: request.kind == "HEAD")
    store = patient(s3)
    assert (await store.stat("dir/k")).size == SIZE
    assert store.statistics().retries == 1


async def test_a_head_of_an_empty_object_that_is_refused(proxy: FaultProxy, s3: S3Store) -> None:
    """It has no byte to ask for, and who is told so may read it."""
    proxy.fault = first(1, Fault(status=403), lambda request: request.kind == "HEAD")
    store = patient(s3)
    assert (await store.stat("dir/below/k")).size == 0
    assert store.statistics().retries == 1


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("status", [301, 307])
async def test_a_redirect_to_nowhere(proxy: FaultProxy, s3: S3Store, ask: str, status: int) -> None:
    """Of every request, and without a word on where the bucket is: botocore looks for that once."""
    proxy.fault = lambda request: moved(request, "http://127.0.0.1:9", status)
    _, call, named = ASKS[ask]
    with pytest.raises(Unreachable, match=named + rf"1 attempts failed, the last with ({status}|\w+Redirect): "):
        await call(patient(s3, 0))
    assert [one.kind for one in proxy.take_log()] == [ASKS[ask][0], "OTHER"]
    proxy.fault = None
    assert await call(patient(s3, 0)) == RIGHT[ask]


PAGE = (
    '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>models</Name>'
    "<KeyCount>1</KeyCount><IsTruncated>{more}</IsTruncated>{items}</ListBucketResult>"
)
ITEM = (
    "<Contents><Key>dir/k</Key><LastModified>2026-01-01T00:00:00Z</LastModified><ETag>e</ETag><Size>7</Size></Contents>"
)


@pytest.mark.parametrize(
    ("more", "items", "said"),
    [
        ("true", ITEM, "does not say where"),
        ("false", "<Contents><Key>dir/k</Key><Size>7</Size></Contents>", "does not say LastModified"),
        ("false", ITEM.replace("<Size>7</Size>", ""), "does not say Size"),
        ("false", ITEM.replace("<Key>dir/k</Key>", ""), "does not say Key"),
        ("false", "<CommonPrefixes/>", "does not say Prefix"),
        ("false", ITEM.replace("7</Size>", "seven</Size>"), "."),
        ("false", ITEM.replace("2026-01-01T00:00:00Z", "today"), "."),
    ],
)
async def test_a_listing_that_lacks_something(proxy: FaultProxy, s3: S3Store, more: str, items: str, said: str) -> None:
    """Is none, and asked for again: a part of a listing would take names away."""
    page = Fault(page=PAGE.format(more=more, items=items).encode())
    proxy.fault = lambda request: page
    with pytest.raises(Unreachable, match=said):
        await patient(s3, 0).list("dir/")
    proxy.fault = first(1, page, lambda request: request.kind == "LIST")
    assert await _list(patient(s3)) == RIGHT["list"]
