"""One job of a program in a trio loop of its own, from a program that need not know of loops.

Its job: that Ctrl-C is one, and not a group of exceptions, and that a notebook, whose thread runs another loop already,
gets no warning about signals. Must not know the job.
"""

import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import trio

from lazyfs.errors import UsageError

T = TypeVar("T")


def to_the_end(job: Callable[[], Awaitable[T]]) -> T:
    """Run the job. `UsageError` from within a trio loop, which would stand still meanwhile."""
    if trio.lowlevel.in_trio_run():
        raise UsageError("this call blocks, and a trio loop runs here; use lazyfs.aio.ModelCache")
    if not _in_asyncio():
        return _run(job)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_run, job).result()


def _in_asyncio() -> bool:
    """Whether this thread runs a loop of asyncio's: none does before somebody imported it, which takes 30 ms of a
    mount's 600."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run(job: Callable[[], Awaitable[T]]) -> T:
    async def main() -> T:
        return await job()

    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is not None:
            raise KeyboardInterrupt from None
        raise
