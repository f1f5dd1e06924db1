"""What reads under way show of the network: how much of it in flight pays, and which of them are behind.

Pure: times are handed in, in seconds of one clock that only grows. Must not know what sends the reads.

The rate is measured as in BBR (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016): a
read that ends is a sample of all that was delivered during its life over the length of it; the largest of the last
ones, times how long a read takes when little else is under way, is what must be in flight to keep the network busy.
"""

import statistics
from collections import deque
from dataclasses import dataclass

from lazyfs.objects import KIB, MIB

SAMPLES = 64
"""Ended reads that are remembered: two rounds of the default connections."""

ENOUGH = 8
"""Samples before anything is said. With 16, loads were as fast, and a slow network had twice as much in flight."""

GROWING = 1.25
"""While the last ENOUGH reads show so many times the rate of those before them, the network has not shown what it can
do, and nothing is said; BBR leaves its startup by the same sign. Held to what the rate was a round trip ago, a window
of a cold start grew by GAIN a round at most, for three rounds, and less than the reader had earned."""

GAIN = 4
"""Times what was just enough: the next round may then find out whether more would pay, as fast as windows grow."""

LEAST = 32 * MIB
"""What may always be in flight: two GETs of a usual size, while two more are read from memory."""

BEHIND = 3
"""Times what a read of its size usually takes. Reads that share a machine differ by a factor of two."""

MOST_BEHIND = 4
"""When more than one in so many of the reads under way is behind, it is the network, and none of them is to blame."""

GRACE = 0.25
"""Seconds in which nothing is behind that was not answered: a connection is opened, a name resolved, a server wakes
up."""

SOON = 0.12
LEFT = 8
"""Seconds after which a read of which the head of an answer is here may be behind: if it has less than one in so many
of its bytes when its like are through, one that was sent after it among them, it will not catch up. A cold GiB, shaped,
with one GET in 32 at 1 MB/s, took 1.7 s without, and 1.2 with it. With either of the last two alone as many were found,
and one to six were restarted that only starved, now and then, in a cold GiB over TLS or of 32 readers."""

STALL = 60.0
TRICKLE = 64 * KIB
"""Seconds in which so many bytes must come: a byte now and then is no silence, which sockets bound by themselves, and
no progress. Three times the bound on silence, since bytes of a piece may be told of as late as that."""


@dataclass(slots=True, eq=False)
class Progress:
    """One read under way: when it began, what had been delivered by then, whether an answer has begun, how many of its
    bytes are here, and how many were when it was looked at for a stall."""

    size: int
    began: float
    delivered: int
    answered: bool = False
    done: int = 0
    looked: float = 0.0
    done_then: int = 0


class Pace:
    """Reads of one endpoint. Loop thread only, but for `Progress.done` and `answered`, written by who receives."""

    def __init__(self) -> None:
        self._delivered = 0
        self._under_way: set[Progress] = set()
        # Their sizes, how long they took and when they began.
        self._ended: deque[tuple[int, float, float]] = deque(maxlen=SAMPLES)
        self._rates: deque[float] = deque(maxlen=SAMPLES)
        self.useful: int | None = None
        """Bytes in flight that keep the network busy; None as long as that is not known."""

    def __bool__(self) -> bool:
        """Whether a read is under way."""
        return bool(self._under_way)

    def begin(self, size: int, now: float) -> Progress:
        """A read of `size` bytes is sent."""
        progress = Progress(size, now, self._delivered, looked=now)
        self._under_way.add(progress)
        return progress

    def end(self, progress: Progress, now: float, *, whole: bool) -> None:
        """It is over; only a read that got all of its bytes says something about the network."""
        self._under_way.discard(progress)
        self._delivered += progress.done
        if not whole or now <= progress.began:
            return
        self._ended.append((progress.size, now - progress.began, progress.began))
        self._rates.append((self._delivered - progress.delivered) / (now - progress.began))
        self.useful = None
        rates = list(self._rates)
        if len(rates) > ENOUGH and max(rates[-ENOUGH:]) <= GROWING * max(rates[:-ENOUGH]):
            large = max(size for size, _, _ in self._ended) // 2
            unloaded = min(seconds for size, seconds, _ in self._ended if size >= large)
            self.useful = max(LEAST, int(GAIN * max(rates) * unloaded))

    def behind(self, now: float) -> list[Progress]:
        """The reads that are far behind those that ended lately, unless they are many."""
        found = [one for one in self._under_way if self._is_behind(one, now - one.began)]
        return found if len(found) <= max(1, len(self._under_way) // MOST_BEHIND) else []

    def _is_behind(self, one: Progress, age: float) -> bool:
        little = one.answered and age > SOON and LEFT * one.done < one.size
        if not (little or age > GRACE) or (usual := self._usual(one.size)) is None:
            return False
        overtaken = little and age > usual and self._overtaken(one)
        # At its own rate it would take longer than asking again may.
        return (overtaken or age > max(GRACE, BEHIND * usual)) and (one.size - one.done) * age > GRACE * one.done

    def _overtaken(self, one: Progress) -> bool:
        """Whether one of about its size that was sent after it is through."""
        return any(began > one.began and _alike(size, one.size) for size, _, began in self._ended)

    def stalled(self, now: float) -> list[Progress]:
        """The reads of which next to nothing came for a while, whatever others do."""
        found = []
        for one in self._under_way:
            if now - one.looked >= STALL:
                if one.done - one.done_then < TRICKLE:
                    found.append(one)
                one.looked, one.done_then = now, one.done
        return found

    def _usual(self, size: int) -> float | None:
        """Seconds that a read of about this size took lately; None if too few have ended."""
        alike = [seconds for ended, seconds, _ in self._ended if _alike(ended, size)]
        if len(alike) >= ENOUGH // 2:
            return statistics.median(alike)
        if len(self._ended) < ENOUGH:
            return None
        return size / statistics.median(ended / seconds for ended, seconds, _ in self._ended)


def _alike(size: int, other: int) -> bool:
    return size <= 2 * other and other <= 2 * size
