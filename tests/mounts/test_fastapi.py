"""`lazyfs.fastapi`: a real server process, asked while its model is still on its way."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import uvicorn
from fastapi import Depends, FastAPI
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import save_file

from lazyfs import ModelCache
from lazyfs.errors import UsageError
from lazyfs.fastapi import Model
from tests.mounts.mounting import ROOT, Mounter, environment, run, wait_until
from tests.servers.fast import FastS3Server
from tests.servers.faults import Gate

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)
BIAS = np.ones(4, dtype=np.float32)
EXPECTED = (WEIGHT @ [1, 2, 3] + BIAS).tolist()


def publish(s3: FastS3Server, tmp_path: Path, env: dict[str, str], version: str = "v1") -> None:
    """A model of one layer, as tiny/v1."""
    (tmp_path / "made").mkdir(exist_ok=True)
    save_file({"weight": WEIGHT, "bias": BIAS}, tmp_path / "made" / "model.safetensors")
    words = ["publish", str(tmp_path / "made"), f"tiny/{version}", "--to", "s3://models", f"--endpoint-url={s3.url}"]
    done = run(words, env)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def env(s3: FastS3Server, tmp_path: Path) -> dict[str, str]:
    """Of a server process: where the models are, and where they are kept."""
    (tmp_path / "kept").mkdir(mode=0o700)
    return environment(
        tmp_path / "home",
        s3,
        LAZYFS_SOURCE="s3://models",
        LAZYFS_ENDPOINT_URL=s3.url,
        LAZYFS_CACHE_DIR=str(tmp_path / "kept"),
        LAZYFS_MIN_FREE_SPACE="0",
    )


@contextmanager
def serving(env: dict[str, str], log: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The example's application, served by uvicorn: its address and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        probe.listen()
        command = [sys.executable, "-m", "uvicorn", "--app-dir", "scripts/example", "app:app", f"--fd={probe.fileno()}"]
        with log.open("ab") as stream:
            server = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=stream, stderr=stream, pass_fds=(probe.fileno(),)
            )
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    try:
        yield address, server
    finally:
        server.kill()
        server.wait(20)


def ask(url: str, body: object = None) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON or text, and headers of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            status, raw, headers = answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        status, raw, headers = error.code, error.read(), dict(error.headers)
    text = raw.decode()
    return status, json.loads(text) if "json" in headers.get("content-type", "") else text, headers


def held(s3: FastS3Server) -> Gate:
    """No weights for now."""
    return s3.hold(lambda request: request.kind == "GET" and request.key.endswith(".safetensors"))


def test_asked_while_the_model_arrives(s3: FastS3Server, env: dict[str, str], tmp_path: Path) -> None:
    """503 with Retry-After and how far it is, then 200 and the right answer; statistics and metrics all the time."""
    publish(s3, tmp_path, env)
    with held(s3) as gate, serving(env, tmp_path / "log") as (url, _):
        gate.wait_for(1, 60)
        status, health, headers = ask(f"{url}/cache/health")
        assert (status, health["step"], health["ready"]) == (503, "getting", False)
        assert int(headers["retry-after"]) > 0
        status, words, headers = ask(f"{url}/predict", {"x": [1, 2, 3]})
        assert (status, words["detail"]) == (503, "tiny/v1 is not ready: getting")
        assert int(headers["retry-after"]) > 0
        assert ask(f"{url}/cache/stats")[1]["cache"]["misses"] == 1
        gate.release()
        wait_until(lambda: ask(f"{url}/cache/health")[0] == 200, "it is ready")
        assert ask(f"{url}/predict", {"x": [1, 2, 3]})[1] == {"y": EXPECTED}
        assert ask(f"{url}/predict", {"x": [1]})[0] == 422
        text = ask(f"{url}/cache/metrics")[1]
        found = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
        assert (found["lazyfs_model_ready"], found["lazyfs_models_misses_total"]) == (1, 1)
        assert found["lazyfs_models_fetched_bytes_total"] >= WEIGHT.nbytes


def test_stopped_while_the_model_arrives(s3: FastS3Server, env: dict[str, str], tmp_path: Path) -> None:
    """A server that is told to end does so though S3 does not answer."""
    publish(s3, tmp_path, env)
    with held(s3) as gate, serving(env, tmp_path / "log") as (url, server):
        gate.wait_for(1, 60)
        assert ask(f"{url}/cache/health")[0] == 503
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) in (0, -signal.SIGTERM)


def test_beside_a_mount(s3: FastS3Server, mounter: Mounter, env: dict[str, str], tmp_path: Path) -> None:
    """The path is in the mount, warmed when that is wanted; its counters are shown; a lifespan of the application's own
    runs within."""
    publish(s3, tmp_path, env)
    mount = mounter.mount(s3, "s3://models")
    began: list[str] = []

    @asynccontextmanager
    async def own(_: FastAPI) -> Any:
        began.append("own")
        yield {"given": 7}
        began.append("ended")

    cache = ModelCache("s3://models", endpoint_url=s3.url, cache_dir=str(tmp_path / "kept"))
    model = Model("tiny", "v1", cache=cache, warm=True)
    app = FastAPI(lifespan=model.around(own))
    app.include_router(model.router)

    @app.get("/where")
    def where(path: Annotated[Path, Depends(model.loaded)]) -> str:
        return str(path)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            wait_until(lambda: ask(f"{url}/cache/health")[0] == 200, "it is ready")
            assert ask(f"{url}/where")[1] == str(mount.path / "tiny" / "v1")
            stats = ask(f"{url}/cache/stats")[1]
            assert (stats["mount"]["mountpoint"], stats["cache"]["mounted"]) == (str(mount.path), 1)
            assert began == ["own"]
        finally:
            server.should_exit = True
            thread.join(30)
    assert began == ["own", "ended"]
    cached = int(os.getxattr(mount.path / "tiny/v1/model.safetensors", "user.lazyfs.cached_bytes"))
    assert cached == (mount.path / "tiny/v1/model.safetensors").stat().st_size


def test_what_is_not_there_yet_is_asked_for_again(
    s3: FastS3Server, tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that is published after the start is found; why it was not is said meanwhile."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("lazyfs.fastapi.PAUSES", (0.05, 0.1))
    model = Model("tiny", "v9")
    model.start()
    wait_until(lambda: model.state.step == "failed", "it is not there")
    assert "tiny/v9" in model.state.trouble
    publish(s3, tmp_path, env, "v9")
    wait_until(lambda: model.state.step == "ready", "it was published")
    assert (model.loaded() / "model.safetensors").exists()
    model.stop()


def test_the_start_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For a random part of the jitter, during which it may be stopped; what cannot be one is refused."""
    asked: list[float] = []

    class Turn:
        def uniform(self, low: float, high: float) -> float:
            asked.append(high)
            return 3600.0

    monkeypatch.setattr("lazyfs.fastapi.random", Turn())
    model = Model("tiny", "v1", source="s3://models", cache_dir=str(tmp_path), start_jitter="1h")
    model.start()
    wait_until(lambda: asked == [3600.0], "it waits")
    assert model.state.step == "waiting"
    model.stop()
    for wrong in (-1.0, float("nan"), "soon", "indefinite"):
        with pytest.raises(UsageError):
            Model("tiny", "v1", source="s3://models", cache_dir=str(tmp_path), start_jitter=wrong)
    with pytest.raises(UsageError, match="not both"):
        Model("tiny", "v1", source="s3://models", cache=model.cache)
