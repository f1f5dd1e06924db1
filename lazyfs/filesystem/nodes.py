"""Nodes of the tree: directories and files as they are asked for, and the branches that they belong to.

Must not know when a directory is listed, nor what the kernel knows. Loop thread only.
Rule: a node stands for one directory or for one ObjectVersion and never changes.
"""

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from lazyfs.filesystem.entries import NOTHING, Entries
from lazyfs.objects import Listing, ObjectVersion


@dataclass(frozen=True, eq=False, slots=True)
class Branch:
    """A part of the tree that has its own listings: all below `prefix` of `place`. `list_prefix` gives them, `age` how
    old one is in seconds, `ttl` when it is too old. `name` is that of its source; `moment` the time as of which it is
    shown, empty for the present: the same key may be another version in each.

    `below` are branches that stand side by side in this one, as directories of their names; nothing else is in it, and
    it is never listed.
    """

    place: str
    prefix: str
    list_prefix: Callable[[str, bool], Awaitable[Listing]]
    age: Callable[[Listing], float]
    ttl: float
    name: str = ""
    moment: str = ""
    below: Mapping[str, "Branch"] = field(default_factory=dict)


def side_by_side(branches: Mapping[str, Branch]) -> Branch:
    """One that has these as its directories."""

    async def never(*_: object) -> Listing:
        raise AssertionError("there is nothing to list")

    return Branch("", "", never, lambda _: 0.0, math.inf, below=branches)


class File:
    """A file: one object version, under one name. Two are the same if their inodes are."""

    __slots__ = ("_at", "_entries", "_version", "inode", "lookups", "parent", "partly", "served", "spoiled")

    def __init__(self, inode: int, parent: "Directory", entries: Entries, at: int) -> None:
        self.inode = inode
        self.parent = parent
        self.lookups = 0
        self.spoiled = False
        """Pages of this inode in the kernel may be wrong."""
        self.served = 0
        """Bytes that were read of it and are closed: the kernel has pages of them, until it needs the memory."""
        self.partly = False
        """Somebody read a tensor of it in part."""
        self._entries = entries
        self._at = at
        self._version: ObjectVersion | None = None

    @property
    def name(self) -> str:
        """Its name in its directory."""
        return self._entries.name(self._at)

    @property
    def version(self) -> ObjectVersion:
        """The version it is for ever; made once, for most files are never read."""
        if self._version is None:
            branch = self.parent.branch
            self._version = self._entries.version(self._at, branch.place, branch.name)
        return self._version

    @property
    def size(self) -> int:
        """Bytes."""
        return self._entries.infos.sizes[self._entries.file(self._at)]

    @property
    def storage_class(self) -> str:
        """As listed last: it may change under the same bytes."""
        return self._entries.storage_class(self._at)

    @property
    def mtime_ns(self) -> int:
        """When it was written, in nanoseconds since the epoch."""
        return self._entries.infos.times[self._entries.file(self._at)] * 10**9

    @property
    def current(self) -> bool:
        """Whether the last listing of its directory still names this version."""
        return self.parent.inode_of(self.name) == self.inode

    def move(self, entries: Entries, at: int) -> None:
        """It stands for this entry, which says the same."""
        self._entries = entries
        self._at = at

    def settle(self) -> None:
        """It is no longer an entry: what it needs is kept for itself."""
        self._entries, self._at = self._entries.alone(self._at), 0


class Directory:
    """A directory: one prefix. `expires` is the loop's time until which its listing is trusted, -inf for none;
    `doubted` says that an object was found not to be as listed."""

    __slots__ = ("branch", "doubted", "entries", "expires", "inode", "lookups", "name", "parent", "prefix", "table")

    def __init__(
        self, inode: int, name: str, parent: "Directory | None", prefix: str, branch: Branch, table: "dict[int, Node]"
    ) -> None:
        self.inode = inode
        self.name = name
        self.parent = parent
        self.prefix = prefix
        self.branch = branch
        self.table = table
        self.entries = NOTHING
        self.expires = -math.inf
        self.doubted = False
        self.lookups = 0

    @property
    def current(self) -> bool:
        """Whether its parent's last listing still names it; the root always."""
        return self.parent is None or self.parent.inode_of(self.name) == self.inode

    @property
    def place(self) -> str:
        """What identifies the bucket that it is in; empty for one of several side by side."""
        return self.branch.place

    @property
    def children(self) -> "Children":
        """Its entries by name."""
        return Children(self)

    def inode_of(self, name: str) -> int:
        """The inode of the entry of that name, 0 if there is none."""
        at = self.entries.find(name)
        return self.entries.inodes[at] if at >= 0 else 0

    def node(self, entries: Entries, at: int) -> "Node":
        """The node of an entry that is or was in this directory: the one in the table, or else a new one, which is not
        in the table."""
        inode = entries.inodes[at]
        found = self.table.get(inode)
        if found is not None:
            return found
        if not entries.is_directory(at):
            return File(inode, self, entries, at)
        name = entries.name(at)
        below = self.branch.below.get(name)
        if below is not None:
            return Directory(inode, name, self, below.prefix, below, self.table)
        return Directory(inode, name, self, f"{self.prefix}{name}/", self.branch, self.table)


Node = File | Directory


def parts(node: Node) -> "list[Node]":
    """The node; or what stands side by side in it, if it is no prefix of a bucket itself."""
    return list(node.children.values()) if isinstance(node, Directory) and node.branch.below else [node]


class Children(Mapping[str, Node]):
    """The entries of a directory by name, as nodes."""

    __slots__ = ("_directory",)

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def __getitem__(self, name: str) -> Node:
        at = self._directory.entries.find(name)
        if at < 0:
            raise KeyError(name)
        return self._directory.node(self._directory.entries, at)

    def __iter__(self) -> Iterator[str]:
        return self._directory.entries.names()

    def __len__(self) -> int:
        return len(self._directory.entries)


class Snapshot(Sequence[Node]):
    """The entries of a directory as they were at one moment, sorted by name; nodes are made as they are looked at."""

    __slots__ = ("directory", "entries")

    def __init__(self, directory: Directory, entries: Entries | None = None) -> None:
        """`entries`: others than those that the directory has now."""
        self.directory = directory
        self.entries = directory.entries if entries is None else entries

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, at: int) -> Node: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Node]: ...
    def __getitem__(self, at: int | slice) -> Node | Sequence[Node]:
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        return self.directory.node(self.entries, range(len(self))[at])
