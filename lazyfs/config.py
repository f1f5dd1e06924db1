"""Every setting of a mount, with its unit and its reason. No library, disk or network.

The command line, the environment (`LAZYFS_<NAME>`), the TOML file and `mount -o` are all generated from `Config`:
a setting exists in all of them or in none.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lazyfs.errors import UsageError
from lazyfs.moments import parse_moment, split_moment
from lazyfs.objects import MIB, Source
from lazyfs.words import (
    Address,
    choice,
    parse_address,
    parse_count,
    parse_duration,
    parse_flag,
    parse_mode,
    parse_share,
    parse_size,
    parse_text,
    shortened,
)

MOST_BACKGROUND = 65535
"""What fusectl takes (fs/fuse/control.c)."""

MOST_CONNECTIONS = 1024
"""Each is a descriptor, and urllib3 makes room for all of them when it starts: a thousand million would be its end."""

PROVIDERS = ("aws", "minio", "ceph", "r2", "google", "wasabi", "garage", "other")
"""Whose ways of speaking S3 are known, see `stores.profiles`."""


def _setting(default: Any, parse: Callable[[str], Any], words: str) -> Any:
    """One field: its default as the user would write it, how it is read, and its help line."""
    return field(
        default=None if default is None else parse(default),
        metadata={"parse": parse, "help": words, "default": default, "per_source": False},
    )


def _of_source(default: Any, parse: Callable[[str], Any], words: str) -> Any:
    """A field of which each source of a mount may have a value of its own; what the mount has is the default."""
    made = _setting(default, parse, words)
    made.metadata = {**made.metadata, "per_source": True}
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one mount. None means: found out when the mount starts, as the help line says."""

    endpoint_url: str | None = _of_source(None, parse_text, "S3 endpoint to use instead of AWS, http(s)://host[:port].")
    s3_provider: str = _of_source(
        "auto",
        choice("auto", *PROVIDERS),
        f"Whose S3 it is: {', '.join(PROVIDERS)}; by default as the host of the endpoint tells, else 'other'.",
    )
    region: str | None = _of_source(None, parse_text, "Region of the bucket; default: as boto3 finds it.")
    profile: str | None = _of_source(None, parse_text, "Profile of the AWS configuration to take credentials from.")
    no_sign_request: bool = _of_source("false", parse_flag, "Send unsigned requests, for public buckets.")
    force_path_style: bool = _of_source(
        "false", parse_flag, "Put the bucket into the path instead of the host; always so for servers other than AWS's."
    )
    transfer_acceleration: bool = _of_source(
        "false", parse_flag, "Use the Transfer Acceleration endpoint of AWS; the bucket must have it enabled."
    )
    dual_stack: bool = _of_source("false", parse_flag, "Use the endpoints of AWS that IPv6 reaches as well as IPv4.")
    fips: bool = _of_source("false", parse_flag, "Use the endpoints of AWS that are validated by FIPS 140.")
    requester_pays: bool = _of_source("false", parse_flag, "Agree to pay for requests to a requester-pays bucket.")
    expected_bucket_owner: str | None = _of_source(None, parse_text, "Fail unless this account owns the bucket.")
    sse_customer_key_file: str | None = _of_source(
        None, parse_text, "File with the key of objects encrypted by SSE-C: 32 bytes, or these in base64; https only."
    )
    version_at: str | None = _of_source(
        None, parse_moment, "Show the tree as it was at this time (ISO 8601), of a bucket that keeps versions."
    )
    ca_bundle: str | None = _of_source(None, parse_text, "File with the certificates to trust for https endpoints.")

    cache_dir: str | None = _setting(
        None, parse_text, "Directory of the chunk cache; default: /var/cache/lazyfs for root, else ~/.cache/lazyfs."
    )
    lower_cache_dir: str | None = _setting(
        None, parse_text, "Directory that `lazyfs bake` filled, read-only: what is in it is not fetched; default: none."
    )
    max_cache_size: int | None = _setting(
        None,
        parse_size,
        "Bound on the disk space of the cache, index included; default: only --min-free-space bounds it.",
    )
    min_free_space: int | float = _setting(
        "5%", parse_share, "Space that the cache leaves free on its filesystem, a size or a percentage."
    )
    memory_budget: int | None = _setting(
        None,
        parse_size,
        "Bound on the memory for chunks; default: 1/16 of the memory limit, between 64 MiB and 1 GiB.",
    )

    metadata_ttl: float = _of_source(
        "60s",
        parse_duration,
        "How long a listing is trusted before S3 is asked again; 'indefinite' for immutable prefixes.",
    )
    negative_metadata_ttl: float = _setting(
        "5s", parse_duration, "How long the kernel may remember that a name does not exist."
    )
    read_part_size: int = _setting(
        "8MiB",
        parse_size,
        "Most bytes of one ranged GET; each holds so much memory and one connection while it is under way.",
    )
    max_connections: int = _of_source("32", parse_count, "Most GETs under way at once, of all sources of an endpoint.")
    s3_engine: str = _of_source(
        "auto",
        choice("auto", "boto3", "awscrt"),
        "What sends GETs: boto3, awscrt, or what was measured to be quickest, sockets that write what boto3 would.",
    )
    verify_objects: str = _setting(
        "auto",
        choice("auto", "off"),
        "Compare each object, once all of it is here, with the digest that S3 or a .sha256 beside it has.",
    )
    passthrough: bool = _setting(
        "false",
        parse_flag,
        "Let the kernel (Linux 6.9, CAP_SYS_ADMIN) read cached files whose digest held by itself; trusts the disk.",
    )
    archives: bool = _of_source(
        "false",
        parse_flag,
        "Show what is in FILE.tar, .tar.gz, .tgz, .tar.zst and .tzst as a directory FILE.tar.d beside it.",
    )
    share_archive_indexes: bool = _of_source(
        "false",
        parse_flag,
        "Leave what is found of an archive in the bucket for others, as FILE.lazyfs-index; takes rights to write.",
    )
    retry_budget: float = _of_source(
        "5m",
        parse_duration,
        "How long a read asks S3 again before it fails; a failed read kills a mapped reader by SIGBUS.",
    )

    read_ahead_kb: int = _setting(
        # 15 blocks of 64 KiB, for as much is read around a touch of a mapped file: wherever that begins, it lies in 16
        # of them, which are a MiB.
        "960",
        parse_count,
        "Kernel read-ahead of the mount in KiB (needs root); 128 is the kernel's own, 2-3 times slower.",
    )
    shard_read_ahead_kb: int = _setting(
        "16384",
        parse_count,
        "Kernel read-ahead in KiB of a shard (-00002-of-00004) when the one before it is read through (needs root); "
        "an eighth of the memory budget at most; 0 for --read-ahead-kb.",
    )
    max_background: int = _setting(
        "512",
        parse_count,
        "Kernel read-ahead requests in flight (needs root), what waits for S3 included; 12 is the kernel's own, too "
        "few for parallel readers.",
    )
    congestion_threshold: int | None = _setting(
        None,
        parse_count,
        "Kernel requests in flight from which read-ahead is held back (needs root); default: 3/4 of --max-background.",
    )
    allow_other: bool = _setting("false", parse_flag, "Let other users read the mount.")
    allow_root: bool = _setting("false", parse_flag, "Let root read the mount of an ordinary user.")
    noexec: bool = _setting("false", parse_flag, "Refuse to execute files of the mount.")
    uid: int | None = _setting(None, parse_count, "Owner of every file; default: who mounts.")
    gid: int | None = _setting(None, parse_count, "Group of every file; default: who mounts.")
    file_mode: int = _setting("0444", parse_mode, "Permission bits of files; write bits have no effect.")
    dir_mode: int = _setting("0555", parse_mode, "Permission bits of directories; write bits have no effect.")

    log_level: str = _setting("info", choice("debug", "info", "warning", "error"), "Least severe messages to log.")
    log_format: str = _setting("text", choice("text", "json"), "Log as text or as JSON lines.")
    log_file: str | None = _setting(
        None, parse_text, "Log file of a background mount; default: in the state directory, named by `lazyfs status`."
    )
    access_log: str | None = _setting(
        None, parse_text, "File that gets a line for each request of the kernel; - for the log; default: none."
    )
    metrics_address: Address | None = _setting(  # noqa: RUF009 - it is a field, as all of these
        None,
        parse_address,
        "Serve metrics, health and a page over HTTP at 127.0.0.1:PORT (0: any), [::1]:PORT or unix:/PATH; default: no.",
    )
    otlp_endpoint: str | None = _setting(
        None,
        parse_text,
        "Push metrics to this OpenTelemetry collector, http(s)://host:4318; needs the extra lazyfs[otel].",
    )

    def __post_init__(self) -> None:
        """Refuse combinations that no mount can work with."""
        if self.read_part_size < MIB or self.read_part_size % MIB or self.read_part_size > 64 * MIB:
            raise UsageError("--read-part-size must be a whole number of MiB from 1MiB to 64MiB")
        if self.memory_budget is not None and self.memory_budget < 16 * MIB:
            raise UsageError("--memory-budget must be at least 16MiB, so that a read and its read-ahead fit")
        if self.max_cache_size is not None and self.max_cache_size < 4 * MIB:
            raise UsageError("--max-cache-size must be at least 4MiB; leave it out for no bound")
        if not 1 <= self.max_connections <= MOST_CONNECTIONS:
            raise UsageError(f"--max-connections must be from 1 to {MOST_CONNECTIONS}")
        if not 1 <= self.max_background <= MOST_BACKGROUND:
            raise UsageError(f"--max-background must be from 1 to {MOST_BACKGROUND}")
        if self.congestion_threshold is not None and not 1 <= self.congestion_threshold <= self.max_background:
            raise UsageError(f"--congestion-threshold must be from 1 to --max-background, {self.max_background}")
        if self.endpoint_url is not None:
            _check_endpoint(self.endpoint_url)
            if self.transfer_acceleration or self.dual_stack or self.fips:
                raise UsageError(
                    "--transfer-acceleration, --dual-stack and --fips choose one of AWS; leave --endpoint-url out"
                )
        if self.otlp_endpoint is not None:
            _check_collector(self.otlp_endpoint)
        if self.access_log == "":
            raise UsageError("--access-log needs a file, or - for the log; leave it out for none")
        if self.allow_other and self.allow_root:
            raise UsageError("--allow-other and --allow-root exclude each other; --allow-other includes root")


