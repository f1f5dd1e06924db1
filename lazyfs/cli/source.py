"""A source as somebody writes it on the command line, with what the settings say of it."""

from lazyfs.config import Config, parse_source
from lazyfs.errors import UsageError
from lazyfs.moments import split_moment
from lazyfs.objects import Source


def source_of(text: str, config: Config) -> Source:
    """`s3://bucket/prefix/`, or that as of a time. `UsageError` if it is none, or of two times."""
    plain, moment = split_moment(text)
    if moment and config.version_at not in (None, moment):
        raise UsageError(f"the source is of {moment}, and --version-at of {config.version_at}; name one of them")
    bucket, prefix = parse_source(plain)
    return Source(bucket, prefix, config.endpoint_url or "", moment or config.version_at or "")
