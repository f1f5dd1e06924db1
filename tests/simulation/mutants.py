"""Defects to put into lazyfs, each of which some seed must find. Text only: imported before lazyfs is.

Whoever changes one of these lines finds here what the line is for. A mutant whose line is gone says so.
"""

from tests.simulation.edits import Edit

CHUNKS = "lazyfs.cache.chunks"
FORGETTING = "lazyfs.cache.forgetting"
FLIGHT = "lazyfs.cache.flight"
FLIGHTS = "lazyfs.cache.flights"
MEMORY = "lazyfs.cache.memory"
PARTS = "lazyfs.cache.parts"
WAITS = "lazyfs.cache.waits"
WRITER = "lazyfs.cache.writer"
FILES = "lazyfs.filesystem.files"
FETCH = "lazyfs.stores.fetch"
GATE = "lazyfs.stores.gate"

MUTANTS = {
    # Who waits.
    "a reader keeps its pin": Edit(
        WAITS,
        "                self._memory.unpin(waiting.chunk)\n                if self._flights.short",
        "                if self._flights.short",
    ),
    "a cancelled reader keeps its pin": Edit(
        WAITS,
        "                    self._memory.unpin(waiting.chunk)\n                raise",
        "                    pass\n                raise",
    ),
    "a cancelled reader is still counted": Edit(WAITS, "waiting.count -= 1", "pass"),
    "one pin for all who wait": Edit(FLIGHTS, "range(waiting.count)", "range(1)"),
    "who waits for a failed flight is not woken": Edit(FLIGHTS, "waiting.event.set()", "chunk and waiting.event.set()"),
    "who is short of memory is not woken": Edit(WAITS, "        event.set()\n", ""),
    "the end of a flight makes no room": Edit(
        FLIGHTS, "number, None)\n        self._made_room()", "number, None)\n"
    ),
    "what nobody wants any more fails a reader": Edit(FLIGHT, "another or isinstance(self.error, Dropped)", "another"),
    # What lands where.
    "a chunk on its way is sent for again": Edit(CHUNKS, "elif self._memory.get(key)", "if self._memory.get(key)"),
    "neighbours land in each other's place": Edit(FLIGHTS, "flight.slots[place], len", "flight.slots[-1 - place], len"),
    "a late word lands in somebody's slot": Edit(FLIGHTS, "flight.over = True", "pass"),
    "a failed flight keeps its slots": Edit(FLIGHTS, "self._memory.give_back(flight.slots[place])", "pass"),
    "a slot more than there is": Edit(MEMORY, "self._lent -= 1\n        self._free", "self._free"),
    "a pinned chunk is evicted": Edit(MEMORY, "            if chunk.pins == 0:\n", "            if True:\n"),
    # Disk.
    "bytes on disk are taken as they are": Edit(FLIGHTS, "if not good:", "if False:"),
    "damaged chunks stay on disk": Edit(FLIGHTS, "step(self._disk.discard", "step(lambda *args: None"),
    "a chunk from disk is written again": Edit(FLIGHTS, "self._land(flight, fresh=False)", "self._land(flight)"),
    "a failed write keeps its pins": Edit(WRITER, "for _, chunk, _ in batch:", "for _, chunk, _ in batch[:kept]:"),
    "a write that was given up keeps its pin": Edit(
        WRITER, "self._memory.unpin(chunk)\n        self.unkept", "self.unkept"
    ),
    # Parts of chunks.
    "a part is taken for the chunk": Edit(
        FLIGHTS,
        "part = flight.part and len(flight.views[place]) < flight.version.chunk_length(number)",
        "part = False",
    ),
    "a part is brought from the beginning of its chunk": Edit(
        FLIGHTS, "(0 if begin else flight.block * BLOCK_SIZE)", "0"
    ),
    "a part is written at the beginning of its chunk": Edit(
        FLIGHTS, "block = 0 if place else flight.block", "block = 0"
    ),
    "a part keeps its pin": Edit(
        FLIGHTS, "self._memory.unpin(chunk)\n            if key[1]", "if key[1]"
    ),
    "who waits for a chunk of a part is not woken": Edit(
        FLIGHTS, "self._wake(flight, number, None)\n        flight.done", "pass\n        flight.done"
    ),
    "blocks that are not here are read": Edit(
        PARTS, "if kept and (kept.marks or not kept.lacks(start, stop))", "if kept"
    ),
    "what is on disk after a part is left out": Edit(PARTS, "before + came + after", "before + came"),
    # A few bytes of a chunk.
    "a few bytes are given before they are here": Edit(FLIGHT, "or high > reach:", "or high > reach + BLOCK_SIZE:"),
    "who waits for a few bytes of a failed flight is not woken": Edit(
        FLIGHTS, "few.event.set()\n        if flight.part", "pass\n        if flight.part"
    ),
    "what is behind a cut is brought twice": Edit(FLIGHTS, "start + low, [view", "start, [view"),
    "a chunk of which one half came lands": Edit(FLIGHTS, "        if errors:\n            raise errors[0]\n", ""),
    "what is on disk is cut": Edit(FLIGHTS, "if flight.lent_to != DISK:\n", "if True:\n"),
    "a cut chunk keeps a connection busy": Edit(FLIGHTS, " + (flight.cut > 0)", ""),
    # Patience.
    "a failed read keeps its place": Edit(
        FETCH,
        "self._gate.leave(claim)\n                del",
        "progress.done < progress.size or self._gate.leave(claim)\n                del",
    ),
    "a place that is free is not passed on": Edit(
        GATE, "del self._lanes[claim.lane]\n        self.look()", "del self._lanes[claim.lane]\n"
    ),
    "who is cancelled in the queue stays there": Edit(GATE, "self._waiting.remove(waiter)\n            raise", "raise"),
    "a broken body is resumed a byte late": Edit(FETCH, "start + base, tail", "start + base + (base > 0), tail"),
    "a resumed read counts from nothing": Edit(FETCH, "trial.done = base + count", "trial.done = count"),
    "a broken body is the end": Edit(FETCH, "if now - failing_since + wait > budget:", "if True:"),
    # Whole objects.
    "what is brought waits for readers": Edit(WAITS, "pushing = urgent or not self._flights", "pushing = urgent"),
    "a disk that does not forget is believed": Edit(FORGETTING, "elif not gone and pauses", "elif False"),
    # Read-ahead.
    "a file that is closed keeps its share": Edit(FILES, "            found.close()\n", ""),
}
"""By what is wrong then."""
