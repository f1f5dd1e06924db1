"""Ways to have a model, from nothing to its first prediction: the mount beside `ModelCache.get`, boto3's transfer
manager, MLflow's download and the hub's.

Each in a process of its own with a directory of its own, cold, from the same S3 server, which counts the bytes. A tool
that is not installed is named and left out. The times are what somebody waits for: of the process with its imports, and
of the mount with the command that mounts.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lazyfs.models.gathering import digests
from lazyfs.models.manifest import Manifest, ManifestFile, pack
from lazyfs.models.names import MANIFEST, ModelVersion
from scripts.benchmarks.contenders import CONTENDERS, LAYERS, missing
from scripts.benchmarks.files import make_model
from scripts.benchmarks.hub import Hub
from scripts.benchmarks.results import Line
from scripts.benchmarks.rows import Row, in_turns
from scripts.benchmarks.stage import BUCKET, CONNECTIONS, MIB, PART, ROOT, SHAPED, Stage, WrongBytes

OF = ModelVersion("org/compared", "v1")
PREFIX = OF.prefix("")
NAMES = {
    "mount": "lazyfs, mounted",
    "get": "ModelCache.get",
    "boto3": "boto3's transfer manager",
    "mlflow": "MLflow's download",
    "huggingface_hub": "huggingface_hub, of an imitated hub",
}
FIGURES = {
    "first": (f"first {LAYERS} layers used", "s"),
    "first_bytes": ("  fetched by then", "MiB"),
    "seconds": ("all layers used", "s"),
    "bytes": ("  fetched in all", "MiB"),
}
"""Words and unit of each."""


class Compared(Row):
    """Time to the first prediction, and bytes moved, beside what else downloads models."""

    name = "compared"

    def __init__(self, missing: Callable[[str], bool] = missing) -> None:
        self._missing = missing

    def run(self, stage: Stage) -> Iterator[Line]:
        """A B C A B C: one line for each figure and each way that is not the mount."""
        there = [name for name in CONTENDERS if not self._missing(name)]
        for name in [name for name in CONTENDERS if name not in there]:
            yield Line(row=self.name, workload=f"{NAMES[name]}: not installed, left out")
        files = self._prepare(stage)
        addresses = {
            path.name: (path.stat().st_size, f"{stage.server.url}/{BUCKET}/{PREFIX}{path.name}") for path in files
        }
        with Hub(OF.model, addresses) as hub:
            sides = [lambda _, name=name: self._one(stage, name, files, hub) for name in there]
            found = dict(zip(there, in_turns(stage.repeat, *sides), strict=True))
        if len({one["digest"] for each in found.values() for one in each}) != 1:
            raise WrongBytes("not all have the same tensors")
        for name in there[1:]:
            for figure, (words, unit) in FIGURES.items():
                ours, theirs = ([one[figure] for one in found[side]] for side in ("mount", name))
                yield Line(row=self.name, workload=f"{words} / {NAMES[name]}", unit=unit, ours=ours, theirs=theirs)

    def _prepare(self, stage: Stage) -> list[Path]:
        """The model is on the server as `lazyfs publish` leaves it, and in the server's page cache; its files."""
        directory = stage.scratch / "served" / "compared"
        if not directory.exists():
            for path in make_model(directory, stage.model_size):
                stage.serve(f"{PREFIX}{path.name}", path)
        paths = sorted(directory.iterdir())
        client = stage.server.client()
        parts = []
        for path in paths:
            sums = digests(str(path))
            assert sums.crc64nvme is not None
            etag = client.head_object(Bucket=BUCKET, Key=PREFIX + path.name)["ETag"]
            parts.append(ManifestFile(path.name, path.stat().st_size, sums.sha256, sums.crc64nvme, etag))
        stage.server.put(BUCKET, PREFIX + MANIFEST, pack(Manifest(OF, parts, "2026-01-01T00:00:00Z")))
        return paths

    def _one(self, stage: Stage, name: str, files: list[Path], hub: Hub) -> dict[str, Any]:
        stage.shape(SHAPED)
        endpoint = {"url": stage.server.url, "region": stage.server.region}
        with stage.new_cache(f"cache-{name}") as directory:
            into = str(directory)
            keys = [PREFIX + path.name for path in files]
            stage.drop_caches()
            for path in files:  # of the server's files too, which are to be in memory
                stage.work("read", path=str(path))
            stage.requests()
            before = stage.server.counters.bytes_sent / MIB
            with contextlib.ExitStack() as stack:
                began = time.time()
                match name:
                    case "mount":
                        mounted = stack.enter_context(stage.mounted(directory))
                        arguments: dict[str, Any] = {"path": str(mounted.path / PREFIX)}
                    case "get":
                        where = {"source": f"s3://{BUCKET}/", "model": OF.model, "version": OF.version}
                        arguments = {**where, "directory": into, "endpoint": endpoint}
                    case "boto3":
                        arguments = {"bucket": BUCKET, "keys": keys, "directory": into, "endpoint": endpoint}
                        arguments |= {"connections": CONNECTIONS, "part": PART}
                    case "mlflow":
                        arguments = {"uri": f"s3://{BUCKET}/{PREFIX.rstrip('/')}", "directory": into}
                    case _:
                        arguments = {"repository": OF.model, "directory": into}
                said = _run(stage, name, {**arguments, "began": began, "server": stage.server.url}, hub)
            total = stage.fetched() / MIB
        return {**said, "first_bytes": said["first_bytes"] - before, "bytes": total}


def _run(stage: Stage, name: str, arguments: dict[str, Any], hub: Hub) -> dict[str, Any]:
    """A contender in a process of its own, which finds the server where each looks for it."""
    server = stage.server
    env = stage.environment() | {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_DEFAULT_REGION": server.region,
        "MLFLOW_S3_ENDPOINT_URL": server.url,
        "MLFLOW_TRACKING_URI": f"sqlite:///{stage.scratch}/home/mlflow.db",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(stage.scratch / "home" / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    command = [sys.executable, "-m", "scripts.benchmarks.contenders", name, json.dumps(arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, timeout=stage.patience, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{NAMES[name]} ended with status {done.returncode}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
