"""What asking one endpoint has come to lately, in one state for all who ask it.

Its job: when the endpoint is down or says SlowDown, everybody waits, newcomers too, by pauses that double while nothing
works and that are spread by chance; the first answer ends all of them. A fleet of readers that each kept a pause of
their own would ask as often as there are readers, and all at once when the server comes back.

A failure of one read among others that work holds nobody up but that read. Loop thread only; no step here is awaited
but the waiting.
"""

import math
import random
from collections.abc import Callable

import trio

from lazyfs.stores.gate import Bound, Gate
from lazyfs.stores.tempo import Tempo

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
"""Seconds: pauses double from the first to the longest, each drawn evenly from between a half and the whole of it."""

SPREAD = 0.1
"""Seconds over which those that waited for an endpoint ask it when it answers again."""


class Endpoint:
    """One endpoint, and the gate in front of it. `clock` gives seconds that only grow."""

    def __init__(
        self, connections: int, *, clock: Callable[[], float], rng: random.Random, bound: Bound | None = None
    ) -> None:
        self.gate = Gate(connections, bound)
        self.tempo = Tempo(connections, clock=clock)
        self._clock = clock
        self._rng = rng
        # Rounds of failures since something worked, and when the last of them was noted.
        self._rounds = 0
        self._noted = -math.inf
        self._held_until = -math.inf
        self._answers = trio.Event()

    @property
    def down(self) -> bool:
        """Whether it has failed again after a failure, with no success in between, or asked for less."""
        return self._held_until > -math.inf

    def failed(self, sent: float, *, slow_down: bool) -> None:
        """A request that was sent at `sent` failed. All that were under way at the same time are one round: 32 reads
        that are refused at once say no more than one."""
        if sent <= self._noted:
            return
        self._noted = self._clock()
        self._rounds += 1
        if slow_down:
            self.gate.narrow()
            self.tempo.slower()
        if slow_down or self._rounds > 1:
            self._held_until = self._noted + self._drawn(self._rounds)

    def worked(self) -> None:
        """A request was answered."""
        self._rounds = 0
        self._held_until = -math.inf
        self.gate.widen()
        self.tempo.worked()
        answers, self._answers = self._answers, trio.Event()
        answers.set()

    def pause(self, failures: int) -> float:
        """Seconds to wait for who has failed so many times in a row: its own pause, or the endpoint's if longer."""
        return max(self._drawn(failures), self._held_until - self._clock())

    async def wait(self, seconds: float) -> None:
        """Wait so long, or, for an endpoint that is down, until it answers somebody."""
        if not self.down:
            await trio.sleep(seconds)
            return
        with trio.move_on_after(seconds) as scope:
            await self._answers.wait()
        if not scope.cancelled_caught:
            await trio.sleep(self._rng.random() * min(SPREAD, seconds))

    async def held(self, most: float) -> None:
        """Wait as a newcomer for an endpoint that is down, `most` seconds; nothing for one that is not."""
        if (seconds := self._held_until - self._clock()) > 0:
            await self.wait(min(most, seconds * (1 + self._rng.random())))

    def _drawn(self, failures: int) -> float:
        step = FIRST_PAUSE if failures <= 1 else min(FIRST_PAUSE * 2.0 ** min(failures - 1, 30), LONGEST_PAUSE)
        return step * (0.5 + self._rng.random() / 2)
