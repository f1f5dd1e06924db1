"""Origins that have a library of their own: what is said without it, and, with --full, a version brought by each.

MLflow's registry is its own, in files: its server would take seventy packages more. The hub is an imitation.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lazyfs import MLflowOrigin, ModelCache
from lazyfs.errors import UsageError
from scripts.benchmarks.hub import Hub
from tests.models.library import a_model
from tests.mounts.mounting import ROOT
from tests.servers.fast import FastS3Server

Caches = Callable[..., ModelCache]


def test_mlflow_needs_its_library(caches: Caches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UsageError, match="pip install mlflow-skinny"):
        caches(source=None, origin=MLflowOrigin()).get("tiny", "1")


@pytest.mark.parametrize("version", ["champion", "Production", "latest", "v1", "01", "1.0", "-1"])
def test_what_moves_is_no_version_of_a_registry(caches: Caches, version: str) -> None:
    """With or without the library: what stands for another version tomorrow is not kept as if it did not."""
    with pytest.raises(UsageError, match="numbers; give the number"):
        caches(source=None, origin=MLflowOrigin()).get("tiny", version)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both libraries are: in a folder of their own, so that no other test runs with them."""
    place = tmp_path_factory.mktemp("libraries")
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes",
            f"--target={place}", "-r", ROOT / "tests/models/origins.lock",
        ],
        check=True,
        timeout=600,
    )  # fmt: skip
    return place


def brought(libraries: Path, tmp_path: Path, *arguments: str, **more: str) -> list[dict[str, Any]]:
    """What `registry` says."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LAZYFS_", "MODEL_"))}
    env |= {"HOME": str(tmp_path), "PYTHONPATH": str(libraries), "HF_HUB_DISABLE_TELEMETRY": "1", **more}
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.registry", *arguments, str(tmp_path / "cache")],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def files_in(path: str) -> dict[str, bytes]:
    """By path, the bytes of each."""
    return {str(one.relative_to(path)): one.read_bytes() for one in Path(path).rglob("*") if one.is_file()}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_version_of_mlflows_registry(libraries: Path, tmp_path: Path) -> None:
    """Its files as they are; what the registry has not is not found."""
    files = a_model(tmp_path / "m")
    store = {"MLFLOW_TRACKING_URI": (tmp_path / "registry").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    here, no_version, no_model, alias = brought(libraries, tmp_path, "mlflow", str(tmp_path / "m"), **store)
    assert "path" in here, here
    assert files_in(here["path"]) == files
    assert (no_version["kind"], no_model["kind"], alias["kind"]) == ("NotFound", "NotFound", "UsageError")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_artifacts_that_are_gone_and_a_registry_that_does_not_answer(libraries: Path, tmp_path: Path) -> None:
    """One sentence of each, and not that there is no such version."""
    (tmp_path / "m").mkdir()
    store = {"MLFLOW_TRACKING_URI": (tmp_path / "registry").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    gone = brought(libraries, tmp_path, "mlflow", str(tmp_path / "m"), **store)[0]
    nobody = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    silent = brought(libraries, tmp_path, "mlflow", "-", **nobody)[0]
    assert (gone["kind"], silent["kind"]) == ("StoreError", "StoreError"), (gone, silent)
    assert "artifacts are gone" in gone["error"]
    assert "did not answer for tiny/1" in silent["error"]
    assert "\n" not in gone["error"] + silent["error"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_snapshot_of_the_hub(libraries: Path, tmp_path: Path, s3: FastS3Server) -> None:
    """By the hub's own library, from an imitation that leads to other addresses as the hub does."""
    files = a_model(tmp_path / "m")
    for name, data in files.items():
        s3.put("models", f"hub/{name}", data)
    where = {name: (len(data), f"{s3.url}/models/hub/{name.replace(' ', '%20')}") for name, data in files.items()}
    with Hub("org/tiny", where) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        here, no_model = brought(libraries, tmp_path, "hub", "-", **env)
    assert "path" in here, here
    assert files_in(here["path"]) == files
    assert no_model["kind"] == "NotFound", no_model
