"""What the fuzz tests share with the rooms': credentials of nobody; and the time that a full run takes."""

from pathlib import Path

import pytest

from tests.fuzz.examples import FULL
from tests.rooms.conftest import _aws  # noqa: F401 - a fixture is found by its name

FULL_TIMEOUT = 1200
"""Seconds for a test of a full run, which has twenty times as many examples."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """More time for these tests, and only these, in a full run."""
    for item in items:
        if FULL and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(FULL_TIMEOUT))
