"""The parts a world is built of, and parts that lie or lose something, to see that the harness notices."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from lazyfs.cache.disk import Verified
from lazyfs.cache.records import Kept
from lazyfs.objects import CHUNK_SIZE, ObjectVersion
from lazyfs.stores.base import Arrived, Claim
from lazyfs.stores.fetch import PatientStore
from tests.simulation.disk import SimulatedDisk
from tests.simulation.store import SimulatedStore
from tests.simulation.workers import SimulatedWorkers

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a world is made of."""

    store: type[SimulatedStore] = SimulatedStore
    disk: type[SimulatedDisk] = SimulatedDisk
    workers: type[SimulatedWorkers] = SimulatedWorkers
    patient: type[PatientStore] = PatientStore


class BlindDisk(SimulatedDisk):
    """Says that all it reads is right."""

    def read(self, version: ObjectVersion, first: int, kept: Sequence[Kept], into: Sequence[memoryview]) -> list[bool]:
        """Without looking."""
        return [True for _ in super().read(version, first, kept, into)]


class WrongBlock(SimulatedDisk):
    """Gives a small read the bytes beside it."""

    def read_part(self, version: ObjectVersion, number: int, kept: Kept, start: int, stop: int) -> bytes | None:
        """The bytes, each moved by one."""
        part = super().read_part(version, number, kept, start, stop)
        return part and part[1:] + part[:1]


class Swapped(SimulatedDisk):
    """Writes one chunk under its neighbour's number, with sums that fit."""

    def keep(self, chunks: Sequence[Verified]) -> int:
        """Every second one."""
        return super().keep([Verified(c.version, c.number ^ 1, c.view, c.sums, c.block) for c in chunks])


class Hasty(SimulatedStore):
    """Says that bytes have arrived before they have."""

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """A whole chunk of them."""
        size = sum(len(view) for view in into)
        await super().read(version, start, into, lambda count: arrived(min(size, count + CHUNK_SIZE)), claim)


class Displaced(SimulatedStore):
    """Gives the bytes of another place, now and then."""

    def content(self, version: ObjectVersion) -> memoryview:
        """Asked for by the store itself, moved by one."""
        return super().content(version)

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """The chunk before the one that was asked for."""
        displaced = start >= CHUNK_SIZE and self._dice.random() < 0.1
        await super().read(version, start - CHUNK_SIZE * displaced, into, arrived, claim)


class Forgetful(SimulatedStore):
    """Never answers some requests, and cannot be severed from them."""

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """One in fifty."""
        if self._dice.random() < 0.02:
            await trio.sleep_forever()
        await super().read(version, start, into, arrived, claim)


class Twice(SimulatedStore):
    """Is asked for everything twice."""

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """For nothing the first time."""
        async with trio.open_nursery() as nursery:
            aside = [memoryview(bytearray(len(view))) for view in into]
            nursery.start_soon(super().read, version, start, aside, lambda count: None, Claim(urgent=True))
            await super().read(version, start, into, arrived, claim)


class Leaking(PatientStore):
    """Does not give some places at the gate back."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        leave, dice = self._gate.leave, random.Random(0)
        self._gate.leave = lambda *place: None if dice.random() < 0.02 else leave(*place)  # type: ignore[method-assign]


class Sleepy(SimulatedWorkers):
    """Loses some results on the way back."""

    async def read(self, function: Callable[..., T], *args: Any) -> T:
        """One in ten."""
        found = await super().read(function, *args)
        if self._dice.random() < 0.1:
            await trio.sleep_forever()
        return found


SABOTAGE = {
    "": Parts(),
    "blind-disk": Parts(disk=BlindDisk),
    "wrong-block": Parts(disk=WrongBlock),
    "swapped-chunks": Parts(disk=Swapped),
    "hasty-store": Parts(store=Hasty),
    "displaced-bytes": Parts(store=Displaced),
    "forgotten-request": Parts(store=Forgetful),
    "asked-twice": Parts(store=Twice),
    "leaking-gate": Parts(patient=Leaking),
    "lost-result": Parts(workers=Sleepy),
}
"""By name; the empty one is what works."""
