"""Patience: a store around a store that asks again, and decides who may ask at all.

Its job: at most `connections` reads at once, demand before read-ahead, and lanes evenly; a body that broke, or that
falls behind what its peers show, is resumed at the byte where it was; asking again is spread by jitter and ends with
the retry budget. Must not know what the bytes are for.

Concurrency: loop thread only; the gate's state changes only between awaits. Invariant: `in_use` equals the number of
reads between `Gate.enter` and `Gate.leave`, and nobody waits while a place they may take is free.
"""

import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from lazyfs.errors import Dropped, Transient, Unreachable
from lazyfs.objects import Listing, ObjectInfo, ObjectVersion, tail
from lazyfs.stores.base import Arrived, Claim, Store
from lazyfs.stores.pace import Pace, Progress

T = TypeVar("T")

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
"""Seconds: pauses double from the first to the longest, each drawn evenly from between a half and the whole of it."""


LOOK = 0.05
"""Seconds between two looks at the reads under way for one that is behind."""

MOST_RESTARTS = 2
"""Of one read because it is behind: what is slow a third time is not the connection."""


@dataclass(frozen=True, slots=True)
class FetchStatistics:
    """Counters since the start. Requests are attempts, retries the attempts after a failure, restarts those after a
    connection that fell behind; bytes are received."""

    get_requests: int
    list_requests: int
    head_requests: int
    retries: int
    restarts: int
    bytes_received: int
    demand_bytes: int


