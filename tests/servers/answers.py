"""S3's rules as functions: ranges, preconditions, errors and listings. Pure: no socket, no thread, no hook.

Where a rule is not in RFC 9110 it is S3's API reference, or what AWS and Swift were seen to do;
`test_servers` holds this module to the latter.
"""

import base64
import binascii
import hashlib
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import quote
from xml.sax.saxutils import escape

from tests.servers.made import Made
from tests.servers.objects import Object, ObjectTable, after_prefix
from tests.servers.records import Request

XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
MOST_KEYS = 1000
"""Keys of one page at most, whatever max-keys says: S3's limit."""

_MESSAGES = {
    "AccessDenied": "Access Denied",
    "InternalError": "We encountered an internal error. Please try again.",
    "InvalidAccessKeyId": "The AWS Access Key Id you provided does not exist in our records.",
    "InvalidObjectState": "The operation is not valid for the object's storage class",
    "InvalidRange": "The requested range is not satisfiable",
    "MethodNotAllowed": "The specified method is not allowed against this resource.",
    "NoSuchBucket": "The specified bucket does not exist",
    "NoSuchKey": "The specified key does not exist.",
    "NotImplemented": "A header you provided implies functionality that is not implemented.",
    "PreconditionFailed": "At least one of the pre-conditions you specified did not hold",
    "SignatureDoesNotMatch": "The request signature we calculated does not match the signature you provided.",
    "SlowDown": "Please reduce your request rate.",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send: bytes [start, stop) of `content`, and headers, except those that every answer has. A stream as
    content is at `start`, and gives the rest as it comes."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Object | bytes | io.BufferedIOBase = b""
    start: int = 0
    stop: int = 0


def document(text: str, status: int = 200) -> Answer:
    """An answer whose body is this XML, without its declaration."""
    data = (XML + text).encode("utf-8", "surrogatepass")
    return Answer(status, {"Content-Type": "application/xml"}, data, 0, len(data))


def failure(status: int, code: str, resource: str = "") -> Answer:
    """S3's error document. A body for a HEAD as well; the sender leaves it out."""
    message = escape(_MESSAGES.get(code, code))
    return document(
        f"<Error><Code>{escape(code)}</Code><Message>{message}</Message><Resource>{escape(resource)}</Resource></Error>",
        status,
    )


def page(data: bytes, status: int) -> Answer:
    """What somebody else says who is on the way to S3."""
    return Answer(status, {"Content-Type": "text/html"}, data, 0, len(data))


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """The half-open range that a Range header asks of `size` bytes; None if the header is to be ignored.

    Ignored, as RFC 9110 14.2 allows: several ranges (S3 does), other units, last before first, nonsense.
    ValueError if it is well formed and there is no such byte (416).
    """
    unit, _, spec = header.partition("=")
    first, dash, last = spec.strip().partition("-")
    if unit.strip().lower() != "bytes" or not dash:
        return None
    if not (first + last).isdecimal() or not (first + last).isascii():
        return None
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        raise ValueError(f"bytes {spec} of {size}")
    return start, stop


def read_object(request: Request, entry: Object) -> Answer:
    """GET or HEAD of an object that is there: preconditions first, then the range (RFC 9110 13.2.2)."""
    headers = _object_headers(request, entry)
    match, none_match = request.headers.get("if-match"), request.headers.get("if-none-match")
    if match is not None and not _names(match, entry.etag):
        return failure(412, "PreconditionFailed", request.key)
    if none_match is not None and _names(none_match, entry.etag):
        return Answer(304, {"ETag": entry.etag, "Last-Modified": headers["Last-Modified"]})
    if (refusal := customer_key_refused(request, entry)) is not None:
        return refusal
    if request.method == "GET" and entry.archived:
        return failure(403, "InvalidObjectState", request.key)
    span = None
    if "range" in request.headers:
        try:
            span = parse_range(request.headers["range"], entry.size)
        except ValueError:
            failed = failure(416, "InvalidRange", request.key)
            unsatisfied = {**failed.headers, "Content-Range": f"bytes */{entry.size}"}
            return Answer(416, unsatisfied, failed.content, failed.start, failed.stop)
    if span is None:
        return Answer(200, headers, _content(entry, 0), 0, entry.size)
    start, stop = span
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{entry.size}"
    # The checksums are of the whole object: S3 does not send them with a part of it.
    headers = {name: value for name, value in headers.items() if not name.startswith("x-amz-checksum-")}
    return Answer(206, headers, _content(entry, start), start, stop)


def _content(entry: Object, start: int) -> Object | io.BufferedIOBase:
    return entry.content.open(start) if isinstance(entry.content, Made) else entry


def customer_key_refused(request: Request, entry: Object) -> Answer | None:
    """What S3 says of an object under a key of a customer's (SSE-C), or of a key for one that is under none; None if
    all is well. It keeps no key, only its MD5."""
    name = "x-amz-server-side-encryption-customer-key"
    wanted, key, told = entry.headers.get(f"{name}-md5"), request.headers.get(name), request.headers.get(f"{name}-md5")
    if key is not None:
        digest = hashlib.md5(base64.b64decode(key), usedforsecurity=False).digest()
        if base64.b64encode(digest).decode() != told:
            return failure(400, "InvalidArgument", request.key)
    if wanted is None:
        why = "The encryption parameters are not applicable to this object."
        return None if key is None else _refused(request, why)
    if key is None:
        return _refused(
            request,
            "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to "
            "retrieve the object.",
        )
    return None if told == wanted else failure(403, "AccessDenied", request.key)


def _refused(request: Request, message: str) -> Answer:
    found = f"<Code>InvalidRequest</Code><Message>{message}</Message><Resource>{escape(request.key)}</Resource>"
    return document(f"<Error>{found}</Error>", 400)


def _object_headers(request: Request, entry: Object) -> dict[str, str]:
    headers = {
        "ETag": entry.etag,
        "Last-Modified": formatdate(entry.modified, usegmt=True),
        "Accept-Ranges": "bytes",
        "Content-Type": "binary/octet-stream",
    }
    if entry.version_id:
        headers["x-amz-version-id"] = entry.version_id
    checksums = request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED"
    for name, value in entry.headers.items():
        if name == "content-type":
            headers["Content-Type"] = value
        elif checksums or not name.startswith("x-amz-checksum-"):
            headers[name] = value
    return headers


def _names(header: str, etag: str) -> bool:
    """Whether an If-Match or If-None-Match header names this ETag; S3 takes it without quotes as well."""
    values = {value.strip().removeprefix("W/").strip('"') for value in header.split(",")}
    return "*" in values or etag.strip('"') in values


def check_signature(request: Request, access_key: str) -> Answer | None:
    """None if the request names this access key in a SigV4 signature, else the refusal.

    The signature is not computed.
    """
    header = request.headers.get("authorization", "")
    credential = request.query.get("X-Amz-Credential", "")
    if not header and not credential:
        return failure(403, "AccessDenied")
    signed = "X-Amz-Signature" in request.query if credential else "Signature=" in header
    if header.startswith("AWS4-HMAC-SHA256 "):
        credential = header.partition("Credential=")[2].partition(",")[0]
    if not credential or not signed:
        return failure(403, "SignatureDoesNotMatch")
    return None if credential.partition("/")[0] == access_key else failure(403, "InvalidAccessKeyId")


def list_buckets(table: ObjectTable) -> Answer:
    """GET /: all buckets."""
    created = _timestamp(0)
    entries = (
        f"<Bucket><Name>{escape(b)}</Name><CreationDate>{created}</CreationDate></Bucket>" for b in table.buckets()
    )
    return document(
        f"<ListAllMyBucketsResult {NAMESPACE}><Buckets>{''.join(entries)}</Buckets></ListAllMyBucketsResult>"
    )


def list_objects(request: Request, table: ObjectTable) -> Answer:
    """ListObjectsV2, and version 1 for the clients that still use it. The bucket must be there."""
    query = request.query
    second = query.get("list-type") == "2"
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("start-after" if second else "marker", "")
    try:
        limit = min(int(query.get("max-keys") or MOST_KEYS), MOST_KEYS)
        token = query.get("continuation-token", "")
        resume = base64.urlsafe_b64decode(token).decode() if token else after and after + "\0"
    except (ValueError, binascii.Error):
        return failure(400, "InvalidArgument", request.bucket)
    if not second and delimiter and after.startswith(prefix) and after.endswith(delimiter):
        resume = after_prefix(after)  # in version 1 the marker may be a common prefix
    page = table.page(request.bucket, prefix, delimiter, resume, limit)
    more = page.resume is not None and limit > 0
    encoded = query.get("encoding-type") == "url"

    def text(value: str) -> str:
        return quote(value, safe="/", errors="surrogatepass") if encoded else escape(value)

    parts = [
        f"<Name>{escape(request.bucket)}</Name><Prefix>{text(prefix)}</Prefix><MaxKeys>{limit}</MaxKeys>",
        f"<Delimiter>{text(delimiter)}</Delimiter>" if delimiter else "",
        "<EncodingType>url</EncodingType>" if encoded else "",
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>",
    ]
    if second:
        parts.append(f"<KeyCount>{len(page.objects) + len(page.prefixes)}</KeyCount>")
        parts.append(f"<StartAfter>{text(after)}</StartAfter>" if after else "")
        parts.append(f"<ContinuationToken>{escape(token)}</ContinuationToken>" if token else "")
        if more and page.resume is not None:
            following = base64.urlsafe_b64encode(page.resume.encode("utf-8", "surrogatepass")).decode()
            parts.append(f"<NextContinuationToken>{following}</NextContinuationToken>")
    else:
        parts.append(f"<Marker>{text(after)}</Marker>")
        if more and delimiter:
            last = max([key for key, _ in page.objects[-1:]] + list(page.prefixes[-1:]))
            parts.append(f"<NextMarker>{text(last)}</NextMarker>")
    parts.extend(
        f"<Contents><Key>{text(key)}</Key><LastModified>{_timestamp(entry.modified)}</LastModified>"
        f"<ETag>{escape(entry.etag)}</ETag><Size>{entry.size}</Size>"
        f"<StorageClass>{escape(entry.storage_class)}</StorageClass></Contents>"
        for key, entry in page.objects
    )
    parts.extend(f"<CommonPrefixes><Prefix>{text(common)}</Prefix></CommonPrefixes>" for common in page.prefixes)
    return document(f"<ListBucketResult {NAMESPACE}>{''.join(parts)}</ListBucketResult>")


def list_versions(request: Request, table: ObjectTable) -> Answer:
    """ListObjectVersions: versions and delete markers of a key in one row, newest first. The bucket must be there."""
    query = request.query
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("key-marker", ""), query.get("version-id-marker", "")
    if after[1] and not after[0]:
        return failure(400, "InvalidArgument", request.bucket)
    limit = min(int(query.get("max-keys") or MOST_KEYS), MOST_KEYS)
    page = table.versions(request.bucket, prefix, delimiter, after, limit)
    encoded = query.get("encoding-type") == "url"

    def text(value: str) -> str:
        return quote(value, safe="/", errors="surrogatepass") if encoded else escape(value)

    parts = [
        f"<Name>{escape(request.bucket)}</Name><Prefix>{text(prefix)}</Prefix><KeyMarker>{text(after[0])}</KeyMarker>",
        f"<VersionIdMarker>{escape(after[1])}</VersionIdMarker><MaxKeys>{limit}</MaxKeys>",
        f"<Delimiter>{text(delimiter)}</Delimiter>" if delimiter else "",
        "<EncodingType>url</EncodingType>" if encoded else "",
        f"<IsTruncated>{'true' if page.last else 'false'}</IsTruncated>",
    ]
    if page.last:
        parts.append(f"<NextKeyMarker>{text(page.last[0])}</NextKeyMarker>")
        parts.append(f"<NextVersionIdMarker>{escape(page.last[1])}</NextVersionIdMarker>" if page.last[1] else "")
    for key, entry, latest in page.versions:
        kind = "DeleteMarker" if entry.marker else "Version"
        parts.append(
            f"<{kind}><Key>{text(key)}</Key><VersionId>{escape(entry.version_id or 'null')}</VersionId>"
            f"<IsLatest>{'true' if latest else 'false'}</IsLatest>"
            f"<LastModified>{_timestamp(entry.modified)}</LastModified>"
        )
        if not entry.marker:
            parts.append(
                f"<ETag>{escape(entry.etag)}</ETag><Size>{entry.size}</Size>"
                f"<StorageClass>{escape(entry.storage_class)}</StorageClass>"
            )
        parts.append(f"<Owner><ID>owner</ID></Owner></{kind}>")
    parts.extend(f"<CommonPrefixes><Prefix>{text(common)}</Prefix></CommonPrefixes>" for common in page.prefixes)
    return document(f"<ListVersionsResult {NAMESPACE}>{''.join(parts)}</ListVersionsResult>")


def _timestamp(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))
