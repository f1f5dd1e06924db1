"""Fixtures of the tests of models: servers that know uploads in parts, and the command in an environment of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models.library import Lazyfs
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
