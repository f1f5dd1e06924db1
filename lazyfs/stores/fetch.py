"""Patience: a store around a store that asks again.

Its job: a body that broke, or that falls behind what its peers show, is resumed at the byte where it was; asking again
is spread by jitter, in step with everybody else who asks this endpoint, and ends with the retry budget. Who may ask at
all is the gate's affair. Must not know what the bytes are for.

Concurrency: loop thread only.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from lazyfs.errors import AccessDenied, Dropped, StoreError, Transient, Unreachable
from lazyfs.objects import KIB, Checksums, Listing, ObjectInfo, ObjectVersion, Stretch, tail
from lazyfs.stores.base import Arrived, Claim, Store
from lazyfs.stores.endpoint import Endpoint
from lazyfs.stores.gate import Bound
from lazyfs.stores.pace import Pace, Progress
from lazyfs.tallies import SLOW, Tally

T = TypeVar("T")

LOOK = 0.05
"""Seconds between two looks at the reads under way for one that is behind."""

MOST_RESTARTS = 2
"""Of one read because it is behind: what is slow a third time is not the connection."""

PROGRESS = 64 * KIB
"""Bytes of a read after which its patience begins anew: a network that breaks every connection is slow, and not down.
With less, one that gives a byte at a time would be asked for ever without a pause."""


@dataclass(frozen=True, slots=True)
class FetchStatistics:
    """Counters since the start. Requests are attempts, retries the attempts after a failure, restarts those after a
    connection that fell behind, slow_downs how often the endpoint asked for less; bytes are received. `connections` is
    how many reads may be under way now."""

    get_requests: int
    list_requests: int
    head_requests: int
    retries: int
    restarts: int
    slow_downs: int
    bytes_received: int
    demand_bytes: int
    connections: int


class _Behind(Exception):
    """A read was broken off because it was behind, and goes on at once: nothing failed."""


@dataclass(slots=True)
class _Sent:
    """A read under way: its claim, how often it was restarted before, and whether it was broken off now because it is
    behind, or because next to nothing comes."""

    claim: Claim
    restarts: int
    severed: bool = False
    stalled: bool = False


@dataclass(slots=True)
class _Trial:
    """What asking for one thing has come to: when it was sent last, and the bytes that are here."""

    sent: float = 0.0
    done: int = 0


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
        bound: Bound | None = None,
    ) -> None:
        """`bound`: one on the reads under way of all stores that ask the same endpoint."""
        self._inner = inner
        self._endpoint = Endpoint(connections, clock=clock, rng=rng or random.Random(), bound=bound)
        self._gate = self._endpoint.gate
        self._retry_budget = retry_budget
        self._clock = clock
        self._counts = dict.fromkeys(set(FetchStatistics.__dataclass_fields__) - {"connections"}, 0)
        self._pace = Pace()
        self.gate_waits = Tally(SLOW)
        """How long reads waited until they might ask the endpoint."""
        self._sent: dict[Progress, _Sent] = {}
        self._something = trio.Event()
        self.trouble: str | None = None
        """What was wrong when it was asked last: empty if it gave an answer, None if it was not asked yet."""

    def useful(self) -> int | None:
        """Bytes in flight that keep the network busy, as far as reads have shown; see `pace`."""
        return self._pace.useful

    @property
    def used(self) -> bool:
        """Whether anything was read from it."""
        return self._counts["get_requests"] > 0

    async def watch(self) -> None:
        """Restart reads that fall behind their peers, and break off those that bring next to nothing, for ever; without
        it they are waited for."""
        while True:
            await self._something.wait()
            while self._sent:
                await trio.sleep(LOOK)
                now = self._clock()
                for progress in self._pace.behind(now):
                    self._restart(self._sent[progress])
                for progress in self._pace.stalled(now):
                    self._break_off(self._sent[progress])
            self._something = trio.Event()

    def _restart(self, sent: "_Sent") -> None:
        """Break a read off; it goes on over another connection, from where it is. Not where that cannot be done, or did
        not help."""
        if sent.severed or sent.restarts >= MOST_RESTARTS or (sever := sent.claim.sever) is None:
            return
        sent.severed = True
        self._counts["restarts"] += 1
        sever()

    def _break_off(self, sent: "_Sent") -> None:
        """Have a read fail as if the connection had been silent."""
        if not sent.severed and (sever := sent.claim.sever) is not None:
            sent.stalled = True
            sever()

    def statistics(self) -> FetchStatistics:
        """A frozen copy of the counters."""
        return FetchStatistics(**self._counts, connections=self._gate.places)

    async def list(self, prefix: str, *, budget: float | None = None) -> Listing:
        """See `base.Store.list`. `budget`: seconds of patience, where they are not the usual ones."""
        return await self._ask("list_requests", f"list {prefix!r}", lambda: self._inner.list(prefix), budget)

    async def stretch(self, prefix: str, after: str, *, budget: float | None = None) -> Stretch:
        """See `base.Store.stretch`; `budget` as in `list`."""
        what = f"list below {prefix!r} after {after!r}"
        return await self._ask("list_requests", what, lambda: self._inner.stretch(prefix, after), budget)

    async def total_size(self, prefix: str, *, budget: float | None = None) -> int:
        """See `base.Store.total_size`; `budget` as in `list`."""
        return await self._ask("list_requests", f"list {prefix!r}", lambda: self._inner.total_size(prefix), budget)

    async def stat(self, key: str, *, budget: float | None = None) -> ObjectInfo:
        """See `base.Store.stat`; `budget` as in `list`."""
        return await self._ask("head_requests", f"head {key!r}", lambda: self._inner.stat(key), budget)

    async def checksums(self, version: ObjectVersion) -> Checksums:
        """See `base.Store.checksums`."""
        return await self._ask("head_requests", f"head {version.key!r}", lambda: self._inner.checksums(version))

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """See `base.Store.read`. A broken body is resumed where it broke; `Dropped` if the claim was dropped in the
        queue."""
        size = sum(len(view) for view in into)
        restarts = 0

        async def ask(trial: _Trial) -> None:
            nonlocal restarts
            base = trial.done
            queued = self._clock()
            await self._gate.enter(claim)
            try:
                await self._endpoint.tempo.turn(claim)
            except BaseException:
                self._gate.leave(claim)
                raise
            self.gate_waits.add(self._clock() - queued)
            self._counts["get_requests"] += 1
            trial.sent = self._clock()
            progress = self._pace.begin(size - base, trial.sent)
            sent = self._sent[progress] = _Sent(claim, restarts)
            self._something.set()

            def note(count: int) -> None:
                progress.answered = True
                progress.done = count
                trial.done = base + count
                arrived(trial.done)

            try:
                await self._inner.read(version, start + base, tail(into, base), note, claim)
            except Transient as error:
                # With the last byte here nothing is left to ask for; an empty range cannot even be written.
                if trial.done < size:
                    if sent.severed:
                        restarts += 1
                        raise _Behind from error
                    if sent.stalled:
                        raise Transient(f"next to nothing came, {progress.done} bytes in all") from error
                    raise
            finally:
                self._gate.leave(claim)
                del self._sent[progress]
                self._pace.end(progress, self._clock(), whole=progress.done == progress.size)
                self._counts["bytes_received"] += trial.done - base
                self._counts["demand_bytes"] += trial.done - base if claim.urgent else 0

        async def ask_on(trial: _Trial) -> None:
            while True:
                try:
                    return await ask(trial)
                except _Behind:
                    pass

        await self._patiently(f"read {version.key!r} bytes {start}-{start + size - 1}", ask_on)

    async def _ask(self, counter: str, what: str, ask: Callable[[], Awaitable[T]], budget: float | None = None) -> T:
        """One request without a body to resume, patiently and counted."""

        async def counted(trial: _Trial) -> T:
            self._counts[counter] += 1
            trial.sent = self._clock()
            return await ask()

        return await self._patiently(what, counted, budget)

    async def _patiently(self, what: str, ask: Callable[[_Trial], Awaitable[T]], budget: float | None = None) -> T:
        """Ask until it works, fails for good, or nothing came for as long as the budget. Only `Transient` is asked
        again."""
        budget = self._retry_budget if budget is None else min(budget, self._retry_budget)
        trial = _Trial()
        attempts = failures = counted = 0
        failing_since: float | None = None
        while True:
            if self._endpoint.down:
                # Waiting with the rest is failing too: who comes late has no more patience than who came first.
                failing_since = self._clock() if failing_since is None else failing_since
                await self._endpoint.held(budget)
            attempts += 1
            try:
                found = await ask(trial)
            except Transient as error:
                now = self._clock()
                self.trouble = str(error)
                self._counts["slow_downs"] += error.slow_down
                self._endpoint.failed(trial.sent, slow_down=error.slow_down)
                if trial.done - counted >= PROGRESS:
                    failures, counted, failing_since = 0, trial.done, None
                failing_since = now if failing_since is None else failing_since
                failures += 1
                wait = self._endpoint.pause(failures)
                if now - failing_since + wait > budget:
                    raise Unreachable(f"{what}: {attempts} attempts failed, the last with {error}") from error
                self._counts["retries"] += 1
                await self._endpoint.wait(wait)
            except Dropped:
                raise
            except StoreError as error:
                self._endpoint.worked()  # a refusal is an answer, too
                self.trouble = str(error) if isinstance(error, AccessDenied) else ""
                raise
            else:
                self._endpoint.worked()
                self.trouble = ""
                return found
