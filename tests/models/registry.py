"""A process that has a version from an origin by the origin's own library, and says what came of it in lines of JSON.

    python -m tests.models.registry mlflow ARTIFACTS CACHE_DIR     registers the directory ARTIFACTS as tiny, version 1
    python -m tests.models.registry mlflow - CACHE_DIR             registers nothing
    python -m tests.models.registry hub - CACHE_DIR                org/tiny of the hub that HF_ENDPOINT names
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from lazyfs import HubOrigin, MLflowOrigin, ModelCache
from lazyfs.errors import LazyfsError


def main() -> None:
    """Get versions that are there, are not there, and cannot be."""
    kind, artifacts, cache_dir = sys.argv[1:]
    asked = [("org/tiny", "main"), ("org/none", "main")]
    if kind == "mlflow":
        asked = [("tiny", "1"), ("tiny", "2"), ("none", "1"), ("tiny", "champion")]
    if kind == "mlflow" and artifacts != "-":
        mlflow: Any = importlib.import_module("mlflow")
        client = mlflow.MlflowClient()
        client.create_registered_model("tiny")
        client.create_model_version("tiny", source=Path(artifacts).as_uri())
    origin = MLflowOrigin() if kind == "mlflow" else HubOrigin()
    with ModelCache(origin=origin, cache_dir=cache_dir, min_free_space=0) as cache:
        for model, version in asked:
            try:
                found = {"path": str(cache.get(model, version))}
            except LazyfsError as error:
                found = {"error": str(error), "kind": type(error).__name__}
            sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
