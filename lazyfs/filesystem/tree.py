"""The tree: inodes, names, lookup counts, and the age of listings.

A directory's entries come from one listing of its prefix, asked for when somebody first looks, once for all who look
at the same time, and again when it is older than the TTL. Attributes come from the listing. Must not know FUSE, S3 or
where bytes are.

Rules: an inode stands for one directory or for one ObjectVersion and never changes; another ETag under the same name is
another inode. An error is never an empty listing. Loop thread only; who lists a directory is alone with that.
Invariant: a node is in the table while the kernel knows it (lookups > 0), and the tops of branches always. Every other
entry is a number in its directory, of which a node is made when it is asked for.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import trio

from lazyfs.errors import NoSuchName, NotADirectory, StaleHandle
from lazyfs.filesystem.entries import NOTHING, Entries
from lazyfs.filesystem.names import Hidden
from lazyfs.filesystem.nodes import Branch, Directory, File, Node, Snapshot
from lazyfs.objects import Listing, ObjectVersion

ROOT = 1
"""The kernel's number for the root of a mount, FUSE_ROOT_ID in linux/fuse.h."""

MOST_REMEMBERED = 10_000
"""Directories that the kernel has forgotten of which is known what is hidden there, or that their listing is in
doubt."""


class Tree:
    """The tree of a branch, and of those in it."""

    def __init__(self, branch: Branch) -> None:
        self._next_inode = ROOT + 1
        self._nodes: dict[int, Node] = {}
        self.root = Directory(ROOT, "", None, branch.prefix, branch, self._nodes)
        self._nodes[ROOT] = self.root
        self.tops: dict[str, Directory] = {branch.name: self.root}
        """The directories at which branches begin that are listed, by the branch's name."""
        self._listing: dict[int, trio.Lock] = {}
        self._hidden: OrderedDict[tuple[str, str], Counter[Hidden]] = OrderedDict()
        self._doubts: OrderedDict[tuple[str, str], None] = OrderedDict()
        if branch.below:
            self.root.expires = math.inf
            self.adopt(self.root, Listing("", (), tuple(f"{name}/" for name in branch.below), 0.0))
            self.tops = {node.name: node for node in self.root.children.values() if isinstance(node, Directory)}
            for node in self.tops.values():
                self.remember(node)

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def next_inode(self) -> int:
        """The first number that no inode ever had."""
        return self._next_inode

    def restore(self, known: Iterable[Node], next_inode: int) -> None:
        """The kernel knows these nodes, told of them by another process."""
        for node in known:
            self._nodes[node.inode] = node
        self._next_inode = max(self._next_inode, next_inode)

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
            doubted = directory.doubted or _known_as(directory) in self._doubts
            directory.doubted = False
            self._doubts.pop(_known_as(directory), None)
            branch = directory.branch
            listing = await branch.list_prefix(directory.prefix, doubted)
            self.adopt(directory, listing)
            # At least a moment, so that the call that listed it may use it even with a TTL of zero.
            directory.expires = max(asked + branch.ttl - branch.age(listing), trio.current_time() + 1e-3)
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

    def hidden(self, name: str | None = None) -> Counter[Hidden]:
        """How many keys of the listings seen are hidden, and why, in the branch of that name or in all; a common prefix
        counts as one."""
        total: Counter[Hidden] = Counter()
        for (branch, _), counted in self._hidden.items():
            if name is None or branch == name:
                total.update(counted)
        return total

    def listed_bytes(self, name: str) -> int:
        """Bytes of all files in the directories of the branch of that name which the kernel knows."""
        folders = [node for node in self._nodes.values() if isinstance(node, Directory) and node.branch.name == name]
        return sum(sum(folder.entries.infos.sizes) for folder in folders)

    def adopt(self, directory: Directory, listing: Listing) -> None:
        """Make the directory's entries those of the listing; nodes that are the same stay. One step, without await."""
        before = directory.entries
        entries = directory.entries = Entries.of(listing, before, self._new_inodes)
        self._count_hidden(_known_as(directory), entries.hidden)
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

    def _count_hidden(self, known_as: tuple[str, str], counted: Counter[Hidden]) -> None:
        self._hidden.pop(known_as, None)
        if counted:
            self._hidden[known_as] = counted
            _shorten(self._hidden)

    def _drop(self, node: Node) -> None:
        """Take a node out of the table if the kernel does not know it. What is below a directory goes by itself, for
        the kernel forgets it first."""
        if node.lookups > 0 or node is self.root:
            return
        self._nodes.pop(node.inode, None)
        if isinstance(node, Directory) and node.doubted:
            self._doubts[_known_as(node)] = None
            _shorten(self._doubts)

    def _new_inodes(self, count: int) -> int:
        """The first of so many that nothing else has."""
        self._next_inode += count
        return self._next_inode - count


def _known_as(directory: Directory) -> tuple[str, str]:
    """What says which directory it is, also when it is made anew."""
    return directory.branch.name, directory.prefix


def _shorten(remembered: OrderedDict[Any, Any]) -> None:
    """Forget what was remembered first, if it is too much."""
    while len(remembered) > MOST_REMEMBERED:
        remembered.popitem(last=False)
