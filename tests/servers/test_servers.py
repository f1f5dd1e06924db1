"""What all S3 servers of this folder answer alike, the real one included: what lazyfs may rely on.

What holds for one of them only is in `test_fast`, or says why.
"""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import botocore.exceptions
import pytest

from tests.servers.clients import S3Endpoint
from tests.servers.fast import FastS3Server
from tests.servers.moto_server import MotoServer
from tests.servers.proxy import FaultProxy

DATA = bytes(range(256)) * 400
ODD_KEYS = (
    "plain",
    "a b+c%20d",
    "a&b=c?d#e",
    "quotes'\"<x>",
    "ümlaut/日本/🦙",
    "e\u0301",
    "double//slash",
    "dots/../up",
    "./here",
    "..",
    "x",
    "x/y",
    "folder/",
    "percent%2Fslash",
    "-",
    "long/" + "n" * 900,
)


@dataclass(frozen=True)
class Bucket:
    """A fresh, empty bucket at one of the servers."""

    s3: Any
    name: str

    def put(self, key: str, data: bytes = b"x", **more: Any) -> str:
        """Store and return the ETag, with its quotes."""
        return str(self.s3.put_object(Bucket=self.name, Key=key, Body=data, **more)["ETag"])

    def get(self, key: str, **more: Any) -> tuple[int, bytes, dict[str, Any]]:
        """Status, bytes and the whole answer of a GET."""
        answer = self.s3.get_object(Bucket=self.name, Key=key, **more)
        return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Body"].read(), answer

    def pages(self, size: int = 1000, **more: Any) -> list[dict[str, Any]]:
        """All pages of a ListObjectsV2, of at most `size` entries each."""
        paginator = self.s3.get_paginator("list_objects_v2")
        return list(paginator.paginate(Bucket=self.name, PaginationConfig={"PageSize": size}, **more))


def keys(pages: list[dict[str, Any]]) -> list[str]:
    """The keys in listing order."""
    return [item["Key"] for page in pages for item in page.get("Contents", ())]


def prefixes(pages: list[dict[str, Any]]) -> list[str]:
    """The common prefixes in listing order."""
    return [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", ())]


def refusal(call: Any, **arguments: Any) -> tuple[int, str]:
    """Status and S3 error code of a call that must fail."""
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**arguments)
    response: Any = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def launched(kind: str) -> S3Endpoint:
    """A running server of this kind."""
    if kind == "fast":
        server = FastS3Server(require_signature=S3Endpoint.access_key)
        return server.start()
    pytest.importorskip("moto.server")
    return MotoServer()


_numbers = itertools.count()


@pytest.fixture(scope="module", params=["fast", "swift", "moto", "proxied swift"])
def server(request: pytest.FixtureRequest) -> Iterator[S3Endpoint]:
    with contextlib.ExitStack() as stack:
        if request.param.endswith("swift"):
            server: S3Endpoint = request.getfixturevalue("swift")
            yield stack.enter_context(FaultProxy(server)) if request.param.startswith("proxied") else server
        else:
            yield stack.enter_context(launched(request.param))


@pytest.fixture(scope="module")
def client(server: S3Endpoint) -> Iterator[Any]:
    s3 = server.client()
    yield s3
    s3.close()


@pytest.fixture
def bucket(client: Any) -> Bucket:
    name = f"bucket-{next(_numbers)}"
    client.create_bucket(Bucket=name)
    return Bucket(client, name)


def test_put_and_get_whole(bucket: Bucket) -> None:
    etag = bucket.put("a/b.bin", DATA)
    status, data, answer = bucket.get("a/b.bin")
    assert (status, data, answer["ETag"], answer["ContentLength"]) == (200, DATA, etag, len(DATA))
    assert "ContentRange" not in answer
    assert etag == '"44d088cef136d178e9c8ba84c3fdf6ca"'


