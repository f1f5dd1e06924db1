"""A patient store around the one in memory, as the tests of patience and of its gate need it."""

import random
from collections.abc import Callable

import trio

from lazyfs.errors import Transient
from lazyfs.objects import MIB
from lazyfs.stores.base import Claim
from lazyfs.stores.fetch import PatientStore
from tests.rooms.building import pattern
from tests.rooms.memory_store import Call, Fault, MemoryStore, in_turn

DATA = pattern(2 * MIB)
BROKEN = Transient("broken")


class Bench:
    """A patient store around one in memory, with one object, and the times at which it was asked."""

    def __init__(self, *, connections: int = 4, retry_budget: float = 300.0, seed: int = 1) -> None:
        self.inner = MemoryStore()
        self.version = self.inner.put("k", DATA)
        self.times: list[float] = []
        self.faults: Callable[[Call], Fault | None] = in_turn()
        self.inner.fault = self._asked
        self.store = PatientStore(
            self.inner, connections=connections, retry_budget=retry_budget, rng=random.Random(seed)
        )

    def _asked(self, call: Call) -> Fault | None:
        self.times.append(trio.current_time())
        return self.faults(call)

    async def read(self, start: int = 0, stop: int = 100, *, claim: Claim | None = None) -> bytes:
        """The bytes of a range, through two buffers."""
        buffer = bytearray(stop - start)
        view = memoryview(buffer)
        middle = len(view) // 3
        counts: list[int] = []
        claim = claim or Claim(urgent=True)
        await self.store.read(self.version, start, [view[:middle], view[middle:]], counts.append, claim)
        assert counts == sorted(counts)
        assert counts[-1] == len(buffer)
        return bytes(buffer)

    def idle(self) -> None:
        """Nothing is under way and nobody waits: what every test must leave behind."""
        assert self.store._gate.in_use == 0
        assert not self.store._gate._lanes
        assert not self.store._sent
        assert not self.store._gate._waiting
        assert self.inner.active == 0
