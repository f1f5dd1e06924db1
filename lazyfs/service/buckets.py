"""A bucket of models as the configuration says: for the commands that need no mount, and for `ModelCache`."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from lazyfs.config import Config
from lazyfs.models.bucket import Bucket, with_bucket
from lazyfs.objects import Source
from lazyfs.service.engines import boto_store, refusal_hint

T = TypeVar("T")


async def with_models(config: Config, source: Source, job: Callable[[Bucket], Awaitable[T]]) -> T:
    """Do the job with the source's bucket open; see `with_bucket`."""
    return await with_bucket(
        # Its GETs go over sockets or boto3: awscrt's are for a mount, and cannot write.
        partial(boto_store, config, source),
        source,
        job,
        connections=config.max_connections,
        retry_budget=config.retry_budget,
        hint=partial(refusal_hint, config),
    )
