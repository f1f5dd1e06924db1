"""A store in memory: the fake at the edge, with a log of calls, valves that hold bytes, and scripted failures.

It keeps the promises of `base.Store` and is put through the same contract tests as every real store. Loop thread only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import trio

from lazyfs.errors import NotFound, ObjectChanged, StoreError, Transient
from lazyfs.objects import KIB, Checksums, Listing, ObjectInfo, ObjectVersion, Stretch
from lazyfs.stores.base import Arrived, Claim
from tests.rooms.building import PLACE

PIECE_SIZE = 256 * KIB


class Call(NamedTuple):
    """One request: `get` of bytes [start, stop) of a key, or `list`, `size`, `head`, whose key may be a prefix,
    or `stretch`, whose key is `prefix|after`."""

    kind: str
    key: str
    start: int = 0
    stop: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """How one request fails: with `error`, after so many bytes were delivered."""

    error: StoreError
    after: int = 0


FaultHook = Callable[[Call], Fault | None]


def in_turn(*faults: Fault | None) -> FaultHook:
    """A hook that gives these to the requests in the order in which they come, and then none."""
    left = iter(faults)
    return lambda call: next(left, None)


class Valve:
    """Holds the bytes of a request back but for the first `opened`; the request may be severed as it waits here."""

    def __init__(self) -> None:
        self.opened = -1
        self.severed = False
        self._changed = trio.Event()

    def open(self, upto: int = 1 << 60) -> None:
        """Let bytes up to this one pass, all of them by default. 0 lets the request begin."""
        self.opened = max(self.opened, upto)
        self._changed.set()
        self._changed = trio.Event()

    def sever(self) -> None:
        """Break off who waits."""
        self.severed = True
        self.open(self.opened)

    async def wait(self, count: int) -> None:
        """Wait until the first `count` bytes may pass; `Transient` if it is severed before."""
        while self.opened < count:
            await self._changed.wait()
            if self.severed:
                raise Transient("severed")


class MemoryStore:
    """Objects in a dictionary. `valve` and `fault` are asked for each request as it begins."""

    def __init__(self) -> None:
        self.place = PLACE
        self.calls: list[Call] = []
        self.fault: FaultHook | None = None
        self.valve: Callable[[Call], Valve | None] | None = None
        self.listed_at = 0.0
        self.page = 1000
        self.digests: dict[str, Checksums] = {}
        self.active = 0
        self.most_active = 0
        self._objects: dict[str, tuple[bytes, ObjectInfo]] = {}
        self._writes = 0

    def put(self, key: str, data: bytes) -> ObjectVersion:
        """Store bytes under a new ETag, replacing what was there."""
        self._writes += 1
        info = ObjectInfo(key, f'"{self._writes:032x}"', len(data), (1_700_000_000 + self._writes) * 10**9, "STANDARD")
        self._objects[key] = (data, info)
        return ObjectVersion(self.place, key, info.etag, info.size)

    def delete(self, key: str) -> None:
        """Remove the object."""
        del self._objects[key]

    def gets(self) -> list[tuple[int, int]]:
        """The byte ranges of the GETs so far, in order."""
        return [(call.start, call.stop) for call in self.calls if call.kind == "get"]

    async def list(self, prefix: str, *, budget: float | None = None) -> Listing:
        """See `base.Store.list`."""
        await self._arrive(Call("list", prefix))
        keys = sorted(key for key in self._objects if key.startswith(prefix))
        cuts = {key: key.find("/", len(prefix)) for key in keys}
        objects = tuple(self._objects[key][1] for key in keys if cuts[key] < 0)
        prefixes = sorted({key[: cuts[key] + 1] for key in keys if cuts[key] >= 0})
        return Listing(prefix, objects, tuple(prefixes), self.listed_at)

    async def stretch(self, prefix: str, after: str, *, budget: float | None = None) -> Stretch:
        """See `base.Store.stretch`: `page` objects."""
        await self._arrive(Call("stretch", f"{prefix}|{after}"))
        keys = sorted(key for key in self._objects if key.startswith(prefix) and key > after)
        infos = tuple(self._objects[key][1] for key in keys[: self.page])
        return Stretch(prefix, after, infos, len(keys) <= self.page, self.listed_at)

    async def total_size(self, prefix: str) -> int:
        """See `base.Store.total_size`."""
        await self._arrive(Call("size", prefix))
        return sum(len(data) for key, (data, _) in self._objects.items() if key.startswith(prefix))

    async def stat(self, key: str) -> ObjectInfo:
        """See `base.Store.stat`."""
        await self._arrive(Call("head", key))
        return self._found(key)[1]

    async def checksums(self, version: ObjectVersion) -> Checksums:
        """See `base.Store.checksums`."""
        await self._arrive(Call("head", version.key))
        if self._found(version.key)[1].etag != version.etag:
            raise ObjectChanged(f"{version.key}: another ETag than {version.etag}")
        return self.digests.get(version.key, Checksums())

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """See `base.Store.read`."""
        call = Call("get", version.key, start, start + sum(len(view) for view in into))
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            fault = await self._arrive(call, claim)
            data, info = self._found(version.key)
            if (info.etag, info.size) != (version.etag, version.size):
                raise ObjectChanged(f"{version.key}: the object is now {info.etag}, not {version.etag}")
            arrived(0)
            await self._deliver(call, memoryview(data)[start : call.stop], into, arrived, fault)
        finally:
            self.active -= 1
            claim.sever = None

    async def _arrive(self, call: Call, claim: Claim | None = None) -> Fault | None:
        self.calls.append(call)
        fault = self.fault(call) if self.fault else None
        valve = self.valve(call) if self.valve else None
        if valve is not None and claim is not None:
            claim.sever = valve.sever
        if valve is not None:
            await valve.wait(0)
        await trio.lowlevel.checkpoint()
        if fault is not None and (call.kind != "get" or not fault.after):
            raise fault.error
        return fault

    async def _deliver(
        self, call: Call, data: memoryview, into: Sequence[memoryview], arrived: Arrived, fault: Fault | None
    ) -> None:
        valve = self.valve(call) if self.valve else None
        done = 0
        for view in into:
            offset = 0
            while offset < len(view):
                count = min(PIECE_SIZE, len(view) - offset)
                if fault is not None:
                    count = min(count, fault.after - done)
                if valve is not None:
                    await valve.wait(done + count)
                view[offset : offset + count] = data[done : done + count]
                offset += count
                done += count
                arrived(done)
                if fault is not None and done == fault.after:
                    raise fault.error

    def _found(self, key: str) -> tuple[bytes, ObjectInfo]:
        if key not in self._objects:
            raise NotFound(f"NoSuchKey: {key}")
        return self._objects[key]
