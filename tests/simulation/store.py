"""A store in memory whose network takes time and fails as its script says, under the promises of `base.Store`."""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio
from awscrt.checksums import crc64nvme

from lazyfs.errors import AccessDenied, NotFound, ObjectChanged, Transient
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, MIB, Checksums, Listing, ObjectInfo, ObjectVersion, Stretch
from lazyfs.stores.base import Arrived, Claim
from tests.simulation.script import Script, StoreFaults

PLACE = "simulated|models"

POOL = random.Random("bytes of all objects").randbytes(160 * MIB)

JUNK = b"\xee" * CHUNK_SIZE

STALLS = ((0.3, 2.0),) * 30 + ((2.0, 100.0),)
"""Seconds, from and to, that a body stops for."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one request: it fails after so many bytes, stops after so many, is slow."""

    breaks: int | None = None
    stalls: int | None = None
    slowness: float = 1.0
    late: bool = False


class SimulatedStore:
    """Objects by key. `asked` is told of each GET as it begins, with its version and blocks; `moved` is called whenever
    bytes have arrived."""

    def __init__(
        self,
        *,
        script: Script,
        dice: random.Random,
        clock: Callable[[], float],
        note: Callable[..., None],
        asked: Callable[[ObjectVersion, range], None],
        moved: Callable[[], None],
    ) -> None:
        self._script = script
        self._faults = script.store
        self._dice = dice
        self._clock = clock
        self._note = note
        self._asked = asked
        self._moved = moved
        self._objects: dict[str, ObjectVersion] = {}
        self._contents: dict[bytes, memoryview] = {}
        self._lies: dict[bytes, int] = {}
        self._history: dict[str, list[tuple[float, ObjectVersion | None]]] = {}
        self._writes = 0
        self.active = 0
        self.coming: set[tuple[bytes, int]] = set()
        """Blocks of which a GET is under way, counted from the beginning of the object."""
        self.delivered = 0
        """Chunks, or parts of one, of whose last byte it was said that it has arrived."""

    def heal(self) -> None:
        """Nothing goes wrong from now on."""
        self._faults = StoreFaults()

    def put(self, key: str, size: int, *, back: bool = False) -> ObjectVersion:
        """A new version of that many bytes, or, `back`, the first that the key had."""
        if back:
            self._becomes(key, self._history[key][0][1])
            return self._objects[key]
        self._writes += 1
        version = ObjectVersion(PLACE, key, f'"{self._writes}"', size)
        at = self._dice.randrange(len(POOL) - size)
        self._contents[version.object_id] = memoryview(POOL)[at : at + size]
        self._becomes(key, version)
        return version

    def lie(self, version: ObjectVersion, offset: int) -> None:
        """Give the byte at this offset wrong from now on."""
        self._lies[version.object_id] = offset

    def stop_lying(self, version: ObjectVersion) -> None:
        """Give every byte right from now on."""
        self._lies.pop(version.object_id, None)

    def delete(self, key: str) -> None:
        """Remove the object."""
        self._becomes(key, None)

    def _becomes(self, key: str, version: ObjectVersion | None) -> None:
        self._history.setdefault(key, []).append((self._clock(), version))
        self._objects.pop(key, None)
        if version is not None:
            self._objects[key] = version

    def current(self, version: ObjectVersion) -> bool:
        """Whether the key holds this version."""
        return self._objects.get(version.key) == version

    def current_since(self, version: ObjectVersion, time: float) -> bool:
        """Whether the key has held this version from then on."""
        last = max((at for at, other in self._history[version.key] if other == version), default=math.inf)
        return self.current(version) and last <= time

    def content(self, version: ObjectVersion) -> memoryview:
        """The bytes of a version, also of one that is gone."""
        return self._contents[version.object_id]

    async def list(self, prefix: str) -> Listing:
        """See `base.Store.list`."""
        raise NotImplementedError

    async def stretch(self, prefix: str, after: str) -> Stretch:
        """See `base.Store.stretch`."""
        raise NotImplementedError

    async def total_size(self, prefix: str) -> int:
        """See `base.Store.total_size`."""
        raise NotImplementedError

    async def stat(self, key: str) -> ObjectInfo:
        """See `base.Store.stat`."""
        raise NotImplementedError

    async def checksums(self, version: ObjectVersion) -> Checksums:
        """See `base.Store.checksums`."""
        await self._begin(version, trio.Event())
        content, has = self.content(version), self._script.digests
        return Checksums(
            sha256=hashlib.sha256(content).hexdigest() if has in ("sha256", "both") else "",
            crc64nvme=crc64nvme(content) if has in ("crc64nvme", "both") else None,
        )

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """See `base.Store.read`."""
        size = sum(len(view) for view in into)
        blocks = range(start // BLOCK_SIZE, -(-(start + size) // BLOCK_SIZE))
        self._asked(version, blocks)
        keys = {(version.object_id, block) for block in blocks}
        self.coming |= keys
        self.active += 1
        said = 0
        severed = trio.Event()

        def say(count: int) -> None:
            nonlocal said
            self.delivered += ended(into, count) - ended(into, said)
            said = count
            arrived(count)
            # A chunk that is here may be pushed out of memory, and asked for again, before the rest is here.
            here = {key for key in keys if min(version.size, (key[1] + 1) * BLOCK_SIZE) <= start + count}
            self.coming -= here
            keys.difference_update(here)
            self._moved()

        if self._script.severs:
            claim.sever = severed.set
        self._note("store", "get", version.key, start, start + size, "urgent" if claim.urgent else "")
        outcome = "done"
        try:
            await self._answer(version, start, size, into, say, severed)
        except trio.Cancelled:
            outcome = "cancelled"
            # A thread that is not waited for may still speak.
            trio.lowlevel.current_trio_token().run_sync_soon(arrived, size)
            raise
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            claim.sever = None
            self.active -= 1
            self.coming -= keys
            self._note("store", "end", version.key, start, start + size, outcome)

    async def _answer(
        self,
        version: ObjectVersion,
        start: int,
        size: int,
        into: Sequence[memoryview],
        arrived: Arrived,
        severed: trio.Event,
    ) -> None:
        fate = self._fate(size)
        for view in into:
            view[:] = JUNK[: len(view)]  # until a request is over its buffers are its own
        await self._begin(version, severed)
        arrived(0)
        await self._deliver(version, start, size, into, arrived, severed, fate)

    async def _begin(self, version: ObjectVersion, severed: trio.Event) -> None:
        """What comes before the first byte."""
        await self._wait(self._script.latency * (0.5 + self._dice.random()), severed)
        if self._faults.outage[0] <= self._clock() < self._faults.outage[1]:
            raise Transient("no route to host")
        if self._script.denied(self._clock()) and self._faults.denied == self._script.store.denied:
            raise AccessDenied("denied")
        if self._hit(self._faults.slow_down):
            raise Transient("slow down", slow_down=True)
        if version.key not in self._objects:
            raise NotFound(version.key)
        if not self.current(version):
            raise ObjectChanged(version.key)

    async def _deliver(
        self,
        version: ObjectVersion,
        start: int,
        size: int,
        into: Sequence[memoryview],
        arrived: Arrived,
        severed: trio.Event,
        fate: Fate,
    ) -> None:
        data = self.content(version)[start : start + size]
        done = 0
        rate = self._script.rate / fate.slowness
        largest = self._dice.choice((CHUNK_SIZE, 2 * CHUNK_SIZE, 5 * CHUNK_SIZE))
        while done < len(data):
            count = min(self._dice.randint(1, largest), len(data) - done)
            if fate.breaks is not None:
                count = min(count, fate.breaks - done)
            if fate.stalls is not None and done <= fate.stalls < done + count:
                await self._wait(self._dice.uniform(*self._dice.choice(STALLS)), severed)
            await self._wait(count / rate, severed)
            pour(data[done : done + count], into, done)
            wrong = self._lies.get(version.object_id, -1) - start
            if done <= wrong < done + count:
                pour(memoryview(flipped(data[wrong])), into, wrong)
            done += count
            if fate.breaks == done:
                if self._dice.random() < 0.5:
                    arrived(done)
                raise Transient("broken")
            if done == len(data) or self._dice.random() < 0.7:
                arrived(done)
        if fate.late:
            raise Transient("reset after the last byte")

    def _fate(self, size: int) -> Fate:
        faults, dice = self._faults, self._dice
        return Fate(
            breaks=dice.randrange(size) or None if self._hit(faults.broken) else None,
            stalls=dice.randrange(size) if self._hit(faults.stall) else None,
            slowness=20.0 if self._hit(faults.drip) else 1.0,
            late=self._hit(faults.late),
        )

    def _hit(self, share: float) -> bool:
        return share > 0 and self._dice.random() < share

    async def _wait(self, seconds: float, severed: trio.Event) -> None:
        """`Transient` if it is severed meanwhile."""
        if seconds <= 0:
            await trio.lowlevel.checkpoint()
        else:
            with trio.move_on_after(seconds):
                await severed.wait()
        if severed.is_set():
            raise Transient("severed")


def flipped(byte: int) -> bytes:
    """The byte that is given for this one."""
    return bytes([byte ^ 1])


def ended(into: Sequence[memoryview], count: int) -> int:
    """How many of the buffers `count` bytes fill."""
    filled = 0
    for view in into:
        count -= len(view)
        filled += count >= 0
    return filled


def pour(data: memoryview, into: Sequence[memoryview], at: int) -> None:
    """Write `data` into the buffers, `at` bytes behind their beginning."""
    for view in into:
        if at < len(view) and data:
            count = min(len(view) - at, len(data))
            view[at : at + count] = data[:count]
            data = data[count:]
            at += count
        at = max(0, at - len(view))
