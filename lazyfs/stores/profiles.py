"""What the servers that speak S3 do differently: one table, read by `client`, `lister`, `history` and `s3`.

Its job: to say it, with the source of each cell that is not S3's own way. A column is here only if code acts on it, so
there is none for conditional GETs: whether If-Match is honoured or not, `answers.check_range` compares the ETag. Nor is
there one for signing Accept-Encoding, which breaks signatures at Google's (rclone#6670): no engine here signs it.

Must not know requests or answers.
"""

import os
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Dialect:
    """A way to ask for a listing: ListObjectsV2 (`second`) or ListObjects, with keys url-encoded or as they are, which
    XML cannot say of control characters."""

    second: bool
    encoded: bool


V2 = Dialect(second=True, encoded=True)
V2_PLAIN = Dialect(second=True, encoded=False)
V1 = Dialect(second=False, encoded=True)
V1_PLAIN = Dialect(second=False, encoded=False)

SHA256, CRC64NVME = "SHA256", "CRC64NVME"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One server's ways.

    addressing: botocore's word: `path`, or `auto`, which is the bucket in the host where that can be and no endpoint is
        named.
    region: that requests are signed for where nobody says one.
    listing: how to ask for listings; the next one when a server says, or shows, that it does not know one.
    whole: checksums of a HEAD that may be of the whole object. What is said to be composite never is, see `answers`.
    accept_encoding: of every GET and HEAD of an object.
    versions: whether the versions of an object can be listed, and named by their ids.
    """

    addressing: Literal["path", "auto"] = "path"
    region: str = "us-east-1"
    listing: tuple[Dialect, ...] = (V2, V1, V1_PLAIN)
    whole: frozenset[str] = frozenset({SHA256, CRC64NVME})
    # Without a word about it anybody on the way may compress, and a range of that is not a range of the object.
    accept_encoding: str = "identity"
    versions: bool = True


# Path style is rclone's for all but AWS and Wasabi (rclone:backend/s3/provider/*.yaml, quirks.force_path_style).
PROFILES: dict[str, Profile] = {
    # What the API reference of S3 says. The bucket is in the host but where its name cannot be.
    "aws": Profile(addressing="auto", listing=(V2,)),
    "minio": Profile(),
    # Asked to encode, it gave keys encoded and common prefixes as they are, until 2019 (ceph/ceph#30970), and
    # NextMarker as it is (ceph/ceph#23371); as they are, all are right. rclone asks for neither encoding nor V2, which
    # is older than Ceph's support of it: 16 was tried with V2.
    "ceph": Profile(listing=(V2_PLAIN, V1_PLAIN)),
    # Cloudflare's page on S3 compatibility: the region is `auto`; CRC64NVME is of the full object and each other of the
    # parts; ListObjectVersions is not among what there is. ETags of multipart uploads are random (rclone), which
    # matters to nobody who takes an ETag for a name.
    "r2": Profile(region="auto", whole=frozenset({CRC64NVME}), versions=False),
    # Objects that are stored as gzip come decompressed, without a length and whatever the range, unless gzip is
    # accepted (Google's page on transcoding; fsouza/fake-gcs-server#851). Versions are told apart by generations and
    # not by ids, checksums are in x-goog-hash (Google's page on the headers of the XML API).
    "google": Profile(whole=frozenset(), accept_encoding="gzip", versions=False),
    # Both styles; its guide has the path.
    "wasabi": Profile(),
    # Path style, and most often this region (Garage's page on clients). No versions (its page on S3 compatibility). The
    # SHA256 of a multipart upload would be of the parts, and nothing says so (garage:src/api/common/signature/
    # checksum.rs sends no x-amz-checksum-type).
    "garage": Profile(region="garage", whole=frozenset(), versions=False),
    # Anything else. rclone asks ListObjects there, with keys as they are; most know V2, and who does not is noticed.
    "other": Profile(),
}
"""By the names of `--s3-provider`."""

_HOSTS = {
    "amazonaws.com": "aws",
    "amazonaws.com.cn": "aws",
    "r2.cloudflarestorage.com": "r2",
    "storage.googleapis.com": "google",
    "wasabisys.com": "wasabi",
}
"""Domains that tell who answers there."""


def profile_of(provider: str, endpoint_url: str | None) -> Profile:
    """The profile that is named, or for `auto` that of the endpoint: AWS without one. KeyError for another name.

    botocore takes an endpoint from the environment as well, and so does this.
    """
    if provider != "auto":
        return PROFILES[provider]
    url = endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not url:
        return PROFILES["aws"]
    host = f".{urlsplit(url).hostname or ''}"
    found = (name for domain, name in _HOSTS.items() if host.endswith(f".{domain}"))
    return PROFILES[next(found, "other")]
