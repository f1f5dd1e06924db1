"""What each request does: from method, bucket, key and query to an answer. Knows the table, not sockets or
faults.

What is not here is answered with 501 NotImplemented: multipart uploads, copies, ACLs, tags, deletes of many
keys, GetObjectAttributes. Digests that come with a PUT are kept and sent back when asked for; they are not
verified.
"""

import dataclasses

from tests.servers import answers, objects
from tests.servers.answers import Answer
from tests.servers.objects import ObjectTable
from tests.servers.records import Request
from tests.servers.wire import decode_aws_chunked

_KEPT_HEADERS = (
    "content-type",
    "content-disposition",
    "cache-control",
    "x-amz-storage-class",
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-server-side-encryption-customer-key-md5",
)
_KEPT_PREFIXES = ("x-amz-meta-", "x-amz-checksum-crc", "x-amz-checksum-sha")
_UNKNOWN_TO_BUCKETS = {"acl", "policy", "tagging", "uploads", "lifecycle"}
_UNKNOWN_TO_OBJECTS = {"acl", "tagging", "uploads", "uploadId", "attributes", "retention"}


def perform(request: Request, body: bytes, table: ObjectTable) -> Answer:
    """Do what the request asks for and return what to say about it."""
    if not request.bucket:
        return answers.list_buckets(table)
    if request.method not in ("GET", "HEAD", "PUT", "DELETE"):
        return answers.failure(501, "NotImplemented", request.key)
    if request.method == "PUT" and not request.key and not request.query:
        table.add_bucket(request.bucket)
        return Answer(200)
    if not table.has_bucket(request.bucket):
        return answers.failure(404, "NoSuchBucket", request.bucket)
    return _object(request, body, table) if request.key else _bucket(request, body, table)


def _bucket(request: Request, body: bytes, table: ObjectTable) -> Answer:
    query = request.query
    if request.method == "HEAD":
        return Answer(200, {"x-amz-bucket-region": "us-east-1"})
    if request.method == "PUT" and "versioning" in query:
        table.versioning = "Enabled" if b"Enabled" in body else "Suspended"
        return Answer(200)
    if request.method != "GET" or _UNKNOWN_TO_BUCKETS & query.keys():
        return answers.failure(501, "NotImplemented", request.bucket)
    if "location" in query:
        return answers.document(f"<LocationConstraint {answers.NAMESPACE}/>")
    if "versioning" in query:
        state = f"<Status>{table.versioning}</Status>" if table.versioning else ""
        return answers.document(f"<VersioningConfiguration {answers.NAMESPACE}>{state}</VersioningConfiguration>")
    if "versions" in query:
        return answers.list_versions(request, table)
    return answers.list_objects(request, table)


def _object(request: Request, body: bytes, table: ObjectTable) -> Answer:
    if _UNKNOWN_TO_OBJECTS & request.query.keys() or "x-amz-copy-source" in request.headers:
        return answers.failure(501, "NotImplemented", request.key)
    if request.method == "DELETE":
        version_id = request.query.get("versionId", "")
        marker = table.delete(request.bucket, request.key, version_id)
        headers = {"x-amz-delete-marker": "true", "x-amz-version-id": marker.version_id} if marker else {}
        return Answer(204, {**headers, **({"x-amz-version-id": version_id} if version_id else {})})
    if request.method == "PUT":
        return _put(request, body, table)
    entry = table.get(request.bucket, request.key, request.query.get("versionId", ""))
    marker = table.deleted(request.bucket, request.key) if entry is None else entry if entry.marker else None
    if marker is not None and "versionId" not in request.query:
        return _marked(answers.failure(404, "NoSuchKey", request.key), marker)
    if entry is not None and entry.marker:
        return _marked(answers.failure(405, "MethodNotAllowed", request.key), entry)
    if entry is None:
        return answers.failure(404, "NoSuchVersion" if "versionId" in request.query else "NoSuchKey", request.key)
    return answers.read_object(request, entry)


def _marked(answer: Answer, marker: objects.Object) -> Answer:
    told = {"x-amz-delete-marker": "true", "x-amz-version-id": marker.version_id}
    return dataclasses.replace(answer, headers={**answer.headers, **told})


def _put(request: Request, body: bytes, table: ObjectTable) -> Answer:
    headers = dict(request.headers)
    if "aws-chunked" in headers.get("content-encoding", "") or "x-amz-decoded-content-length" in headers:
        body, trailers = decode_aws_chunked(body)
        headers.update(trailers)
    kept = {n: v for n, v in headers.items() if n in _KEPT_HEADERS or n.startswith(_KEPT_PREFIXES)}
    entry = table.put(request.bucket, request.key, objects.from_bytes(body, headers=kept))
    version = {"x-amz-version-id": entry.version_id} if entry.version_id else {}
    return Answer(200, {"ETag": entry.etag, **version})
