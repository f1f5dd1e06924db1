"""The source: from the proxy to the rate of the network, each step only if the ones before worked.

Must not know boto3: `stores.probe` asks. What is told has no secret in it.
"""

import contextlib
import datetime
import email.utils
import http.client
import os
import socket
import ssl
import time
from typing import Any
from urllib.parse import urlsplit

from lazyfs.config import Config
from lazyfs.errors import SetupError
from lazyfs.objects import MIB, Source
from lazyfs.service.doctor.findings import Check, Finding, Patient, fail, ok, skip, warn
from lazyfs.stores.customer_keys import read_key
from lazyfs.stores.probe import Answered, Probe, proxy_of

CONNECT = 3.0
MOST_SKEW, LITTLE_SKEW = 300.0, 30.0
"""Seconds that the clock may be off; S3 refuses requests from 15 minutes on (RequestTimeTooSkewed)."""

SOON = 900.0
"""Seconds before which credentials should not expire, unless botocore renews them."""

METADATA = "http://169.254.169.254"
METADATA_PATIENCE = 0.5

MEASURED = 64 * MIB
LONGEST = 3.0
"""Bytes and seconds of the measurement of the network."""

LATE = 1.0
"""Seconds to the first byte that are worth a word."""


def _probe(patient: Patient) -> Probe:
    if "probe" not in patient.known:
        if patient.source is None:
            raise SetupError("there is no source")
        patient.known["probe"] = make_probe(patient.config, patient.source)
    found: Probe = patient.known["probe"]
    return found


def make_probe(config: Config, source: Source) -> Probe:
    """A probe of the source, set up as a mount of it would be."""
    common = {"RequestPayer": "requester"} if config.requester_pays else {}
    if config.expected_bucket_owner:
        common["ExpectedBucketOwner"] = config.expected_bucket_owner
    return Probe(
        source.bucket,
        source.prefix,
        common=common,
        customer_key=read_key(config.sse_customer_key_file) if config.sse_customer_key_file else None,
        endpoint_url=config.endpoint_url,
        provider=config.s3_provider,
        region=config.region,
        profile=config.profile,
        no_sign_request=config.no_sign_request,
        path_style=config.force_path_style,
        ca_bundle=config.ca_bundle,
    )


def _listed(patient: Patient) -> Answered:
    """The answer to the first request, which most checks are about; asked for once."""
    if "listed" not in patient.known:
        patient.known["listed"] = _probe(patient).list()
    found: Answered = patient.known["listed"]
    return found


