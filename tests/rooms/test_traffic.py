"""What is counted of the requests to S3: by each engine alike, and as the server saw them."""

from collections.abc import Iterator
from typing import Any

import pytest

from lazyfs.errors import StoreError
from lazyfs.objects import MIB, ObjectVersion
from lazyfs.stores.base import Claim
from lazyfs.stores.crt import CrtStore
from lazyfs.stores.s3 import S3Store
from lazyfs.stores.traffic import BROKEN, GET, HEAD, LIST, OTHER, UNANSWERED, Traffic
from tests.rooms.building import pattern
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault

ENGINES: dict[str, Any] = {
    "boto3": lambda **options: S3Store("models", quick=False, **options),
    "auto": lambda **options: S3Store("models", **options),
    "awscrt": lambda **options: CrtStore("models", **options),
}
DATA = pattern(2 * MIB)


@pytest.fixture
def s3() -> Iterator[FastS3Server]:
    """With one object."""
    with FastS3Server() as server:
        server.add_bucket("models")
        server.put("models", "k", DATA)
        yield server


async def read(store: Any, version: ObjectVersion) -> bytes:
    """All of a version, or nothing."""
    into = memoryview(bytearray(version.size))
    try:
        await store.read(version, 0, [into], lambda _: None, Claim(urgent=True))
    except StoreError:
        return b""
    return bytes(into)


FAULTS = {
    "403": Fault(status=403, code="AccessDenied"),
    "503": Fault(status=503, code="SlowDown"),
    UNANSWERED: Fault(hang_up=True),
    BROKEN: Fault(close_after=MIB),
}


@pytest.mark.parametrize("engine", ENGINES)
async def test_requests_by_operation_and_status(s3: FastS3Server, engine: str) -> None:
    """By botocore, of awscrt only the first GET, and else none; each is counted once, with its end."""
    traffic = Traffic()
    store = ENGINES[engine](endpoint_url=s3.url, region=s3.region, no_sign_request=True, traffic=traffic)
    assert len((await store.list("")).objects) == 1
    info = await store.stat("k")
    version = ObjectVersion("p", info.key, info.etag, info.size)
    for _ in range(3):
        assert await read(store, version) == DATA
    assert {key: count for key, count in traffic.statistics().requests.items() if count} == {
        (LIST, "200"): 1,
        (HEAD, "200"): 1,
        (GET, "206"): 3,
    }
    s3.take_log()
    for fault in FAULTS.values():
        s3.fault = lambda _, fault=fault: fault
        assert await read(store, version) == b""
    s3.fault = lambda _: None
    found = traffic.statistics()
    sent = len([request for request in s3.take_log() if request.kind == "GET"])
    failed = {status: count for (operation, status), count in found.requests.items() if operation == GET and count}
    assert failed.pop("206") == 3
    assert failed == dict.fromkeys(FAULTS, 1)
    assert sum(failed.values()) == sent
    counted = {key: spread.count for key, spread in found.seconds.items()}
    assert counted == {key: count for key, count in found.requests.items() if count}
    assert found.first_byte[GET].count == 3 + sent - 1
    assert found.connection.count == {"auto": sent + 3, "awscrt": sent + 2, "boto3": 0}[engine]
    store.close()


def test_a_status_that_somebody_made_up() -> None:
    """A server cannot make the counts many."""
    traffic = Traffic()
    for status in (299, 599, 601, 999):
        with traffic.trip(GET) as trip:
            trip.sent()
            trip.answered(status)
    assert traffic.statistics().requests[GET, OTHER] == 4


async def test_an_endpoint_that_is_away_is_a_request_without_an_answer(s3: FastS3Server) -> None:
    """Also where not even a connection came about; and a failure of the server's is no answer of S3's."""
    traffic = Traffic()
    store = S3Store("models", endpoint_url=s3.url, region=s3.region, no_sign_request=True, traffic=traffic)
    info = await store.stat("k")
    version = ObjectVersion("p", info.key, info.etag, info.size)
    assert await read(store, version) == DATA
    before = traffic.statistics()
    s3.fault = lambda _: Fault(status=503)
    assert await read(store, version) == b""
    assert traffic.statistics().quiet > before.quiet
    s3.stop()
    assert await read(store, version) == b""
    with pytest.raises(StoreError):
        await store.stat("k")
    found = traffic.statistics().requests
    assert found[GET, UNANSWERED] == 1
    assert found[HEAD, UNANSWERED] == 1
    store.close()
