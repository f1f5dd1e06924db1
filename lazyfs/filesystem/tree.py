"""The tree: inodes, names, lookup counts, and the age of listings.

A directory's entries come from one listing of its prefix, asked for when somebody first looks, once for all who look
at the same time, and again when it is older than the TTL. Attributes come from the listing. Must not know FUSE, S3 or
where bytes are.

Rules: an inode stands for one directory or for one ObjectVersion and never changes; another ETag under the same name is
another inode. An error is never an empty listing. Loop thread only; who lists a directory is alone with that.
Invariant: a node is in the table while the kernel knows it (lookups > 0), and the root always. Every other entry is a
number in its directory, of which a node is made when it is asked for.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import trio

from lazyfs.errors import NoSuchName, NotADirectory, StaleHandle
from lazyfs.filesystem.entries import NOTHING, Entries
from lazyfs.filesystem.names import Hidden
from lazyfs.objects import Listing, ObjectVersion

ROOT = 1
"""The kernel's number for the root of a mount, FUSE_ROOT_ID in linux/fuse.h."""

MOST_REMEMBERED = 10_000
"""Directories that the kernel has forgotten of which is known what is hidden there, or that their listing is in
doubt."""


class File:
    """A file: one object version, under one name. Two are the same if their inodes are."""

    __slots__ = ("_at", "_entries", "_version", "inode", "lookups", "parent", "spoiled")

    def __init__(self, inode: int, parent: "Directory", entries: Entries, at: int) -> None:
        self.inode = inode
        self.parent = parent
        self.lookups = 0
        self.spoiled = False
        """Pages of this inode in the kernel may be wrong."""
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
            self._version = self._entries.version(self._at, self.parent.place)
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

    __slots__ = ("doubted", "entries", "expires", "inode", "lookups", "name", "parent", "place", "prefix", "table")

    def __init__(
        self, inode: int, name: str, parent: "Directory | None", prefix: str, place: str, table: "dict[int, Node]"
    ) -> None:
        self.inode = inode
        self.name = name
        self.parent = parent
        self.prefix = prefix
        self.place = place
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
        return Directory(inode, name, self, f"{self.prefix}{name}/", self.place, self.table)


Node = File | Directory


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

    __slots__ = ("_entries", "directory")

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self._entries = directory.entries

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, at: int) -> Node: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Node]: ...
    def __getitem__(self, at: int | slice) -> Node | Sequence[Node]:
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        return self.directory.node(self._entries, range(len(self))[at])


