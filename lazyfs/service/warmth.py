"""For programs: a path of a mount brought to its disk, and what the mount behind a path says. Must not know clicks."""

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lazyfs.errors import SetupError
from lazyfs.service import mounts

POLL = 0.2
"""Seconds between two looks at how far a job is."""


def mount_of(path: Path) -> str | None:
    """The mountpoint of the lazyfs mount that a path is in; None if it is in none."""
    real = Path(path).resolve()
    found = {mount.mountpoint for mount in mounts.mounts() if mount.fstype == mounts.FSTYPE}
    return next((str(above) for above in (real, *real.parents) if str(above) in found), None)


def warm(mountpoint: str, path: Path, *, stop: Callable[[], bool] = lambda: False) -> None:
    """Have the mount bring all files at and below a path to its disk, and return when they are there, or when `stop` is
    true: the job goes on then. `SetupError` says why not all of it is."""
    job = secrets.token_hex(8)
    mounts.command(str(path), f"warm:job={job}")
    mounts.command(mountpoint, f"warm-start:job={job}")
    while not stop():
        found = mounts.command(mountpoint, f"warming:job={job}")
        if not found:
            raise SetupError(f"the mount at {mountpoint} was started anew and has forgotten what it was to warm")
        if found["step"] == "done":
            if found["outcome"] != "warm":
                raise SetupError(f"{path} is not warm: {found['words']}")
            return
        time.sleep(POLL)


def stats_of(mountpoint: str) -> dict[str, Any]:
    """The counters of a mount, or its `trouble`."""
    try:
        return dict(json.loads(mounts.stats_of(mountpoint)))
    except (OSError, TimeoutError, ValueError) as error:
        return {"mountpoint": mountpoint, "trouble": str(error)}
