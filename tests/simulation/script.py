"""The script of a seed: how large everything is, and what will go wrong. Pure.

Four kinds. Clean: nothing goes wrong, and each chunk is asked for once. Survivable: whatever goes wrong is what a
reader must never see. Hostile: objects change and vanish, and outages outlast all patience; these may fail a read, each
with the error that is named for it. Lying: as survivable, and the store gives wrong bytes as right.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from lazyfs.objects import KIB, MIB, SEGMENT_CHUNKS

Window = tuple[float, float]
"""Seconds [from, to)."""

NEVER: Window = (-1.0, -1.0)


@dataclass(frozen=True, slots=True)
class StoreFaults:
    """Shares of requests that fail in that way, and when all do."""

    broken: float = 0.0
    slow_down: float = 0.0
    stall: float = 0.0
    drip: float = 0.0
    late: float = 0.0
    """Fails after the last byte was delivered."""
    outage: Window = NEVER
    denied: Window = NEVER


@dataclass(frozen=True, slots=True)
class DiskFaults:
    """Shares of steps that fail in that way, and when all do."""

    fails: float = 0.0
    partial: float = 0.0
    rot: float = 0.0
    evicts: float = 0.0
    refuses: Window = NEVER
    room: int | None = None
    """Most chunks on disk."""


@dataclass(frozen=True, slots=True)
class Change:
    """At `time`, the object of that number is overwritten, or deleted and put again later: a new version of it, or,
    `back`, the one that was there first."""

    time: float
    number: int
    deleted_for: float
    back: bool


@dataclass(frozen=True, slots=True)
class Lie:
    """Of the object of that number, the byte at `share` of its size is wrong: until that is noticed, or `always`."""

    number: int
    share: float
    always: bool


@dataclass(frozen=True, slots=True)
class Script:
    """One seed's."""

    seed: int
    kind: str
    sizes: tuple[int, ...]
    slots: int
    span_size: int
    ways: int
    retry_budget: float
    read_ahead: int
    latency: float
    rate: float
    """Bytes in a second over one connection."""
    disk_latency: float
    readers: int
    reads: int
    """Of one reader, in all."""
    cancels: float
    lives: int
    """How often the cache is started on the same disk."""
    ends: str
    """How the first of two lives ends: `settled`, `killed` in the middle, or `closed` while readers read."""
    quick: float
    """Share of touches that are done on the loop."""
    watched: bool
    """Reads that fall behind are restarted."""
    severs: bool
    """The store can break a request off."""
    store: StoreFaults
    disk: DiskFaults
    changes: tuple[Change, ...]
    lies: tuple[Lie, ...]
    digests: str
    """What the store has of whole objects: `sha256`, `crc64nvme`, `both` or `none`."""
    automatic: bool
    """Objects are looked at when all of them is here, and not only when that is asked for."""
    demands: float
    """Share of openings at which that is asked for."""

    def denied(self, now: float) -> bool:
        """Whether the store refuses requests then."""
        return self.store.denied[0] <= now <= self.store.denied[1]

    def hopeless(self, now: float) -> bool:
        """Whether an outage that outlasts all patience has begun."""
        start, stop = self.store.outage
        return stop - start > self.retry_budget and now >= start


