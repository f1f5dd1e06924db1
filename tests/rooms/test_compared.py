"""The ways to a first prediction that the bench compares: they find the same bytes, and the hub is as it is asked."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, cast

import pytest

from scripts.benchmarks.compared import Compared
from scripts.benchmarks.files import make_model
from scripts.benchmarks.hub import COMMIT, Hub
from scripts.benchmarks.stage import MIB, ROOT, Stage
from tests.servers.remote import RemoteFastS3


def test_the_mount_and_downloads_find_the_same(tmp_path: Path) -> None:
    """A directory and boto3's copy of it: one digest, and all of the copy was sent when the first layers were used."""
    server = RemoteFastS3()
    try:
        paths = make_model(tmp_path / "model", 130 * MIB)
        for path in paths:
            server.add_file("models", f"m/{path.name}", path)
        found = {}
        (tmp_path / "copy").mkdir()
        endpoint = {"url": server.url, "region": server.region}
        copy = {"bucket": "models", "keys": [f"m/{path.name}" for path in paths], "directory": str(tmp_path / "copy")}
        asked: dict[str, dict[str, Any]] = {
            "mount": {"path": str(tmp_path / "model")},
            "boto3": {**copy, "endpoint": endpoint, "connections": 4, "part": 8 * MIB},
        }
        for name, arguments in asked.items():
            more = {"began": time.time(), "server": server.url}
            done = subprocess.run(
                [sys.executable, "-m", "scripts.benchmarks.contenders", name, json.dumps({**arguments, **more})],
                cwd=ROOT,
                env={"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "PATH": ""},
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            found[name] = json.loads(done.stdout)
    finally:
        server.stop()
    size = sum(path.stat().st_size for path in paths) / MIB
    assert found["mount"]["digest"] == found["boto3"]["digest"]
    assert (found["mount"]["first_bytes"], found["boto3"]["first_bytes"]) == (0, size)
    assert all(0 < one["first"] < one["seconds"] for one in found.values())


class _Stays(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """A redirect is an answer."""


def test_the_hub_lists_its_files_and_leads_to_them() -> None:
    with Hub("org/m", {"a.safetensors": (7, "http://elsewhere/a")}) as hub:
        about = json.load(urllib.request.urlopen(f"{hub.url}/api/models/org/m/revision/main", timeout=10))
        assert about["sha"] == COMMIT
        (file,) = json.load(urllib.request.urlopen(f"{hub.url}/api/models/org/m/tree/{COMMIT}", timeout=10))
        assert (file["path"], file["size"]) == ("a.safetensors", 7)
        opener = urllib.request.build_opener(_Stays)
        for name, status in (("a.safetensors", 302), ("b.safetensors", 404)):
            with pytest.raises(urllib.error.HTTPError) as told:
                opener.open(f"{hub.url}/org/m/resolve/{COMMIT}/{name}", timeout=10)
            assert told.value.code == status
            assert told.value.headers.get("Location") == ("http://elsewhere/a" if status == 302 else None)
            assert told.value.headers.get("X-Linked-Size") == ("7" if status == 302 else None)
            told.value.close()


def test_what_is_not_installed_is_named_and_left_out() -> None:
    """Before anything is measured."""
    lines = Compared(lambda name: name in ("mlflow", "huggingface_hub")).run(cast(Stage, None))
    assert [next(lines).workload for _ in range(2)] == [
        "MLflow's download: not installed, left out",
        "huggingface_hub, of an imitated hub: not installed, left out",
    ]
