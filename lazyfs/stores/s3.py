"""S3 and what speaks like it, through boto3.

Its job: build requests, check that a response is what was asked for, and translate every failure. Asks once; asking
again is `fetch.py`'s. boto3 blocks, so each call runs in a thread.

GETs are most of the work, so they have a quicker way: botocore makes the first, `signing` learns from it, and the next
ones go over `wire`. What is unusual there (a redirect, a chunked body) goes by botocore again.
"""

import contextlib
import datetime
import http.client
import math
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import botocore.exceptions
import trio

from lazyfs.errors import AccessDenied, NotFound, ObjectChanged, SetupError, Transient
from lazyfs.objects import Checksums, Listing, ObjectInfo, ObjectVersion, Stretch
from lazyfs.stores.answers import RangeAnswer, coding, full_checksums, opaque
from lazyfs.stores.base import Arrived, Claim
from lazyfs.stores.border import status_of, translated
from lazyfs.stores.calls import Call
from lazyfs.stores.client import Connection
from lazyfs.stores.customer_keys import open_way, sse_arguments
from lazyfs.stores.history import History, VersionPages
from lazyfs.stores.inorder import in_order
from lazyfs.stores.learning import QuickWay
from lazyfs.stores.lister import Lister
from lazyfs.stores.profiles import CRC64NVME, SHA256
from lazyfs.stores.quick import read_quickly
from lazyfs.stores.signing import Signer, check_etag
from lazyfs.stores.traffic import GET, Traffic, Trip
from lazyfs.stores.versions import VersionIds
from lazyfs.stores.wire import FEW

T = TypeVar("T")

LONGEST_ANSWER = 120.0
"""Seconds for a page of a listing, or a HEAD: 1,000 names are half a MB."""

_UNBOUNDED = trio.CapacityLimiter(math.inf)
"""Who is bounded in another way; an answer that was left to itself has its thread for as long as it comes."""


