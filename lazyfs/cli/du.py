"""`lazyfs du`: how much of each directory of a mount, or of a cache, is on disk."""

import json
import os
from typing import Any

import click

from lazyfs.cli.paths import sized
from lazyfs.errors import SetupError, UsageError
from lazyfs.service import mounts
from lazyfs.service.logs import told

MARK = "lazyfs-cache.json"
"""In every cache directory."""

NUMBERS = ("files", "size", "cached", "pinned")


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path())
@click.option(
    "--depth", "-d", type=click.IntRange(0, 32), default=1, show_default=True, help="Levels of directories shown."
)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON, a list of directories.")
def du(paths: tuple[str, ...], depth: int, as_json: bool) -> None:
    """How many bytes of the files below PATHs are cached, of how many, and how many of these are pinned, for each
    directory.

    A PATH is in a mount, or a cache directory, of which no mount is needed: then only files of which something is
    cached count. Without PATHs, all mounts are shown. Exit status 1 if one cannot be read, 2 for a wrong call.
    """
    rows: list[dict[str, Any]] = []
    for path in paths or [one.mountpoint for one in mounts.mounts() if one.fstype == mounts.FSTYPE]:
        if mounts.lazyfs_holding(path) is not None:
            _below(path, depth, rows)
        elif os.path.isfile(os.path.join(path, MARK)):
            from lazyfs.service import caches  # noqa: PLC0415 - lmdb takes its time, and mounts need none of it

            rows += [{"path": url, **one} for url, one in caches.usage(path, depth).items()]
        else:
            raise UsageError(f"{path} is neither in a lazyfs mount nor a cache directory; `lazyfs status` lists mounts")
    if as_json:
        click.echo(json.dumps(rows))
        return
    click.echo(f"{'cached':>12} {'of':>12} {'pinned':>12}  {'files':>8}  path")
    for row in rows:
        cached, size, pinned = (sized(row[name]) for name in ("cached", "size", "pinned"))
        click.echo(told(f"{cached:>12} {size:>12} {pinned:>12}  {row['files']:>8}  {row['path']}"))


def _below(path: str, depth: int, rows: list[dict[str, Any]]) -> dict[str, int]:
    """The sum of a path; it and the directories below it are put into the rows, those below first."""
    try:
        directories = []
        if depth and mounts.bounded(lambda: os.path.isdir(path), seconds=60.0):
            with os.scandir(path) as entries:
                directories = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
        elif not os.path.exists(path):
            raise SetupError(f"{path} does not exist")
    except TimeoutError:
        raise SetupError(f"the mount of {path} does not answer") from None
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from None
    own = mounts.command(path, "du:only=files" if directories else "du")
    total = {name: int(own[name]) for name in NUMBERS}
    for directory in directories:
        below = _below(directory, depth - 1, rows)
        total = {name: total[name] + below[name] for name in NUMBERS}
    rows.append({"path": path, **total})
    return total
