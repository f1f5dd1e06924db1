"""Writing to a bucket: objects in one piece, their removal, and what every request that writes has in common.

Its job: send bytes with a checksum that the server compares, and ask again with the patience of `endpoint`. Must not
know models. Blocking calls are in threads.

S3 compares a CRC64NVME, of a part and of the whole, and keeps the latter. It is sent as a header and never as a
trailer: servers of 2021 answer 501 to those. One that does not know the checksum at all says 400 or 501, and from then
on gets the MD5 that every server has known since 2006.
"""

import base64
import contextlib
import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import trio
from awscrt.checksums import crc64nvme

from lazyfs.errors import NotFound, StoreError, Transient, Unreachable
from lazyfs.stores.border import translated
from lazyfs.stores.endpoint import Endpoint
from lazyfs.stores.s3 import S3Store
from lazyfs.stores.together import together

T = TypeVar("T")

SHA256 = "lazyfs-sha256"
"""Name of the metadata in which an object says what it is, so that it need not be sent again."""

_UNKNOWN = {"NotImplemented", "InvalidRequest", "InvalidArgument", "XNotImplemented", "InvalidDigest"}
"""What servers say of a checksum that they do not know."""

_MUST_SAY = {
    "put_object": "ETag",
    "upload_part": "ETag",
    "complete_multipart_upload": "ETag",  # its body may be lost behind a 200
    "create_multipart_upload": "UploadId",
}

_OF_BYTES = {"put_object", "head_object", "create_multipart_upload", "upload_part"}
"""Requests that say with which key of a customer's the bytes are encrypted; S3 refuses it in others."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object that is there: `sha256` as its upload said, empty if it did not."""

    size: int
    etag: str
    sha256: str


