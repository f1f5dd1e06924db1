"""The paths that a command is given: as they are, as patterns that no shell has expanded, as lines of a list."""

import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lazyfs.errors import SetupError, UsageError
from lazyfs.service import mounts


def expanded(paths: Sequence[str], lists: Sequence[str] = ()) -> dict[str, list[str]]:
    """By mountpoint, the paths that are meant, each of which is there. `UsageError` for none, for a pattern that
    nothing matches, for what is not in a lazyfs mount; `SetupError` for what is not there."""
    named = [*paths, *(line for name in lists for line in _lines(name))]
    if not named:
        raise UsageError("no paths are given; name files or directories of a mount, or a list of them by --from-file")
    found: dict[str, list[str]] = {}
    for name in named:
        for path in _matches(name):
            mount = mounts.lazyfs_holding(path)
            if mount is None:
                raise UsageError(f"{path} is not in a lazyfs mount; `lazyfs status` lists them")
            found.setdefault(mount.mountpoint, []).append(path)
    return {mountpoint: list(dict.fromkeys(each)) for mountpoint, each in found.items()}


def _matches(name: str) -> list[str]:
    """The path itself if it is there, also if it looks like a pattern; else what the pattern matches."""
    try:
        if mounts.bounded(lambda: os.path.lexists(name), seconds=30.0):
            return [name]
        if not glob.has_magic(name):
            raise SetupError(f"{name} does not exist")
        found = sorted(mounts.bounded(lambda: glob.glob(name, recursive=True), seconds=600.0))
    except TimeoutError:
        raise SetupError(f"the mount of {name} does not answer") from None
    if not found:
        raise UsageError(f"nothing matches {name}")
    return found


def _lines(name: str) -> list[str]:
    """The paths that a list names, one a line; blank lines and those that begin with # are left out."""
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the list {name}: {error.strerror}") from None
    lines = [os.fsdecode(line.rstrip(b"\r")) for line in raw.split(b"\n")]
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def sized(size: float) -> str:
    """A size for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
