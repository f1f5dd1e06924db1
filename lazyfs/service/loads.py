"""When the files of a mount were loaded: opened, first byte, all on disk, closed; the last ones, for who looks later.

Its job: a short record that is added to a few times in the life of a file, and never by a read but the first. Must not
know who asks.

Concurrency: loop thread only.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lazyfs.cache.disk import Disk
from lazyfs.filesystem.files import FileState
from lazyfs.filesystem.nodes import File
from lazyfs.objects import ObjectVersion
from lazyfs.service.activity import end_of, path_of

MOST = 64
"""Loads that are remembered; the one that began first goes first."""

APART = 10.0
"""Seconds between a close and the next open of a file from which on that is another load: libraries open a file for its
header, close it, and open it again for the rest."""


@dataclass(slots=True)
class Load:
    """One file from its first open to its last close. `here` bytes were on disk when it began; times are in seconds
    since the start, None for not yet, and for what came without us: the kernel answers from its page cache itself."""

    path: str
    size: int
    here: int
    opened: float
    first: float | None = None
    whole: float | None = None
    closed: float | None = None
    read: int = 0
    opens: int = 1


class Loads:
    """The last loads of one mount, which starts now. `clock` gives seconds that only grow."""

    def __init__(self, disk: Disk, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._disk = disk
        self._clock = clock
        self._start = clock()
        self._loads: OrderedDict[int, Load] = OrderedDict()
        # Those that are not on disk as a whole, by the version.
        self._missing: dict[bytes, Load] = {}
        self.ready: float | None = None
        """When the mount could be read."""

    def mounted(self) -> None:
        """The mount can be read from now on."""
        self.ready = self._now()

    def opened(self, file: File) -> None:
        """Somebody is going to read the file."""
        now, load = self._now(), self._loads.get(file.inode)
        if load is not None and (load.closed is None or now - load.closed < APART):
            load.closed, load.opens = None, load.opens + 1
            return
        version = file.version
        here = self._disk.cached_bytes(version)
        load = Load(end_of(path_of(file)), file.size, here, now)
        self._loads.pop(file.inode, None)
        self._loads[file.inode] = load
        if self._disk.generation(version) is not None or not file.size:
            load.whole = now
        else:
            self._missing[version.object_id] = load
        if len(self._loads) > MOST:
            gone = self._loads.popitem(last=False)[1]
            self._missing = {key: one for key, one in self._missing.items() if one is not gone}

    def began(self, file: File) -> None:
        """The first read of a handle was answered."""
        load = self._loads.get(file.inode)
        if load is not None and load.first is None:
            load.first = self._now()

    def kept(self, version: ObjectVersion) -> None:
        """Some of the version came to be on disk."""
        load = self._missing.get(version.object_id)
        if load is not None and self._disk.generation(version) is not None:
            del self._missing[version.object_id]
            load.whole = self._now()

    def ended(self, state: FileState) -> None:
        """The last handle of a file was closed."""
        load = self._loads.get(state.file.inode)
        if load is not None:
            load.closed = self._now()
            load.read += state.read_bytes

    def report(self) -> dict[str, Any]:
        """All of it; `now` is the time of the answer."""
        return {
            "now": self._now(),
            "ready": self.ready,
            "files": [
                {name: getattr(load, name) for name in Load.__dataclass_fields__} for load in self._loads.values()
            ],
        }

    def _now(self) -> float:
        return round(self._clock() - self._start, 4)
