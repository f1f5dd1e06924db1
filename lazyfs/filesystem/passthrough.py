"""FUSE passthrough: files that the kernel reads by itself, from a descriptor that it was given, and not from us.

Its job: ask for it in the answer to FUSE_INIT, which `agreement` has at hand; register descriptors; and say in the
answer to an open that the file is read from one. Which files may be, `lend` knows. Must not know the cache, nor
pyfuse3.

Rules from the kernel (Documentation/filesystems/fuse/fuse-passthrough.rst, fs/fuse/{backing,iomode}.c, Linux 6.9 and
newer, CONFIG_FUSE_PASSTHROUGH):
- to register takes CAP_SYS_ADMIN; the descriptor's filesystem may not be stacked itself (no overlayfs);
- while an inode is open in one way, every open of it must be answered in that way and with the same registration, else
  open(2) fails with EIO. The kernel ends its side of an open before it sends RELEASE, so that counting handles is safe;
- FOPEN_KEEP_CACHE does not go with it: pages that the mount has of the file are dropped when it is opened so, which is
  why the first open decides, and why a file whose bytes went through us lately is not passed: its pages are there.

How an open is answered: libfuse 3.14 does not know the field of the answer to FUSE_OPEN. pyfuse3 answers in the very
step of the task that our handler returns in, and `device` has that answer completed on its way.
"""

import errno
import fcntl
import logging
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lazyfs.filesystem.device import OUT, Device
from lazyfs.filesystem.nodes import File
from lazyfs.objects import ObjectVersion

log = logging.getLogger(__name__)

INIT_EXT = 1 << 30
INIT_FLAGS = OUT.size + 12
"""Offset of fuse_init_out.flags; flags2 and max_stack_depth, 0 where libfuse does not know it, are 20 bytes further."""

PASSTHROUGH = 1 << 5
"""FUSE_PASSTHROUGH, bit 37, in flags2."""

STACK_DEPTH = 1
"""What the mount counts as: files of a filesystem that is not stacked on another."""

OPEN_FLAGS = OUT.size + 8
"""Offset of fuse_open_out.open_flags, which backing_id follows."""

FOPEN_PASSTHROUGH = 1 << 7

BACKING = struct.Struct("=iIQ")
"""fuse_backing_map: descriptor, flags, padding."""

BACKING_OPEN = 0x4010E501
BACKING_CLOSE = 0x4004E502
"""FUSE_DEV_IOC_BACKING_OPEN and _CLOSE: _IOW(229, 1, fuse_backing_map), _IOW(229, 2, u32)."""


def completed_init(answer: bytearray) -> None:
    """Say in the answer to FUSE_INIT that passthrough is wanted. A kernel that does not know it takes no notice."""
    flags, *_, second = struct.unpack_from("=6I", answer, INIT_FLAGS)
    struct.pack_into("=I", answer, INIT_FLAGS, flags | INIT_EXT)
    struct.pack_into("=II", answer, INIT_FLAGS + 20, second | PASSTHROUGH, STACK_DEPTH)


def completed_open(answer: bytearray, backing: int) -> None:
    """Say in the answer to FUSE_OPEN which registration the file is read from."""
    struct.pack_into("=Ii", answer, OPEN_FLAGS, FOPEN_PASSTHROUGH, backing)


@dataclass(slots=True)
class _Passed:
    file: File
    backing: int
    handles: int = 0


@dataclass(frozen=True, slots=True)
class PassthroughStatistics:
    """Opens since the start that the kernel reads by itself, files that it does now, and why it cannot, if so."""

    opens: int
    files: int
    unable: str


class Passthrough:
    """The files of one session that the kernel reads by itself. Loop thread only."""

    def __init__(
        self, lend: Callable[[ObjectVersion], int | None], returned: Callable[[ObjectVersion], None] = lambda _: None
    ) -> None:
        """`lend` gives a descriptor of a whole file, which is closed here, or None; `returned` is told when no handle
        of the file is open any more."""
        self._lend = lend
        self._returned = returned
        self._passed: dict[int, _Passed] = {}
        self._device: Device | None = None
        self._opens = 0
        self._unable = ""

    def statistics(self) -> PassthroughStatistics:
        """A frozen copy of the counters."""
        return PassthroughStatistics(self._opens, len(self._passed), self._unable)

    def serve(self, device: Device) -> None:
        """From now on it is this session's."""
        self._device = device

    def leave(self) -> None:
        """The session has ended in this process."""
        self._device = None

    def answer_open(self, file: File, *, alone: bool) -> None:
        """Called when the open of a file is about to be answered in this step; `alone`: it is not open yet."""
        device, passed = self._device, self._passed.get(file.inode)
        if device is None:
            return
        if passed is None:
            backing = self._registered(device, file) if alone and not self._unable and not _at_hand(file) else None
            if backing is None:
                return
            passed = self._passed[file.inode] = _Passed(file, backing)
        passed.handles += 1
        self._opens += 1
        number = passed.backing
        device.complete(lambda answer: completed_open(answer, number))

    def release(self, inode: int) -> None:
        """A handle of a file is closed."""
        passed = self._passed.get(inode)
        if passed is None:
            return
        passed.handles -= 1
        if passed.handles == 0:
            del self._passed[inode]
            self._returned(passed.file.version)
            if self._device is None:
                return
            try:
                fcntl.ioctl(self._device.kernel, BACKING_CLOSE, struct.pack("=I", passed.backing))
            except OSError as error:
                log.warning("the kernel does not let go of a file that it read by itself: %s", error)

    def packed(self) -> list[list[int]]:
        """For each file that the kernel reads now its inode, its registration, and how many handles it has."""
        return [[inode, passed.backing, passed.handles] for inode, passed in self._passed.items()]

    def restore(self, passed: Iterable[tuple[File, int, int]]) -> None:
        """The kernel was given these by another process of the same session: files, registrations, handles."""
        for file, backing, handles in passed:
            self._passed[file.inode] = _Passed(file, backing, handles)

    def _registered(self, device: Device, file: File) -> int | None:
        """The number of a new registration of the file's bytes with the kernel."""
        try:
            descriptor = self._lend(file.version)
        except OSError as error:
            log.debug("%r is not read by the kernel itself: %s", file.version.key, error)
            return None
        if descriptor is None:
            return None
        try:
            return int(fcntl.ioctl(device.kernel, BACKING_OPEN, bytearray(BACKING.pack(descriptor, 0, 0))))
        except OSError as error:
            self._unable = _reason(error)
            log.warning("the kernel cannot read cached files by itself, so this daemon goes on to: %s", self._unable)
            return None
        finally:
            os.close(descriptor)


def _at_hand(file: File) -> bool:
    """Whether the kernel most likely has the mount's own pages of the file: about as much as it has was read through
    us, and not again since."""
    return file.size <= 2 * file.served < 3 * file.size


def _reason(error: OSError) -> str:
    """In words, why a file cannot be registered."""
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


_REASONS = {
    errno.EPERM: "that takes CAP_SYS_ADMIN, and Linux 6.9 built with FUSE passthrough",
    errno.ENOTTY: "the kernel is older than Linux 6.9",
    errno.EOPNOTSUPP: "the kernel is built without FUSE passthrough",
    errno.ELOOP: "the cache directory is on a stacked filesystem (overlayfs); put --cache-dir on a disk of its own",
}
"""What fs/fuse/backing.c answers."""
