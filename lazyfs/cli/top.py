"""`lazyfs top`: a page about a mount, drawn again each second."""

import contextlib
import errno
import json
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator

import click

from lazyfs.cli.figures import Look, figures
from lazyfs.errors import SetupError
from lazyfs.service import mounts

PAUSE = 1.0
"""Seconds between two looks."""

PATIENCE = 5.0
"""Seconds that a mount may take to answer one."""

LEAVE = frozenset("qQ\x03\x1b")
"""Keys: q, what Ctrl-C sends where it is no signal, and escape."""


@click.command()
@click.argument("mountpoint", type=click.Path(), required=False)
@click.option("--once", is_flag=True, help="Print one page, of one second, and leave.")
@click.option("--json", "as_json", is_flag=True, help="What the page shows, as one line of JSON.")
def top(mountpoint: str | None, once: bool, as_json: bool) -> None:
    """What the mount at MOUNTPOINT is doing: throughput, hits, files, slow requests and errors, each second; q leaves.

    MOUNTPOINT may be left out where only one is mounted. Only root, and who mounted, may see the names of files.
    Without a terminal to draw on it is as with --once.
    """
    place = mounts.chosen(mountpoint)
    if as_json:
        click.echo(json.dumps(figures(_look(place), _second(place))))
    elif once or not sys.stdout.isatty():
        _print_once(place)
    else:
        _watch(place)


def _look(place: str) -> Look:
    """What the mount says now. `SetupError` if it does not."""
    try:
        stats = json.loads(mounts.stats_of(place))
    except (OSError, ValueError) as error:
        mount = mounts.mounted_at(place)
        if mount is None or mount.fstype != mounts.FSTYPE:
            raise SetupError(f"nothing is mounted at {place} any more") from None
        raise SetupError(f"the mount at {place} does not answer: {error}; see: lazyfs status") from None
    try:
        return Look(stats, mounts.ask(place, "activity", seconds=PATIENCE))
    except OSError as error:
        words = {
            errno.EPERM: f"only root, and who mounted {place}, may see what is read; try: sudo lazyfs top {place}",
            errno.ENODATA: f"{place} is mounted by an older lazyfs, which has no top; mount it anew",
        }
        usual = f"the mount at {place} does not answer: {error}; see: lazyfs status"
        raise SetupError(words.get(error.errno or 0, usual)) from None


def _second(place: str) -> Look:
    time.sleep(PAUSE)
    return _look(place)


def _print_once(place: str) -> None:
    # Here: rich takes 0.1 s, which no other command should wait for.
    from rich.console import Console  # noqa: PLC0415

    from lazyfs.cli.page import page  # noqa: PLC0415

    console = Console(highlight=False)
    console.print(page(figures(_look(place), _second(place)), height=console.height, keys=False))


def _watch(place: str) -> None:
    """Draw until somebody has had enough. A mount that does not answer, or is gone, is waited for."""
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    from lazyfs.cli.page import page, trouble  # noqa: PLC0415

    console = Console(highlight=False)
    before = _look(place)
    with (
        contextlib.suppress(KeyboardInterrupt),
        _keys() as pressed,
        Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
    ):
        while True:
            try:
                now = _look(place)
                drawn = page(figures(before, now), height=console.height, keys=True)
                before = now
            except SetupError as error:
                drawn = trouble(place, str(error))
            live.update(drawn, refresh=True)
            if pressed(PAUSE) & LEAVE:
                return


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], set[str]]]:
    """Inside, a function that waits so many seconds, or until keys are pressed, and gives these. The terminal is as it
    was in the end."""
    descriptor = sys.stdin.fileno()
    if not sys.stdin.isatty():
        yield _no_keys
        return
    before = termios.tcgetattr(descriptor)

    def pressed(seconds: float) -> set[str]:
        if not select.select([descriptor], [], [], seconds)[0]:
            return set()
        found = os.read(descriptor, 64)
        # A terminal that is gone reads as its end, again and again.
        return set(found.decode(errors="replace")) if found else {"q"}

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _no_keys(seconds: float) -> set[str]:
    time.sleep(seconds)
    return set()
