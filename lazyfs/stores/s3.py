"""S3 and what speaks like it, through boto3: the only importer of boto3 and botocore.

Its job: build requests, check that a response is what was asked for, and translate every failure. Asks once; asking
again is `fetch.py`'s. boto3 blocks, so each call runs in a thread. One client for each mount (clients are thread safe),
made once because making one costs about 50 ms; credentials stay botocore's affair, which refreshes them.
"""

import datetime
import http.client
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import boto3
import botocore.exceptions
import trio
import urllib3.exceptions
from botocore import UNSIGNED
from botocore.config import Config

from lazyfs.errors import (
    AccessDenied,
    ArchivedObject,
    NotFound,
    ObjectChanged,
    SetupError,
    StoreError,
    Transient,
)
from lazyfs.objects import KIB, Listing, ObjectInfo, ObjectVersion
from lazyfs.stores.base import Arrived, Claim

T = TypeVar("T")

PIECE_SIZE = 1024 * KIB
"""Bytes received between two `arrived`, and the most that is asked for again after a break. With 256 KiB a cold read
was 14 % slower: each piece is a hand-over of the interpreter to and from its thread."""

CONNECT_TIMEOUT = 10.0
STALL_TIMEOUT = 20.0
"""Seconds without a byte after which a connection is given up. A bound on silence, not on the whole transfer."""

_SLOW_DOWN = {"SlowDown", "503", "429", "TooManyRequests", "RequestLimitExceeded", "ThrottlingException", "Throttling"}
_RENEWABLE = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed"}


class S3Store:
    """One bucket. `place` is the `Source.place` that its object versions carry."""

    def __init__(
        self,
        bucket: str,
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        no_sign_request: bool = False,
        force_path_style: bool = False,
        requester_pays: bool = False,
        expected_bucket_owner: str | None = None,
        ca_bundle: str | None = None,
        max_connections: int = 32,
    ) -> None:
        """Make the client. Sends nothing. `SetupError` for a profile or a CA bundle that does not exist."""
        self._common: dict[str, Any] = {"Bucket": bucket}
        if requester_pays:
            self._common["RequestPayer"] = "requester"
        if expected_bucket_owner:
            self._common["ExpectedBucketOwner"] = expected_bucket_owner
        # Listings do not wait behind GETs: they have connections of their own.
        self._gets = trio.CapacityLimiter(max_connections)
        self._lists = trio.CapacityLimiter(8)
        try:
            session = boto3.session.Session(profile_name=profile)
            # Any: the stubs type each of the 300 calls, and not the raw body that is read here.
            self._client: Any = session.client(
                "s3",
                endpoint_url=endpoint_url,
                region_name=region or session.region_name or "us-east-1",
                verify=ca_bundle,
                config=Config(
                    signature_version=UNSIGNED if no_sign_request else "s3v4",
                    s3={"addressing_style": "path" if force_path_style or endpoint_url else "auto"},
                    # All asking again is fetch.py's: two retriers multiply.
                    retries={"total_max_attempts": 1, "mode": "standard"},
                    # Servers other than AWS stumble over the checksums newer SDKs add by default.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    connect_timeout=CONNECT_TIMEOUT,
                    read_timeout=STALL_TIMEOUT,
                    max_pool_connections=max_connections + 8,
                    tcp_keepalive=True,
                ),
            )
        except botocore.exceptions.ProfileNotFound as error:
            raise SetupError(f"{error}; see `aws configure list-profiles`") from error
        except (botocore.exceptions.BotoCoreError, ValueError, OSError) as error:
            raise SetupError(f"cannot set up S3: {error}") from error

    async def list(self, prefix: str) -> Listing:
        """See `base.Store.list`: ListObjectsV2 with delimiter `/`, all pages; keys come url-encoded and are decoded."""
        return await self._ask(self._list, prefix)

    async def total_size(self, prefix: str) -> int:
        """See `base.Store.total_size`: a flat ListObjectsV2, 1,000 objects a request."""
        return await self._ask(self._total_size, prefix)

    async def stat(self, key: str) -> ObjectInfo:
        """See `base.Store.stat`: one HEAD."""
        return await self._ask(self._stat, key)

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """See `base.Store.read`: one ranged GET with If-Match."""
        # Not abandoned when cancelled: the thread writes into buffers that belong to somebody else.
        await trio.to_thread.run_sync(_translated, self._read, version, start, into, arrived, limiter=self._gets)

    async def _ask(self, function: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(_translated, function, *args, limiter=self._lists, abandon_on_cancel=True)

    def _pages(self, **arguments: Any) -> Any:
        return self._client.get_paginator("list_objects_v2").paginate(**self._common, **arguments)

    def _list(self, prefix: str) -> Listing:
        listed_at = time.time()
        objects: list[ObjectInfo] = []
        prefixes: list[str] = []
        for page in self._pages(Prefix=prefix, Delimiter="/"):
            objects.extend(_info(item["Key"], item) for item in page.get("Contents", ()))
            prefixes.extend(item["Prefix"] for item in page.get("CommonPrefixes", ()))
        return Listing(prefix, tuple(objects), tuple(prefixes), listed_at)

    def _total_size(self, prefix: str) -> int:
        return sum(item["Size"] for page in self._pages(Prefix=prefix) for item in page.get("Contents", ()))

    def _stat(self, key: str) -> ObjectInfo:
        answer = self._client.head_object(**self._common, Key=key)
        return _info(key, {**answer, "Size": answer["ContentLength"]})

    def _read(self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived) -> None:
        stop = start + sum(len(view) for view in into)
        pinned = {"VersionId": version.version_id} if version.version_id else {}
        answer = self._client.get_object(
            **self._common, **pinned, Key=version.key, IfMatch=version.etag, Range=f"bytes={start}-{stop - 1}"
        )
        body = answer["Body"]._raw_stream
        try:
            _check_range(answer, version, start, stop)
            _receive(body, into, arrived)
        except BaseException:
            body.close()
            raise
        body.release_conn()


def _receive(body: Any, into: Sequence[memoryview], arrived: Arrived) -> None:
    """Read the body into the buffers.

    urllib3's own readinto() makes a bytes object first; the http.client response below it receives into the buffer
    (0.47 against 0.60 CPU seconds a GB), so that one is used where it is there.
    """
    inner = getattr(body, "_fp", None)
    source = inner if isinstance(inner, http.client.HTTPResponse) else body
    received = 0
    for view in into:
        offset = 0
        while offset < len(view):
            count = source.readinto(view[offset : offset + PIECE_SIZE])
            if not count:
                raise Transient(f"the body ended after {received} bytes")
            offset += count
            received += count
            arrived(received)


def _check_range(answer: Any, version: ObjectVersion, start: int, stop: int) -> None:
    """Status, range, length and ETag must all agree. If-Match is not honoured everywhere, some servers send 200 with a
    Content-Range, others 200 with the whole object; only the first two are a range."""
    etag = answer.get("ETag", "")
    if _opaque(etag) != _opaque(version.etag):
        raise ObjectChanged(f"{version.key}: the object is now {etag}, not {version.etag}")
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.get("ContentRange", ""))
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    whole = status == 200 and match is None and start == 0 and stop == version.size
    if not whole and (status not in (200, 206) or match is None or (int(match[1]), int(match[2]) + 1) != (start, stop)):
        raise Transient(f"asked for bytes {start}-{stop - 1}, got status {status} {answer.get('ContentRange', '')!r}")
    if match is not None and match[3] != "*" and int(match[3]) != version.size:
        raise ObjectChanged(f"{version.key}: the object now has {match[3]} bytes, not {version.size}")
    if answer.get("ContentLength", stop - start) != stop - start:
        raise Transient(f"asked for {stop - start} bytes, the server announces {answer['ContentLength']}")


