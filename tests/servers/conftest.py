"""Fixtures of the servers' own tests."""

from collections.abc import Iterator

import pytest

from tests.servers.swift import SwiftServer


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    """The real server, one for the session."""
    pytest.importorskip("swift")
    with SwiftServer(tmp_path_factory.mktemp("swift")) as running:
        yield running
