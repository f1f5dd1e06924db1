"""One seed: the real read path between a simulated store, disk and workers, its readers, and what must hold.

Its job: build it, let readers read, watch every byte and every error, then heal whatever failed, read all of it once
more, and see that nothing is left: no flight, no pin, no lent slot, no place in the gate. A violation is noted and ends
the seed.
"""

import hashlib
import logging
import math
import random
from collections.abc import Callable
from typing import Any

import trio
import trio.testing

from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.flight import Flight
from lazyfs.cache.memory import Chunk, Key, Memory
from lazyfs.cache.verdicts import NONE, Expected
from lazyfs.cache.verifier import Verifier
from lazyfs.errors import AccessDenied, Corrupt, LazyfsError, NotFound, ObjectChanged, Unreachable
from lazyfs.filesystem.files import OpenFile, OpenFiles
from lazyfs.filesystem.nodes import Branch, File
from lazyfs.filesystem.tree import Tree
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, MIB, Listing, ObjectInfo, ObjectVersion, chunk_range
from lazyfs.reading.windows import Budget
from lazyfs.stores.fetch import PatientStore
from tests.simulation.disk import SimulatedDisk
from tests.simulation.patterns import Read, draw
from tests.simulation.sabotage import Parts
from tests.simulation.script import Script
from tests.simulation.store import PLACE, SimulatedStore, flipped

LONGEST_READ = {"clean": 200.0, "survivable": 7200.0, "hostile": 7200.0, "lying": 7200.0}
"""Seconds after which a read hangs, by the kind of script: all that there is to read over the slowest connection, or
twelve times the longest patience."""

NERVOUS = 0.05
"""Share of arrivals of bytes at which some reader gives up at the same moment."""

KNOWN = 400
"""Events that are remembered for the report of a failure."""


