"""The files at and below some nodes, listed as they are come to. No node of it is in the tree's table for that.

Must not know what is done with them. Loop thread only; may take many requests of listings.
"""

from collections.abc import AsyncGenerator, Sequence

from lazyfs.errors import NoSuchName
from lazyfs.filesystem.nodes import Directory, File, Node, Snapshot, parts
from lazyfs.filesystem.tree import Tree

Shown = tuple[str, str]
"""A bucket and the time as of which it is shown."""


class Walk:
    """What is at and below `nodes`, each file once, though one node be below another."""

    def __init__(self, tree: Tree, nodes: Sequence[Node]) -> None:
        self._tree = tree
        self._doubted: set[tuple[Shown, str]] = set()
        every = [part for node in nodes for part in parts(node)]
        found = {(_shown(where), name): (where, node) for node in every for where, name in [_place(node)]}
        tops = {key for key, (_, node) in found.items() if isinstance(node, Directory)}
        self._nodes = [node for key, (_, node) in sorted(found.items(), key=lambda it: it[0]) if not _below(key, tops)]

    async def files(self, *, deep: bool = True) -> AsyncGenerator[File, None]:
        """All of them as they are listed now, sorted by name in each directory; not `deep`: those right in the nodes.
        `NoSuchName` for one that is gone; raises what listing raises."""
        for node in self._nodes:
            if isinstance(node, File):
                await self._refresh(node.parent)
                found = node.parent.children.get(node.name)
                if not isinstance(found, File):
                    raise NoSuchName(f"{node.version.key!r} is gone")
                yield found
                continue
            left = [node]
            while left:
                directory = left.pop()
                await self._refresh(directory)
                below: list[Directory] = []
                for one in Snapshot(directory):
                    if isinstance(one, File):
                        yield one
                    elif deep:
                        below.append(one)
                left += reversed(below)

    def doubt(self, file: File) -> None:
        """A file was found not to be as listed: the next walk has its directory listed anew."""
        self._doubted.add((_shown(file.parent), file.parent.prefix))

    async def _refresh(self, directory: Directory) -> None:
        if (_shown(directory), directory.prefix) in self._doubted:
            self._doubted.discard((_shown(directory), directory.prefix))
            directory.doubted = True
            directory.expires = float("-inf")
        await self._tree.refresh(directory)


def _place(node: Node) -> tuple[Directory, str]:
    """The directory that gives a node its bucket, and its key or prefix."""
    return (node.parent, node.version.key) if isinstance(node, File) else (node, node.prefix)


def _shown(directory: Directory) -> Shown:
    return directory.place, directory.branch.moment


def _below(key: tuple[Shown, str], tops: set[tuple[Shown, str]]) -> bool:
    shown, name = key
    cut = len(name.rstrip("/"))
    while cut > 0:
        cut = name.rfind("/", 0, cut)
        if (shown, name[: cut + 1]) in tops:
            return True
    return False
