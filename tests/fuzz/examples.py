"""How many examples, and that they are the same in every run; what a parser may give, and what it may cost."""

import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from hypothesis import HealthCheck, settings

from lazyfs.errors import LazyfsError

T = TypeVar("T")

FULL = os.environ.get("LAZYFS_TEST_FULL") == "1"
TIMES = 20


def examples(count: int) -> settings:
    """`count` examples of a test, many more in a full run. Without a database or chance: what fails, fails always."""
    return settings(
        max_examples=count * TIMES if FULL else count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def outcome(function: Callable[..., T], *arguments: object) -> T | LazyfsError:
    """What the function gives, or which of our failures it raises; anything else that it raises fails the test."""
    try:
        return function(*arguments)
    except LazyfsError as error:
        failure = error
    assert 0 < len(str(failure)) < 4000, "a sentence, and not all that somebody sent"
    return failure


@contextmanager
def memory_bounded(most: int) -> Iterator[None]:
    """Inside, Python may never hold more than `most` bytes above what it held before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        yield
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak <= most, f"{peak} bytes"
