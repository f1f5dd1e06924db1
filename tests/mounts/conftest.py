"""Fixtures of the mount tests: servers, mounts that go away, readers that may die."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts.mounting import Mounter
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server
from tests.servers.swift import SwiftServer

HELPER = Path("/sbin/mount.lazyfs")
"""The one place where mount(8) looks."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `root` are skipped, by name and with the reason, for everybody else."""
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(autouse=True, scope="session")
def _fuse() -> None:
    """A machine without FUSE has nothing to try; that is said, and is no failure."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing or closed")


@pytest.fixture
def s3() -> Iterator[FastS3Server]:
    """A fast server of its own for the test, with the bucket `models`."""
    with FastS3Server() as server:
        server.add_bucket("models")
        yield server


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    """The real S3 server, one for the session; each test takes a bucket of its own."""
    with SwiftServer(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture
def mounter(tmp_path: Path) -> Iterator[Mounter]:
    """Makes mounts. In the end all are gone, and nothing stands in their logs that was not announced."""
    made = Mounter(tmp_path)
    yield made
    made.end()


@pytest.fixture
def reader() -> Iterator[Reader]:
    """A process that reads on the test's behalf."""
    with Reader() as made:
        yield made


@pytest.fixture
def helper() -> Iterator[Path]:
    """mount.lazyfs of this checkout where mount(8) finds it, for the time of the test."""
    if HELPER.exists() or HELPER.is_symlink():
        pytest.skip(f"{HELPER} is there already, and is not ours to replace")
    HELPER.symlink_to(Path(sys.executable).with_name("mount.lazyfs"))
    yield HELPER
    HELPER.unlink()
