"""Cache directories from outside, whether mounts use them or not.

Its job: how much of what is in one, and its check. Must not know how that is shown.
"""

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lazyfs.cache import catalogue, checking
from lazyfs.cache.index import Index
from lazyfs.errors import CacheUnavailable, SetupError


@dataclass(slots=True)
class Usage:
    """Of what is below one prefix: objects, their bytes, and how many of these are cached and pinned."""

    files: int = 0
    size: int = 0
    cached: int = 0
    pinned: int = 0


def usage(path: str, depth: int) -> dict[str, dict[str, int]]:
    """By URL of a bucket or prefix, down to `depth` directories below the bucket, what a cache has of it. Only objects
    of which something is cached count. `SetupError` if it cannot be read."""
    found: dict[str, Usage] = defaultdict(Usage)
    try:
        index = Index(Path(path) / "index", to_read=True)
        try:
            held = catalogue.pins(index)
            for one in catalogue.known(index):
                if not one.present:
                    continue
                pinned = one.cached if held.cover(one.place, one.key) else 0
                names = one.key.split("/")[:-1][:depth]
                for length in range(len(names) + 1):
                    place = found["".join([_url(one.place), *(name + "/" for name in names[:length])])]
                    place.files += 1
                    place.size += one.size
                    place.cached += one.cached
                    place.pinned += pinned
        finally:
            index.close()
    except CacheUnavailable as error:
        raise SetupError(f"the index of the cache {path} cannot be read: {error}") from None
    return {url: asdict(one) for url, one in sorted(found.items())}


def _url(place: str) -> str:
    endpoint, _, bucket = place.rpartition("|")
    return f"s3://{bucket or '?'}/" if not endpoint else f"{endpoint}/{bucket}/"


def check(path: str, *, mend: bool, quick: bool, told: checking.Told) -> dict[str, Any]:
    """What `checking.check` finds, as JSON has it."""
    found = checking.check(Path(path), mend=mend, quick=quick, told=told)
    return {"cache": path, "status": found.status, **asdict(found)}