class Writer:
    """Writes to the bucket of a store, to whom `close` belongs. One loop."""

    def __init__(self, store: S3Store, *, retry_budget: float, connections: int = 16) -> None:
        """At most `connections` requests at a time."""
        self._store = store
        self._endpoint = Endpoint(connections, clock=trio.current_time, rng=random.Random())
        self._retry_budget = retry_budget
        self._limiter = trio.CapacityLimiter(connections)
        self._at_once = connections
        self._crc = True
        self.sent_bytes = 0

    async def put(self, key: str, data: bytes, *, sha256: str = "", only_new: bool = False) -> str:
        """Store an object in one piece; its ETag. `only_new`: `ObjectChanged` if there is one already, where the
        server can tell."""
        what: dict[str, Any] = {"Key": key, "Body": data}
        if sha256:
            what["Metadata"] = {SHA256: sha256}
        if only_new:
            try:
                return await self._put({**what, "IfNoneMatch": "*"})
            except StoreError as error:
                if said(error)[0] not in (400, 501):
                    raise
        return await self._put(what)

    async def _put(self, what: dict[str, Any]) -> str:
        data: bytes = what["Body"]
        answer = await self._checked(
            f"put {what['Key']!r}", lambda crc: self._asking("put_object", **what, **sums(data, crc))
        )
        self.sent_bytes += len(data)
        return str(answer["ETag"])

    async def stored(self, key: str) -> Stored | None:
        """The object that is under a key."""
        try:
            answer = await self._patiently(f"head {key!r}", self._asking("head_object", Key=key), final={404})
        except (NotFound, Transient) as error:
            if said(error)[0] == 404:
                return None
            raise
        return Stored(answer["ContentLength"], answer.get("ETag", ""), answer.get("Metadata", {}).get(SHA256, ""))

    async def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there count as removed. One request each: S3's own for many at once takes
        checksums that other servers do not know."""

        async def one(key: str) -> None:
            with contextlib.suppress(NotFound):
                await self._patiently(f"delete {key!r}", self._asking("delete_object", Key=key))

        await together((partial(one, key) for key in keys), at_once=self._at_once)

    async def abandon(self, prefix: str) -> int:
        """End the uploads below a prefix that nobody ended, whose parts cost space; how many there were."""
        found = await self._uploads(prefix)

        async def one(key: str, upload_id: str) -> None:
            end = self._asking("abort_multipart_upload", Key=key, UploadId=upload_id)
            with contextlib.suppress(NotFound):
                await self._patiently(f"give up the upload of {key!r}", end)

        await together((partial(one, *upload) for upload in found), at_once=self._at_once)
        return len(found)

    async def _uploads(self, prefix: str) -> list[tuple[str, str]]:
        """Keys and ids of uploads that were not ended, oldest first; none where the server does not list them."""
        asking = self._paging("list_multipart_uploads", "Uploads", Prefix=prefix)
        try:
            found = await self._patiently(f"list the uploads below {prefix!r}", asking)
        except StoreError as error:
            # Not to be allowed to list them is common, and only means that all is sent.
            if said(error)[0] in (403, 405, 501):
                return []
            raise
        found.sort(key=lambda upload: upload["Initiated"])
        return [(upload["Key"], upload["UploadId"]) for upload in found]

    # ---- requests

    def _asking(self, name: str, **arguments: Any) -> Callable[[], Any]:
        """A request of boto3's, to be sent in a thread."""

        def call() -> Any:
            client, common = self._store.writing(bytes_of_objects=name in _OF_BYTES)
            answer = getattr(client, name)(**common, **arguments)
            if (must := _MUST_SAY.get(name, "")) and must not in answer:
                raise Transient(f"the answer to {name} does not say {must}")
            return answer

        return call

    def _paging(self, name: str, what: str, **arguments: Any) -> Callable[[], list[Any]]:
        """All pages of a listing of boto3's."""

        def call() -> list[Any]:
            client, common = self._store.writing(bytes_of_objects=False)
            pages = client.get_paginator(name).paginate(**common, **arguments)
            return [one for page in pages for one in page.get(what, [])]

        return call

    async def _checked(self, what: str, asking: Callable[[bool], Callable[[], T]]) -> T:
        """A request with a checksum: CRC64NVME, or MD5 where that is not known."""
        if self._crc:
            try:
                return await self._patiently(what, asking(True))
            except StoreError as error:
                status, code = said(error)
                if status not in (400, 501) or code not in _UNKNOWN:
                    raise
        found = await self._patiently(what, asking(False))
        self._crc = False
        return found

    async def _patiently(self, what: str, call: Callable[[], T], *, final: Iterable[int] = ()) -> T:
        """Ask until it works, fails for good (with a `final` status, too), or failed for as long as the budget."""
        failures, since = 0, None
        while True:
            if self._endpoint.down:
                await self._endpoint.held(self._retry_budget)
            sent = trio.current_time()
            try:
                found = await trio.to_thread.run_sync(translated, call, limiter=self._limiter, abandon_on_cancel=True)
            except Transient as error:
                if said(error)[0] in (501, *final):
                    raise
                now = trio.current_time()
                since = now if since is None else since
                failures += 1
                self._endpoint.failed(sent, slow_down=error.slow_down)
                wait = self._endpoint.pause(failures)
                if now - since + wait > self._retry_budget:
                    raise Unreachable(f"{what}: {failures} attempts failed, the last with {error}") from error
                await self._endpoint.wait(wait)
            else:
                self._endpoint.worked()
                return found


def said(error: StoreError) -> tuple[int, str]:
    """Status and S3's word of the answer that a failure is; (0, "") if it is none."""
    answer = getattr(error.__cause__, "response", None) or {}
    status, word = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0), answer.get("Error", {}).get("Code", "")
    return int(status), str(word)


def sums(data: bytes, crc: bool) -> dict[str, str]:
    """The checksum that goes with these bytes, as an argument of boto3's."""
    if crc:
        return {"ChecksumCRC64NVME": spelled(crc64nvme(data))}
    return {"ContentMD5": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()}


def spelled(crc: int) -> str:
    """A CRC64NVME as S3 writes it."""
    return base64.b64encode(crc.to_bytes(8, "big")).decode()
