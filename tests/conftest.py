"""What holds for all tests: those that take minutes run only when they are asked for, and Ctrl-C is heard."""

import os
import signal

import pytest


def pytest_configure() -> None:
    """A shell has SIGINT ignored in what it starts by `&`, and nohup(1) SIGHUP, for good and by all children; some
    tests send these to one."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `slow` are skipped, by name and with the reason, unless this is `scripts/test --full`."""
    if os.environ.get("LAZYFS_TEST_FULL") == "1":
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: scripts/test --full"))