def _check_endpoint(url: str) -> None:
    # First, and without repeating it: else the password would stand in the process table, in logs, in every error.
    if "@" in url:
        raise UsageError(
            "--endpoint-url must not hold a user or a password; S3 takes credentials from the environment, from "
            "~/.aws or a --profile"
        )
    if not re.match(r"https?://[^/\s]+", url):
        raise UsageError(f"--endpoint-url {shortened(url)!r} must start with http:// or https:// and name a host")


_ACCESS_POINT = r"arn:aws[a-z-]*:s3:[a-z0-9-]*:[0-9]{12}:accesspoint/[A-Za-z0-9][A-Za-z0-9.-]{1,62}"
"""Without a region it is a multi-region access point."""


def _check_collector(url: str) -> None:
    if "@" in url:
        raise UsageError(
            "--otlp-endpoint must not hold a user or a password; set OTEL_EXPORTER_OTLP_HEADERS in the environment"
        )
    if not re.match(r"https?://[^/\s]+", url):
        raise UsageError(f"--otlp-endpoint {shortened(url)!r} must start with http:// or https:// and name a host")


def parse_source(text: str) -> tuple[str, str]:
    """`s3://bucket` or `s3://bucket/prefix/` as (bucket, prefix); a missing last slash of the prefix is added. The ARN
    of an access point stands for a bucket, as for the AWS CLI."""
    match = re.fullmatch(rf"s3://({_ACCESS_POINT}|[A-Za-z0-9][A-Za-z0-9._-]{{1,62}})(?:/(.*))?", text, re.DOTALL)
    if match is None:
        raise UsageError(f"{shortened(text)!r} is not a source; write s3://bucket or s3://bucket/prefix/")
    prefix = match[2] or ""
    try:
        prefix.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{text!r} is not UTF-8, as every key in S3 is") from None
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    return match[1], prefix


