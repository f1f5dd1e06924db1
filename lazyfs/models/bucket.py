"""A bucket of models, open in one loop: its patient store, what is in it, and how that is changed.

Its job: put the three together, and see to it that a failure comes out as it is. Must not know configuration.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from lazyfs.errors import LazyfsError
from lazyfs.models.catalogue import Catalogue
from lazyfs.models.publish import Publisher
from lazyfs.objects import Source
from lazyfs.stores.fetch import PatientStore
from lazyfs.stores.s3 import S3Store
from lazyfs.stores.upload import Uploader
from lazyfs.stores.versions import VersionedStore

T = TypeVar("T")

MOST_UPLOADS = 16
"""Parts under way at once, each in memory: 256 MiB."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """All that is done with a bucket of models, in one loop."""

    store: PatientStore
    catalogue: Catalogue
    uploader: Uploader
    publisher: Publisher


async def with_bucket(
    make: Callable[[], S3Store],
    source: Source,
    job: Callable[[Bucket], Awaitable[T]],
    *,
    connections: int,
    retry_budget: float,
    hint: Callable[[bool], str] = lambda _: "",
) -> T:
    """Do the job with the bucket open; `hint` as for `VersionedStore`. Raises what the job raises, and `SetupError` of
    `make`."""
    s3 = await trio.to_thread.run_sync(make)
    store = PatientStore(VersionedStore(s3, hint=hint), connections=connections, retry_budget=retry_budget)
    uploader = Uploader(s3, retry_budget=retry_budget, connections=min(connections, MOST_UPLOADS))
    catalogue = Catalogue(store, source)
    bucket = Bucket(store, catalogue, uploader, Publisher(catalogue, uploader))
    found: list[T] = []
    failure: LazyfsError | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.watch)
            try:
                found.append(await job(bucket))
            except LazyfsError as error:
                failure = error
            nursery.cancel_scope.cancel()
    finally:
        s3.close()
    if failure is not None:
        raise failure
    return found[0]
