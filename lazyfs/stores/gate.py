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


class Gate:
    """At most `most` reads under way. An urgent claim passes every one that is not, also those queued before it.

    Read-ahead may hold all places but `reserve`, so that demand does not wait for a whole span of somebody's guess.
    Among read-ahead the lane that holds the fewest places is next, so that one that has queued much waits by itself.
    `narrow` halves the places, as TCP does when a packet is lost; each round of reads that work gives one back.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.places = most
        self.in_use = 0
        self._worked = 0
        self._lanes: Counter[Hashable] = Counter()
        self._shares: list[Share] = []
        self._waiting: deque[_Waiter] = deque()

    @property
    def reserve(self) -> int:
        """Places that read-ahead leaves to demand."""
        return min(max(1, self.places // 8), self.places - 1)

    def join(self, most: int) -> "Share":
        """One more asks this endpoint, with `most` reads under way at most. Of several each has a part of half of the
        places that the others leave to it: what one has under way may get no answer."""
        self._shares.append(Share(most))
        return self._shares[-1]

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
                self._wake()

    async def enter(self, claim: Claim, share: "Share | None" = None) -> None:
        """Wait for a place, of this share; where one is free, without giving way to other tasks, so that who comes
        first is sent first. `Dropped` if the claim is dropped first."""
        waiter = _Waiter(claim, share)
        self._waiting.append(waiter)
        claim.on_change = self._wake
        self._wake()
        try:
            if not waiter.decided.is_set():
                await waiter.decided.wait()
        except BaseException:
            if waiter.granted:
                self.leave(claim, share)
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            raise
        finally:
            claim.on_change = None
        if not waiter.granted:
            raise Dropped("given up before it was sent")

    def leave(self, claim: Claim, share: "Share | None" = None) -> None:
        """Give the place back; it passes to who waits without a moment in which a newcomer could take it."""
        self.in_use -= 1
        if share is not None:
            share.used -= 1
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
            if waiter.share is not None:
                waiter.share.used += 1
            self._lanes[waiter.claim.lane] += 1
            waiter.decided.set()

    def _next(self) -> "_Waiter | None":
        if self.in_use >= self.places:
            return None
        room = {share: self._has_room(share) for share in self._shares}
        waiting = [one for one in self._waiting if one.share is None or room[one.share]]
        urgent = next((w for w in waiting if w.claim.urgent), None)
        if urgent is not None:
            return urgent
        if not waiting or self.in_use >= self.places - self.reserve:
            return None
        return min(waiting, key=lambda waiter: self._lanes[waiter.claim.lane])

    def _has_room(self, share: "Share") -> bool:
        own = self.places // (2 * len(self._shares)) if len(self._shares) > 1 else 0
        others = sum(max(own, one.used) for one in self._shares if one is not share)
        return share.used < min(share.most, max(1, self.places - others))


class Share:
    """Who asks an endpoint beside others: at most `most` reads under way, of which there are `used` now."""

    __slots__ = ("most", "used")

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0


class _Waiter:
    """One claim in the queue. `decided` is set once: with `granted`, or because the claim was dropped."""

    __slots__ = ("claim", "decided", "granted", "share")

    def __init__(self, claim: Claim, share: Share | None) -> None:
        self.claim = claim
        self.share = share
        self.decided = trio.Event()
        self.granted = False
