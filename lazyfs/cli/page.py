"""The page of `lazyfs top`: figures as lines of a terminal. Must not know where they come from.

Names come from a bucket and may mean harm: all that is shown goes through `told`, and nothing of it is markup.
"""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lazyfs.service.logs import told

HERE, ABSENT = "#", "."
BAR = 16
"""Columns of the bar of a file."""

MOST_LINES = 4
"""Of requests and of words, where there are files to show as well."""

FIXED = 11
"""Lines that are always there, headings included."""

LABELS = {"from_store": "from S3", "from_disk": "from disk", "to_readers": "to readers"}


def size(count: float) -> str:
    """Bytes in four letters and a unit: `1.2 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def seconds(count: float) -> str:
    """A duration: `45 s`, `3 min`, `5.2 h`."""
    return f"{count:.0f} s" if count < 120 else f"{count / 60:.0f} min" if count < 7200 else f"{count / 3600:.1f} h"


def share(part: float | None) -> str:
    """`93 %`, or a dash."""
    return "-" if part is None else f"{100 * part:.0f} %"


def bar(part: float, width: int = BAR) -> Text:
    """How much of something is here; full only when all is."""
    full = min(width, int(part * width))
    return Text.assemble((HERE * full, "green"), (ABSENT * (width - full), "dim"))


def page(found: Mapping[str, Any], *, height: int, keys: bool) -> Group:
    """All of it, in `height` lines. `keys`: there are keys to press."""
    room = max(3, height - FIXED)
    words, requests = found["words"][-MOST_LINES:], found["requests"][:MOST_LINES]
    files = found["files"]
    # What is left by the files goes to the rest, and the other way round.
    for_files = max(2, room - len(words) - len(requests))
    shown = files[: for_files if len(files) <= for_files else for_files - 1]
    parts: list[RenderableType] = [_title(found, keys=keys), _rates(found), _hits(found), _store(found), Text()]
    parts += [_files(found, shown), _requests(requests), _words(words)]
    return Group(*parts)


def trouble(mountpoint: str, words: str) -> Group:
    """The page while there is nothing to show."""
    return Group(_line((f"lazyfs top  {told(mountpoint)}", "bold")), Text(told(words), style="red"))


def _line(*pieces: str | tuple[str, str]) -> Text:
    text = Text.assemble(*pieces, no_wrap=True, overflow="ellipsis")
    text.end = "\n"
    return text


def _title(found: Mapping[str, Any], *, keys: bool) -> Text:
    # Names last: they may be long, and then their ends are cut off.
    at = f"{told(found['source'])} at {told(found['mountpoint'])}"
    facts = f"pid {found['pid']}, up {seconds(found['uptime'])}{', q leaves' if keys else ''}  "
    return _line((facts, "dim"), (at, "bold"))


def _rates(found: Mapping[str, Any]) -> Table:
    table = _table()
    for _ in range(3):
        table.add_column(no_wrap=True)
    names = list(LABELS)
    table.add_row(*(Text(f"{LABELS[n]:<11}{size(found['rates'][n])}/s", style="cyan") for n in names))
    table.add_row(*(Text(f"{'in all':<11}{size(found['totals'][n])}", style="dim") for n in names))
    return table


def _hits(found: Mapping[str, Any]) -> Text:
    now, ever = found["hits"]["now"], found["hits"]["ever"]
    pieces = [
        f"{word} {share(now[name])} ({share(ever[name])})"
        for name, word in (("memory", "memory"), ("disk", "disk"), ("store", "S3"), ("at_once", "at once"))
    ]
    return _line("hits, now (ever):  ", "  ".join(pieces))


def _store(found: Mapping[str, Any]) -> Group:
    store, memory, disk = found["store"], found["memory"], found["disk"]
    asked = f"{store['get_requests']} GET, {store['head_requests']} HEAD, {store['list_requests']} LIST"
    again = f"{store['retries']} retries, {store['slow_downs']} slow-downs"
    failed: tuple[str, str] = (f"{found['failures']} failed reads", "red" if found["failures"] else "")
    used = memory["slots"] - memory["free"]
    return Group(
        _line(f"{asked}; {found['requests_under_way']} under way, {again}, ", failed),
        _line(
            f"memory {used} of {memory['slots']} MiB, cache {size(disk['used'])}; "
            f"{found['streams']} streams with {size(found['ahead'])} ahead of them"
        ),
    )


def _table() -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)


def _files(found: Mapping[str, Any], shown: list[Mapping[str, Any]]) -> Group:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(f"file ({found['open_files']} open)", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("read now", justify="right", no_wrap=True)
    table.add_column("streams", justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("here", no_wrap=True, min_width=BAR)
    table.add_column("", justify="right", no_wrap=True)
    table.expand = True
    for file in shown:
        part = file["here"] / file["size"] if file["size"] else 1.0
        table.add_row(
            Text(told(file["path"]), style="" if file["handles"] else "dim"),
            f"{size(file['rate'])}/s" if file["handles"] or file["rate"] else "closed",
            str(file["streams"]),
            size(file["size"]),
            bar(part),
            share(int(100 * part) / 100),
        )
    left = len(found["files"]) - len(shown)
    return Group(table, *([_line((f"and {left} more", "dim"))] if left else []))


def _requests(shown: list[Mapping[str, Any]]) -> Group:
    lines = [_line(("slowest requests of the last minute", "bold"))]
    for one in shown:
        where = f" {size(one['size'])} from {size(one['start'])} on" if one["size"] else ""
        state = "  under way" if one["under_way"] else f"  {one['failure']}" if one["failure"] else ""
        lines.append(
            _line(f"{one['seconds']:7.3f} s  {one['what']} {told(one['key']) or '/'}{where}", (state, "yellow"))
        )
    return Group(*lines)


def _words(shown: list[Mapping[str, Any]]) -> Group:
    lines = [_line(("warnings and errors", "bold"), "" if shown else ": none")]
    for one in reversed(shown):
        at = time.strftime("%H:%M:%S", time.localtime(one["time"]))
        lines.append(_line(f"{at} ", (told(one["words"]), "red" if one["level"] != "warning" else "yellow")))
    return Group(*lines)
