"""Jobs of mounts that bring files to their disks, from outside: for `lazyfs warm`, and for programs.

Its job: the words in which a mount's daemon is asked to (`commands.Commands`). Must not know how that is shown.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lazyfs.errors import SetupError
from lazyfs.service import mounts

POLL = 0.2
"""Seconds between two looks at how far a job is."""


def begin(mountpoint: str, paths: Sequence[str], rate: int | None = None) -> str:
    """Start a job for all files at and below these paths of one mount, with `rate` bytes a second at most; its name."""
    job = secrets.token_hex(8)
    for path in paths:
        mounts.command(path, f"warm:job={job}")
    mounts.command(mountpoint, f"warm-start:job={job}" + (f",rate={rate}" if rate else ""))
    return job


def progress(mountpoint: str, job: str) -> dict[str, Any]:
    """How far it is."""
    found = mounts.command(mountpoint, f"warming:job={job}")
    if not found:
        raise SetupError(f"the mount at {mountpoint} was started anew and has forgotten what it was to warm; try again")
    return found


def warm(mountpoint: str, path: Path, *, stop: Callable[[], bool] = lambda: False) -> None:
    """Return when all files at and below a path are on the mount's disk, or when `stop` is true: the job goes on then.
    `SetupError` says why not all of it is."""
    job = begin(mountpoint, [str(path)])
    while not stop():
        found = progress(mountpoint, job)
        if found["step"] == "done":
            if found["outcome"] != "warm":
                raise SetupError(f"{path} is not warm: {found['words']}")
            return
        time.sleep(POLL)