def credentials(patient: Patient) -> Finding:
    """Found where, and good until when."""
    if patient.config.no_sign_request:
        _probe(patient)
        return ok("none are used, by --no-sign-request")
    found = _probe(patient).credentials()
    if not found.provider:
        return fail(
            "no credentials were found",
            "aws configure; or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use --profile or --no-sign-request",
        )
    words = f"found by the provider {found.provider}"
    if found.expires is None:
        return ok(f"{words}, without an end")
    left = found.expires - time.time()
    until = datetime.datetime.fromtimestamp(found.expires, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if left <= 0:
        return fail(f"{words}, expired at {until}", "renew them, for instance: aws sso login")
    return (warn if left < SOON else ok)(f"{words}, good until {until}; they are renewed by it")


def proxy(patient: Patient) -> Finding:
    """What the environment puts between."""
    found = proxy_of(_probe(patient).endpoint)
    if found is None:
        return ok("none is used for the endpoint")
    patient.known["proxy"] = found
    return warn(
        f"requests go through {found}, and by botocore alone, which is slower", "set NO_PROXY if it can be reached"
    )


def _reached(patient: Patient) -> tuple[str, int]:
    """Whom connections are made to: the endpoint, or the proxy."""
    found = urlsplit(str(patient.known.get("proxy") or _probe(patient).endpoint))
    return found.hostname or "", found.port or (443 if found.scheme == "https" else 80)


def name(patient: Patient) -> Finding:
    """DNS."""
    host, port = _reached(patient)
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except socket.gaierror as error:
        return fail(f"{host} has no address: {error.strerror}", "check --endpoint-url, --region and /etc/resolv.conf")
    return ok(f"{host} is {', '.join(sorted(found)[:3])}")


def connection(patient: Patient) -> Finding:
    """TCP, and TLS with the authorities that a mount would trust."""
    host, port = _reached(patient)
    began = time.monotonic()
    try:
        plain = socket.create_connection((host, port), CONNECT)
    except OSError as error:
        words = error.strerror or str(error)
        return fail(f"cannot connect to {host}:{port}: {words}", "check --endpoint-url, firewall, security groups")
    took = f"connected in {1000 * (time.monotonic() - began):.0f} ms"
    with plain:
        if not _probe(patient).endpoint.startswith("https:"):
            if host in ("localhost", "127.0.0.1", "::1"):
                return ok(f"{took}, without TLS, on this machine")
            return warn(f"{took}, without TLS: whoever is on the way can read and change the bytes", "use https://")
        if "proxy" in patient.known:
            return ok(f"{took} to the proxy")
        return _secured(plain, host, took, _bundle(patient.config))


def _bundle(config: Config) -> str | None:
    return config.ca_bundle or os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE")


def _secured(plain: socket.socket, host: str, took: str, bundle: str | None) -> Finding:
    folder = bundle is not None and os.path.isdir(bundle)
    context = ssl.create_default_context(cafile=None if folder else bundle, capath=bundle if folder else None)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    try:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            until = ssl.cert_time_to_seconds(str((secure.getpeercert() or {})["notAfter"]))
            days = (until - time.time()) / 86400
            words = f"{took}, {secure.version()}, certificate good for {days:.0f} days"
            return (warn if days < 7 else ok)(words)
    except ssl.SSLCertVerificationError as error:
        return fail(f"the certificate of {host} is not trusted: {error.verify_message}", "--ca-bundle=FILE")
    except (ssl.SSLError, OSError) as error:
        return fail(f"no TLS with {host}: {error}", "check --endpoint-url; http:// for a server without TLS")


def answers(patient: Patient) -> Finding:
    """Whether what listens there speaks S3; a refusal is an answer."""
    answer = _listed(patient)
    if not answer.status:
        return fail(f"no answer: {answer.words}", "check --endpoint-url and the network")
    return ok(f"in {1000 * answer.seconds:.0f} ms, with status {answer.status}")


def clock(patient: Patient) -> Finding:
    """Against S3's own, which every answer has, also a refusal."""
    answer = _listed(patient)
    date = answer.headers.get("date", "")
    theirs = email.utils.parsedate_tz(date)
    if theirs is None:
        return skip("the answer has no date")
    # In whole seconds, and as old as the answer.
    skew = time.time() - email.utils.mktime_tz(theirs)
    words = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server's"
    mend = "timedatectl set-ntp true"
    if abs(skew) > MOST_SKEW or answer.code == "RequestTimeTooSkewed":
        return fail(f"the clock is {words}: requests fail with RequestTimeTooSkewed", mend)
    return warn(f"the clock is {words}", mend) if abs(skew) > LITTLE_SKEW else ok(f"right, {words}")


REFUSALS = {
    "NoSuchBucket": ("there is no such bucket", "check the name, --endpoint-url and --region"),
    "InvalidAccessKeyId": ("the access key is not known here", "check --profile, and whose endpoint it is"),
    "SignatureDoesNotMatch": (
        "the secret key does not belong to the access key",
        "aws configure, or the right --profile",
    ),
    "ExpiredToken": ("the credentials have expired", "renew them, for instance: aws sso login"),
    "InvalidToken": ("the session token is not valid", "renew the credentials"),
    "RequestTimeTooSkewed": ("the clock is wrong", "timedatectl set-ntp true"),
    "AccessDenied": (
        "listing is denied",
        "allow s3:ListBucket on the bucket, or use --no-sign-request if it is public",
    ),
    "PermanentRedirect": ("the bucket is in another region", "set --region"),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", "set --region"),
}
"""Code of S3: what is wrong, and what mends it."""


def listing(patient: Patient) -> Finding:
    """The one permission without which nothing can be mounted."""
    answer = _listed(patient)
    source = patient.source
    if not answer.fine:
        said = f"{answer.status} {answer.code}: {answer.words}".strip() if answer.status else answer.words
        words, mend = REFUSALS.get(answer.code, ("it cannot be listed", "check --endpoint-url and the network"))
        return fail(f"{source.url if source else ''}: {words} ({said})", mend)
    objects = [one for one in answer.found.get("Contents", ()) if one.get("Size")]
    patient.known["objects"] = objects
    if not objects:
        return warn("the list is empty, or of empty objects only", "check the prefix")
    return ok(f"{len(objects)} objects{' and more' if answer.found.get('IsTruncated') else ''}")


def region(patient: Patient) -> Finding:
    """The bucket's, the one requests are signed for, and the machine's."""
    answer = _listed(patient)
    bucket = answer.headers.get("x-amz-bucket-region", "")
    if not bucket:
        bucket = _probe(patient).head_bucket().headers.get("x-amz-bucket-region", "")
    signed, here = _probe(patient).region, _machine_region()
    if not bucket:
        return ok(f"requests are signed for {signed}; the server does not say where the bucket is")
    if bucket != signed:
        return warn(f"the bucket is in {bucket}, requests are signed for {signed}", f"--region={bucket}")
    if here and here != bucket:
        return warn(f"the bucket is in {bucket}, this machine in {here}: slower, and paid for", f"use one in {here}")
    return ok(f"{bucket}{', as this machine' if here else ''}")


def _machine_region() -> str:
    """Of the machine, if it is one of EC2's and says so at once; empty if not."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return ""
    place = urlsplit(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or METADATA)
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        asked = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=METADATA_PATIENCE)
        with contextlib.closing(asked):
            asked.request("PUT", "/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
            token = asked.getresponse().read(1000).decode("ascii")
            asked.request("GET", "/latest/meta-data/placement/region", headers={"X-aws-ec2-metadata-token": token})
            answer = asked.getresponse()
            return answer.read(100).decode("ascii").strip() if answer.status == 200 else ""
    return ""


def _object(patient: Patient) -> dict[str, Any]:
    """The largest object that was listed."""
    found: dict[str, Any] = max(patient.known["objects"], key=lambda one: int(one["Size"]))
    return found


def reading(patient: Patient) -> Finding:
    """GET, by one byte."""
    if not patient.known["objects"]:
        return skip("not tried: there is no object")
    answer = _probe(patient).first_byte(_object(patient)["Key"])
    if answer.fine and answer.status == 206:
        return ok("an object can be read, by a range")
    if answer.fine:
        return fail(f"a range is answered with {answer.status}, all of the object", "use a server that knows ranges")
    if answer.code == "InvalidObjectState":
        return warn("the object is archived", "restore it, or mount another prefix")
    mend = "allow s3:GetObject on the objects, and kms:Decrypt for their key if they have one"
    return fail(f"an object cannot be read ({answer.status} {answer.code} {answer.words})".replace("  ", " "), mend)


def heading(patient: Patient) -> Finding:
    """HEAD, which only digests are asked for by, and what it says of versions and checksums."""
    answer = _probe(patient).head(_object(patient)["Key"])
    if not answer.fine:
        return warn(f"HEAD is answered with {answer.status}: objects are not verified", "allow s3:GetObject")
    kept = sorted(n.removeprefix("x-amz-checksum-") for n in answer.headers if n.startswith("x-amz-checksum-"))
    kinds = [name.upper() for name in kept if name != "type"]
    if not {"CRC64NVME", "SHA256"} & set(kinds) or answer.headers.get("x-amz-checksum-type") == "COMPOSITE":
        said = f"its checksum ({', '.join(kinds)}) cannot be compared" if kinds else "it has no checksum"
        return ok(f"{said}; a .sha256 beside it would do")
    return ok(f"objects are verified by {', '.join(kinds)}")


def versions(patient: Patient) -> Finding:
    """Whether old versions stay readable. Asking takes a right of its own, which a mount does not need."""
    answer = _probe(patient).versioning()
    if not answer.fine:
        return ok(f"not known ({answer.status} {answer.code}); a mount does not need it".replace(" )", ")"))
    status = answer.found.get("Status")
    return ok(
        "versions are kept" if status == "Enabled" else f"versions are not kept{f' ({status})' if status else ''}"
    )


def first_byte(patient: Patient) -> Finding:
    """The median of three, over a connection that is there."""
    key = _object(patient)["Key"]
    took = sorted(_probe(patient).first_byte(key).seconds for _ in range(3))[1]
    words = f"{1000 * took:.0f} ms"
    return warn(words, "use a bucket or an endpoint that is nearer") if took > LATE else ok(words)


def network(patient: Patient) -> Finding:
    """The rate of a few ranges at once."""
    largest = _object(patient)
    size = int(largest["Size"])
    if size < MIB:
        return skip("not measured: no object of 1 MiB was listed")
    received, took = _probe(patient).rate(largest["Key"], size, most=MEASURED, seconds=LONGEST)
    return ok(f"{received / took / 1e6:.0f} MB/s, {received / MIB:.0f} MiB in {took:.2f} s")


CREDENTIALS, PROXY, DNS, ENDPOINT = "credentials", "proxy", "name of the endpoint", "endpoint"
ANSWER, LIST, GET = "answer", "list", "read"
CHECKS = (
    Check(CREDENTIALS, credentials, seconds=15),
    Check(PROXY, proxy),
    Check(DNS, name, (PROXY,)),
    Check(ENDPOINT, connection, (DNS,), seconds=2 * CONNECT + 1),
    Check(ANSWER, answers, (CREDENTIALS, ENDPOINT), seconds=6),
    Check("clock", clock, (ANSWER,)),
    Check(LIST, listing, (ANSWER,)),
    Check("region", region, (ANSWER,), seconds=8),
    Check(GET, reading, (LIST,), seconds=8),
    Check("head and checksums", heading, (GET,), seconds=8),
    Check("versions", versions, (LIST,), seconds=8),
    Check("time to first byte", first_byte, (GET,), seconds=15),
    Check("network", network, (GET,), seconds=LONGEST + 10),
)
"""All of them, in this order."""