class Tree:
    """The tree below `prefix`. `list_prefix` gives listings, `age` how old one is in seconds, `ttl` when it is too
    old."""

    def __init__(
        self,
        *,
        place: str,
        prefix: str,
        list_prefix: Callable[[str, bool], Awaitable[Listing]],
        age: Callable[[Listing], float],
        ttl: float,
    ) -> None:
        self._list = list_prefix
        self._age = age
        self._ttl = ttl
        self._next_inode = ROOT + 1
        self._nodes: dict[int, Node] = {}
        self.root = Directory(ROOT, "", None, prefix, place, self._nodes)
        self._nodes[ROOT] = self.root
        self._listing: dict[int, trio.Lock] = {}
        self._hidden: OrderedDict[str, Counter[Hidden]] = OrderedDict()
        self._doubts: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def node(self, inode: int) -> Node:
        """The node of an inode that the kernel knows; `StaleHandle` for any other."""
        try:
            return self._nodes[inode]
        except KeyError:
            raise StaleHandle(f"inode {inode} is not known") from None

    def directory(self, inode: int) -> Directory:
        """The same, for a directory; `NotADirectory` for a file."""
        node = self.node(inode)
        if isinstance(node, File):
            raise NotADirectory(node.name)
        return node

    def nodes(self) -> Iterator[Node]:
        """Every node known now, for statistics and tests."""
        return iter(self._nodes.values())

    async def lookup(self, parent: int, name: str) -> Node:
        """The entry of that name, counted as known to the kernel. `NoSuchName` if the listing does not have it."""
        directory = self.directory(parent)
        await self.refresh(directory)
        at = directory.entries.find(name)
        if at < 0:
            raise NoSuchName(name)
        node = directory.node(directory.entries, at)
        self.remember(node)
        return node

    async def entries(self, inode: int) -> Snapshot:
        """A snapshot of a directory's entries."""
        directory = self.directory(inode)
        await self.refresh(directory)
        return Snapshot(directory)

    async def refresh(self, directory: Directory) -> None:
        """List the directory if its listing is too old. Whoever comes meanwhile waits for the same listing."""
        if trio.current_time() < directory.expires:
            return
        lock = self._listing.get(directory.inode)
        if lock is None:
            lock = self._listing[directory.inode] = trio.Lock()
            lock.acquire_nowait()  # without a checkpoint: a listing that is kept needs no turn of the loop
        else:
            await lock.acquire()
        try:
            if trio.current_time() < directory.expires:
                return
            asked = trio.current_time()
            doubted = directory.doubted or directory.prefix in self._doubts
            directory.doubted = False
            self._doubts.pop(directory.prefix, None)
            listing = await self._list(directory.prefix, doubted)
            self.adopt(directory, listing)
            # At least a moment, so that the call that listed it may use it even with a TTL of zero.
            directory.expires = max(asked + self._ttl - self._age(listing), trio.current_time() + 1e-3)
        finally:
            if not lock.statistics().tasks_waiting:
                self._listing.pop(directory.inode, None)
            lock.release()

    def expire(self, node: Node) -> None:
        """The directory that names this node must be listed again before it is believed."""
        if node.parent is not None:
            node.parent.expires = -math.inf
            node.parent.doubted = True

    def spoil(self, version: ObjectVersion) -> None:
        """The bytes of this version that were served were wrong: its names get new inodes, so that no page of the old
        ones is seen by who opens it from now on."""
        files = (node for node in self._nodes.values() if isinstance(node, File))
        for node in [file for file in files if file.size == version.size and file.version == version]:
            node.spoiled = True
            if node.current:
                entries = node.parent.entries
                entries.renumber(entries.find(node.name), self._new_inodes(1))
            self._drop(node)

    def trusted_for(self, directory: Directory) -> float:
        """Seconds for which the directory's listing is still to be believed, 0 or more; may be infinite."""
        return max(0.0, directory.expires - trio.current_time())

    def remember(self, node: Node) -> None:
        """The kernel was told of the node once more."""
        node.lookups += 1
        self._nodes[node.inode] = node

    def forget(self, inode: int, count: int) -> None:
        """The kernel forgot the node `count` times."""
        node = self._nodes.get(inode)
        if node is not None:
            node.lookups = max(0, node.lookups - count)
            self._drop(node)

    def hidden(self) -> Counter[Hidden]:
        """How many keys of the listings seen are hidden, and why; a common prefix counts as one."""
        total: Counter[Hidden] = Counter()
        for counted in self._hidden.values():
            total.update(counted)
        return total

    def listed_bytes(self) -> int:
        """Bytes of all files in the directories that the kernel knows."""
        return sum(sum(node.entries.infos.sizes) for node in self._nodes.values() if isinstance(node, Directory))

    def adopt(self, directory: Directory, listing: Listing) -> None:
        """Make the directory's entries those of the listing; nodes that are the same stay. One step, without await."""
        before = directory.entries
        entries = directory.entries = Entries.of(listing, before, self._new_inodes)
        self._count_hidden(directory.prefix, entries.hidden)
        for at, inode in enumerate(entries.inodes if before is not NOTHING else ()):
            node = self._nodes.get(inode)
            if isinstance(node, File):
                node.move(entries, at)
        if entries.inodes is before.inodes:
            return
        kept = set(entries.inodes)
        for inode in before.inodes:
            node = self._nodes.get(inode) if inode not in kept else None
            if node is not None:
                self._drop(node)
                if isinstance(node, File):
                    node.settle()

    def _count_hidden(self, prefix: str, counted: Counter[Hidden]) -> None:
        self._hidden.pop(prefix, None)
        if counted:
            self._hidden[prefix] = counted
            _shorten(self._hidden)

    def _drop(self, node: Node) -> None:
        """Take a node out of the table if the kernel does not know it. What is below a directory goes by itself, for
        the kernel forgets it first."""
        if node.lookups > 0 or node is self.root:
            return
        self._nodes.pop(node.inode, None)
        if isinstance(node, Directory) and node.doubted:
            self._doubts[node.prefix] = None
            _shorten(self._doubts)

    def _new_inodes(self, count: int) -> int:
        """The first of so many that nothing else has."""
        self._next_inode += count
        return self._next_inode - count


def _shorten(remembered: OrderedDict[str, Any]) -> None:
    """Forget what was remembered first, if it is too much."""
    while len(remembered) > MOST_REMEMBERED:
        remembered.popitem(last=False)