async def _never(*_: object) -> Listing:
    raise NotImplementedError


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
        self._tree = Tree(Branch(place=PLACE, prefix="", list_prefix=_never, age=lambda _: 0.0, ttl=math.inf))
        self._infos: dict[str, ObjectInfo] = {}
        self.names = [f"model-{number + 1:05}-of-{len(script.sizes):05}.gguf" for number in range(len(script.sizes))]
        for name, size in zip(self.names, script.sizes, strict=True):
            self._put(name, size)
        self.lies: dict[bytes, int] = {}
        """Offsets of the bytes that the store gave wrong."""
        self._always: set[bytes] = set()
        self.settled: set[bytes] = set()
        """Versions whose bytes are known to be right, or are refused."""
        for lie in script.lies:
            version = self.file(self.names[lie.number]).version
            if version.size:
                self.lies[version.object_id] = int(lie.share * version.size)
                self.store.lie(version, self.lies[version.object_id])
                if lie.always:
                    self._always.add(version.object_id)
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

    def _put(self, name: str, size: int, *, back: bool = False) -> None:
        version = self.store.put(name, size, back=back)
        self._infos[name] = ObjectInfo(name, version.etag, size, 0)
        self._tree.adopt(self._tree.root, Listing("", tuple(self._infos.values()), (), 0.0))
        self._tree.remember(self.file(name))

    def file(self, name: str) -> File:
        """What the name stands for now."""
        file = self._tree.root.children[name]
        assert isinstance(file, File)
        return file

    def spoil(self, version: ObjectVersion) -> None:
        """As `Tree.spoil`: who has the file open gets an error, and who opens it from now on another inode."""
        self.note("spoiled", version.key, version.etag)
        if version.object_id not in self.lies:
            self.violated(f"{version.key} {version.etag} is taken for wrong")
        if version.object_id not in self._always:
            self.store.stop_lying(version)
        self._tree.spoil(version)
        self._tree.remember(self.file(version.key))

    async def change(self) -> None:
        """What the script says that others do to the objects."""
        for change in self.script.changes:
            await trio.sleep_until(change.time)
            name = self.names[change.number]
            file = self.file(name)
            self.note("change", name, change.deleted_for)
            if change.deleted_for:
                self.store.delete(name)
                await trio.sleep(change.deleted_for)
            self._put(name, file.version.size, back=change.back)
        self.changed.set()

    def heal(self) -> None:
        """Whatever failed works from now on."""
        self.note("healed")
        self._healed = True
        self.store.heal()
        self.disk.heal()

    # ---- what must hold

    def judge(self, file: File, began: float, error: LazyfsError) -> None:
        """Whether the script allows a read of the file, begun then, to fail in this way now."""
        version, now = file.version, trio.current_time()
        if isinstance(error, Corrupt) and (file.spoiled or version.object_id in self._always):
            return
        allowed: dict[type[LazyfsError], bool] = {
            ObjectChanged: not self.store.current_since(version, began),
            NotFound: not self.store.current_since(version, began),
            AccessDenied: self.script.denied(now),
            Unreachable: self.script.hopeless(now),
        }
        if self._healed or not allowed.get(type(error), False):
            self.violated(f"a read of {version.key} {version.etag} failed: {type(error).__name__}: {error}")

    def right(self, version: ObjectVersion, start: int, data: bytes) -> bool:
        """Whether these are the bytes of the version from `start` on, or, while that is not noticed, with its lie."""
        truth = bytes(self.store.content(version)[start : start + len(data)])
        wrong = self.lies.get(version.object_id, -1) - start
        if data == truth or version.object_id in self.settled or not 0 <= wrong < len(data):
            return data == truth
        return data == truth[:wrong] + flipped(truth[wrong]) + truth[wrong + 1 :]

    def outcome(self, version: ObjectVersion, outcome: str, words: str) -> None:
        """What came of looking at all of a version, with nothing failing any more."""
        self.note("verified", version.key, outcome, words)
        wanted = {"none": NONE, "both": "sha256"}.get(self.script.digests, self.script.digests)
        if wanted != NONE and version.object_id in self._always:
            wanted = ""
        if outcome != wanted:
            self.violated(f"looking at {version.key} {version.etag} came to {outcome!r} {words}, not {wanted!r}")
        if outcome not in ("", NONE):
            self.settled.add(version.object_id)

    def _asked(self, version: ObjectVersion, blocks: range) -> None:
        """Of a block no second GET is sent while one is under way, and none while its chunk is cached."""
        for block in blocks:
            if (version.object_id, block) in self.store.coming:
                self.violated(f"{version.key} block {block} is asked for twice at once")
        for number in chunk_range(blocks.start * BLOCK_SIZE, blocks.stop * BLOCK_SIZE):
            key = (version.object_id, number)
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
            elif not held.rotten and not all(
                self.right(held.version, start + block.start, bytes(held.data[block.start : block.stop]))
                for block in held.blocks()
            ):
                self.violated(f"{held.version.key} chunk {number} is wrong on disk")
        # A kill may come between the count and the disk.
        lost = self.script.readers * (self.script.lives - 1) if self.script.ends == "killed" else 0
        if not self.disk.discards <= self.corrupt <= self.disk.discards + lost:
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
            self._cut: list[Flight] = []
            self._notice_cuts()
            world.in_memory = self.memory.get
            self.verifier = Verifier(
                chunks=self.cache,
                disk=world.disk,
                witnesses=Witness(self.patient),
                nursery=nursery,
                spoiled=world.spoil,
                automatic=script.automatic,
            )
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
                    for name in world.names:
                        if self._fits(world.file(name).version):
                            await self._look_at_all_of(world.file(name).version)
                    await self._settle()
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

    def _notice_cuts(self) -> None:
        cut = self._flights.cut

        def noticed(flight: Flight, place: int) -> None:
            self._cut.append(flight)
            cut(flight, place)

        self._flights.cut = noticed  # type: ignore[method-assign]

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
            file = self._world.file(dice.choice(self._world.names))
            reads = draw(dice, file.version.size, dice.randint(1, left))
            left -= max(1, len(reads))
            side_by_side = dice.choice((1, 1, 2, 3))
            pause = dice.choice((0.0, 0.0, 0.001, 0.02))
            handle = self.files.open(file)
            self.verifier.opened(file.version)
            if dice.random() < self._script.demands and (self._fits(file.version) or dice.random() < 0.1):
                self.verifier.demand(file.version)
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
        began = trio.current_time()
        patience, nervous = LONGEST_READ[self._script.kind], False
        if dice is not None and dice.random() < self._script.cancels:
            nervous = True
            patience = dice.choice((0.0, dice.random() / 10, patience))
        found: bytes | None = None
        with trio.move_on_after(patience) as scope:
            if nervous:
                world.reading[scope] = None
            try:
                found = b"".join(await opened.read(offset, size))
            except LazyfsError as error:
                world.note("reader", reader, version.key, offset, size, type(error).__name__)
                world.judge(opened.file, began, error)
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
        if len(found) != max(0, min(size, version.size - offset)) or not world.right(version, offset, found):
            world.violated(f"a read of {version.key} at {offset}, {size} bytes, gave wrong bytes")
        self._slots_add_up()

    def _fits(self, version: ObjectVersion) -> bool:
        """Whether all of it can be on disk; else looking at it fetches it three times, for nothing."""
        return self._script.disk.room is None or version.chunk_count <= self._script.disk.room

    async def _look_at_all_of(self, version: ObjectVersion) -> None:
        """Have all bytes of the version compared with what is known of them."""
        self.verifier.demand(version)
        with trio.move_on_after(LONGEST_READ[self._script.kind]):
            while self.verifier.progress(version)["step"] != "done":  # noqa: ASYNC110 - nothing tells
                await trio.sleep(1.0)
        found = self.verifier.progress(version)
        self._world.outcome(version, found["outcome"], found["words"])

    async def _read_all(self) -> None:
        """Every object as it is now, from its first to its last byte, in step."""
        for name in self._world.names:
            file = self._world.file(name)
            self.verifier.opened(file.version)
            handle = self.files.open(file)
            for offset in range(0, file.version.size, MIB):
                await self._read(-1, self.files.get(handle), (offset, MIB), None)
            self.files.release(handle)

    async def _settle(self) -> None:
        """Wait until nothing moves any more, as long as a read may take, and what waits to be written is."""
        with trio.move_on_after(LONGEST_READ[self._script.kind]):
            quiet = False
            while not quiet:
                while self._moving():  # noqa: ASYNC110 - whoever ends last does not tell
                    await trio.sleep(1.0)
                await self.cache.writer.settled()
                quiet = not self._moving()
        await self.cache.writer.flush_touches()

    def _moving(self) -> bool:
        return bool(self._flights.flying.total() or self.cache.writer or self.patient._sent or self.verifier._jobs)

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
            "flying": self._flights.flying.total(),
            "asking": self._flights.asking.total(),
            "waiting for memory": self._flights.short,
            "queued writes": len(self.cache.writer),
            "lent slots": now.lent,
            "pinned chunks": now.pinned,
            "objects looked at": len(self.verifier._jobs),
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
        for flight in self._cut:
            # Two buffers, of which one alone is no chunk.
            halves = (flight.received[0] == flight.cut, flight.cut + flight.received[1] == len(flight.views[0]))
            delivered -= any(halves)
        if not found.kept + found.unkept >= found.misses == delivered:
            violated(f"{delivered} chunks arrived, {found.misses} landed; {found.kept} kept and {found.unkept} not")

    def _no_loan_is_left(self) -> None:
        """Also after a life that was cancelled."""
        gate = self.patient._gate
        flying = self._flights or self._flights.flying.total()
        if flying or self.memory.statistics().lent or gate.in_use or self.patient._sent:
            self._world.violated("something is on its way after the end")
        if self._world.store.active:
            self._world.violated("a request goes on after the end")

    def _memory_is_right(self) -> None:
        slots: set[int] = set(self.memory._free)
        contents = {
            (file.version.object_id, number): file.version
            for file in map(self._world.file, self._world.names)
            for number in range(file.version.chunk_count)
        }
        for chunks in self.memory._all:
            for key, chunk in chunks.items():
                slots.add(chunk.slot)
                version = contents.get(key)
                if version is not None and not self._world.right(version, key[1] * CHUNK_SIZE, bytes(chunk.view)):
                    self._world.violated(f"{version.key} chunk {key[1]} is wrong in memory")
        if len(slots) != self.memory.slots:
            self._world.violated("a slot is used twice")


class Witness:
    """The store itself says what its objects must come to."""

    def __init__(self, store: PatientStore) -> None:
        self._store = store

    def witness(self, version: ObjectVersion) -> str:
        """See `Witnesses.witness`."""
        return "s3"

    async def expected(self, version: ObjectVersion) -> Expected:
        """See `Witnesses.expected`."""
        return Expected(await self._store.checksums(version))


class Defects(logging.Handler):
    """Hears when lazyfs logs a defect of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """One record."""
        if record.exc_info:
            self.heard.append(self.format(record))


