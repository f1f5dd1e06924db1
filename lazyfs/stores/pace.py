"""What reads under way show of the network: how much of it in flight pays, and which of them are behind.

Pure: times are handed in, in seconds of one clock that only grows. Must not know what sends the reads.

The rate is measured as in BBR (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016): a
read that ends is a sample of all that was delivered during its life over the length of it; the largest of the last
ones, times how long a read takes when little else is under way, is what must be in flight to keep the network busy.
"""

import statistics
from collections import deque
from dataclasses import dataclass

from lazyfs.objects import MIB

SAMPLES = 64
"""Ended reads that are remembered: two rounds of the default connections."""

ENOUGH = 8
"""Samples before anything is said."""

GAIN = 4
"""Times what was just enough: the next round may then find out whether more would pay, as fast as windows grow."""

LEAST = 32 * MIB
"""What may always be in flight: two GETs of a usual size, while two more are read from memory."""

PEERS = 4
"""Reads that must have ended during the life of one before it can be behind them: when all are slow, none is behind."""

BEHIND = 4
"""Times what the peers' median rate would take. Reads that share a machine differ by a factor of two."""

GRACE = 0.25
"""Seconds in which nothing is behind: a connection is opened, a name resolved, a server wakes up."""


@dataclass(slots=True, eq=False)
class Progress:
    """One read under way: when it began, what had been delivered by then, and how many of its bytes are here."""

    size: int
    began: float
    delivered: int
    done: int = 0
    peers: int = 0


class Pace:
    """Reads of one endpoint. Loop thread only, but for `Progress.done`, which is written by whoever receives."""

    def __init__(self) -> None:
        self._delivered = 0
        self._under_way: set[Progress] = set()
        self._ended: deque[tuple[int, float]] = deque(maxlen=SAMPLES)
        self._rates: deque[float] = deque(maxlen=SAMPLES)
        self.useful: int | None = None
        """Bytes in flight that keep the network busy; None as long as that is not known."""

    def __bool__(self) -> bool:
        """Whether a read is under way."""
        return bool(self._under_way)

    def begin(self, size: int, now: float) -> Progress:
        """A read of `size` bytes is sent."""
        progress = Progress(size, now, self._delivered)
        self._under_way.add(progress)
        return progress

    def end(self, progress: Progress, now: float, *, whole: bool) -> None:
        """It is over; only a read that got all of its bytes says something about the network."""
        self._under_way.discard(progress)
        self._delivered += progress.done
        if not whole or now <= progress.began:
            return
        for peer in self._under_way:
            peer.peers += 1
        self._ended.append((progress.size, now - progress.began))
        self._rates.append((self._delivered - progress.delivered) / (now - progress.began))
        if len(self._ended) >= ENOUGH:
            large = max(size for size, _ in self._ended) // 2
            unloaded = min(seconds for size, seconds in self._ended if size >= large)
            self.useful = max(LEAST, int(GAIN * max(self._rates) * unloaded))

    def behind(self, now: float) -> list[Progress]:
        """The reads that are far behind those that ended during their life."""
        if not self._ended:
            return []
        rate = statistics.median(size / seconds for size, seconds in self._ended)
        return [
            one
            for one in self._under_way
            if one.peers >= PEERS
            and now - one.began > max(GRACE, BEHIND * one.size / rate)
            # At its own rate it would take longer than asking again may.
            and (one.size - one.done) * (now - one.began) > GRACE * one.done
        ]
