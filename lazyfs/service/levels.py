"""The command of a mount that changes what it logs, `log-level:level=LEVEL`, in the form of the others (`commands`)."""

from collections.abc import Mapping
from typing import Any

from lazyfs.errors import UsageError
from lazyfs.filesystem.control import Arguments, Command
from lazyfs.filesystem.nodes import Directory, Node
from lazyfs.service.logs import LEVELS, change_log_level


async def _change(_: Node, arguments: Arguments) -> dict[str, Any]:
    level = arguments.get("level", "")
    if level not in LEVELS:
        raise UsageError(f"a log level is one of {', '.join(LEVELS)}")
    change_log_level(level, "asked for by lazyfs log-level")
    return {"level": level}


TABLE: Mapping[str, Command] = {"log-level": Command(_change, owners=True, on=Directory)}
