"""How many requests a second an endpoint is asked for, once it has said that they were too many.

Its job: SlowDown is said of a rate, and a bound on requests under way (`gate`) is none. What is refused is over at
once, so that fifty daemons with one connection each asked 1,350 times a second for the 100 that a prefix took
(`tests/simulation/fleet.py`; 50 to 160 times now). So a refusal sets a tempo: a part of the rate at which answers came
lately. It grows again while none is refused, slowly at first, and ends when it bounds nothing any more. Fleets settle
near the limit as senders on one line do: whoever asks more is refused more often.

Must not know what is asked for. Loop thread only.
"""

import math
from collections import deque
from collections.abc import Callable

import trio

LATELY = 2.0
"""Seconds over which answers are counted."""

SHORTEST = 0.25
"""Seconds over which they are counted when they have only begun to come."""

PART = 0.7
"""Of the answers of late, after a refusal."""

SLOWEST = 0.1
"""Requests a second, at least: an endpoint that refuses everything is the affair of pauses and of the budget."""

GROWTH = 0.2
ACCELERATION = 0.05
"""The part by which the tempo grows in a second without a refusal, and how much larger that part is with each second:
it doubles in 3 s. With a quarter of that fleets were ready some 4 s later, and as much was refused."""

STEADY = 10.0
"""Seconds without a refusal after which a tempo ends of which less than half is used."""


class Tempo:
    """The tempo of one endpoint; none at first. `clock` gives seconds that only grow."""

    def __init__(self, connections: int, *, clock: Callable[[], float]) -> None:
        self._connections = connections
        self._clock = clock
        self._answers: deque[float] = deque()
        self._began = -math.inf
        self._next = -math.inf
        self._refused = -math.inf
        self._grown = -math.inf
        self.rate: float | None = None
        """Requests a second; None: as many as there are."""

    def slower(self) -> None:
        """A round of requests was refused for being too many."""
        now = self._clock()
        answers = self._lately(now)
        # Without a single answer nothing is known but that this was too much.
        found = PART * answers if answers else self._connections / 2 if self.rate is None else self.rate / 2
        self.rate = max(SLOWEST, found if self.rate is None else min(found, PART * self.rate))
        self._refused = self._grown = now

    def worked(self) -> None:
        """A request was answered."""
        now = self._clock()
        if not self._answers:
            self._began = now
        self._answers.append(now)
        if self.rate is None:
            self._lately(now)
            return
        steady, passed = now - self._refused, now - self._grown
        self._grown = now
        self.rate += self.rate * passed * (GROWTH + ACCELERATION * steady)
        if steady > STEADY and self.rate > 2 * self._lately(now):
            self.rate = None

    async def turn(self) -> None:
        """Wait until one more request may be sent."""
        if self.rate is None:
            return
        now = self._clock()
        at = max(now, self._next)
        self._next = at + 1 / self.rate
        if at > now:
            await trio.sleep(at - now)

    def _lately(self, now: float) -> float:
        """Answers a second."""
        while self._answers and self._answers[0] < now - LATELY:
            self._answers.popleft()
        return len(self._answers) / min(LATELY, max(SHORTEST, now - self._began))