def test_empty_object(bucket: Bucket) -> None:
    bucket.put("empty", b"")
    assert bucket.get("empty")[:2] == (200, b"")
    asked = {"Bucket": bucket.name, "Key": "empty", "Range": "bytes=0-9"}
    assert refusal(bucket.s3.get_object, **asked) == (416, "InvalidRange")


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-99", 10, 100),
        ("bytes=100000-", 100_000, len(DATA)),
        ("bytes=-10", len(DATA) - 10, len(DATA)),
        (f"bytes={len(DATA) - 1}-{len(DATA) + 50}", len(DATA) - 1, len(DATA)),
        ("bytes=-9999999", 0, len(DATA)),
    ],
)
def test_range(bucket: Bucket, header: str, start: int, stop: int) -> None:
    etag = bucket.put("k", DATA)
    status, data, answer = bucket.get("k", Range=header)
    assert (status, data) == (206, DATA[start:stop])
    assert answer["ContentRange"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
    assert (answer["ETag"], answer["ContentLength"]) == (etag, stop - start)


def test_range_past_the_end(bucket: Bucket) -> None:
    bucket.put("k", DATA)
    header = f"bytes={len(DATA)}-{len(DATA) + 9}"
    assert refusal(bucket.s3.get_object, Bucket=bucket.name, Key="k", Range=header) == (416, "InvalidRange")


def test_if_match(bucket: Bucket) -> None:
    etag = bucket.put("k", DATA)
    assert bucket.get("k", IfMatch=etag, Range="bytes=0-9")[:2] == (206, DATA[:10])
    bucket.put("k", DATA[::-1])
    asked = {"Bucket": bucket.name, "Key": "k", "IfMatch": etag}
    assert refusal(bucket.s3.get_object, **asked, Range="bytes=0-9") == (412, "PreconditionFailed")
    assert refusal(bucket.s3.get_object, **asked) == (412, "PreconditionFailed")
    assert refusal(bucket.s3.head_object, **asked)[0] == 412


def test_if_none_match(bucket: Bucket) -> None:
    etag = bucket.put("k", DATA)
    assert refusal(bucket.s3.get_object, Bucket=bucket.name, Key="k", IfNoneMatch=etag)[0] == 304
    assert bucket.get("k", IfNoneMatch='"other"')[:2] == (200, DATA)


def test_head(bucket: Bucket) -> None:
    etag = bucket.put("k", DATA, ContentType="text/x-odd", Metadata={"colour": "blue"})
    answer = bucket.s3.head_object(Bucket=bucket.name, Key="k")
    listed = bucket.pages()[0]["Contents"][0]
    assert (answer["ETag"], answer["ContentLength"], answer["ContentType"]) == (etag, len(DATA), "text/x-odd")
    assert answer["Metadata"] == {"colour": "blue"}
    assert (listed["ETag"], listed["Size"], listed["StorageClass"]) == (etag, len(DATA), "STANDARD")
    assert abs((listed["LastModified"] - answer["LastModified"]).total_seconds()) <= 1


def test_what_is_missing(bucket: Bucket) -> None:
    s3 = bucket.s3
    assert refusal(s3.get_object, Bucket=bucket.name, Key="none") == (404, "NoSuchKey")
    assert refusal(s3.head_object, Bucket=bucket.name, Key="none") == (404, "404")
    assert refusal(s3.get_object, Bucket="no-such-bucket", Key="k") == (404, "NoSuchBucket")
    assert refusal(s3.list_objects_v2, Bucket="no-such-bucket") == (404, "NoSuchBucket")
    assert refusal(s3.head_bucket, Bucket="no-such-bucket") == (404, "404")
    s3.head_bucket(Bucket=bucket.name)


def test_delete(bucket: Bucket) -> None:
    bucket.put("k")
    bucket.s3.delete_object(Bucket=bucket.name, Key="k")
    assert refusal(bucket.s3.get_object, Bucket=bucket.name, Key="k") == (404, "NoSuchKey")
    assert keys(bucket.pages()) == []


def test_odd_keys(bucket: Bucket) -> None:
    for number, key in enumerate(ODD_KEYS):
        bucket.put(key, str(number).encode())
    for number, key in enumerate(ODD_KEYS):
        assert bucket.get(key)[1] == str(number).encode()
        assert bucket.s3.head_object(Bucket=bucket.name, Key=key)["ContentLength"] == len(str(number))
    assert keys(bucket.pages(size=3)) == sorted(ODD_KEYS, key=str.encode)


def test_list_order_is_that_of_bytes(bucket: Bucket) -> None:
    names = ["a", "B", "a-b", "a/b", "a0", "é", "\uff5e", "\U00010000"]  # UTF-16 would swap the last two
    for name in names:
        bucket.put(name)
    assert keys(bucket.pages()) == sorted(names, key=str.encode)


def test_list_pages_with_delimiter(bucket: Bucket) -> None:
    for name in ("a/1", "a/2", "a/3", "b", "c/1", "c/d/1", "c/d/2", "d", "d/1", "a0"):
        bucket.put(name)
    for size in (1, 2, 3, 1000):
        pages = bucket.pages(size=size, Delimiter="/")
        assert keys(pages) == ["a0", "b", "d"]
        assert prefixes(pages) == ["a/", "c/", "d/"]
        assert all(page["KeyCount"] <= size for page in pages)
        assert [page["IsTruncated"] for page in pages] == [True] * (len(pages) - 1) + [False]
        pages = bucket.pages(size=size, Delimiter="/", Prefix="c/")
        assert (keys(pages), prefixes(pages)) == (["c/1"], ["c/d/"])
        assert keys(bucket.pages(size=size, Prefix="a/")) == ["a/1", "a/2", "a/3"]
        assert prefixes(bucket.pages(size=size, Prefix="c", Delimiter="/")) == ["c/"]


def test_list_start_after(bucket: Bucket) -> None:
    for name in ("a", "b/1", "b/2", "c"):
        bucket.put(name)
    assert keys(bucket.pages(size=1, StartAfter="a")) == ["b/1", "b/2", "c"]
    assert keys(bucket.pages(StartAfter="b/1")) == ["b/2", "c"]
    pages = bucket.pages(StartAfter="a", Delimiter="/")
    assert (keys(pages), prefixes(pages)) == (["c"], ["b/"])


def test_list_url_encoded_prefix_and_delimiter(bucket: Bucket) -> None:
    for name in ("a b/c+d", "a b/e&<f", "a b/g/h"):
        bucket.put(name)
    pages = bucket.pages(Prefix="a b/", Delimiter="/")
    assert (keys(pages), prefixes(pages)) == (["a b/c+d", "a b/e&<f"], ["a b/g/"])


def test_an_empty_listing(bucket: Bucket) -> None:
    answer = bucket.s3.list_objects_v2(Bucket=bucket.name, Prefix="nothing/", Delimiter="/")
    assert (answer["KeyCount"], answer["IsTruncated"]) == (0, False)
    assert "Contents" not in answer
    assert "CommonPrefixes" not in answer


def test_old_versions_stay_readable(bucket: Bucket) -> None:
    bucket.s3.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    first = bucket.s3.put_object(Bucket=bucket.name, Key="k", Body=b"one")["VersionId"]
    second = bucket.s3.put_object(Bucket=bucket.name, Key="k", Body=b"two")["VersionId"]
    assert first != second
    assert bucket.get("k", VersionId=first)[1] == b"one"
    assert (bucket.get("k")[1], bucket.get("k")[2]["VersionId"]) == (b"two", second)
    bucket.s3.delete_object(Bucket=bucket.name, Key="k")
    assert refusal(bucket.s3.get_object, Bucket=bucket.name, Key="k") == (404, "NoSuchKey")
    assert bucket.get("k", VersionId=first, Range="bytes=1-1")[:2] == (206, b"n")


class Stranger(S3Endpoint):
    """Somebody with keys that no server knows."""

    access_key = "nobody:here"
    url = ""

    def __init__(self, url: str) -> None:
        self.url = url


def test_a_wrong_access_key(server: S3Endpoint, bucket: Bucket) -> None:
    if isinstance(server, MotoServer):
        pytest.skip("moto takes every key")
    s3 = Stranger(server.url).client()
    status, code = refusal(s3.list_objects_v2, Bucket=bucket.name)
    # Swift does not tell an unknown key from a wrong secret; AWS, and so our own, does.
    assert status == 403
    assert code in ("InvalidAccessKeyId", "SignatureDoesNotMatch")
    s3.close()