class Gate:
    """A bound on reads under way. An urgent claim passes every one that is not, also those queued before it.

    Read-ahead may hold all places but `reserve`, so that demand does not wait for a whole span of somebody's guess.
    Among read-ahead the lane that holds the fewest places is next, so that one that has queued much waits by itself.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self.reserve = min(max(1, places // 8), places - 1)
        self.in_use = 0
        self._lanes: Counter[Hashable] = Counter()
        self._waiting: deque[_Waiter] = deque()

    async def enter(self, claim: Claim) -> None:
        """Wait for a place. `Dropped` if the claim is dropped first."""
        waiter = _Waiter(claim)
        self._waiting.append(waiter)
        claim.on_change = self._wake
        self._wake()
        try:
            await waiter.decided.wait()
        except BaseException:
            if waiter.granted:
                self.leave(claim)
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            raise
        finally:
            claim.on_change = None
        if not waiter.granted:
            raise Dropped("given up before it was sent")

    def leave(self, claim: Claim) -> None:
        """Give the place back; it passes to who waits without a moment in which a newcomer could take it."""
        self.in_use -= 1
        self._lanes[claim.lane] -= 1
        if not self._lanes[claim.lane]:
            del self._lanes[claim.lane]
        self._wake()

    def _wake(self) -> None:
        for dropped in [w for w in self._waiting if w.claim.dropped]:
            self._waiting.remove(dropped)
            dropped.decided.set()
        while (waiter := self._next()) is not None:
            self._waiting.remove(waiter)
            waiter.granted = True
            self.in_use += 1
            self._lanes[waiter.claim.lane] += 1
            waiter.decided.set()

    def _next(self) -> "_Waiter | None":
        urgent = next((w for w in self._waiting if w.claim.urgent), None)
        if urgent is not None:
            return urgent if self.in_use < self.places else None
        if not self._waiting or self.in_use >= self.places - self.reserve:
            return None
        return min(self._waiting, key=lambda waiter: self._lanes[waiter.claim.lane])


class _Waiter:
    """One claim in the queue. `decided` is set once: with `granted`, or because the claim was dropped."""

    __slots__ = ("claim", "decided", "granted")

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.decided = trio.Event()
        self.granted = False


class _Behind(Exception):
    """A read was broken off because it was behind, and goes on at once: nothing failed."""


@dataclass(slots=True)
class _Sent:
    """A read under way: its claim, how often it was restarted before, and whether it was broken off now."""

    claim: Claim
    restarts: int
    severed: bool = False


class PatientStore:
    """`inner` with patience. `clock` gives seconds that only grow; `rng` spreads the pauses."""

    def __init__(
        self,
        inner: Store,
        *,
        connections: int,
        retry_budget: float,
        clock: Callable[[], float] = trio.current_time,
        rng: random.Random | None = None,
    ) -> None:
        self._inner = inner
        self._gate = Gate(connections)
        self._retry_budget = retry_budget
        self._clock = clock
        self._rng = rng or random.Random()
        self._counts = dict.fromkeys(FetchStatistics.__dataclass_fields__, 0)
        self._pace = Pace()
        self._sent: dict[Progress, _Sent] = {}
        self._something = trio.Event()

    def useful(self) -> int | None:
        """Bytes in flight that keep the network busy, as far as reads have shown; see `pace`."""
        return self._pace.useful

    async def watch(self) -> None:
        """Restart reads that fall behind their peers, for ever; without it they are waited for."""
        while True:
            await self._something.wait()
            while self._sent:
                await trio.sleep(LOOK)
                for progress in self._pace.behind(self._clock()):
                    self._restart(self._sent[progress])
            self._something = trio.Event()

    def _restart(self, sent: "_Sent") -> None:
        """Break a read off; it goes on over another connection, from where it is. Not where that cannot be done, or did
        not help."""
        if sent.severed or sent.restarts >= MOST_RESTARTS or (sever := sent.claim.sever) is None:
            return
        sent.severed = True
        self._counts["restarts"] += 1
        sever()

    def statistics(self) -> FetchStatistics:
        """A frozen copy of the counters."""
        return FetchStatistics(**self._counts)

    async def list(self, prefix: str, *, budget: float | None = None) -> Listing:
        """See `base.Store.list`. `budget`: seconds of patience, where they are not the usual ones."""
        return await self._patiently(
            f"list {prefix!r}", lambda: self._counted("list_requests", self._inner.list(prefix)), budget
        )

    async def total_size(self, prefix: str) -> int:
        """See `base.Store.total_size`."""
        return await self._patiently(
            f"list {prefix!r}", lambda: self._counted("list_requests", self._inner.total_size(prefix))
        )

    async def stat(self, key: str) -> ObjectInfo:
        """See `base.Store.stat`."""
        return await self._patiently(f"head {key!r}", lambda: self._counted("head_requests", self._inner.stat(key)))

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """See `base.Store.read`. A broken body is resumed where it broke; `Dropped` if the claim was dropped in the
        queue."""
        stop = start + sum(len(view) for view in into)
        done = restarts = 0

        async def ask() -> None:
            nonlocal restarts
            base = done
            await self._gate.enter(claim)
            self._counts["get_requests"] += 1
            progress = self._pace.begin(stop - start - base, self._clock())
            sent = self._sent[progress] = _Sent(claim, restarts)
            self._something.set()

            def note(count: int) -> None:
                nonlocal done
                progress.done = count
                done = base + count
                arrived(done)

            try:
                await self._inner.read(version, start + base, tail(into, base), note, claim)
            except Transient as error:
                # With the last byte here nothing is left to ask for; an empty range cannot even be written.
                if done < stop - start:
                    if sent.severed:
                        restarts += 1
                        raise _Behind from error
                    raise
            finally:
                self._gate.leave(claim)
                del self._sent[progress]
                self._pace.end(progress, self._clock(), whole=progress.done == progress.size)
                self._counts["bytes_received"] += done - base
                self._counts["demand_bytes"] += done - base if claim.urgent else 0

        async def ask_on() -> None:
            while True:
                try:
                    return await ask()
                except _Behind:
                    pass

        await self._patiently(f"read {version.key!r} bytes {start}-{stop - 1}", ask_on)

    async def _counted(self, counter: str, ask: Awaitable[T]) -> T:
        self._counts[counter] += 1
        return await ask

    async def _patiently(self, what: str, ask: Callable[[], Awaitable[T]], budget: float | None = None) -> T:
        """Ask until it works, fails for good, or the budget is used up. Only `Transient` is asked again."""
        budget = self._retry_budget if budget is None else min(budget, self._retry_budget)
        started = self._clock()
        attempts = 0
        pause = FIRST_PAUSE
        while True:
            attempts += 1
            try:
                return await ask()
            except Transient as error:
                wait = pause * (0.5 + self._rng.random() / 2)
                if self._clock() - started + wait > budget:
                    raise Unreachable(f"{what}: {attempts} attempts failed, the last with {error}") from error
                self._counts["retries"] += 1
                await trio.sleep(wait)
                pause = min(2 * pause, LONGEST_PAUSE)