class S3Store:
    """One bucket. `place` is the `Source.place` that its object versions carry."""

    def __init__(
        self,
        bucket: str,
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        provider: str = "auto",
        profile: str | None = None,
        no_sign_request: bool = False,
        force_path_style: bool = False,
        requester_pays: bool = False,
        expected_bucket_owner: str | None = None,
        ca_bundle: str | None = None,
        max_connections: int = 32,
        quick: bool = True,
        transfer_acceleration: bool = False,
        dual_stack: bool = False,
        fips: bool = False,
        traffic: Traffic | None = None,
        version_at: str = "",
        customer_key: bytes | None = None,
    ) -> None:
        """Make the client. Sends nothing. `SetupError` for a profile or a CA bundle that does not exist, or a key of a
        customer's that all could see on its way.

        `provider`: whose ways it speaks, see `profiles`. `version_at`: list what there was at that moment, see
        `moments`. `customer_key`: the 32 bytes of SSE-C. `quick`: GETs go over `wire` where that can be; else all by
        botocore. `traffic` counts what is sent.
        """
        self.traffic = traffic or Traffic()
        self._common: dict[str, Any] = {"Bucket": bucket}
        if requester_pays:
            self._common["RequestPayer"] = "requester"
        if expected_bucket_owner:
            self._common["ExpectedBucketOwner"] = expected_bucket_owner
        # Listings do not wait behind GETs: they have connections of their own.
        self._gets = in_order(max_connections)
        self._lists = trio.CapacityLimiter(8)
        self._connection = Connection(
            endpoint_url=endpoint_url,
            region=region,
            profile=profile,
            no_sign_request=no_sign_request,
            provider=provider,
            path_style=force_path_style,
            ca_bundle=ca_bundle,
            connections=max_connections,
            transfer_acceleration=transfer_acceleration,
            dual_stack=dual_stack,
            fips=fips,
            traffic=self.traffic,
        )
        self.way = QuickWay(self._connection, used=quick, most=max_connections)
        """How GETs go without botocore."""
        self._key = customer_key
        try:
            open_to = open_way(self._client.meta.endpoint_url) if customer_key else ""
        except Transient:  # there are no credentials yet; each request looks again
            open_to = ""
        if open_to:
            raise SetupError(open_to)
        self.version_ids = VersionIds()
        server = self._connection.server
        self._versions = VersionPages(lambda: self._client, self._common, server)
        self._lister: Lister | History = Lister(lambda: self._client, self._common, server.listing)
        if version_at:
            self._lister = History(self._versions, version_at)

    @property
    def _client(self) -> Any:
        return self._connection.ready()[0]

    def writing(self, *, bytes_of_objects: bool) -> tuple[Any, dict[str, Any]]:
        """The client, and what every request to the bucket says, for `writer`; where it is about the bytes of objects
        also the customer's key."""
        return self._client, self._for_objects() if bytes_of_objects else self._common

    @property
    def signer(self) -> Signer:
        """Of the client."""
        return self._connection.ready()[1]

    def close(self) -> None:
        """Close the connections that are idle; no read is under way."""
        self.way.close()
        self._connection.close()

    async def list(self, prefix: str) -> Listing:
        """See `base.Store.list`, and `lister`, or for another time `history`."""
        return await self._ask(self.way.beside_rehearsal, self._for_objects, self._lister.list, prefix)

    async def stretch(self, prefix: str, after: str) -> Stretch:
        """See `base.Store.stretch`: a flat listing, 1,000 objects a request."""
        return await self._ask(self.way.beside_rehearsal, self._for_objects, self._lister.stretch, prefix, after)

    async def total_size(self, prefix: str) -> int:
        """See `base.Store.total_size`: a flat listing, `lister.MOST_COUNTED` requests at most."""
        return await self._ask(self._lister.total_size, prefix)

    async def stat(self, key: str) -> ObjectInfo:
        """See `base.Store.stat`: one HEAD."""
        return await self._ask(self._stat, key)

    async def checksums(self, version: ObjectVersion) -> Checksums:
        """See `base.Store.checksums`: one HEAD that asks for them."""
        return await self._ask(self._checksums, version)

    async def find_version(self, version: ObjectVersion) -> str:
        """See `versions.Origin.find_version`: ListObjectVersions of the key."""
        return await self._ask(self._versions.find, version)

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """See `base.Store.read`: one ranged GET with If-Match."""
        # Not abandoned when cancelled: the thread writes into buffers that belong to somebody else.
        read, trip = self._read, self.traffic.trip(GET)
        await trio.to_thread.run_sync(translated, read, version, start, into, arrived, claim, trip, limiter=self._gets)

    async def _ask(self, function: Callable[..., T], *args: Any) -> T:
        """Requests that are no GETs of objects, each of which has to be answered whole in a while. One of which a byte
        comes now and then is left to itself: botocore gives nobody its socket."""
        token, scope = trio.lowlevel.current_trio_token(), trio.CancelScope()

        def goes_on() -> None:
            scope.deadline = trio.current_time() + LONGEST_ANSWER

        def sent() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(goes_on)

        asking = partial(translated, self.traffic.telling, sent, function, *args)
        async with self._lists:
            with scope:
                return await trio.to_thread.run_sync(asking, limiter=_UNBOUNDED, abandon_on_cancel=True)
        raise Transient(f"no end of an answer in {LONGEST_ANSWER:g} s")

    def _stat(self, key: str) -> ObjectInfo:
        answer = self._head({"Key": key})
        return _info({**answer, "Key": key, "Size": answer["ContentLength"]})

    def _checksums(self, version: ObjectVersion) -> Checksums:
        check_etag(version)
        answer = self._head({"Key": version.key, **_pinned(version)}, IfMatch=version.etag, ChecksumMode="ENABLED")
        if opaque(answer["ETag"]) != opaque(version.etag) or answer["ContentLength"] != version.size:
            raise ObjectChanged(f"{version.key}: the object is now {answer['ETag']}, not {version.etag}")
        whole = self._connection.server.whole
        sha256, crc64nvme = (answer.get(f"Checksum{name}", "") if name in whole else "" for name in (SHA256, CRC64NVME))
        return full_checksums(answer.get("ChecksumType", ""), sha256, crc64nvme, answer["ETag"])

    def _head(self, which: dict[str, str], **asked: str) -> Any:
        """The answer to a HEAD, with the ETag and the length that it must have.

        That of one that fails has no body, and so no word for what is wrong: expired credentials, a clock that is off
        and no right to read are all a 400 or a 403. A GET of one byte is told why.
        """
        try:
            answer = self._client.head_object(**self._for_objects(), **which, **asked)
        except botocore.exceptions.ClientError as error:
            status = status_of(error)
            if status == 404:
                raise NotFound(f"404: {which['Key']!r} is not there") from error
            if status not in (400, 401, 403):
                raise
            self._read_one_byte(which)
            raise Transient(f"a HEAD of {which['Key']!r} was refused with {status}, and a GET was not") from error
        for name in ("ETag", "ContentLength"):
            _said(answer, name)
        return answer

    def _read_one_byte(self, which: dict[str, str]) -> None:
        try:
            self._client.get_object(**self._for_objects(), **which, Range="bytes=0-0")["Body"].close()
            self.traffic.body_ended(whole=True)
        except botocore.exceptions.ClientError as error:
            if status_of(error) != 416:  # an empty object, which we may read
                raise

    def _read(
        self,
        version: ObjectVersion,
        start: int,
        into: Sequence[memoryview],
        arrived: Arrived,
        claim: Claim,
        trip: Trip,
    ) -> None:
        quick = self.way.known
        if quick is not None:
            check = self.version_ids.check
            with trip:
                done = read_quickly(self.signer, *quick, version, start, into, arrived, claim, trip, check)
            if done:
                return
        self.read_by_botocore(version, start, into, arrived, claim)

    def _for_objects(self) -> dict[str, Any]:
        """What every GET and HEAD of an object says: also the customer's key, which nobody may see on its way."""
        if self._key is None:
            return self._common
        if open_to := open_way(self._client.meta.endpoint_url):
            raise AccessDenied(open_to)
        return {**self._common, **sse_arguments(self._key)}

    def read_by_botocore(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """`read`, by boto3 alone, and blocking; the signer of this thread has seen the request then."""
        check_etag(version)
        stop = start + sum(len(view) for view in into)
        answer = self._client.get_object(
            **self._for_objects(),
            **_pinned(version),
            Key=version.key,
            IfMatch=version.etag,
            Range=f"bytes={start}-{stop - 1}",
        )
        body = answer["Body"]._raw_stream
        status = answer["ResponseMetadata"]["HTTPStatusCode"]
        said, length = answer["ResponseMetadata"]["HTTPHeaders"], answer.get("ContentLength")
        etag, span, known = (answer.get(name, "") for name in ("ETag", "ContentRange", "VersionId"))
        head = RangeAnswer(status, etag, span, length, coding(said), known)
        call = Call(_Socket(body))
        claim.sever = call.sever
        try:
            self.version_ids.check(head, version, start, stop)
            arrived(0)
            _receive(body, into, arrived)
        except BaseException:
            claim.sever = None
            call.over()
            body.close()
            self.traffic.body_ended(whole=False)
            raise
        claim.sever = None
        call.over()
        body.release_conn()
        self.traffic.body_ended(whole=True)
        self.way.learn(version.key, plain=length is not None and "transfer-encoding" not in said)


class _Socket:
    """The connection that a body of urllib3's comes over, where that says which it is."""

    def __init__(self, body: Any) -> None:
        self._found = getattr(getattr(body, "_connection", None), "sock", None)

    def shut(self) -> None:
        """See `Wire.shut`."""
        if self._found is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._found, socket.SHUT_RDWR)


