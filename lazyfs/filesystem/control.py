"""What a mount can be asked for by name: one table of commands, behind extended attributes of its files.

`getfattr -n user.lazyfs.NAME[:KEY=VALUE,...] PATH` asks; the answer is JSON. Reading and not setting, since the kernel
refuses to set anything on a read-only mount before it asks us. A name has at most 243 bytes, an answer 64 KiB.

An answer of more than 128 bytes is asked for twice, by Python and by getfattr: the first time there is too little room
for it. So a command that must not be done twice is given `once=WORD`, by which the second question finds the answer of
the first.

Must not know what a command does, nor FUSE. Loop thread only.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lazyfs.errors import LazyfsError, NotPermitted
from lazyfs.filesystem.nodes import File, Node

Arguments = Mapping[str, str]
Handler = Callable[[Node, Arguments], Awaitable[dict[str, Any]]]

REMEMBERED = 64
"""Answers that are remembered by their `once`."""

_FORM = re.compile(r"([a-z-]+)(?::((?:[a-z]+=[A-Za-z0-9._-]*)(?:,[a-z]+=[A-Za-z0-9._-]*)*))?")


@dataclass(frozen=True, slots=True)
class Command:
    """`owners`: it changes something, has something done or tells what not all may know, and is for the mount's owner
    and root. `on`: a kind of node, or any."""

    handler: Handler
    owners: bool = False
    on: type[Node] | None = None


class Control:
    """The commands of one mount, which runs as user `owner`."""

    def __init__(self, commands: Mapping[str, Command], *, owner: int) -> None:
        self._commands = commands
        self._owners = {owner, 0}
        self._answers: OrderedDict[tuple[str, int, str], bytes] = OrderedDict()

    async def answer(self, node: Node, text: str, user: int) -> bytes | None:
        """What `user` is told who asks `text` of a node; None if there is no such command for it. `NotPermitted` if it
        is not for that user. A failure that has a sentence is an answer with an `error`."""
        form = _FORM.fullmatch(text)
        command = self._commands.get(form[1]) if form else None
        if form is None or command is None or (command.on is not None and not isinstance(node, command.on)):
            return None
        if command.owners and user not in self._owners:
            raise NotPermitted(f"{form[1]} is for the owner of the mount and for root, not for user {user}")
        arguments = dict(pair.split("=", 1) for pair in form[2].split(",")) if form[2] else {}
        key = (text, node.inode, arguments.get("once", ""))
        if key[2] and key in self._answers:
            return self._answers[key]
        try:
            found = await command.handler(node, arguments)
        except LazyfsError as error:
            found = {"error": str(error)}
        packed = json.dumps(found).encode()
        if key[2]:
            self._answers[key] = packed
            if len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)
        return packed


def plain(function: Callable[[File], dict[str, Any]]) -> Handler:
    """A command of a file that takes no arguments and waits for nothing."""

    async def handler(node: Node, _: Arguments) -> dict[str, Any]:
        assert isinstance(node, File)  # noqa: S101 - the table says so
        return function(node)

    return handler
