"""Questions to a mount's loop from the thread of its pages: one at a time, a few a second, whatever clients do.

Its job: have a question answered on the other loop, within a bound, and its answer used again while it is fresh. Must
not know what is asked.

Concurrency: `ask` is of the thread of the pages; a question runs on the mount's loop, and is cancelled there when
nobody waits for it any more.
"""

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from lazyfs.errors import LazyfsError

log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE = 0.1
"""Seconds between two questions at least, ten a second at most; and a question that took long is followed by a pause of
as long as it took, so that all of them together never have more than half of anything."""

FRESH = 0.5
"""Seconds for which an answer is not asked for again."""

PATIENCE = 4.0
"""Seconds for an answer: a directory that was never listed has to be."""

REMEMBERED = 16


class Silent(LazyfsError):
    """The loop of the mount did not answer in time."""


@dataclass(slots=True)
class Answered(Generic[T]):
    """What came of a question: a value, or why there is none."""

    value: T | None = None
    error: LazyfsError | None = None
    at: float = 0.0


class Asker:
    """Asks the loop of `main`."""

    def __init__(self, main: trio.lowlevel.TrioToken) -> None:
        self._main = main
        self._turn = trio.Lock()
        self._next = 0.0
        self._answers: OrderedDict[Hashable, Answered[object]] = OrderedDict()

    async def ask(self, name: Hashable, question: Callable[[], Awaitable[T]]) -> T:
        """The answer to the question of that name, at most `FRESH` seconds old. Raises what it raised, if that is a
        `LazyfsError`, and `Silent`."""
        async with self._turn:
            found = self._answers.get(name)
            if found is None or trio.current_time() - found.at > FRESH:
                await trio.sleep_until(self._next)
                began = trio.current_time()
                found = self._answers[name] = await self._put(question)
                found.at = trio.current_time()
                self._next = found.at + max(PAUSE, found.at - began)
                self._answers.move_to_end(name)
                if len(self._answers) > REMEMBERED:
                    self._answers.popitem(last=False)
        if found.error is not None:
            raise found.error
        return found.value  # type: ignore[return-value]

    async def _put(self, question: Callable[[], Awaitable[T]]) -> Answered[object]:
        here, done = trio.lowlevel.current_trio_token(), trio.Event()
        found: Answered[object] = Answered(error=Silent("the loop of the mount does not answer"))

        async def answer() -> None:
            try:
                with trio.move_on_after(PATIENCE):
                    found.value, found.error = await question(), None
            except LazyfsError as error:
                found.error = error
            except Exception:
                log.exception("a defect while a page was made")
                found.error = LazyfsError("a defect of lazyfs; its log says where")
            finally:
                with contextlib.suppress(trio.RunFinishedError):
                    here.run_sync_soon(done.set)

        with contextlib.suppress(trio.RunFinishedError):
            self._main.run_sync_soon(trio.lowlevel.spawn_system_task, answer)
            with trio.move_on_after(PATIENCE):
                await done.wait()
                return found
        return Answered(error=Silent("the loop of the mount does not answer"))
