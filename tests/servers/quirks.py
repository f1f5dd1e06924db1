"""Our own server with the ways of others: what servers that speak S3 were seen to do differently, by name.

Its job: to be each of them in every run, since few of those servers can be had for a test. Where one was seen to do it
stands beside its name. Must not know lazyfs.
"""

import dataclasses
import gzip
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tests.servers import answers
from tests.servers.answers import Answer
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault
from tests.servers.objects import Object
from tests.servers.records import Request
from tests.servers.serving import Answering
from tests.servers.wire import Head, Wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """Each field is one deviation from S3, and they combine.

    status_200: a range is answered with 200, and a Content-Range.
    no_if_match: If-Match is ignored.
    bare_etags: no quotes round ETags, in listings only or everywhere.
    random_etags: an ETag says nothing of the bytes, and looks like that of a multipart upload.
    encoding: what becomes of `encoding-type`: it is honoured, ignored, or refused.
    half_encoded: where it is honoured, keys are encoded and common prefixes are not.
    lists: what becomes of `list-type=2`: it is known, ignored with all that belongs to it, or refused.
    no_checksums: none in any answer.
    untold_composites: what is stored as composite does not say so.
    hidden: a key that is not there is 403.
    bare_markers: a key that ends in `/` is listed without it.
    transcodes: what is stored with Content-Encoding gzip comes decompressed, all of it, and without its length, to who
        does not accept gzip.
    """

    status_200: bool = False
    no_if_match: bool = False
    bare_etags: Literal["", "listed", "all"] = ""
    random_etags: bool = False
    encoding: Literal["honoured", "ignored", "refused"] = "honoured"
    half_encoded: bool = False
    lists: Literal["known", "ignored", "refused"] = "known"
    no_checksums: bool = False
    untold_composites: bool = False
    hidden: bool = False
    bare_markers: bool = False
    transcodes: bool = False


QUIRKS: dict[str, Quirks] = {
    "200 for a range": Quirks(status_200=True),  # rclone serve s3
    "no If-Match": Quirks(no_if_match=True),  # rclone serve s3
    "ETags without quotes": Quirks(bare_etags="all"),
    "listed ETags without quotes": Quirks(bare_etags="listed"),  # rclone serve s3
    "random ETags": Quirks(random_etags=True),  # Cloudflare R2, of multipart uploads
    "keys are not encoded": Quirks(encoding="ignored"),
    "no word of encoding": Quirks(encoding="refused", lists="refused"),
    "prefixes are not encoded": Quirks(half_encoded=True),  # Ceph until 2019
    "ListObjects only": Quirks(lists="ignored"),
    "ListObjectsV2 is refused": Quirks(lists="refused"),
    "no checksums": Quirks(no_checksums=True),  # Ceph 16, Swift, rclone serve s3
    "composites are not told": Quirks(untold_composites=True),  # Garage
    "403 for what is not there": Quirks(hidden=True),  # S3 itself, to who may not list
    "markers without slash": Quirks(bare_markers=True),  # rclone serve s3
    "gzip is undone": Quirks(transcodes=True),  # Google
}

TOGETHER: dict[str, tuple[str, ...]] = {
    "rclone": (
        "200 for a range",
        "no If-Match",
        "listed ETags without quotes",
        "no checksums",
        "markers without slash",
    ),
    "r2": ("random ETags",),
    "ceph": ("prefixes are not encoded",),
    "google": ("gzip is undone",),
    "garage": ("composites are not told", "403 for what is not there"),
    "old": ("ListObjects only", "keys are not encoded", "ETags without quotes"),
    "older": ("ListObjectsV2 is refused", "no word of encoding"),
}
"""Servers with several of them, so that each is in one; mounts take longer than questions."""


def together(names: Iterable[str]) -> Quirks:
    """All of these."""
    normal = dataclasses.asdict(Quirks())
    found = [dataclasses.asdict(QUIRKS[name]) for name in names]
    return Quirks(**{field: value for one in found for field, value in one.items() if value != normal[field]})


PROVIDERS: Mapping[str, str] = {"prefixes are not encoded": "ceph", "gzip is undone": "google"}
"""What a client must be told to get along with it; nothing else must be said."""


