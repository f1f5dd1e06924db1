"""What is mounted on this machine, whether a place can be mounted on, and how a mount is taken away.

All from /proc/self/mountinfo and fusermount3, so that it works for a mount whose daemon is dead or stuck.
"""

import errno
import json
import os
import re
import select
import stat
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lazyfs.errors import SetupError, UsageError

T = TypeVar("T")

FSTYPE = "fuse.lazyfs"


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    mountpoint: str
    fstype: str
    source: str
    device: str
    """major:minor, as in /sys/class/bdi."""
    options: str


def mounts() -> list[Mount]:
    """All mounts that this process sees, in the order in which they were made."""
    # As bytes: what else Python takes for the end of a line or for white space may stand in the name of a mountpoint,
    # which any user may choose.
    lines = Path("/proc/self/mountinfo").read_bytes().split(b"\n")
    return [mount_of(line) for line in lines if line]


def mount_of(line: bytes) -> Mount:
    """The mount that a line of mountinfo speaks of (proc_pid_mountinfo(5))."""
    fields = line.split(b" ")
    dash = fields.index(b"-", 6)
    at, kind, source, device, options = (fields[n] for n in (4, dash + 1, dash + 2, 2, 5))
    return Mount(_plain(at), os.fsdecode(kind), _plain(source), os.fsdecode(device), os.fsdecode(options))


def _plain(field: bytes) -> str:
    """Undo the octal escapes of blank, tab, newline and backslash."""
    return os.fsdecode(re.sub(rb"\\([0-3][0-7]{2})", lambda m: bytes([int(m[1], 8)]), field))


def mounted_at(mountpoint: str) -> Mount | None:
    """The mount that is on top at this path, if one is."""
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == mountpoint), None)


def prepare_mountpoint(text: str) -> str:
    """The absolute path to mount on: an empty directory. Clears a dead lazyfs mount that a crash left there.

    `SetupError` says what to do about anything else that is in the way.
    """
    mountpoint = os.path.abspath(text)
    parent = os.path.realpath(os.path.dirname(mountpoint))
    mountpoint = os.path.join(parent, os.path.basename(mountpoint))
    mount = mounted_at(mountpoint)
    while mount is not None and _dead(mountpoint):
        if mount.fstype != FSTYPE:
            raise SetupError(f"a dead {mount.fstype} mount is at {mountpoint}; remove it with: umount -l {mountpoint}")
        unmount(mountpoint, lazy=True)
        mount = mounted_at(mountpoint)
    if mount is not None:
        raise SetupError(
            f"{mountpoint} is already a mount of {mount.source} ({mount.fstype}); "
            f"unmount it first with: {'lazyfs unmount' if mount.fstype == FSTYPE else 'umount'} {mountpoint}"
        )
    try:
        mountpoint = os.path.realpath(mountpoint)
        found = os.stat(mountpoint)
        if not stat.S_ISDIR(found.st_mode):
            raise SetupError(f"the mountpoint {mountpoint} is not a directory; create an empty directory to mount on")
        if os.listdir(mountpoint):
            raise SetupError(f"the mountpoint {mountpoint} is not empty; choose an empty directory to mount on")
    except FileNotFoundError:
        raise SetupError(f"the mountpoint {mountpoint} does not exist; create it with: mkdir -p {mountpoint}") from None
    except OSError as error:
        raise SetupError(f"the mountpoint {mountpoint} cannot be used: {error.strerror}") from None
    return mountpoint


