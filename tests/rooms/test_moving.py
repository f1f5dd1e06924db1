"""What passes from one process of a mount to the next: all that the kernel counts on, and nothing that is not so."""

import copy
import json
from typing import Any, cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.cache.chunks import ChunkCache
from lazyfs.errors import SetupError
from lazyfs.filesystem import moving
from lazyfs.filesystem.calls import Calls
from lazyfs.filesystem.files import OpenFiles
from lazyfs.filesystem.nodes import Directory, File, Snapshot
from lazyfs.filesystem.tree import Tree
from lazyfs.reading.windows import Budget
from lazyfs.service import succession
from tests.rooms.memory_store import MemoryStore
from tests.rooms.test_names import KEYS, PREFIX
from tests.rooms.test_tree import Forest


class Process:
    """One that serves a mount of the store."""

    def __init__(self, store: MemoryStore) -> None:
        self.forest = Forest(store)
        self.tree = self.forest.tree
        self.calls = Calls(self.tree)
        nothing_is_read = cast(ChunkCache, None)
        self.files = OpenFiles(nothing_is_read, Budget(1 << 20, lambda *_: 1 << 20))

    def packed(self) -> Any:
        """As it travels."""
        return json.loads(json.dumps(moving.packed(self.tree, self.files, self.calls, None, said_in=("SHA256SUMS",))))

    def restore(self, state: Any) -> list[File]:
        """In the place of another."""
        return moving.restore(state, self.tree, self.files, self.calls, None)


def known(tree: Tree) -> dict[int, Any]:
    """All that is to be seen of what the kernel knows."""
    found: dict[int, Any] = {}
    for node in tree.nodes():
        if isinstance(node, Directory):
            more: tuple[object, ...] = (node.prefix, node.doubted)
        else:
            more = (node.version, node.version.version_id, node.mtime_ns, node.storage_class, node.spoiled, node.served)
        found[node.inode] = (node.name, node.lookups, node.current, node.parent and node.parent.inode, more)
    return found


async def everything(process: Process, directory: Directory) -> None:
    """The kernel learns of all there is."""
    for node in await process.tree.entries(directory.inode):
        process.tree.remember(node)
        if isinstance(node, Directory):
            await everything(process, node)


@settings(deadline=None)
@given(st.sets(KEYS, max_size=12), st.sets(KEYS, max_size=6), st.data())
def test_it_is_the_same_tree(first: set[str], second: set[str], data: st.DataObject) -> None:
    """Whatever was listed, replaced, forgotten, opened and taken for wrong: the next process knows the same, gives new
    inodes to what is new only, and its next listing agrees with a process that never moved."""

    async def check() -> None:
        store = MemoryStore()
        for key in first:
            store.put(PREFIX + key, repr(key).encode())
        old = Process(store)
        await everything(old, old.tree.root)
        nodes = [node for node in old.tree.nodes() if node is not old.tree.root]
        files = [node for node in nodes if isinstance(node, File)]
        for key in second:
            store.put(PREFIX + key, b"another " + repr(key).encode())
        if nodes:
            for node in data.draw(st.lists(st.sampled_from(nodes), max_size=4)):
                old.tree.expire(node)
                await old.tree.refresh(cast(Directory, node.parent))
        if files:
            for node in data.draw(st.lists(st.sampled_from(files), max_size=4)):
                old.files.open(node)
                node.served += 5
            spoiled = data.draw(st.sampled_from(files))
            spoiled.spoiled = data.draw(st.booleans())
            leaving = data.draw(st.sampled_from(files))
            if leaving.inode not in [state.file.inode for state in old.files.states()]:
                old.tree.forget(leaving.inode, leaving.lookups)
        old.calls.snapshots[7] = Snapshot(old.tree.root)
        old.calls.next_snapshot = 8
        new = Process(store)
        await new.tree.refresh(new.tree.root)  # as a start does, with numbers of its own
        opened = new.restore(old.packed())
        assert known(new.tree) == known(old.tree)
        handles = [{s.file.inode: s.handles for s in process.files.states()} for process in (old, new)]
        assert handles[0] == handles[1]
        assert [file.inode for file in opened] == list(handles[0])
        listed = [[(node.name, node.inode) for node in process.calls.snapshots[7]] for process in (old, new)]
        assert listed[0] == listed[1]
        assert (new.calls.next_snapshot, new.tree.next_inode >= old.tree.next_inode) == (8, True)
        before = set(known(new.tree))
        for process in (old, new):
            for folder in [node for node in process.tree.nodes() if isinstance(node, Directory)]:
                folder.expires = float("-inf")
            await everything(process, process.tree.root)

        def shown(tree: Tree) -> set[Any]:
            return {(node.name, node.parent and node.parent.name, node.inode if node.inode in before else 0)
                    for node in tree.nodes() if node.current}  # fmt: skip

        assert shown(new.tree) == shown(old.tree)

    trio.run(check)


def test_what_cannot_be_read_is_refused() -> None:
    """Another format, a piece that is missing, another prefix: a sentence, and the mount stays where it is."""

    async def check() -> None:
        store = MemoryStore()
        store.put(PREFIX + "a/b", b"1")
        old = Process(store)
        await everything(old, old.tree.root)
        state = old.packed()
        for change, words in (
            ({"format": 2}, "has format 2"),
            ({"files": [{}]}, "cannot be read"),
            ({"directories": []}, "cannot be read"),
            ({"handles": [[1, 1]]}, "cannot be read"),
            ({"passed": [[next(n.inode for n in old.tree.nodes() if isinstance(n, File)), 1, 1]]}, "--passthrough"),
        ):
            with pytest.raises(SetupError, match=words):
                Process(store).restore(copy.deepcopy(state) | change)
        other = Process(store)
        other.tree.root.prefix = "elsewhere/"
        with pytest.raises(SetupError, match="this configuration of 'elsewhere/'"):
            other.restore(state)

    trio.run(check)


def test_the_same_command_once_more() -> None:
    """Without what is of one start only."""
    first = ["/bin/lazyfs", "mount", "--foreground", "--ready-fd=5", "--allow-other", "--", "s3://b", "/m"]
    found = succession.successor_command("/py", first[1:], 9)
    assert found[:7] == ["/py", "-P", "-m", "lazyfs", "mount", "--successor-fd=9", "--foreground"]
    assert found[7:] == ["--allow-other", "--", "s3://b", "/m"]
    assert succession.successor_command("/py", found[4:], 11) == [*found[:5], "--successor-fd=11", *found[6:]]


def test_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who would take the end of a process for that of the mount is told so."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert "mount-fd" in succession.why_not(handed=True, arguments=["--ready-fd=3"])
    assert "foreground" in succession.why_not(handed=False, arguments=["mount", "-f"])
    assert succession.why_not(handed=False, arguments=["mount", "--ready-fd=3"]) == ""
    assert succession.why_not(handed=False, arguments=["mount", "--successor-fd=3"]) == ""
    monkeypatch.setenv("NOTIFY_SOCKET", "@x")
    assert succession.why_not(handed=False, arguments=["mount", "-f"]) == ""
