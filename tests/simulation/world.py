"""One seed: the real read path between a simulated store, disk and workers, its readers, and what must hold.

Its job: build it, let readers read, watch every byte and every error, then heal whatever failed, read all of it once
more, and see that nothing is left: no flight, no pin, no lent slot, no place in the gate. A violation is noted and ends
the seed.
"""

import hashlib
import logging
import random
from collections.abc import Callable
from typing import Any

import trio
import trio.testing

from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.memory import Chunk, Key, Memory
from lazyfs.errors import AccessDenied, LazyfsError, NotFound, ObjectChanged, Unreachable
from lazyfs.filesystem.files import OpenFile, OpenFiles
from lazyfs.filesystem.tree import ROOT, Directory, File
from lazyfs.objects import CHUNK_SIZE, MIB, ObjectInfo, ObjectVersion
from lazyfs.reading.windows import Budget
from tests.simulation.disk import SimulatedDisk
from tests.simulation.patterns import Read, draw
from tests.simulation.sabotage import Parts
from tests.simulation.script import Script
from tests.simulation.store import SimulatedStore

LONGEST_READ = {"clean": 200.0, "survivable": 7200.0, "hostile": 7200.0}
"""Seconds after which a read hangs, by the kind of script: all that there is to read over the slowest connection, or
twelve times the longest patience."""

NERVOUS = 0.05
"""Share of arrivals of bytes at which some reader gives up at the same moment."""

KNOWN = 400
"""Events that are remembered for the report of a failure."""


class World:
    """The world of one script. `violations` says what did not hold."""

    def __init__(self, script: Script, parts: Parts) -> None:
        self.script = script
        self.violations: list[str] = []
        self.events: list[str] = []
        self.parts = parts
        self._digest = hashlib.sha256()
        self._dice = random.Random(f"readers {script.seed}")
        self._scope = trio.CancelScope()
        self.reading: dict[trio.CancelScope, None] = {}
        """The reads under way that may be cancelled at any moment."""
        self._healed = False
        self.changed = trio.Event()
        """All changes of the script were made."""
        self.store: SimulatedStore = parts.store(
            script=script,
            dice=random.Random(f"store {script.seed}"),
            clock=trio.current_time,
            note=self.note,
            asked=self._asked,
            moved=self._moved,
        )
        self.disk: SimulatedDisk = parts.disk(
            faults=script.disk, dice=random.Random(f"disk {script.seed}"), clock=trio.current_time, note=self.note
        )
        self.root = Directory(ROOT, "", None, "")
        self._inodes = ROOT
        self.names = [f"model-{number + 1:05}-of-{len(script.sizes):05}.gguf" for number in range(len(script.sizes))]
        for name, size in zip(self.names, script.sizes, strict=True):
            self._put(name, size)
        self.in_memory: Callable[[Key], Chunk | None] = lambda key: None
        """What the memory of the life that goes on has."""
        self.corrupt = 0
        self.reads = 0

    @property
    def digest(self) -> str:
        """Of all events so far."""
        return self._digest.hexdigest()

    def note(self, *event: Any) -> None:
        """Something happened."""
        line = f"{trio.current_time():12.6f} {' '.join(str(part) for part in event)}"
        self._digest.update(line.encode())
        self.events.append(line)
        if len(self.events) > 2 * KNOWN:
            del self.events[:KNOWN]

    def violated(self, text: str) -> None:
        """Something that must hold does not."""
        self.violations.append(f"at {trio.current_time():.6f}: {text}")
        self.note("VIOLATION", text)
        self._scope.cancel()

    async def run(self) -> None:
        """The whole seed."""
        with self._scope:
            for number in range(self.script.lives):
                last = number == self.script.lives - 1
                life = Life(self, f"life {number}")
                await life.run("settled" if last else self.script.ends, last=last)
                self.corrupt += life.cache.statistics().corrupt
            self._disk_is_right()

    # ---- objects

    def _put(self, name: str, size: int) -> None:
        version = self.store.put(name, size)
        self._inodes += 1
        info = ObjectInfo(name, version.etag, size, 0)
        self.root.children[name] = File(self._inodes, name, self.root, version, info)

    async def change(self) -> None:
        """What the script says that others do to the objects."""
        for change in self.script.changes:
            await trio.sleep_until(change.time)
            name = self.names[change.number]
            file = self.root.children[name]
            assert isinstance(file, File)
            self.note("change", name, change.deleted_for)
            if change.deleted_for:
                self.store.delete(name)
                await trio.sleep(change.deleted_for)
            self._put(name, file.version.size)
        self.changed.set()

    def heal(self) -> None:
        """Whatever failed works from now on."""
        self.note("healed")
        self._healed = True
        self.store.heal()
        self.disk.heal()

    # ---- what must hold

    def judge(self, version: ObjectVersion, error: LazyfsError) -> None:
        """Whether the script allows a read of the version to fail in this way now."""
        now = trio.current_time()
        allowed: dict[type[LazyfsError], bool] = {
            ObjectChanged: not self.store.current(version),
            NotFound: not self.store.current(version),
            AccessDenied: self.script.denied(now),
            Unreachable: self.script.hopeless(now),
        }
        if self._healed or not allowed.get(type(error), False):
            self.violated(f"a read of {version.key} {version.etag} failed: {type(error).__name__}: {error}")

    def _asked(self, version: ObjectVersion, numbers: range) -> None:
        """Of a chunk no second GET is sent while one is under way, and none while it is cached."""
        for number in numbers:
            key = (version.object_id, number)
            if key in self.store.coming:
                self.violated(f"{version.key} chunk {number} is asked for twice at once")
            if self.in_memory(key) is not None:
                self.violated(f"{version.key} chunk {number} is asked for though it is in memory")
            if self.script.kind == "clean" and self.disk.has(*key):
                self.violated(f"{version.key} chunk {number} is asked for though it is on disk")

    def _moved(self) -> None:
        """Bytes have arrived: a good moment to go away."""
        if self.reading and self._dice.random() < NERVOUS:
            self._dice.choice(list(self.reading)).cancel()

    def _disk_is_right(self) -> None:
        for number, held in self.disk.held():
            start = number * CHUNK_SIZE
            if held.found:
                self.violated(f"{held.version.key} chunk {number} was found damaged on disk and is still there")
            elif not held.rotten:
                right = self.store.content(held.version)[start : start + held.version.chunk_length(number)]
                if bytes(held.data) != bytes(right):
                    self.violated(f"{held.version.key} chunk {number} is wrong on disk")
        if self.disk.discards != self.corrupt:
            self.violated(f"{self.disk.discards} chunks were discarded, {self.corrupt} counted as corrupt")
        if self.disk.rewritten and self.script.kind == "clean":
            self.violated(f"{self.disk.rewritten} chunks were written to disk again")
        if not self.disk.rotted and self.corrupt:
            self.violated(f"{self.corrupt} chunks counted as corrupt, and none was damaged")


