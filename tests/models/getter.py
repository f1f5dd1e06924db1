"""A process that gets a model and says what came of it, in one line of JSON; then it waits to be told to end.

    python -m tests.models.getter ENDPOINT CACHE_DIR MODEL VERSION [max_size]
"""

import dataclasses
import json
import sys
from typing import Any

from lazyfs import ModelCache
from lazyfs.errors import LazyfsError


def main() -> None:
    """Get it, tell, and hold it until standard input ends."""
    endpoint, cache_dir, model, version, *rest = sys.argv[1:]
    settings: dict[str, Any] = {"max_cache_size": rest[0]} if rest else {}
    with ModelCache(
        "s3://models/llm/", endpoint_url=endpoint, cache_dir=cache_dir, min_free_space=0, **settings
    ) as cache:
        try:
            found = {"path": str(cache.get(model, version))}
        except LazyfsError as error:
            found = {"error": str(error)}
        sys.stdout.write(json.dumps({**found, **dataclasses.asdict(cache.stats())}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
