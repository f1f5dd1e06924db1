"""What the fuzz tests share with the rooms': credentials of nobody."""

from tests.rooms.conftest import _aws  # noqa: F401 - a fixture is found by its name
