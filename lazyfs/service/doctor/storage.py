"""The place of the cache: whether it is fit, and how quick it is. Must not know what will be kept there.

What a filesystem can do is tried in a file without a name, so that nothing is left, and no daemon there sees it.
"""

import contextlib
import fcntl
import mmap
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lazyfs.cache.directory import filesystem_type
from lazyfs.cache.objectfile import punch
from lazyfs.objects import GIB, MIB
from lazyfs.service.doctor.findings import Check, Finding, Patient, fail, ok, skip, warn

REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs"}
)
TRIED = 64 * MIB
"""Bytes that are written and read to see how quick the disk is."""

SLOW = 100e6
"""Bytes a second: a disk below that is slower than the network of most machines."""

LONGEST = 5.0
"""Seconds for writing, and for reading."""

FEW_INODES = 1000


def place(patient: Patient) -> Finding:
    """Whether a daemon would take the directory."""
    path, named = patient.cache_dir, patient.config.cache_dir is not None
    make = f"mkdir -m 700 -p {path}"
    try:
        found = path.lstat()
    except FileNotFoundError:
        if named:
            return fail(f"{path} does not exist", make)
        above = _nearest(path)
        if not os.access(above, os.W_OK | os.X_OK):
            return fail(f"{path} does not exist, and you may not make it in {above}", f"sudo {make}; or --cache-dir")
        return ok(f"{path} does not exist yet; the first mount makes it")
    if not stat.S_ISDIR(found.st_mode):
        return fail(f"{path} is not a directory", "choose another --cache-dir")
    if found.st_uid != os.geteuid():
        return fail(
            f"{path} belongs to user {found.st_uid}, and you are {os.geteuid()}",
            "chown it, or choose another --cache-dir",
        )
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return fail(f"{path} is on a filesystem that is read-only", f"mount -o remount,rw {_mountpoint(path)}")
    if not os.access(path, os.W_OK | os.X_OK):
        return fail(f"{path} is not writable", f"chmod 700 {path}")
    if found.st_mode & 0o077:
        return warn(
            f"{path} has mode {stat.S_IMODE(found.st_mode):04o}; a mount closes it to others", f"chmod 700 {path}"
        )
    return ok(f"{path} is yours, mode {stat.S_IMODE(found.st_mode):04o}")


def _nearest(path: Path) -> Path:
    """The directory, or the nearest one above that exists."""
    return next(each for each in (path, *path.parents) if each.is_dir())


def _mountpoint(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if os.path.ismount(each))


def filesystem(patient: Patient) -> Finding:
    """What kind of filesystem it is on."""
    path = _nearest(patient.cache_dir)
    kind = filesystem_type(path)
    local = "choose a --cache-dir on a local disk"
    if kind in REMOTE or kind.startswith("fuse."):
        return fail(f"{kind} is a network filesystem, where an index is not safe", local)
    if kind in ("tmpfs", "ramfs"):
        return warn(f"{kind}: the cache takes memory, and is gone after a restart of the machine", local)
    if kind == "overlay":
        return warn(
            "overlay: the cache is gone with its container", "mount a volume there, or choose another --cache-dir"
        )
    return ok(kind or "of a kind that cannot be told")


