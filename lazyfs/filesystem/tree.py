"""The tree: inodes, names, lookup counts, and the age of listings.

A directory's entries come from one listing of its prefix, asked for when somebody first looks, once for all who look
at the same time, and again when it is older than the TTL. Attributes come from the listing. Must not know FUSE, S3 or
where bytes are.

Rules: an inode stands for one directory or for one ObjectVersion and never changes; another ETag under the same name is
another inode. An error is never an empty listing. Loop thread only; each directory has a lock for its own listing, held
across the request.
Invariants: an inode is in the table while the kernel knows it (lookups > 0) or its directory's listing names it.
"""

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import trio

from lazyfs.errors import NoSuchName, NotADirectory, StaleHandle
from lazyfs.filesystem.names import Hidden, Placed, place, problem
from lazyfs.objects import Listing, ObjectInfo, ObjectVersion

ROOT = 1
"""The kernel's number for the root of a mount, FUSE_ROOT_ID in linux/fuse.h."""


class File:
    """A file: one object version, under one name."""

    __slots__ = ("inode", "lookups", "mtime_ns", "name", "parent", "spoiled", "storage_class", "version")

    def __init__(self, inode: int, name: str, parent: "Directory", version: ObjectVersion, info: ObjectInfo) -> None:
        self.inode = inode
        self.name = name
        self.parent = parent
        self.version = version
        self.mtime_ns = info.mtime_ns
        self.storage_class = info.storage_class
        self.lookups = 0
        self.spoiled = False
        """Pages of this inode in the kernel may be wrong."""

    @property
    def current(self) -> bool:
        """Whether the last listing of its directory still names this version."""
        return self.parent.children.get(self.name) is self


class Directory:
    """A directory: one prefix. `expires` is the loop's time until which its listing is trusted, -inf for none;
    `doubted` says that an object was found not to be as listed."""

    __slots__ = ("children", "doubted", "expires", "hidden", "inode", "listing", "lookups", "name", "parent", "prefix")

    def __init__(self, inode: int, name: str, parent: "Directory | None", prefix: str) -> None:
        self.inode = inode
        self.name = name
        self.parent = parent
        self.prefix = prefix
        self.children: dict[str, Node] = {}
        self.expires = -math.inf
        self.doubted = False
        self.hidden: Counter[Hidden] = Counter()
        self.listing = trio.Lock()
        self.lookups = 0

    @property
    def current(self) -> bool:
        """Whether its parent's last listing still names it; the root always."""
        return self.parent is None or self.parent.children.get(self.name) is self


Node = File | Directory


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
        self._place = place
        self._list = list_prefix
        self._age = age
        self._ttl = ttl
        self._next_inode = ROOT + 1
        self.root = Directory(ROOT, "", None, prefix)
        self._nodes: dict[int, Node] = {ROOT: self.root}

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
        node = directory.children.get(name)
        if node is None:
            raise NoSuchName(name)
        self.remember(node)
        return node

    async def entries(self, inode: int) -> list[Node]:
        """A snapshot of a directory's entries, sorted by name."""
        directory = self.directory(inode)
        await self.refresh(directory)
        return [directory.children[name] for name in sorted(directory.children)]

    async def refresh(self, directory: Directory) -> None:
        """List the directory if its listing is too old. Whoever comes meanwhile waits for the same listing."""
        if trio.current_time() < directory.expires:
            return
        async with directory.listing:
            if trio.current_time() < directory.expires:
                return
            asked = trio.current_time()
            doubted, directory.doubted = directory.doubted, False
            listing = await self._list(directory.prefix, doubted)
            self._adopt(directory, listing)
            # At least a moment, so that the call that listed it may use it even with a TTL of zero.
            directory.expires = max(asked + self._ttl - self._age(listing), trio.current_time() + 1e-3)

    def expire(self, node: Node) -> None:
        """The directory that names this node must be listed again before it is believed."""
        if node.parent is not None:
            node.parent.expires = -math.inf
            node.parent.doubted = True

    def spoil(self, version: ObjectVersion) -> None:
        """The bytes of this version that were served were wrong: its names get new inodes, so that no page of the old
        ones is seen by who opens it from now on."""
        found = [node for node in self._nodes.values() if isinstance(node, File) and node.version == version]
        for node in found:
            node.spoiled = True
            if node.current:
                info = ObjectInfo(version.key, version.etag, version.size, node.mtime_ns, node.storage_class)
                fresh = File(self._new_inode(), node.name, node.parent, version, info)
                node.parent.children[node.name] = self._nodes[fresh.inode] = fresh
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
        """How many keys of the listings seen are hidden, and why."""
        total: Counter[Hidden] = Counter()
        for node in self._nodes.values():
            if isinstance(node, Directory):
                total.update(node.hidden)
        return total

    def _adopt(self, directory: Directory, listing: Listing) -> None:
        """Make the directory's entries those of the listing; nodes that are the same stay. One step, without await."""
        before, directory.children = directory.children, {}
        directory.hidden = Counter()
        for prefix in listing.prefixes:
            name = prefix[len(directory.prefix) : -1]
            reason = problem(name)
            if reason is not None:
                directory.hidden[reason] += 1
                continue
            old = before.get(name)
            if not isinstance(old, Directory):
                old = Directory(self._new_inode(), name, directory, prefix)
            directory.children[name] = old
            self._nodes[old.inode] = old
        for info in listing.objects:
            placed = place(info.key, directory.prefix)
            if isinstance(placed, Hidden):
                directory.hidden[placed] += 1
            elif placed.names[0] in directory.children:
                directory.hidden[Hidden.SHADOWED] += 1
            else:
                self._adopt_file(directory, placed, info, before.get(placed.names[0]))
        for node in before.values():
            if not node.current:
                self._drop(node)

    def _adopt_file(self, directory: Directory, placed: Placed, info: ObjectInfo, old: Node | None) -> None:
        name = placed.names[0]
        version = ObjectVersion(self._place, info.key, info.etag, info.size)
        if not isinstance(old, File) or old.version != version or old.mtime_ns != info.mtime_ns:
            old = File(self._new_inode(), name, directory, version, info)
        directory.children[name] = old
        self._nodes[old.inode] = old

    def _drop(self, node: Node) -> None:
        """Take a node out of the table if neither the kernel nor a listing knows it; what is below a directory goes
        too."""
        if node.lookups > 0 or node.current:
            return
        self._nodes.pop(node.inode, None)
        if isinstance(node, Directory):
            children, node.children = node.children, {}
            for child in children.values():
                self._drop(child)

    def _new_inode(self) -> int:
        self._next_inode += 1
        return self._next_inode - 1
