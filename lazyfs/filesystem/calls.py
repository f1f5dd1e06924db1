"""What the kernel asked and what it was answered: counts by operation, and in words what a call was about.

Must not know pyfuse3. The counts are plain numbers, added to at every call: a cached read of 4 KiB takes 60 us in all,
and these take one of them.
"""

import errno
import os
from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from lazyfs import errors
from lazyfs.filesystem.nodes import File, Snapshot
from lazyfs.filesystem.tree import Tree
from lazyfs.tallies import QUICK, Spread, Tally

MOST_TOLD = 1000
"""Refusals that are told once and remembered."""

UNNAMED = "E?"
"""What stands for an errno that has no name."""

DONE: dict[type[errors.LazyfsError], str] = {
    errors.ObjectChanged: "its directory is listed again before it is believed",
    errors.NotFound: "its directory is listed again before it is believed",
    errors.StaleHandle: "the kernel looks the name up again",
    errors.AccessDenied: "the next read asks again",
    errors.Unreachable: "given up after the retry budget; the next read asks again",
    errors.Corrupt: "none of its bytes are served",
}
"""What is done about a failure besides answering with it."""


USUAL_FAILURES = (("read", "EIO"), ("read", "ESTALE"), ("read", "EACCES"), ("open", "ESTALE"), ("lookup", "EIO"))

BY_SNAPSHOT = frozenset({"readdir", "releasedir"})
BY_NAME = frozenset({"lookup"})
ABOUT_NOTHING = frozenset({"statfs", "rename", "link", "symlink"})


class Listener(Protocol):
    """Who is told of every call: what it was about, its result, and how long it took, in seconds."""

    def __call__(self, operation: str, about: "About", result: str, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class About:
    """What a call was about: the key, or the prefix of a directory, and what was wanted of it. -1 and empty where it
    does not apply."""

    key: str = ""
    name: str = ""
    offset: int = -1
    size: int = -1

    def __str__(self) -> str:
        where = f", bytes {self.offset}-{self.offset + self.size - 1}" if self.size > 0 else ""
        return f"{self.key + self.name!r}{where}"


@dataclass(frozen=True, slots=True)
class CallStatistics:
    """Since the start: durations by operation, failures by (operation, errno)."""

    seconds: dict[str, Spread]
    failures: dict[tuple[str, str], int]


class Calls:
    """The calls of one mount. `listener` is told of each one, if there is one."""

    def __init__(self, tree: Tree) -> None:
        self._told: OrderedDict[str, None] = OrderedDict()
        self._tree = tree
        self.seconds: defaultdict[str, Tally] = defaultdict(lambda: Tally(QUICK))
        """How long calls took, by operation; added to by who answers."""
        self.snapshots: dict[int, Snapshot] = {}
        """The directories that are open, by handle."""
        self.next_snapshot = 1
        """The next of those handles."""
        self.under_way = 0
        """Calls other than reads that are not answered yet."""
        # A counter that is there before its first count is one whose first count is seen as an increase.
        self._failures: Counter[tuple[str, str]] = Counter(dict.fromkeys(USUAL_FAILURES, 0))
        self.listener: Listener | None = None

    def statistics(self) -> CallStatistics:
        """A frozen copy of the counters."""
        return CallStatistics({name: tally.state() for name, tally in self.seconds.items()}, dict(self._failures))

    def told_before(self, text: str) -> bool:
        """Whether this was asked about the text, one of the last thousand."""
        before = text in self._told
        self._told[text] = None
        self._told.move_to_end(text)
        if len(self._told) > MOST_TOLD:
            self._told.popitem(last=False)
        return before

    def failed(self, operation: str, number: int) -> str:
        """A call was answered with this errno; its name."""
        name = _named(number)
        self._failures[operation, name] += 1
        return name

    def answered(self, operation: str, arguments: tuple[Any, ...], number: int, started: float) -> None:
        """A call that began at `started` of `perf_counter` is answered, with this errno or 0."""
        seconds = perf_counter() - started
        self.seconds[operation].add(seconds)
        if self.listener is not None:
            self.listener(operation, self.about(operation, arguments), _named(number) if number else "ok", seconds)

    def about(self, operation: str, arguments: tuple[Any, ...]) -> About:
        """What a call was about, by the arguments that the kernel gave. Of what is gone by now, nothing is known."""
        if operation in BY_SNAPSHOT:
            opened = self.snapshots.get(arguments[0])
            return About() if opened is None else About(opened.directory.prefix)
        if operation in ABOUT_NOTHING:
            return About()
        try:
            node = self._tree.node(arguments[0])  # the handle of a file is its inode
        except errors.LazyfsError:
            return About()
        if isinstance(node, File):
            offset, size = (arguments[1], arguments[2]) if operation == "read" else (-1, -1)
            return About(node.version.key, "", offset, size)
        return About(node.prefix, os.fsdecode(arguments[1]) if operation in BY_NAME else "")


def _named(number: int) -> str:
    return errno.errorcode.get(number, UNNAMED)


def done_about(error: errors.LazyfsError) -> str:
    """What is done about a failure besides answering with it, in words; empty if nothing."""
    return next((DONE[kind] for kind in type(error).__mro__ if kind in DONE), "")