@contextlib.contextmanager
def _file(patient: Patient) -> Iterator[int]:
    """A descriptor of a file without a name in the directory, or where it would be made."""
    path = _nearest(patient.cache_dir)
    try:
        descriptor = os.open(path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except (OSError, AttributeError):  # not every filesystem has that
        descriptor, name = tempfile.mkstemp(prefix=".lazyfs-doctor-", dir=path)
        os.unlink(name)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sparse(patient: Patient) -> Finding:
    """An object file is as long as its object from its first chunk on."""
    with _file(patient) as descriptor:
        os.ftruncate(descriptor, GIB)
        os.pwrite(descriptor, bytes(4096), GIB // 2)
        taken = os.fstat(descriptor).st_blocks * 512
    if taken > GIB // 2:
        return fail("files are not sparse here: each would take its whole length", "choose another --cache-dir")
    return ok("files are sparse")


def holes(patient: Patient) -> Finding:
    """How part of a file is evicted."""
    with _file(patient) as descriptor:
        os.pwrite(descriptor, b"x" * MIB, 0)
        before = os.fstat(descriptor).st_blocks
        try:
            punch(descriptor, 0, MIB, "")
        except OSError as error:
            return warn(
                f"holes cannot be punched ({error.strerror}): only whole objects are evicted", "use ext4 or xfs"
            )
        if os.fstat(descriptor).st_blocks >= before > 0:
            return warn("a hole gives no space back: only whole objects are evicted", "use ext4 or xfs")
    return ok("holes can be punched")


def locks(patient: Patient) -> Finding:
    """How daemons that share a cache keep out of each other's way."""
    with _file(patient) as descriptor:
        other = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return ok("flock works")
        except OSError as error:
            return fail(f"flock does not work ({error.strerror})", "choose a --cache-dir on a local disk")
        finally:
            os.close(other)
    return fail("flock keeps nobody out", "choose a --cache-dir on a local disk")


def space(patient: Patient) -> Finding:
    """Free space, against the bounds."""
    found = os.statvfs(_nearest(patient.cache_dir))
    free, whole = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    bound = patient.config.min_free_space
    least = int(bound * whole) if isinstance(bound, float) else bound
    room = free - least
    words = f"{free / GIB:.1f} GiB are free, and {least / GIB:.1f} stay free by --min-free-space"
    if room < MIB:
        return fail(
            f"{words}: there is no room for a cache", "make room, lower --min-free-space, or another --cache-dir"
        )
    wanted = patient.config.max_cache_size
    # What the cache has already is not free, and counts as its own.
    if wanted is not None and wanted > room + _used(patient):
        return warn(f"{words}: --max-cache-size of {wanted / GIB:.1f} GiB cannot be reached", "make room, or lower it")
    if room < GIB:
        return warn(f"{words}: little is left for a cache", "make room, or choose another --cache-dir")
    return ok(words)


def _used(patient: Patient) -> int:
    total = 0
    for folder, _, names in os.walk(patient.cache_dir):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


def inodes(patient: Patient) -> Finding:
    """A file for each object."""
    found = os.statvfs(_nearest(patient.cache_dir))
    if not found.f_files:
        return ok("the filesystem has no bound on files")
    if found.f_favail < FEW_INODES:
        words = f"only {found.f_favail} more files can be made, and each object takes one"
        return (warn if found.f_favail else fail)(words, "remove files there, or choose another --cache-dir")
    return ok(f"{found.f_favail} more files can be made")


def users(patient: Patient) -> Finding:
    """Daemons that use the same cache now; each holds the lock of its own file."""
    count = 0
    with contextlib.suppress(OSError):
        for path in (patient.cache_dir / "daemons").iterdir():
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    count += 1
    return ok(f"{count} mounts use it now, and share it" if count else "no mount uses it now")


def speed(patient: Patient) -> Finding:
    """Writing and reading, past the page cache where that can be."""
    found = os.statvfs(_nearest(patient.cache_dir))
    if found.f_bavail * found.f_frsize < 4 * TRIED:
        return skip("not tried: too little space is free")
    with _file(patient) as plain, mmap.mmap(-1, 4 * MIB) as buffer:  # aligned, as O_DIRECT wants it
        buffer.write(os.urandom(4 * MIB))
        try:
            descriptor = os.open(f"/proc/self/fd/{plain}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            descriptor = os.dup(plain)
        try:
            written, writing = _timed(lambda offset: os.pwrite(descriptor, buffer, offset), lambda: os.fdatasync(plain))
            os.posix_fadvise(plain, 0, 0, os.POSIX_FADV_DONTNEED)
            # No more than was written.
            read, reading = _timed(lambda offset: os.preadv(descriptor, [buffer], offset), lambda: None, most=written)
        finally:
            os.close(descriptor)
    into, out = written / writing, read / reading
    words = f"writes {into / 1e6:.0f} MB/s, reads {out / 1e6:.0f} MB/s"
    if min(into, out) < SLOW:
        return warn(f"{words}: slower than most networks", "choose a --cache-dir on a quicker disk")
    return ok(words)


def _timed(step: Callable[[int], int], end: Callable[[], None], *, most: int = TRIED) -> tuple[int, float]:
    """Take steps, each at the offset where the one before ended; bytes and seconds in all."""
    began, done = time.monotonic(), 0
    while done < most and time.monotonic() - began < LONGEST and (count := step(done)):
        done += count
    end()
    return done, max(time.monotonic() - began, 1e-6)


WHERE = "cache directory"
CHECKS = (
    Check(WHERE, place),
    Check("cache filesystem", filesystem),
    Check("sparse files", sparse, (WHERE,)),
    Check("holes", holes, (WHERE,)),
    Check("file locks", locks, (WHERE,)),
    Check("free space", space, seconds=15),
    Check("inodes", inodes),
    Check("cache users", users, (WHERE,)),
    Check("disk speed", speed, (WHERE, "free space"), seconds=20),
)
"""All of them, in this order."""
