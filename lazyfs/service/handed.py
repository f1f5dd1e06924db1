"""A mount that somebody else made: `/dev/fd/N` as the mountpoint, where N is a /dev/fuse descriptor that is mounted.

Its job, on either side: for the privileged, mount a descriptor in the name of a user; for the daemon, which needs no
privilege at all then, see that a descriptor can be served, and where it is mounted. Must not know who serves what.

Facts (Linux 6.18, libfuse 3.14): the kernel's first request waits in the descriptor from mount(2) on, so that whoever
gets it may be late; the connection ends with its last descriptor, so that no other process may keep one; and libfuse
does not unmount what it did not mount: readers get ENOTCONN until who mounted it does.
"""

import ctypes
import os
import re
import select
import stat
from pathlib import Path

from lazyfs.errors import SetupError
from lazyfs.service import mounts

FUSE_DEVICE = os.makedev(10, 229)
"""/dev/fuse, wherever the node is (Documentation/admin-guide/devices.txt)."""

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME = 1, 2, 4, 8, 1024
"""sys/mount.h."""


def descriptor_of(mountpoint: str) -> int | None:
    """The N of `/dev/fd/N`, which libfuse takes for a descriptor and not for a place; None for any other mountpoint."""
    match = re.fullmatch(r"/dev/fd/([0-9]{1,9})", mountpoint)
    return int(match[1]) if match else None


def place_of(descriptor: int) -> str:
    """Where a handed descriptor is mounted; `/dev/fd/N` if that cannot be seen from here, as from another mount
    namespace or before Linux 6.9. `SetupError` for a descriptor that cannot be served. No child will inherit it."""
    name = f"/dev/fd/{descriptor}"
    try:
        found = os.fstat(descriptor)
        os.set_inheritable(descriptor, False)
    except OSError:
        raise SetupError(f"{name} is not open; start lazyfs by `lazyfs mount-fd`, which passes it on") from None
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != FUSE_DEVICE:
        raise SetupError(f"{name} is not an open /dev/fuse; start lazyfs by `lazyfs mount-fd`, which passes one on")
    if is_gone(descriptor):
        raise SetupError(f"{name} is not mounted (any more); mount it first, as `lazyfs mount-fd` does")
    connection = connection_of(descriptor)
    if connection is None:
        return name
    devices = {mount.device: mount.mountpoint for mount in mounts.mounts() if mount.fstype == mounts.FSTYPE}
    return devices.get(f"0:{connection}", name)


def is_gone(descriptor: int) -> bool:
    """Whether no mount is behind a /dev/fuse descriptor: fuse_dev_poll gives EPOLLERR then, and else none."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def connection_of(descriptor: int) -> int | None:
    """The connection's number, which is the minor of the mount's device; None where the kernel does not tell it."""
    text = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
    match = re.search(r"^fuse_connection:\s*([0-9]+)", text, re.MULTILINE)
    return int(match[1]) if match else None


def mount_descriptor(source: str, mountpoint: str, *, uid: int, gid: int, allow_other: bool, noexec: bool) -> int:
    """Mount a new /dev/fuse descriptor at an empty directory in the name of a user, as fusermount3 does, and return it;
    a child inherits it. `SetupError` if that takes more rights than there are."""
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR)  # without O_CLOEXEC: inheriting is what it is for
        os.set_inheritable(descriptor, True)
    except OSError as error:
        raise SetupError(
            f"cannot open /dev/fuse: {error.strerror}; in a container, pass it with --device /dev/fuse"
        ) from None
    options = f"fd={descriptor},rootmode=40000,user_id={uid},group_id={gid},default_permissions"
    options += ",allow_other" if allow_other else ""
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOATIME | (MS_NOEXEC if noexec else 0)
    libc = ctypes.CDLL(None, use_errno=True)
    words = [os.fsencode(text) for text in (source, mountpoint, mounts.FSTYPE, options)]
    if libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]) != 0:
        number = ctypes.get_errno()
        os.close(descriptor)
        raise SetupError(f"cannot mount at {mountpoint}: {os.strerror(number)}; this side needs CAP_SYS_ADMIN")
    return descriptor
