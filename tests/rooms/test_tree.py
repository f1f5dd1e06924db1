"""The tree: every key in its place, inodes that never change, and no more of them than somebody knows."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.errors import NoSuchName, NotADirectory, NotFound, StaleHandle, Transient
from lazyfs.filesystem.names import Hidden, Placed
from lazyfs.filesystem.nodes import Branch, Directory, File, Node
from lazyfs.filesystem.tree import ROOT, Tree
from lazyfs.objects import Listing
from tests.rooms.memory_store import Fault, MemoryStore, Valve, in_turn
from tests.rooms.test_names import KEYS, PREFIX, expected


class Forest:
    """A tree over a store in memory, with a TTL that a test can let pass."""

    def __init__(self, store: MemoryStore | None = None, *, prefix: str = PREFIX, ttl: float = 60.0) -> None:
        self.store = store or MemoryStore()
        self.doubts: list[bool] = []
        self.tree = Tree(Branch(place="p", prefix=prefix, list_prefix=self._list, age=lambda listing: 0.0, ttl=ttl))

    async def _list(self, prefix: str, doubted: bool) -> Listing:
        self.doubts.append(doubted)
        return await self.store.list(prefix)

    def put(self, *names: str) -> None:
        """An empty object for each."""
        for name in names:
            self.store.put(PREFIX + name, b"")

    async def find(self, *names: str) -> Node:
        """The node at a path, as the kernel learns of it, and of all above it."""
        node: Node = self.tree.root
        for name in names:
            node = await self.tree.lookup(node.inode, name)
        return node

    async def walk(self, directory: Directory) -> dict[str, File]:
        """Every file below, by key; no name twice, every path found by lookup too, attributes the same."""
        found: dict[str, File] = {}
        entries = await self.tree.entries(directory.inode)
        assert all(one.name < two.name for one, two in pairwise(entries))
        for listed in entries:
            node = await self.tree.lookup(directory.inode, listed.name)
            assert (node.inode, node.name) == (listed.inode, listed.name)
            assert self.tree.node(node.inode) is node
            assert directory.children[node.name] is node
            if isinstance(node, Directory):
                found |= await self.walk(node)
            else:
                found[node.version.key] = node
        return found


@given(st.sets(KEYS, max_size=12))
def test_every_key_is_reachable_or_hidden_with_its_reason(rests: set[str]) -> None:
    """A tree built from listings agrees with the rule, key by key."""
    keys = {PREFIX + rest for rest in rests}
    placed = {key: expected(key.removeprefix(PREFIX)) for key in keys}
    ancestors = {
        names[:depth]
        for rest in rests
        for names in [tuple(rest.split("/"))]
        for depth in range(1, len(names))
        if isinstance(expected("/".join(names[:depth]) + "/x"), Placed)
    }
    files = {key: p.names for key, p in placed.items() if isinstance(p, Placed) and p.names not in ancestors}

    async def run() -> None:
        forest = Forest()
        for key in sorted(keys):
            forest.store.put(key, key.encode("utf-8", "surrogatepass"))
        found = await forest.walk(forest.tree.root)
        assert {key: path_of(node) for key, node in found.items()} == files
        for key, node in found.items():
            info = await forest.store.stat(key)
            version = node.version
            assert (version.key, version.etag, version.size) == (key, info.etag, info.size)
            assert node.mtime_ns == info.mtime_ns
        hidden = forest.tree.hidden()
        shadowed = [p for p in placed.values() if isinstance(p, Placed) and p.names in ancestors]
        assert hidden[Hidden.SHADOWED] == len(shadowed)
        for reason in set(placed.values()) & set(Hidden):
            assert isinstance(reason, Hidden)
            assert hidden[reason] > 0
        assert len({node.inode for node in forest.tree.nodes()}) == len(forest.tree)
        for inode in [node.inode for node in forest.tree.nodes()]:
            forest.tree.forget(inode, 1 << 30)
        assert list(forest.tree.nodes()) == [forest.tree.root]
        assert forest.tree.hidden() == hidden

    trio.run(run)


def path_of(node: Node) -> tuple[str, ...]:
    """The names from the root down."""
    return () if node.parent is None else (*path_of(node.parent), node.name)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "delete", "list", "lookup", "forget", "expire"]),
        st.sampled_from(["a", "b", "a/x", "a/y", "b/x/z", "c/", "c/x", "a/x/w"]),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=200)
def test_the_table_of_inodes_holds_what_it_must_and_no_more(steps: list[tuple[str, str]]) -> None:
    """Whatever happens to the bucket and in whatever order the kernel learns and forgets."""
    known: Counter[int] = Counter()
    attributes: dict[int, object] = {}
    clock = MockClock()

    async def run() -> None:
        forest = Forest(ttl=0)
        tree = forest.tree
        for what, name in steps:
            clock.jump(1)  # every listing is too old at the next step
            if what == "put":
                forest.put(name)
            elif what == "delete" and PREFIX + name in forest.store._objects:
                forest.store.delete(PREFIX + name)
            elif what in ("list", "lookup"):
                await look(forest, name, remember=what == "lookup")
            elif what == "forget" and known:
                inode = min(known)
                tree.forget(inode, known.pop(inode))
            elif what == "expire":
                for node in tree.nodes():
                    tree.expire(node)
            check(tree)
        for inode, count in known.items():
            tree.forget(inode, count)
        known.clear()
        check(tree)
        for key in list(forest.store._objects):
            forest.store.delete(key)
        clock.jump(1)
        await tree.entries(ROOT)
        assert [node.inode for node in tree.nodes()] == [ROOT]

    async def look(forest: Forest, name: str, *, remember: bool) -> None:
        at = ROOT
        for piece in name.rstrip("/").split("/"):
            try:
                if remember:
                    node = await forest.tree.lookup(at, piece)
                    known[node.inode] += 1
                else:
                    node = {one.name: one for one in await forest.tree.entries(at)}[piece]
                    if node.inode not in known:
                        return  # nobody can look below what the kernel does not know
            except (NoSuchName, KeyError, NotADirectory):
                return
            at = node.inode

    def check(tree: Tree) -> None:
        table = {node.inode: node for node in tree.nodes()}
        for inode, node in table.items():
            now = node.version if isinstance(node, File) else node.prefix
            assert attributes.setdefault(inode, now) == now
            assert node.lookups == known[inode]
            assert inode == ROOT or known[inode] > 0
        assert known.keys() - {inode for inode, count in known.items() if not count} <= table.keys()

    trio.run(run, clock=clock)


async def test_the_same_etag_keeps_its_inode_and_another_gets_another(autojump_clock: MockClock) -> None:
    """The old inode goes on as long as the kernel knows it, as what it was, and is gone when forgotten."""
    forest = Forest(ttl=60)
    forest.put("same", "other")
    same, other = await forest.tree.lookup(ROOT, "same"), await forest.tree.lookup(ROOT, "other")
    forest.store.put(PREFIX + "other", b"longer")
    assert await forest.tree.lookup(ROOT, "other") is other
    await trio.sleep(61)
    new = await forest.tree.lookup(ROOT, "other")
    assert await forest.tree.lookup(ROOT, "same") is same
    assert isinstance(other, File)
    assert isinstance(new, File)
    assert new.inode != other.inode
    assert (other.version.size, new.version.size, other.current, new.current) == (0, 6, False, True)
    assert forest.tree.node(other.inode) is other
    forest.tree.forget(other.inode, 2)
    with pytest.raises(StaleHandle):
        forest.tree.node(other.inode)
    assert forest.tree.node(new.inode) is new


async def test_another_time_is_another_inode(autojump_clock: MockClock) -> None:
    """The same bytes written again: attributes of an inode never change, not even the time."""
    forest = Forest()
    forest.put("a")
    old = await forest.find("a")
    data, info = forest.store._objects[PREFIX + "a"]
    forest.store._objects[PREFIX + "a"] = (data, replace(info, mtime_ns=info.mtime_ns + 10**9))
    await trio.sleep(61)
    assert (await forest.find("a")).inode != old.inode


async def test_a_directory_wins_over_a_file_whichever_comes_first(autojump_clock: MockClock) -> None:
    forest = Forest()
    forest.put("x")
    file = await forest.tree.lookup(ROOT, "x")
    assert isinstance(file, File)
    forest.put("x/y")
    await trio.sleep(61)
    directory = await forest.tree.lookup(ROOT, "x")
    assert isinstance(directory, Directory)
    assert directory.inode != file.inode
    assert forest.tree.hidden() == {Hidden.SHADOWED: 1}
    forest.store.delete(PREFIX + "x/y")
    await trio.sleep(61)
    assert isinstance(await forest.tree.lookup(ROOT, "x"), File)
    assert forest.tree.hidden() == {}


async def test_who_comes_meanwhile_waits_for_the_same_listing() -> None:
    """Twenty lookups in a directory that nobody has seen are one request."""
    forest = Forest()
    forest.put("a")
    valve = Valve()
    forest.store.valve = lambda call: valve
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(forest.tree.lookup, ROOT, "a")
        await wait_all_tasks_blocked()
        valve.open()
    assert len(forest.store.calls) == 1
    assert (await forest.find("a")).lookups == 21


async def test_a_listing_that_fails_leaves_the_tree_as_it_was(autojump_clock: MockClock) -> None:
    """An error is never an empty directory, and the next who looks asks again."""
    forest = Forest()
    forest.put("a", "b/c")
    before = [await forest.find(name) for name in ("a", "b")]
    await trio.sleep(61)
    forest.store.fault = in_turn(Fault(Transient("down")), Fault(NotFound("no bucket")))
    for error in (Transient, NotFound):
        with pytest.raises(error):
            await forest.tree.entries(ROOT)
        assert [forest.tree.node(node.inode) for node in before] == before
    assert [node.inode for node in await forest.tree.entries(ROOT)] == [node.inode for node in before]


async def test_a_doubted_directory_is_listed_again_at_once(autojump_clock: MockClock) -> None:
    """An object that was not as listed makes its directory, and no other, be asked for before its time."""
    forest = Forest()
    forest.put("a/x", "b/x")
    file = await forest.find("a", "x")
    await forest.find("b", "x")
    forest.store.calls.clear()
    forest.tree.expire(file)
    for name in ("a", "b", "a"):
        await forest.find(name, "x")
    assert [call.key for call in forest.store.calls] == [PREFIX + "a/"]
    await trio.sleep(61)
    await forest.find("a", "x")
    assert forest.doubts.count(True) == 1


async def test_listings_are_trusted_for_their_ttl(autojump_clock: MockClock) -> None:
    """What is left of it is told, so that the kernel trusts an entry no longer than we do."""
    forest = Forest(ttl=60)
    forest.put("a")
    await forest.tree.entries(ROOT)
    await trio.sleep(20)
    assert forest.tree.trusted_for(forest.tree.root) == pytest.approx(40, abs=0.1)
    await forest.tree.entries(ROOT)
    assert len(forest.store.calls) == 1
    await trio.sleep(41)
    assert forest.tree.trusted_for(forest.tree.root) == 0
    await forest.tree.entries(ROOT)
    assert len(forest.store.calls) == 2


async def test_what_is_not_there(autojump_clock: MockClock) -> None:
    """A missing name, a file as a directory, an inode that nobody was told of."""
    forest = Forest()
    forest.put("file", "a/b")
    file = await forest.tree.lookup(ROOT, "file")
    with pytest.raises(NoSuchName):
        await forest.tree.lookup(ROOT, "nothing")
    with pytest.raises(NotADirectory):
        await forest.tree.lookup(file.inode, "x")
    with pytest.raises(NotADirectory):
        await forest.tree.entries(file.inode)
    with pytest.raises(StaleHandle):
        forest.tree.node(4711)
    asked = len(forest.store.calls)
    for name in ("nothing", "..", "", "a/b"):
        with pytest.raises(NoSuchName):
            await forest.tree.lookup(ROOT, name)
    assert len(forest.store.calls) == asked
