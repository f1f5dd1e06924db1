"""Ways to a first prediction, each in a process of its own: `python -m scripts.benchmarks.contenders NAME ARGUMENTS`.

Each has all of the model's bytes, or a path that gives them, and predicts. Unlike in `worker`, imports are in the time:
they are what somebody waits for. Arguments come as one JSON object, and what was measured is printed as one.
"""

import importlib
import importlib.util
import json
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

LAYERS = 2
"""Of the model, that the first figure is of."""

WIDTH = 64
"""Of the matrix that a tensor is taken for."""


def mount(path: str) -> Path:
    """lazyfs, mounted."""
    return Path(path)


def get(source: str, model: str, version: str, directory: str, endpoint: dict[str, str]) -> Path:
    """`ModelCache.get`."""
    from lazyfs import ModelCache  # noqa: PLC0415 - each contender imports its own, in the time that is measured

    return ModelCache(source, cache_dir=directory, endpoint_url=endpoint["url"], region=endpoint["region"]).get(
        model, version
    )


def boto3(bucket: str, keys: list[str], directory: str, endpoint: dict[str, str], connections: int, part: int) -> Path:
    """boto3's transfer manager, all files at once."""
    import boto3 as library  # noqa: PLC0415
    from boto3.s3.transfer import TransferConfig, create_transfer_manager  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    client = library.client(
        "s3",
        endpoint_url=endpoint["url"],
        region_name=endpoint["region"],
        config=Config(s3={"addressing_style": "path"}, max_pool_connections=connections),
    )
    config = TransferConfig(
        max_concurrency=connections,
        multipart_threshold=part,
        multipart_chunksize=part,
        preferred_transfer_client="classic",
    )
    with create_transfer_manager(client, config) as manager:
        for one in [manager.download(bucket, key, f"{directory}/{key.rpartition('/')[2]}") for key in keys]:
            one.result()
    return Path(directory)


def mlflow(uri: str, directory: str) -> Path:
    """MLflow's own download of an artifact that is a directory in S3, as it comes."""
    artifacts: Any = importlib.import_module("mlflow.artifacts")
    return Path(artifacts.download_artifacts(artifact_uri=uri, dst_path=directory))


def huggingface_hub(repository: str, directory: str) -> Path:
    """The hub's own download of a snapshot, as it comes."""
    library: Any = importlib.import_module("huggingface_hub")
    return Path(library.snapshot_download(repository, local_dir=directory))


def predict(directory: Path, began: float, server: str) -> dict[str, Any]:
    """Each tensor multiplied with a vector, in the files' order. Seconds since `began`, which is `time.time()`, until
    the first layers were, and until all were; MiB that the server had sent by the first; a digest of all bytes."""
    import numpy as np  # noqa: PLC0415
    from safetensors import safe_open  # noqa: PLC0415

    ones, digest, count, first, first_bytes = np.ones(WIDTH, np.float32), 0, 0, 0.0, 0.0
    with np.errstate(all="ignore"):  # the weights are random bits, and some of those are no numbers
        for path in sorted(directory.glob("*.safetensors")):
            with safe_open(path, framework="numpy") as tensors:
                for name in sorted(tensors.keys(), key=lambda name: ("embed" not in name, name)):
                    if not first and f".{LAYERS:02}." in name:
                        first, first_bytes = time.time() - began, sent(server)
                    tensor = tensors.get_tensor(name).reshape(-1)
                    tensor.view(np.float32).reshape(-1, WIDTH) @ ones
                    count += 1
                    digest = (digest + count * int(np.add.reduce(tensor.view(np.uint64)))) % 2**64
    seconds = time.time() - began
    return {"first": first, "first_bytes": first_bytes, "seconds": seconds, "digest": digest}


def sent(server: str) -> float:
    """MiB that the server has sent since it was started, in answers that are over."""
    with urllib.request.urlopen(f"{server}/_control/counters", timeout=60) as answer:
        return float(json.load(answer)["bytes_sent"]) / 2**20


CONTENDERS: dict[str, Callable[..., Path]] = {
    contender.__name__: contender for contender in (mount, get, boto3, mlflow, huggingface_hub)
}


def missing(name: str) -> bool:
    """Whether the library of a contender is not installed."""
    return name in ("mlflow", "huggingface_hub") and importlib.util.find_spec(name) is None


if __name__ == "__main__":
    arguments = json.loads(sys.argv[2])
    start, counts = float(arguments.pop("began")), str(arguments.pop("server"))
    print(json.dumps(predict(CONTENDERS[sys.argv[1]](**arguments), start, counts)))