def write_script(seed: int) -> Script:
    """The script of this seed, the same whenever it is asked for."""
    dice = random.Random(f"script {seed}")
    kind = dice.choices(("clean", "survivable", "hostile", "lying"), (3, 4, 3, 2))[0]
    retry_budget = 200.0 if kind == "hostile" else 600.0
    sizes = tuple(_size(dice) for _ in range(dice.randint(1, 3)))
    lives = dice.choice((1, 1, 2))
    return Script(
        seed=seed,
        kind=kind,
        sizes=sizes,
        slots=dice.choice((2, 2, 3, 3, 4, 5, 6, 8, 8, 16, 32, 64, 200)),
        span_size=dice.choice((1, 2, 4, 8, 8)) * MIB,
        ways=dice.choice((1, 2, 3, 4, 8, 32)),
        retry_budget=retry_budget,
        read_ahead=dice.choice((1, 4, 16, 64)) * MIB,
        latency=dice.choice((0.0, 0.005, 0.03, 0.1)),
        rate=dice.choice((20, 90, 400)) * MIB,
        disk_latency=dice.choice((0.0, 0.0002, 0.002, 0.02)),
        readers=dice.randint(1, 5),
        reads=dice.randint(3, 20),
        cancels=dice.choice((0.0, 0.0, 0.05, 0.3)),
        lives=lives,
        ends=dice.choice(("settled", "killed", "closed")) if lives > 1 else "settled",
        quick=dice.choice((0.0, 0.5, 1.0)),
        watched=dice.random() < 0.5,
        severs=dice.random() < 0.8,
        store=StoreFaults() if kind == "clean" else _store_faults(dice, kind, retry_budget),
        disk=DiskFaults() if kind == "clean" else _disk_faults(dice),
        changes=_changes(dice, len(sizes)) if kind == "hostile" else (),
        lies=_lies(dice, len(sizes)) if kind == "lying" else (),
        digests=dice.choice(("sha256", "crc64nvme", "both", "none")),
        automatic=dice.random() < 0.8,
        demands=dice.choice((0.0, 0.0, 0.3)),
    )


def _size(dice: random.Random) -> int:
    """Mostly a few chunks, for each costs time; now and then more than a segment."""
    segment = SEGMENT_CHUNKS * MIB
    return dice.choice((
        dice.choice((0, 1, 4 * KIB, MIB - 1, MIB, MIB + 1, 8 * MIB + 1)),
        dice.randint(1, 6 * MIB),
        dice.randint(1, 12 * MIB),
        dice.choice((dice.randint(1, 24 * MIB), dice.choice((segment - 1, segment, segment + 1, 80 * MIB)))),
    ))


def _at_times(dice: random.Random, share: float) -> float:
    """Often nothing, so that what goes wrong also goes wrong alone."""
    return dice.choice((0.0, 0.0, share, share / 5))


def _window(dice: random.Random, longest: float) -> Window:
    start = dice.uniform(0, 1.0)
    return (start, start + dice.uniform(0.01, longest))


def _store_faults(dice: random.Random, kind: str, retry_budget: float) -> StoreFaults:
    outage, denied = NEVER, NEVER
    if dice.random() < 0.3:
        outage = _window(dice, 10.0)
    if kind == "hostile" and dice.random() < 0.4:
        start, _ = _window(dice, 1.0)
        outage = (start, start + 3 * retry_budget)
    if kind == "hostile" and dice.random() < 0.3:
        denied = _window(dice, 1.0)
    return StoreFaults(
        broken=_at_times(dice, 0.4),
        slow_down=_at_times(dice, 0.3),
        stall=_at_times(dice, 0.1),
        drip=_at_times(dice, 0.1),
        late=_at_times(dice, 0.3),
        outage=outage,
        denied=denied,
    )


def _disk_faults(dice: random.Random) -> DiskFaults:
    return DiskFaults(
        fails=_at_times(dice, 0.3),
        partial=_at_times(dice, 0.3),
        rot=_at_times(dice, 0.1),
        evicts=_at_times(dice, 0.2),
        refuses=_window(dice, 3.0) if dice.random() < 0.2 else NEVER,
        room=dice.choice((None, None, 1, 4, 20)),
    )


def _changes(dice: random.Random, objects: int) -> tuple[Change, ...]:
    make: Callable[[], Change] = lambda: Change(  # noqa: E731 - drawn in the order of writing
        dice.uniform(0, 1.5), dice.randrange(objects), dice.choice((0.0, 0.0, 0.5)), dice.random() < 0.3
    )
    return tuple(sorted((make() for _ in range(dice.choice((0, 0, 1, 2, 5)))), key=lambda change: change.time))


def _lies(dice: random.Random, objects: int) -> tuple[Lie, ...]:
    return tuple(Lie(number, dice.random(), dice.random() < 0.3) for number in range(objects) if dice.random() < 0.7)
