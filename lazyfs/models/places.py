"""Which source holds the models, when a program or a command may leave that to the environment.

`LAZYFS_SOURCE` is a mount's too, so it may name several sources, or stand for none; models are in one.
"""

from collections.abc import Mapping

from lazyfs.config import Config, source_of
from lazyfs.errors import UsageError
from lazyfs.objects import Source

_NONE = ("", "lazyfs", "none")
"""What a mount takes for no source; see `cli.sources`."""


def source_said(text: str | None, environment: Mapping[str, str], config: Config) -> Source | None:
    """The source that is said: by `text`, else by LAZYFS_SOURCE, else by the names of the environment that other model
    caches have; None if nobody says. `UsageError` for what is none, or more than one."""
    if text:
        return source_of(text, config)
    words = environment.get("LAZYFS_SOURCE", "").strip()
    if words not in _NONE:
        if "=s3://" in words and not words.startswith("s3://"):
            raise UsageError("LAZYFS_SOURCE names sources of a mount, and models are in one; say which, as s3://bucket/")
        return source_of(words, config)
    bucket, prefix = environment.get("MODEL_CACHE_S3_BUCKET", ""), environment.get("MODEL_CACHE_S3_PREFIX", "")
    if not bucket:
        return None
    return source_of(bucket if "://" in bucket else f"s3://{bucket}/{prefix}", config)
