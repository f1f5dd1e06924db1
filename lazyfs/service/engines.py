"""Which engine sends the GETs of a mount.

Measured over loopback, 32 connections, 8 MiB ranges into reused memory, in CPU seconds of the client for each GB:

    engine                               HTTP    HTTPS
    boto3                                0.6     2.0 to 2.2
    sockets of our own (`stores.wire`)   0.3     1.05
    awscrt.http (`stores.crt`)           1.35    1.5 to 1.7
    awscrt.s3 (S3Client, not built)      0.8     0.9, with 60 to 280 MiB of its own and nothing before a part is whole
    two processes, one shared memory     0.5     1.1

awscrt.http calls back with the interpreter's lock for every 16 KiB, so sockets of our own are the default for both; and
processes do not beat threads while receiving is one system call for a MiB.
"""

from functools import partial
from typing import Any

from lazyfs.config import Config
from lazyfs.objects import Source
from lazyfs.stores.customer_keys import read_key
from lazyfs.stores.s3 import S3Store
from lazyfs.stores.traffic import Traffic
from lazyfs.stores.versions import VersionedStore


def boto_store(config: Config, source: Source, traffic: Traffic | None = None) -> S3Store:
    """The store of the bucket on boto3, which can write as well; else as `s3_store`."""
    return S3Store(source.bucket, **_options(config, source, traffic), quick=config.s3_engine != "boto3")


def s3_store(config: Config, source: Source, traffic: Traffic | None = None) -> VersionedStore:
    """The store of the bucket, on what sends its GETs, with its requests counted in `traffic`. `SetupError` for a
    customer's key that cannot be used."""
    hint = partial(refusal_hint, config)
    if config.s3_engine == "awscrt":
        from lazyfs.stores.crt import CrtStore  # noqa: PLC0415 - 30 ms of a start that nearly nobody asks for

        return VersionedStore(CrtStore(source.bucket, **_options(config, source, traffic)), hint=hint)
    return VersionedStore(boto_store(config, source, traffic), hint=hint)


def _options(config: Config, source: Source, traffic: Traffic | None) -> dict[str, Any]:
    key_file = config.sse_customer_key_file
    return {
        "endpoint_url": config.endpoint_url,
        "provider": config.s3_provider,
        "region": config.region,
        "profile": config.profile,
        "no_sign_request": config.no_sign_request,
        "force_path_style": config.force_path_style,
        "requester_pays": config.requester_pays,
        "expected_bucket_owner": config.expected_bucket_owner,
        "ca_bundle": config.ca_bundle,
        "max_connections": config.max_connections,
        "transfer_acceleration": config.transfer_acceleration,
        "dual_stack": config.dual_stack,
        "fips": config.fips,
        "traffic": traffic,
        "version_at": source.moment,
        "customer_key": read_key(key_file) if key_file else None,
    }


def refusal_hint(config: Config, listing: bool) -> str:
    """What a refusal may have to do with what was asked for, for S3 does not say: AccessDenied is all that a bucket of
    somebody else, one whose requesters pay, and a wrong key of a customer's have in common."""
    found = []
    if config.expected_bucket_owner:
        found.append(f"does account {config.expected_bucket_owner} of --expected-bucket-owner own the bucket?")
    if config.sse_customer_key_file and not listing:
        found.append("is the object encrypted with the key of --sse-customer-key-file?")
    if listing and not config.requester_pays:
        found.append("a bucket whose requesters pay wants --requester-pays")
    return " ".join(found)
