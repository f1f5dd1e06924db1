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

from lazyfs.errors import Dropped
from lazyfs.stores.base import Claim

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

INSTANT = 1e-6
"""Seconds that are not waited for: what a clock that was waited for may lack."""

STEADY = 10.0
"""Seconds without a refusal after which a tempo ends of which less than half is used."""


class Tempo:
    """The tempo of one endpoint; none at first. `clock` gives seconds that only grow."""

    def __init__(self, connections: int, *, clock: Callable[[], float]) -> None:
        self._connections = connections
        self._clock = clock
        self._answers: deque[float] = deque()
        self._began = -math.inf
        self._sent = -math.inf
        self._waiting: list[_Turn] = []
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
        self._wake()

    async def turn(self, claim: Claim) -> None:
        """Wait until one more request may be sent, and it is this one: urgent ones go before all others, also those
        that came before. `Dropped` if the claim is dropped first. Nobody's moment is settled before it is there, for
        the tempo may have changed by then."""
        if self.rate is None:
            return
        me = _Turn(claim)
        self._waiting.append(me)
        claim.on_change = self._wake
        try:
            while self.rate is not None:
                if claim.dropped:
                    raise Dropped("given up before it was sent")
                left = self._sent + 1 / self.rate - self._clock()
                first = self._first()
                if first is me and left <= INSTANT:
                    self._sent = self._clock()
                    return
                me.look = trio.Event()
                if first is not me:
                    first.look.set()  # it may have been urged since it looked
                with trio.move_on_after(left if first is me else math.inf):
                    await me.look.wait()
        finally:
            claim.on_change = None
            self._waiting.remove(me)
            self._wake()

    def _first(self) -> "_Turn":
        return next((one for one in self._waiting if one.claim.urgent), self._waiting[0])

    def _wake(self) -> None:
        """Whose turn it is looks again, and who was dropped; all, where there is no tempo any more."""
        first = self._first() if self._waiting else None
        for one in self._waiting:
            if one is first or one.claim.dropped or self.rate is None:
                one.look.set()

    def _lately(self, now: float) -> float:
        """Answers a second."""
        while self._answers and self._answers[0] < now - LATELY:
            self._answers.popleft()
        return len(self._answers) / min(LATELY, max(SHORTEST, now - self._began))


class _Turn:
    """Who waits for a turn; `look` is set when that may have come."""

    __slots__ = ("claim", "look")

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.look = trio.Event()
