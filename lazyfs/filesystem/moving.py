"""What one process knows of a mount that the kernel counts on, for the process that serves it next.

The kernel goes on with the numbers that it was given: inodes and how often it was told of each, handles of files and
directories, and what it reads by itself. All of that is packed as plain JSON, and restored into a tree that has listed
nothing yet. Names are not taken from it for longer than they are known: every directory is listed again, from the kept
listing if that is young enough, before somebody looks into it, and what is the same keeps its inode, as always.

Must not know FUSE, nor how the words travel. Loop thread only; nothing else may change the tree meanwhile.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from lazyfs.errors import SetupError
from lazyfs.filesystem.calls import Calls
from lazyfs.filesystem.entries import NOTHING, Entries
from lazyfs.filesystem.files import OpenFiles
from lazyfs.filesystem.nodes import Directory, File, Node, Snapshot
from lazyfs.filesystem.passthrough import Passthrough
from lazyfs.filesystem.sidecars import SUFFIX
from lazyfs.filesystem.tree import ROOT, Tree
from lazyfs.objects import Listing, ObjectInfo

FORMAT = 1
"""Another number for another meaning of these words: they pass between versions of lazyfs."""

State = dict[str, Any]


def packed(
    tree: Tree, files: OpenFiles, calls: Calls, passthrough: Passthrough | None, *, said_in: Sequence[str]
) -> State:
    """All that the kernel counts on; and where the digests of its files stand, in files of these names or beside each,
    so that what was compared with them need not be compared again."""
    nodes = {node.inode: node for node in tree.nodes()}
    directories: dict[int, Directory] = {}
    for node in [*nodes.values(), *(snapshot.directory for snapshot in calls.snapshots.values())]:
        above: Directory | None = node if isinstance(node, Directory) else node.parent
        while above is not None and above.inode not in directories:
            directories[above.inode] = above
            above = above.parent
    return {
        "format": FORMAT,
        "next_inode": tree.next_inode,
        "directories": [_directory(one, nodes, said_in) for one in sorted(directories.values(), key=_depth)],
        "files": [_file(node) for node in nodes.values() if isinstance(node, File)],
        "handles": [[state.file.inode, state.handles] for state in files.states() if state.handles],
        "snapshots": [
            [handle, snapshot.directory.inode, _entries(snapshot.entries, range(len(snapshot)))]
            for handle, snapshot in calls.snapshots.items()
        ],
        "next_snapshot": calls.next_snapshot,
        "passed": [] if passthrough is None else passthrough.packed(),
    }


def restore(state: State, tree: Tree, files: OpenFiles, calls: Calls, passthrough: Passthrough | None) -> list[File]:
    """Make the tree, which no kernel knows yet, what it was; the files that are open. `SetupError` for what cannot be
    restored: then nothing of it may be used."""
    if state.get("format") != FORMAT:
        raise SetupError(f"the state of the mount has format {state.get('format')!r}, and this lazyfs reads {FORMAT}")
    try:
        return _restore(state, tree, files, calls, passthrough)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise SetupError(f"the state of the mount cannot be read ({type(error).__name__}: {error})") from None


def _restore(
    state: State, tree: Tree, files: OpenFiles, calls: Calls, passthrough: Passthrough | None
) -> list[File]:
    directories: dict[int, Directory] = {}
    known: list[Node] = []
    places: dict[int, int] = {}  # of every inode that is an entry, for nobody reads requests meanwhile
    for packed_ in state["directories"]:
        directory = directories[packed_["inode"]] = _directory_of(packed_, tree, directories)
        directory.doubted, directory.lookups = packed_["doubted"], packed_["lookups"]
        if not directory.branch.below:
            directory.entries = _entries_of(packed_["entries"], directory)
            directory.expires = -math.inf
            places.update((inode, at) for at, inode in enumerate(directory.entries.inodes))
        if directory.lookups:
            known.append(directory)
    for packed_ in state["files"]:
        parent = directories[packed_["parent"]]
        entries, at = parent.entries, places.get(packed_["entry"][1], -1)
        if at < 0:
            entries, at = _entries_of([packed_["entry"]], parent), 0
        file = File(packed_["entry"][1], parent, entries, at)
        file.lookups, file.spoiled, file.served = (packed_[name] for name in ("lookups", "spoiled", "served"))
        known.append(file)
    tree.restore(known, state["next_inode"])
    opened = []
    for inode, handles in state["handles"]:
        opened.append(_file_of(tree, inode))
        for _ in range(handles):
            files.open(opened[-1])
    for handle, inode, entries in state["snapshots"]:
        calls.snapshots[handle] = Snapshot(directories[inode], _entries_of(entries, directories[inode]))
    calls.next_snapshot = state["next_snapshot"]
    passed = [(_file_of(tree, inode), backing, handles) for inode, backing, handles in state["passed"]]
    if passthrough is not None:
        passthrough.restore(passed)
    elif passed:
        raise SetupError("the kernel reads files of the mount by itself, so that it needs --passthrough as before")
    return opened


def _file_of(tree: Tree, inode: int) -> File:
    node = tree.node(inode)
    if not isinstance(node, File):
        raise TypeError("a handle of a directory")
    return node


# ---- directories and files


def _depth(directory: Directory) -> int:
    depth, above = 0, directory.parent
    while above is not None:
        depth, above = depth + 1, above.parent
    return depth


def _directory(directory: Directory, nodes: dict[int, Node], said_in: Sequence[str]) -> dict[str, Any]:
    """With its entries that the kernel knows, and those that say what such are; of a directory of sources all are there
    in any process."""
    entries = directory.entries
    known = {at for at, inode in enumerate(entries.inodes) if inode in nodes}
    beside = [entries.name(at) + SUFFIX for at in known if not entries.is_directory(at)]
    known |= {at for name in (*said_in, *beside) if (at := entries.find(name)) >= 0}
    return {
        "inode": directory.inode,
        "parent": directory.parent.inode if directory.parent else 0,
        "name": directory.name,
        "prefix": directory.prefix,
        "lookups": directory.lookups,
        "doubted": directory.doubted,
        "entries": [] if directory.branch.below else _entries(entries, sorted(known)),
    }


def _directory_of(packed_: dict[str, Any], tree: Tree, directories: dict[int, Directory]) -> Directory:
    inode, name = packed_["inode"], packed_["name"]
    if inode == ROOT:
        found = tree.root
    else:
        parent = directories[packed_["parent"]]
        top = tree.tops.get(name) if parent.branch.below else None
        if parent.branch.below and (top is None or top.inode != inode):
            raise SetupError(f"the mount has a source {name!r}, and this configuration has it not, or others")
        found = top or Directory(inode, name, parent, packed_["prefix"], parent.branch, tree.root.table)
    if found.prefix != packed_["prefix"]:
        raise SetupError(f"the mount is of {packed_['prefix']!r}, and this configuration of {found.prefix!r}")
    return found


def _file(file: File) -> dict[str, Any]:
    return {
        "parent": file.parent.inode,
        "entry": _entry_of_file(file),
        "lookups": file.lookups,
        "spoiled": file.spoiled,
        "served": file.served,
    }


def _entry_of_file(file: File) -> list[Any]:
    version, seconds = file.version, file.mtime_ns // 10**9
    says = version.key, version.etag, version.size, seconds, file.storage_class, version.version_id
    return [file.name, file.inode, *says]


def _entries(entries: Entries, which: Iterable[int]) -> list[list[Any]]:
    """Each as name and inode; of a file also what its listing says of it."""
    found: list[list[Any]] = []
    for at in which:
        one: list[Any] = [entries.name(at), entries.inodes[at]]
        if not entries.is_directory(at):
            info = entries.infos[entries.file(at)]
            one += [info.key, info.etag, info.size, info.mtime_ns // 10**9, info.storage_class, info.version_id]
        found.append(one)
    return found


def _entries_of(packed_: list[list[Any]], directory: Directory) -> Entries:
    """The entries again, with their inodes."""
    objects = [
        ObjectInfo(one[2], one[3], one[4], one[5] * 10**9, one[6], one[7]) for one in packed_ if len(one) > 2
    ]
    folders = [f"{directory.prefix}{one[0]}/" for one in packed_ if len(one) == 2]
    if not packed_:
        return NOTHING
    entries = Entries.of(Listing(directory.prefix, objects, folders, 0.0), NOTHING, lambda _: 0)
    if len(entries) != len(packed_):
        raise ValueError("an entry that cannot be shown")
    for at, one in enumerate(packed_):
        entries.renumber(at if entries.name(at) == one[0] else entries.find(one[0]), one[1])
    return entries
