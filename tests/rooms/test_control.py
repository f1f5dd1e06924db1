"""The table of commands: who may ask what of which node, and what is asked twice."""

import json
from typing import Any

import pytest
import trio

from lazyfs.errors import NotPermitted, UsageError
from lazyfs.filesystem.control import Arguments, Command, Control
from lazyfs.filesystem.entries import Entries
from lazyfs.filesystem.nodes import Branch, Directory, File, Node
from lazyfs.filesystem.walking import Walk
from lazyfs.objects import Listing, ObjectInfo

OWNER, OTHER = 1000, 1001


def tree_of(*keys: str) -> Directory:
    """A directory with files of these names."""
    infos = tuple(ObjectInfo(key, '"1"', 5, 0) for key in keys)

    async def never(*_: object) -> Listing:
        raise NotImplementedError

    branch = Branch(place="place", prefix="", list_prefix=never, age=lambda _: 0.0, ttl=60.0)
    root = Directory(1, "", None, "", branch, {})
    root.entries = Entries.of(Listing("", infos, ("deep/",), 0.0), root.entries, lambda count: 2)
    return root


ROOT = tree_of("a", "b")


class Bench:
    """Commands that remember what they were given."""

    def __init__(self) -> None:
        self.given: list[tuple[int, dict[str, str]]] = []
        self.control = Control(
            {
                "start": Command(self.note, owners=True),
                "look": Command(self.note),
                "file": Command(self.note, on=File),
                "fail": Command(self.fail),
            },
            owner=OWNER,
        )

    async def note(self, node: Node, arguments: Arguments) -> dict[str, Any]:
        """A command."""
        await trio.lowlevel.checkpoint()
        self.given.append((node.inode, dict(arguments)))
        return {"count": len(self.given)}

    async def fail(self, node: Node, arguments: Arguments) -> dict[str, Any]:
        """Another."""
        raise UsageError("not like that")

    async def ask(self, text: str, user: int = OWNER, node: Node = ROOT) -> Any:
        """The answer."""
        found = await self.control.answer(node, text, user)
        return None if found is None else json.loads(found)


async def test_arguments_come_with_the_name() -> None:
    """And what is no such name is no command."""
    bench = Bench()
    assert await bench.ask("look") == {"count": 1}
    assert await bench.ask("look:job=ab12,rate=7,once=") == {"count": 2}
    assert bench.given == [(1, {}), (1, {"job": "ab12", "rate": "7", "once": ""})]
    for text in ("nothing", "look:", "look:job", "look:job=a b", "look:a=1,", "Look", "look:=1", "file", "", "a=1"):
        assert await bench.ask(text) is None, text
    assert await bench.ask("file", node=ROOT.children["a"]) == {"count": 3}


async def test_what_starts_something_is_for_the_owner_and_root() -> None:
    """The others are refused before it is done."""
    bench = Bench()
    for user in (OWNER, 0):
        assert await bench.ask("start", user)
    with pytest.raises(NotPermitted):
        await bench.ask("start", OTHER)
    assert len(bench.given) == 2
    assert await bench.ask("look", OTHER)


async def test_once_is_once() -> None:
    """The second question, with more room for the answer, has the answer of the first."""
    bench = Bench()
    assert await bench.ask("start:once=1") == await bench.ask("start:once=1") == {"count": 1}
    assert await bench.ask("start:once=2") == {"count": 2}
    assert await bench.ask("start:once=1", node=ROOT.children["a"]) == {"count": 3}
    for number in range(100):
        await bench.ask(f"start:once=x{number}")
    assert len(bench.control._answers) <= 64


async def test_a_failure_has_its_sentence() -> None:
    """In the answer, for an errno has none."""
    assert await Bench().ask("fail") == {"error": "not like that"}


def test_a_walk_begins_at_what_is_not_below_another() -> None:
    """A directory and what is in it are one; a name that only begins alike is another."""
    a, b, deep = (ROOT.children[name] for name in ("a", "b", "deep"))
    assert [node.inode for node in Walk(None, [b, a, b])._nodes] == [a.inode, b.inode]  # type: ignore[arg-type]
    assert Walk(None, [a, ROOT, deep])._nodes == [ROOT]  # type: ignore[arg-type]