def source_of(text: str, config: Config) -> Source:
    """`s3://bucket/prefix/`, or that as of a time, with what the settings say of it. `UsageError` if it is none, or of
    two times."""
    plain, moment = split_moment(text)
    if moment and config.version_at not in (None, moment):
        raise UsageError(f"the source is of {moment}, and --version-at of {config.version_at}; name one of them")
    bucket, prefix = parse_source(plain)
    return Source(bucket, prefix, config.endpoint_url or "", moment or config.version_at or "")


MOST_SOURCES = 64
"""Of one mount: each has a client of boto3's, which takes 50 ms and some MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """One source of a mount: the directory that it is, empty for the root itself, where it is, and the settings that
    hold for it."""

    name: str
    source: Source
    config: Config

    @property
    def title(self) -> str:
        """How to speak of it: as the user wrote it."""
        return f"{self.name}={self.source.url}" if self.name else self.source.url


def check_source_name(name: str) -> None:
    """`UsageError` unless it can be the name of a directory."""
    why = ""
    if not name:
        why = "it is empty"
    elif name in (".", ".."):
        why = "it is the directory itself or the one above"
    elif "/" in name:
        why = "it has a slash"
    elif "\0" in name:
        why = "it has a NUL byte"
    else:
        try:
            why = "it is longer than 255 bytes" if len(name.encode()) > 255 else ""
        except UnicodeEncodeError:
            why = "it is not UTF-8"
    if why:
        said = shortened(name)
        raise UsageError(f"{said!r} cannot name a source, for {why}; it becomes a directory, so write one like llm")
