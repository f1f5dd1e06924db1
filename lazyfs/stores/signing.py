"""Signed ranged GETs without botocore's whole way to them: 0.1 ms for each instead of 1.3.

Its job: learn from one request that botocore made and sent what a GET of this bucket looks like (its address, its
headers, how it is signed), and write the next ones alike. What botocore knows of endpoints, redirects, access points
and payers stays botocore's; where it signs in a way that is not plain Signature Version 4 (S3 Express, multi-region
access points), or goes through a proxy, nothing is learned and the caller goes on with botocore.

Concurrency: any thread. Credentials are asked for at each request, so that botocore renews them.
"""

import re
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from botocore import UNSIGNED
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from lazyfs.errors import StoreError
from lazyfs.objects import ObjectVersion

SAFE = "/~"
"""What S3 leaves as it is in a path besides letters, digits, `-`, `.` and `_`; the signature depends on it."""

_OWN = {
    "accept-encoding",
    "authorization",
    "host",
    "if-match",
    "range",
    "x-amz-content-sha256",
    "x-amz-date",
    "x-amz-security-token",
}
"""Headers that each request has its own of."""

_SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=[^,]*/\d{8}/([^/,]+)/([^/,]+)/aws4_request,")
"""In an Authorization header: the region and the name of the service."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """What all GETs of a bucket have in common. `authority` is what the Host header says, `region` None where they are
    not signed."""

    tls: bool
    host: str
    port: int
    authority: str
    base: str
    headers: dict[str, str]
    name: str
    region: str | None

    @property
    def server(self) -> tuple[bool, str, int]:
        """Whom a connection is to."""
        return self.tls, self.host, self.port


def check_etag(version: ObjectVersion) -> None:
    """`StoreError` if the ETag cannot stand in a header: one with a line break, from a listing that means harm, would
    write headers of its own into a request that we sign."""
    if not re.fullmatch(r"[\x20-\x7e\x80-\xff]*", version.etag):
        raise StoreError(f"{version.key!r} is listed with an ETag that no request can carry: {version.etag[:80]!r}")


def authorities(client: Any) -> str | None:
    """The file or folder of certificates that this client of botocore's trusts: the bundle it was given, or one of the
    environment or the configuration, or botocore's own. None if it is told to trust anybody."""
    found: str | None = get_cert_path(client._endpoint.http_session._verify)
    return found


class Signer:
    """Watches the GETs of a botocore client, and writes more of them."""

    def __init__(self, client: Any, credentials: Any, accept_encoding: str = "identity") -> None:
        """`credentials` are botocore's, None if there are none. `accept_encoding` is said in every request that is
        written here, and is never signed; see `profiles`."""
        self._accept = accept_encoding
        self._credentials = credentials
        self._seen = threading.local()
        client.meta.events.register("before-sign.s3.GetObject", self._signing)
        client.meta.events.register("before-send.s3.GetObject", self._sending)

    def _signing(self, signature_version: Any, **_: Any) -> None:
        self._seen.version = signature_version

    def _sending(self, request: Any, **_: Any) -> None:
        self._seen.request = (request.url, dict(request.headers.items()))

    def learn(self, key: str) -> Pattern | None:
        """What the GET of `key` that this thread just sent by botocore shows; None if it cannot be done alike."""
        url, headers = getattr(self._seen, "request", ("", {}))
        version = getattr(self._seen, "version", None)
        parts = urlsplit(url)
        path, _, query = url.partition("?")
        tail = "/" + quote(key, safe=SAFE)
        if not path.endswith(tail) or not parts.hostname or not re.fullmatch("(versionId=[^&]*)?", query):
            return None
        # As botocore's, which knows nothing of a proxy for all schemes.
        if get_environ_proxies(url).get(parts.scheme):
            return None
        told = {n.lower(): v.decode("latin-1") if isinstance(v, bytes) else v for n, v in headers.items()}
        # Not the region that botocore tells when it signs: that is the client's, also where it signs for the one to
        # which it was redirected.
        scope = _SCOPE.match(told.get("authorization", ""))
        signed = version == "s3v4" and scope is not None and self._credentials is not None
        if not signed and version is not UNSIGNED:
            return None
        kept = {n: v for n, v in told.items() if n not in _OWN and not n.startswith("amz-sdk-")}
        tls = parts.scheme == "https"
        usual = 443 if tls else 80
        # What botocore signs: a server that sees another Host, be it a usual port spelled out, refuses the signature.
        authority = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        if parts.port not in (None, usual):
            authority += f":{parts.port}"
        region, name = (scope[1], scope[2]) if signed and scope is not None else (None, "")
        base = path.removesuffix(tail)
        return Pattern(tls, parts.hostname, parts.port or usual, authority, base, kept, name, region)

    def request(self, pattern: Pattern, version: ObjectVersion, start: int, stop: int) -> bytes:
        """A GET of bytes [start, stop), complete as it goes over the wire. `StoreError` for what cannot be written."""
        check_etag(version)
        url = f"{pattern.base}/{quote(version.key, safe=SAFE)}"
        if version.version_id:
            url += f"?versionId={quote(version.version_id, safe='')}"
        headers = {**pattern.headers, "Range": f"bytes={start}-{stop - 1}", "If-Match": version.etag}
        request = AWSRequest("GET", url, headers=headers)
        if pattern.region is not None:
            S3SigV4Auth(self._credentials.get_frozen_credentials(), pattern.name, pattern.region).add_auth(request)
        parts = urlsplit(url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        lines = [f"GET {target} HTTP/1.1", f"Host: {pattern.authority}", f"Accept-Encoding: {self._accept}"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")