def _receive(body: Any, into: Sequence[memoryview], arrived: Arrived) -> None:
    """Read the body into the buffers, as `wire.Wire.fill` does, but in small pieces: of one that breaks nobody says how
    much had come, and where every connection breaks before a MiB nothing would ever be read.

    urllib3's own readinto() makes a bytes object first; the http.client response below it receives into the buffer
    (0.47 against 0.60 CPU seconds a GB), so that one is used where it is there.
    """
    inner = getattr(body, "_fp", None)
    source = inner if isinstance(inner, http.client.HTTPResponse) else body
    received = 0
    for view in into:
        offset = 0
        while offset < len(view):
            count = source.readinto(view[offset : offset + FEW])
            if not count:
                raise Transient(f"the body ended after {received} bytes")
            offset += count
            received += count
            arrived(received)


def _pinned(version: ObjectVersion) -> dict[str, str]:
    return {"VersionId": version.version_id} if version.version_id else {}


def _info(item: Any) -> ObjectInfo:
    modified: datetime.datetime = _said(item, "LastModified")
    seconds, storage_class = int(modified.timestamp()), item.get("StorageClass", "")
    info = ObjectInfo(_said(item, "Key"), item.get("ETag", ""), _said(item, "Size"), seconds * 10**9, storage_class)
    if not info.possible:
        raise Transient(f"{info.key!r} is listed with {info.size} bytes, of {modified}, which cannot be")
    return info


def _said(item: Any, name: str) -> Any:
    """What an answer must say; `Transient` if it does not, for then it is no answer of S3's."""
    if name not in item:
        raise Transient(f"the answer does not say {name}")
    return item[name]