class Life:
    """One daemon's life over the world's store and disk."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._script = world.script
        self._dice = random.Random(f"{name} {world.script.seed}")
        self._name = name
        self.cache: ChunkCache

    async def run(self, ends: str, *, last: bool) -> None:
        """From its start to its end; in the last one objects change, and all is healed."""
        script, world = self._script, self._world
        world.disk.open()
        self.patient = world.parts.patient(
            world.store,
            connections=script.ways,
            retry_budget=script.retry_budget,
            rng=random.Random(f"patience {script.seed}"),
        )
        self.memory = Memory(script.slots * CHUNK_SIZE)
        self.budget = Budget(script.read_ahead, self.patient.useful)
        delivered = world.store.delivered
        async with trio.open_nursery() as nursery:
            workers = world.parts.workers(
                dice=self._dice, latency=script.disk_latency, quick=script.quick, nursery=nursery
            )
            self.cache = ChunkCache(
                store=self.patient,
                disk=world.disk,
                memory=self.memory,
                nursery=nursery,
                span_size=script.span_size,
                ways=script.ways,
                workers=workers,
            )
            self._flights = self.cache._flights
            world.in_memory = self.memory.get
            self.files = OpenFiles(self.cache, self.budget)
            nursery.start_soon(self.cache.writer.run)
            if script.watched:
                nursery.start_soon(self.patient.watch)
            if last:
                nursery.start_soon(world.change)
            if ends == "settled":
                await self._readers()
                if last:
                    await world.changed.wait()
                    world.heal()
                await self._settle()
                if last:
                    await self._read_all()
                    await self._settle()
                self._nothing_is_left(world.store.delivered - delivered)
            else:
                nursery.start_soon(self._readers)
                await trio.sleep(self._dice.random())
                world.note(ends)
                if ends == "closed":
                    await self.cache.writer.flush()
                    await self.cache.writer.flush_touches()
                    await self.cache.writer.close()
            nursery.cancel_scope.cancel()
        await trio.sleep(1.0)  # whatever was said late has been heard
        self._no_loan_is_left()

    async def _readers(self) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(self._script.readers):
                dice = random.Random(f"{self._name} reader {number} {self._script.seed}")
                nursery.start_soon(self._reader, number, dice)

    async def _reader(self, number: int, dice: random.Random) -> None:
        """Opens, reads in one pattern, closes, and again."""
        left = self._script.reads
        await trio.sleep(dice.choice((0, dice.random() / 5)))
        while left > 0:
            file = self._world.root.children[dice.choice(self._world.names)]
            assert isinstance(file, File)
            reads = draw(dice, file.version.size, dice.randint(1, left))
            left -= max(1, len(reads))
            side_by_side = dice.choice((1, 1, 2, 3))
            pause = dice.choice((0.0, 0.0, 0.001, 0.02))
            handle = self.files.open(file)
            try:
                opened = self.files.get(handle)
                while reads:
                    together, reads = reads[:side_by_side], reads[side_by_side:]
                    async with trio.open_nursery() as nursery:
                        for one in together:
                            nursery.start_soon(self._read, number, opened, one, dice)
                    if pause:
                        await trio.sleep(pause * dice.random())
            finally:
                self.files.release(handle)

    async def _read(self, reader: int, opened: OpenFile, read: Read, dice: random.Random | None) -> None:
        """One read: the right bytes, or an error that the script allows, in time."""
        world, version, (offset, size) = self._world, opened.file.version, read
        patience, nervous = LONGEST_READ[self._script.kind], False
        if dice is not None and dice.random() < self._script.cancels:
            nervous = True
            patience = dice.choice((0.0, dice.random() / 10, patience))
        found: bytes | None = None
        with trio.move_on_after(patience) as scope:
            if nervous:
                world.reading[scope] = None
            try:
                found = bytes(await opened.read(offset, size))
            except LazyfsError as error:
                world.note("reader", reader, version.key, offset, size, type(error).__name__)
                world.judge(version, error)
                return
            finally:
                world.reading.pop(scope, None)
        world.reads += 1
        if found is None:
            world.note("reader", reader, version.key, offset, size, "cancelled")
            if not nervous:
                world.violated(f"a read of {version.key} at {offset} hangs")
            return
        world.note("reader", reader, version.key, offset, size, "right")
        if found != bytes(world.store.content(version)[offset : offset + size]):
            world.violated(f"a read of {version.key} at {offset}, {size} bytes, gave wrong bytes")
        self._slots_add_up()

    async def _read_all(self) -> None:
        """Every object as it is now, from its first to its last byte, in step."""
        for name in self._world.names:
            file = self._world.root.children[name]
            assert isinstance(file, File)
            handle = self.files.open(file)
            for offset in range(0, file.version.size, MIB):
                await self._read(-1, self.files.get(handle), (offset, MIB), None)
            self.files.release(handle)

    async def _settle(self) -> None:
        """Wait until nothing moves any more, as long as a read may take, and what waits to be written is."""
        with trio.move_on_after(LONGEST_READ[self._script.kind]):
            while self._flights.flying or self.cache.writer or self.patient._sent:  # noqa: ASYNC110 - whoever ends last
                await trio.sleep(1.0)
        await self.cache.writer.flush()
        await self.cache.writer.flush_touches()
        await self.cache.writer.step(lambda: None)  # behind whatever is being written

    def _slots_add_up(self) -> None:
        now = self.memory.statistics()
        if now.free + now.lent + now.chunks != now.slots or min(now.free, now.lent, now.pinned) < 0:
            self._world.violated(f"slots do not add up: {now}")
        if not 0 <= self.patient._gate.in_use <= self._script.ways:
            self._world.violated(f"{self.patient._gate.in_use} of {self._script.ways} places in use")

    def _nothing_is_left(self, delivered: int) -> None:
        violated, gate, now = self._world.violated, self.patient._gate, self.memory.statistics()
        left = {
            "flights": len(self._flights),
            "flying": self._flights.flying,
            "waiting for memory": self.cache._short,
            "queued writes": len(self.cache.writer),
            "lent slots": now.lent,
            "pinned chunks": now.pinned,
            "open files": len(self.files),
            "streams in the budget": len(self.budget._active),
            "places in use": gate.in_use,
            "queued at the gate": len(gate._waiting),
            "lanes": len(gate._lanes),
            "sent reads": len(self.patient._sent),
            "requests": self._world.store.active,
        }
        for what, count in left.items():
            if count:
                violated(f"left in the end: {count} {what}")
        self._slots_add_up()
        self._memory_is_right()
        found = self.cache.statistics()
        if not found.kept + found.unkept == found.misses == delivered:
            violated(f"{delivered} chunks arrived, {found.misses} landed; {found.kept} kept and {found.unkept} not")

    def _no_loan_is_left(self) -> None:
        """Also after a life that was cancelled."""
        gate = self.patient._gate
        if self._flights or self._flights.flying or self.memory.statistics().lent or gate.in_use or self.patient._sent:
            self._world.violated("something is on its way after the end")
        if self._world.store.active:
            self._world.violated("a request goes on after the end")

    def _memory_is_right(self) -> None:
        slots: set[int] = set(self.memory._free)
        contents = {
            (file.version.object_id, number): file.version
            for file in self._world.root.children.values()
            if isinstance(file, File)
            for number in range(file.version.chunk_count)
        }
        for chunks in (self.memory._read, self.memory._unread):
            for key, chunk in chunks.items():
                slots.add(chunk.slot)
                version = contents.get(key)
                if version is not None:
                    start = key[1] * CHUNK_SIZE
                    if bytes(chunk.view) != bytes(self._world.store.content(version)[start : start + len(chunk.view)]):
                        self._world.violated(f"{version.key} chunk {key[1]} is wrong in memory")
        if len(slots) != self.memory.slots:
            self._world.violated("a slot is used twice")


class Defects(logging.Handler):
    """Hears when lazyfs logs a defect of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """One record."""
        if record.exc_info:
            self.heard.append(self.format(record))


