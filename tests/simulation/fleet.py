"""A fleet that starts at once: daemons with lazyfs's own patience, and one prefix of a bucket that has a limit.

Its job: what `scripts/fleet` prints and `test_fleet.py` asserts. Time is trio's clock that jumps, chance is a seed.

S3 says that it takes 5,500 GETs a second for a prefix and answers 503 SlowDown beyond that. Here it takes a tenth of
that, and each daemon brings a tenth of a model: what counts is how the two compare. A request takes 30 ms to its first
byte, refused or not, and a span of 8 MiB 93 ms more, at 90 MB/s.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import trio
from trio._core import _run
from trio.testing import MockClock

from lazyfs.errors import Transient
from lazyfs.objects import MIB, ObjectVersion
from lazyfs.stores.base import Arrived, Claim, Store
from lazyfs.stores.fetch import PatientStore

FIRST_BYTE = 0.03
BODY = 8 * MIB / 90e6
CONNECTIONS = 32
PIECE = memoryview(bytearray(65536))
"""What stands for a span: nobody looks at its bytes."""

NAIVE_PAUSES = (1.0, 20.0)
"""Of a client that keeps a pause for each request: drawn from 0 to a second that doubles up to 20, as SDKs do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`daemons` that start within `jitter` seconds and want `spans` GETs each, of a prefix that takes `limit` a
    second. `patient`: by lazyfs's own patience; else each request by itself."""

    daemons: int = 50
    spans: int = 200
    limit: float = 550.0
    jitter: float = 0.0
    patient: bool = True
    seed: int = 1


@dataclass(slots=True)
class Outcome:
    """Requests and refusals by second, and when each daemon had all it wanted."""

    asked: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    ready: list[float] = field(default_factory=list)

    @property
    def excess(self) -> float:
        """Requests for each one that was needed."""
        total = self.asked.total()
        return total / (total - self.refused.total())

    def words(self) -> str:
        """In one line."""
        first, middle, last = min(self.ready), median(self.ready), max(self.ready)
        return (
            f"ready after {first:.0f} / {middle:.0f} / {last:.0f} s (first, half, all), {self.asked.total()} requests, "
            f"{self.refused.total()} refused, {max(self.asked.values())} in the busiest second"
        )


class Prefix:
    """S3's side: a bucket of tokens, full at first."""

    def __init__(self, limit: float, outcome: Outcome) -> None:
        self._limit = limit
        self._tokens = limit
        self._filled = 0.0
        self._outcome = outcome

    def admits(self) -> bool:
        """Whether one more request is taken now; it is counted either way."""
        now = trio.current_time()
        self._tokens = min(self._limit, self._tokens + (now - self._filled) * self._limit)
        self._filled = now
        self._outcome.asked[int(now)] += 1
        if self._tokens < 1:
            self._outcome.refused[int(now)] += 1
            return False
        self._tokens -= 1
        return True

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """A GET, as `stores.base.Reads` has it."""
        admitted = self.admits()
        await trio.sleep(FIRST_BYTE)
        if not admitted:
            raise Transient("503 SlowDown: please reduce your request rate", slow_down=True)
        await trio.sleep(BODY)
        arrived(sum(map(len, into)))


def simulate(plan: Plan) -> Outcome:
    """Let it happen."""
    outcome = Outcome()

    async def fleet() -> None:
        prefix = Prefix(plan.limit, outcome)
        async with trio.open_nursery() as nursery:
            for number in range(plan.daemons):
                dice = random.Random(f"{plan.seed}, {number}")
                nursery.start_soon(_daemon, plan, prefix, dice, outcome)

    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    _run._r.seed(plan.seed)
    try:
        trio.run(fleet, clock=MockClock(autojump_threshold=0))
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = False  # type: ignore[misc]
    return outcome


async def _daemon(plan: Plan, prefix: Prefix, dice: random.Random, outcome: Outcome) -> None:
    await trio.sleep(dice.uniform(0, plan.jitter))
    version = ObjectVersion("fleet", "model", '"1"', len(PIECE))
    if plan.patient:
        # Only reads are asked of it.
        store = PatientStore(_only_reads(prefix), connections=CONNECTIONS, retry_budget=300.0, rng=dice)
        read: Callable[..., object] = store.read
    else:
        read = partial(_naively, prefix, dice)
    left = iter(range(plan.spans))

    async def connection() -> None:
        for _ in left:
            await read(version, 0, [PIECE], lambda _: None, Claim(urgent=False))  # type: ignore[misc]

    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(connection)
    outcome.ready.append(trio.current_time())


def _only_reads(prefix: Prefix) -> Store:
    return prefix  # type: ignore[return-value]


async def _naively(prefix: Prefix, dice: random.Random, *wanted: object) -> None:
    pause, longest = NAIVE_PAUSES
    while True:
        try:
            await prefix.read(*wanted)  # type: ignore[arg-type]
            return
        except Transient:
            await trio.sleep(dice.uniform(0, pause))
            pause = min(2 * pause, longest)