def _dead(mountpoint: str) -> bool:
    """Whether the daemon behind a mount is gone (ENOTCONN, fs/fuse in the kernel).

    Asked by an extended attribute: the kernel answers a stat of ours from memory, for its attributes never expire.
    """
    try:
        bounded(lambda: (os.stat(mountpoint), os.getxattr(mountpoint, "user.lazyfs.stats")), seconds=5.0)
    except TimeoutError:
        return False
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def unmount(mountpoint: str, *, lazy: bool) -> None:
    """Take the mount away; `lazy` also when it is in use. `SetupError` if that does not work."""
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        raise SetupError("fusermount3 is not installed; install the package fuse3") from None
    except subprocess.TimeoutExpired:
        raise SetupError(f"unmounting {mountpoint} hangs; try: lazyfs unmount --lazy {mountpoint}") from None
    if done.returncode != 0:
        if "busy" in done.stderr.lower():
            raise SetupError(
                f"{mountpoint} is in use; close what reads from it (`fuser -vm {mountpoint}` names it) "
                f"or use: lazyfs unmount --lazy {mountpoint}"
            )
        raise SetupError(f"cannot unmount {mountpoint}: {done.stderr.strip()}")


def stats_of(mountpoint: str) -> bytes:
    """What a mount's daemon reports, as JSON; OSError or TimeoutError from a dead or stuck one."""
    return bounded(lambda: os.getxattr(mountpoint, "user.lazyfs.stats"), seconds=5.0)


def chosen(text: str | None) -> str:
    """The lazyfs mount at a path, or the only one if there is no path. `UsageError` says what to write instead."""
    found = [mount.mountpoint for mount in mounts() if mount.fstype == FSTYPE]
    if text is not None:
        parent, name = os.path.split(os.path.abspath(text))
        path = os.path.join(os.path.realpath(parent), name)
        if path not in found:
            raise UsageError(f"{text} is not a lazyfs mount; `lazyfs status` lists them")
        return path
    if not found:
        raise UsageError("nothing is mounted by lazyfs")
    if len(found) > 1:
        raise UsageError(f"several are mounted, say which one: {', '.join(sorted(set(found)))}")
    return found[0]


def holding(path: str) -> Mount | None:
    """The mount that a path, which need not exist, is in: the topmost at its longest parent."""
    place = os.path.realpath(path)
    while True:
        found = mounted_at(place)
        if found is not None or place == "/":
            return found
        place = os.path.dirname(place)


def lazyfs_holding(path: str | os.PathLike[str]) -> Mount | None:
    """The mount of ours that a path is in; None if it is in another, or in none."""
    found = holding(os.fspath(path))
    return found if found is not None and found.fstype == FSTYPE else None


def ask(path: str, name: str, *, seconds: float = 30.0) -> dict[str, Any]:
    """What the daemon behind a path of a mount answers to this name; OSError or TimeoutError if it does not."""
    found: dict[str, Any] = json.loads(bounded(lambda: os.getxattr(path, f"user.lazyfs.{name}"), seconds=seconds))
    return found


def command(path: str, name: str, *, seconds: float = 600.0) -> dict[str, Any]:
    """As `ask`, with every failure as `SetupError`: what the daemon says, or what is the matter with it."""
    try:
        found = ask(path, name, seconds=seconds)
    except TimeoutError:
        raise SetupError(f"the mount of {path} does not answer") from None
    except OSError as error:
        if error.errno == errno.EPERM:
            raise SetupError(f"{path}: only the owner of the mount and root may do this") from None
        if error.errno == errno.ENODATA:
            raise SetupError(f"the mount of {path} is of another version of lazyfs; mount it again") from None
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise SetupError(f"the mount of {path} has ended") from None
        raise SetupError(f"cannot ask the mount of {path}: {error.strerror}") from None
    if "error" in found:
        raise SetupError(str(found["error"]))
    return found


def bounded(function: Callable[[], T], *, seconds: float) -> T:
    """Call in a thread of its own and wait so long: a system call on a stuck mount cannot be interrupted otherwise."""
    outcome: list[T | OSError] = []

    def call() -> None:
        try:
            outcome.append(function())
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError("the mount does not answer")
    if isinstance(outcome[0], OSError):
        raise outcome[0]
    return outcome[0]


def wait_for_exit(pid: int, seconds: float) -> bool:
    """Wait until a process that need not be a child is gone; False if it is still there."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)


def state_directory() -> Path:
    """Where logs of background mounts go."""
    if os.geteuid() == 0:
        return Path("/var/log/lazyfs")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "lazyfs"
