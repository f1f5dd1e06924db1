"""Who may ask an endpoint now: a bound on reads under way, which gives way when the endpoint says that it is too much.

Must not know what reads are or how they are sent. Loop thread only; the state changes only between awaits.
Invariants: `in_use` equals the number of reads between `enter` and `leave`; nobody waits while a place they may take is
free; 1 <= places <= most.
"""

from collections import Counter, deque
from collections.abc import Hashable

import trio

from lazyfs.errors import Dropped
from lazyfs.stores.base import Claim


class Bound:
    """A bound on what several gates let in together, those of the sources that one endpoint serves. A gate that has
    reads under way, or somebody waiting, has a part of half of the places that no other takes, for what the others have
    under way may get no answer; one that is idle has a single place."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._gates: list[Gate] = []

    def join(self, gate: "Gate") -> None:
        """One gate more."""
        self._gates.append(gate)

    def left_to(self, gate: "Gate") -> int:
        """How many places all others leave to this one, its own included; at least one."""
        count = len(self._gates)
        if count == 1:
            return self.most
        own, idle = self.most // (2 * count), int(2 * count <= self.most)
        others = (
            max(one.in_use, min(one.places, own) if one.busy else idle) for one in self._gates if one is not gate
        )
        return max(1, self.most - sum(others))

    def has_place(self) -> bool:
        """Whether not all places are taken."""
        return sum(gate.in_use for gate in self._gates) < self.most

    def freed(self, by: "Gate") -> None:
        """A place came back to `by`, which has no use for it."""
        for gate in self._gates:
            if gate is not by and gate.busy:
                gate.look()


class Gate:
    """At most `most` reads under way. An urgent claim passes every one that is not, also those queued before it.

    Read-ahead leaves a reserve of the places, so that demand does not wait for a whole span of somebody's guess. Among
    read-ahead the lane that holds the fewest places is next, so that one that has queued much waits by itself. `narrow`
    halves the places, as TCP does when a packet is lost; each round of reads that work gives one back.
    """

    def __init__(self, most: int, bound: Bound | None = None) -> None:
        """`bound`: one that holds for other gates as well."""
        self.most = most
        self.places = most
        self._bound = bound
        if bound is not None:
            bound.join(self)
        self.in_use = 0
        self._worked = 0
        self._lanes: Counter[Hashable] = Counter()
        self._waiting: deque[_Waiter] = deque()

    @property
    def busy(self) -> bool:
        """Whether a read is under way, or waits."""
        return self.in_use > 0 or bool(self._waiting)

    def narrow(self) -> None:
        """The endpoint has too much to do: half as many places, at least one. Who is inside goes on."""
        self.places = max(1, self.places // 2)
        self._worked = 0

    def widen(self) -> None:
        """A read has worked; after as many of them as there are places, there is one place more."""
        if self.places < self.most:
            self._worked += 1
            if self._worked >= self.places:
                self.places += 1
                self._worked = 0
                self.look()

    async def enter(self, claim: Claim) -> None:
        """Wait for a place; where one is free, without giving way to other tasks, so that who comes first is sent
        first. `Dropped` if the claim is dropped first."""
        waiter = _Waiter(claim)
        self._waiting.append(waiter)
        claim.on_change = self.look
        self.look()
        try:
            if not waiter.decided.is_set():
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
        self.look()
        if self._bound is not None:
            self._bound.freed(self)

    def look(self) -> None:
        """Let in who may come in now, and tell who was dropped."""
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
        places = self.places
        if not self._waiting or self.in_use >= places:
            return None
        if self._bound is not None:
            places = min(places, self._bound.left_to(self))
            if self.in_use >= places or not self._bound.has_place():
                return None
        urgent = next((w for w in self._waiting if w.claim.urgent), None)
        if urgent is not None:
            return urgent
        if self.in_use >= places - reserve_of(places):
            return None
        return min(self._waiting, key=lambda waiter: self._lanes[waiter.claim.lane])


def reserve_of(places: int) -> int:
    """How many of so many places read-ahead leaves to demand."""
    return min(max(1, places // 8), places - 1)


class _Waiter:
    """One claim in the queue. `decided` is set once: with `granted`, or because the claim was dropped."""

    __slots__ = ("claim", "decided", "granted")

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.decided = trio.Event()
        self.granted = False
