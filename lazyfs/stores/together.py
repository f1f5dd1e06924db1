"""Many things done at once, of which one failure is the end: the others are cancelled, and it is raised as it is.

A nursery would raise it in a group, and who waits for one file of many wants the sentence about that file.
"""

from collections.abc import Awaitable, Callable, Iterable

import trio

from lazyfs.errors import LazyfsError

Step = Callable[[], Awaitable[None]]


async def together(steps: Iterable[Step], *, at_once: int) -> None:
    """Do all steps, `at_once` at a time and begun in their order. Raises the first `LazyfsError` of any."""
    failure: LazyfsError | None = None
    waiting = iter(steps)

    async def work(scope: trio.CancelScope) -> None:
        nonlocal failure
        for step in waiting:
            try:
                await step()
            except LazyfsError as error:
                failure = failure or error
                scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(work, nursery.cancel_scope)
    if failure is not None:
        raise failure
