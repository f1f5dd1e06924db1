"""Fixtures of the tests of models: servers that know uploads in parts, and the command in an environment of its own."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lazyfs import ModelCache
from tests.models.library import Lazyfs
from tests.servers.clients import S3Endpoint
from tests.servers.fast import FastS3Server
from tests.servers.moto_server import MotoServer
from tests.servers.proxy import FaultProxy
from tests.servers.swift import SwiftServer


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    """The real server; each test takes a bucket of its own."""
    with SwiftServer(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    """The one that keeps checksums as S3 does."""
    with MotoServer() as server:
        yield server


@pytest.fixture
def proxy(swift: SwiftServer) -> Iterator[FaultProxy]:
    """What goes wrong in front of the real server."""
    with FaultProxy(swift) as made:
        yield made


@pytest.fixture
def lazyfs(tmp_path: Path) -> Lazyfs:
    """Runs the command."""
    return Lazyfs(tmp_path)


@pytest.fixture
def _aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The credentials of the test servers, where boto3's chain finds them, and none of the machine's settings."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "LAZYFS_", "MODEL_CACHE_")) and name != "LAZYFS_TEST_FULL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3Endpoint.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3Endpoint.secret_key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")


@pytest.fixture
def s3() -> Iterator[FastS3Server]:
    """A server of our own, quick, with a log and gates; it knows no uploads in parts."""
    with FastS3Server() as server:
        server.add_bucket("models")
        yield server


@pytest.fixture
def caches(_aws: None, s3: FastS3Server, tmp_path: Path) -> Iterator[Callable[..., ModelCache]]:
    """Makes model caches of the bucket `models` on one directory; all are closed in the end."""
    made: list[ModelCache] = []

    def make(**more: Any) -> ModelCache:
        settings: dict[str, Any] = {"endpoint_url": s3.url, "cache_dir": str(tmp_path / "cache"), "min_free_space": 0}
        made.append(ModelCache(**{"source": "s3://models/llm/", **settings, **more}))
        return made[-1]

    yield make
    for cache in made:
        cache.close()