def _opaque(etag: str) -> str:
    """An ETag for comparison: some servers leave the quotes out in one place and not in another."""
    return etag.removeprefix("W/").strip('"')


def _info(key: str, item: Any) -> ObjectInfo:
    modified: datetime.datetime = item["LastModified"]
    return ObjectInfo(
        key, item.get("ETag", ""), item["Size"], int(modified.timestamp()) * 10**9, item.get("StorageClass", "")
    )


def _translated(function: Callable[..., T], *args: Any) -> T:
    """Call, with every foreign exception turned into one of ours. The border where boto3's exceptions end."""
    try:
        return function(*args)
    except StoreError:
        raise
    except botocore.exceptions.ClientError as error:
        _raise_client_error(error)
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
        raise AccessDenied(
            "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, choose a --profile, "
            "or use --no-sign-request for a public bucket"
        ) from error
    except botocore.exceptions.ParamValidationError as error:
        raise NotFound(f"S3 has no such name: {error}") from error
    except (
        botocore.exceptions.BotoCoreError,
        urllib3.exceptions.HTTPError,
        http.client.HTTPException,
        OSError,
        # A body closed under our feet by a broken connection: http.client then reads from None.
        AttributeError,
        ValueError,
    ) as error:
        raise Transient(f"{type(error).__name__}: {error}") from error


def _raise_client_error(error: botocore.exceptions.ClientError) -> NoReturn:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    text = f"{code or status}: {error.response.get('Error', {}).get('Message', '') or error}"
    if code == "InvalidObjectState":
        raise ArchivedObject(f"{text} (restore the object first)") from error
    if status in (412, 416) or code in {"PreconditionFailed", "InvalidRange"}:
        raise ObjectChanged(text) from error
    if code in _RENEWABLE or code == "RequestTimeout":
        raise Transient(text) from error
    if status == 404 or code in {"NoSuchKey", "NoSuchBucket", "NoSuchVersion"}:
        raise NotFound(text) from error
    if code in _SLOW_DOWN or status in (429, 503):
        raise Transient(text, slow_down=True) from error
    if status in (401, 403):
        raise AccessDenied(text) from error
    if status >= 500 or status == 0:
        raise Transient(text) from error
    raise StoreError(text) from error