class QuirkyServer(FastS3Server):
    """A fast server with `quirks`, which may be changed while it runs."""

    def __init__(self, quirks: Quirks) -> None:
        """Nothing is bound before `start`."""
        super().__init__()
        self.quirks = quirks
        self._numbers = itertools.count(1)

    def put(
        self,
        bucket: str,
        key: str,
        data: bytes,
        *,
        etag: str | None = None,
        modified: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Object:
        """See `FastS3Server.put`."""
        if self.quirks.random_etags:
            etag = f'"{next(self._numbers):032x}-2"'
        if self.quirks.transcodes:
            headers = {**(headers or {}), "Content-Encoding": "gzip"}
        return super().put(bucket, key, data, etag=etag, modified=modified, headers=headers)

    def _reply(
        self, wire: Wire, head: Head, request: Request, body: bytes, fault: Fault, answering: Answering
    ) -> bool:
        if self._undoes(request):
            fault = dataclasses.replace(fault, whole=True, framing="chunks")
        return super()._reply(wire, head, request, body, fault, answering)

    def _undoes(self, request: Request) -> bool:
        if not self.quirks.transcodes or "gzip" in request.headers.get("accept-encoding", ""):
            return False
        entry = self.objects.get(request.bucket, request.key) if request.key else None
        return entry is not None and entry.headers.get("content-encoding") == "gzip"

    def _answer(self, request: Request, body: bytes, fault: Fault) -> Answer:
        quirks = self.quirks
        if request.kind == "LIST":
            return self._list(request, body, fault)
        if quirks.no_if_match:
            headers = {name: value for name, value in request.headers.items() if name != "if-match"}
            request = dataclasses.replace(request, headers=headers)
        answer = super()._answer(request, body, fault)
        if quirks.hidden and answer.status == 404:
            return answers.failure(403, "AccessDenied", request.key)
        told = dict(answer.headers)
        if quirks.no_checksums:
            told = {name: value for name, value in told.items() if not name.startswith("x-amz-checksum-")}
        if quirks.untold_composites:
            told.pop("x-amz-checksum-type", None)
        if quirks.bare_etags == "all" and "ETag" in told:
            told["ETag"] = told["ETag"].strip('"')
        if self._undoes(request):
            del told["Content-Encoding" if "Content-Encoding" in told else "content-encoding"]
            told.pop("Content-Range", None)
            plain = _undone(answer.content)
            return Answer(200, told, plain, 0, len(plain))
        status = 200 if quirks.status_200 and answer.status == 206 else answer.status
        return dataclasses.replace(answer, status=status, headers=told)

    def _list(self, request: Request, body: bytes, fault: Fault) -> Answer:
        quirks, query = self.quirks, dict(request.query)
        if "encoding-type" in query and quirks.encoding == "refused":
            return answers.failure(400, "InvalidArgument", request.bucket)
        if quirks.encoding == "ignored":
            query.pop("encoding-type", None)
        if query.get("list-type") == "2" and quirks.lists != "known":
            if quirks.lists == "refused":
                return answers.failure(501, "NotImplemented", request.bucket)
            query = {n: v for n, v in query.items() if n not in ("list-type", "start-after", "continuation-token")}
        answer = super()._answer(dataclasses.replace(request, query=query), body, fault)
        if not isinstance(answer.content, bytes) or answer.status != 200:
            return answer
        text = answer.content
        if quirks.half_encoded:
            # Listed once more with keys as they are, for the common prefixes of that.
            query.pop("encoding-type", None)
            plain = super()._answer(dataclasses.replace(request, query=query), body, fault).content
            assert isinstance(plain, bytes)
            prefixes = iter(re.findall(b"<CommonPrefixes>.*?</CommonPrefixes>", plain))
            text = re.sub(b"<CommonPrefixes>.*?</CommonPrefixes>", lambda _: next(prefixes), text)
        if quirks.bare_etags:
            text = re.sub(b'<ETag>"([^<]*)"</ETag>', rb"<ETag>\1</ETag>", text)
        if quirks.bare_markers:
            text = text.replace(b"/</Key>", b"</Key>")
        return dataclasses.replace(answer, content=text, stop=len(text))


def _undone(content: object) -> bytes:
    assert isinstance(content, Object)
    assert isinstance(content.content, bytes)
    try:
        return gzip.decompress(content.content)
    except (OSError, EOFError):
        return content.content + b" is no gzip"
