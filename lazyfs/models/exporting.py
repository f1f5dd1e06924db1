"""Files made plain on some disk of the user's: each under its name only once all of it is there and was compared.

Its job: share the bytes of a whole file of the cache where the filesystem can (reflink), else copy what a reader of the
source sees; compare what was written with its digest; then rename. What a kill leaves is a file with a name of its own,
which the next attempt at the same file writes over.

Why no hard link: an object file is cut to nothing when it is evicted, under whatever other name it has, a cache refuses
one that has another name (somebody may have planted it), and it is 0600 and its daemon's. A shared copy is a file like
any other: neither sees what becomes of the other.

Must not know mounts, nor who has digests. Blocks.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from awscrt.checksums import crc64nvme

from lazyfs.errors import Corrupt, SetupError, UsageError
from lazyfs.models.copying import shared
from lazyfs.models.gathering import PIECE, digests
from lazyfs.objects import Checksums

COMING = ".lazyfs-coming-"
"""How the name of a file begins that is not whole yet."""

_NOREPLACE = 1
"""RENAME_NOREPLACE, linux/fs.h. A second name instead (link, unlink) would be left by a kill between the two, and then
the next attempt would write into the finished file."""

_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)

ATTEMPTS = 2
"""To copy a file. A mount that finds wrong bytes fails who reads them, and has the right ones then."""

Told = Callable[[int], None]
"""Told how many bytes of the file are done."""

Lend = Callable[[], int | None]
"""Gives a descriptor of a file with the same bytes, to be closed, of which they may be shared; None if there is none.
OSError counts as none."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to make: `source` is what is read, of `size` bytes that come to `checksums`, as far as these are known.
    `mtime_ns` is nanoseconds since the epoch."""

    source: str
    target: str
    size: int
    mtime_ns: int
    checksums: Checksums


def in_the_way(target: str, size: int, *, force: bool) -> str:
    """In words what keeps a file of so many bytes from being put there; empty if nothing does. A file of that size may
    be the same, which is seen later (`same`)."""
    try:
        found = os.lstat(target)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f"{target} cannot be looked at: {error.strerror}"
    if stat.S_ISDIR(found.st_mode):
        return f"{target} is a directory"
    if force or (stat.S_ISREG(found.st_mode) and found.st_size == size):
        return ""
    return f"{target} is there already, and is another file; --force replaces it"


def same(wanted: Wanted) -> bool:
    """Whether the target is there with the very bytes. What has no digest is not known to be."""
    try:
        found = os.lstat(wanted.target)
        if not stat.S_ISREG(found.st_mode) or found.st_size != wanted.size:
            return False
        return bool(wanted.checksums.strongest) and not _difference(wanted.checksums, digests(wanted.target))
    except OSError:
        return False


def export(wanted: Wanted, *, lend: Lend = lambda: None, told: Told = lambda _: None, force: bool = False) -> bool:
    """Make the target; whether its bytes are shared with what was lent. `Corrupt` if the source gives other bytes than
    their digest says, or none; `SetupError` if the target cannot be written, `UsageError` if it is there by now."""
    folder = os.path.dirname(wanted.target) or "."
    try:
        os.makedirs(folder, exist_ok=True)
        with _coming(folder, os.path.basename(wanted.target)) as (descriptor, path):
            is_shared = _filled(descriptor, wanted, lend, told)
            _put(descriptor, path, wanted.target, wanted.mtime_ns, force=force)
    except OSError as error:
        words = f"cannot write {wanted.target}: {error.strerror}"
        raise SetupError(f"{words}; what is there already stays, so go on with the same command") from error
    return is_shared


def adopt(path: str, target: str, *, mtime_ns: int, force: bool) -> None:
    """Give a file that is whole, on the same filesystem, its name. `UsageError` if somebody else has that, unless it
    may be replaced; OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _put(descriptor, path, target, mtime_ns, force=force)
    finally:
        os.close(descriptor)


def _put(descriptor: int, path: str, target: str, mtime_ns: int, *, force: bool) -> None:
    os.fchmod(descriptor, 0o666 & ~_umask())
    os.utime(descriptor, ns=(mtime_ns, mtime_ns))
    os.fsync(descriptor)
    if not force:
        raw = os.fsencode(path), os.fsencode(target)
        if _libc.renameat2(_AT_FDCWD, raw[0], _AT_FDCWD, raw[1], _NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number == errno.EEXIST:
            raise UsageError(f"{target} is there by now, and is another file; --force replaces it")
        if number not in (errno.EINVAL, errno.ENOSYS):  # which say that the filesystem cannot do it
            raise OSError(number, os.strerror(number), target)
    os.rename(path, target)


@contextlib.contextmanager
def _coming(folder: str, name: str) -> Iterator[tuple[int, str]]:
    """The file that is to become `name`, empty, and its path for now; it is removed unless it was renamed. `SetupError`
    if another process is at it."""
    path = os.path.join(folder, COMING + hashlib.sha256(os.fsencode(name)).hexdigest()[:32])
    descriptor = None
    while descriptor is None:
        descriptor = _locked(path, os.path.join(folder, name))
    try:
        os.ftruncate(descriptor, 0)
        yield descriptor, path
    finally:
        if _is_at(descriptor, path):
            os.unlink(path)
        os.close(descriptor)


def _locked(path: str, target: str) -> int | None:
    """The file at `path`, for this process alone; None if it was renamed, or removed, by who had it before."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise SetupError(f"{path} is somebody else's; remove it")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, path):
            descriptor, mine = -1, descriptor
            return mine
        return None
    except BlockingIOError:
        raise SetupError(f"another process is exporting {target}; wait for it") from None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _filled(descriptor: int, wanted: Wanted, lend: Lend, told: Told) -> bool:
    if wanted.size and _share(descriptor, wanted, lend, told):
        return True
    problem = ""
    for _ in range(ATTEMPTS):
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            found = _copied(descriptor, wanted, told)
        except _Unread as error:
            problem = str(error)
            continue
        problem = _difference(wanted.checksums, found)
        if not problem:
            return False
    raise Corrupt(f"{wanted.source}: {problem}")


def _share(descriptor: int, wanted: Wanted, lend: Lend, told: Told) -> bool:
    """Whether the file has the very bytes of what is lent now. Without a digest nobody would know."""
    if not wanted.checksums.strongest:
        return False
    try:
        lent = lend()
    except OSError:
        return False
    if lent is None:
        return False
    try:
        if not shared(lent, descriptor):
            return False
    finally:
        os.close(lent)
    # By way of the new file: what rots in the cache is found before anybody has it.
    path = f"/proc/self/fd/{descriptor}"
    return os.fstat(descriptor).st_size == wanted.size and not _difference(wanted.checksums, digests(path, told))


class _Unread(Exception):
    """The source could not be read, or not to its end."""


def _copied(descriptor: int, wanted: Wanted, told: Told) -> Checksums:
    """Write what the source gives; what it comes to. Bytes are hashed while they are written."""
    free = os.fstatvfs(descriptor)
    if wanted.size > free.f_bavail * free.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    sha256, crc, done = hashlib.sha256(), 0, 0
    with (
        _opened(wanted.source) as source,
        ThreadPoolExecutor(1) as pool,
        mmap.mmap(-1, PIECE) as buffer,
        memoryview(buffer) as view,
    ):
        while count := _read(source, view):
            with view[:count] as piece:
                hashed = pool.submit(sha256.update, piece)
                try:
                    _write(descriptor, piece)
                    crc = crc64nvme(piece, crc)
                finally:
                    hashed.result()
            done += count
            told(done)
    if done != wanted.size:
        raise _Unread(f"it has {done} bytes now, and had {wanted.size}")
    return Checksums(sha256.hexdigest(), crc)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _Unread(f"it cannot be opened ({error.strerror})") from None
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        yield descriptor
    finally:
        os.close(descriptor)


def _read(source: int, view: memoryview) -> int:
    try:
        return os.readv(source, [view])
    except OSError as error:
        raise _Unread(f"it cannot be read ({error.strerror}); the log of its mount says why") from None


def _write(descriptor: int, piece: memoryview) -> None:
    at = 0
    while at < len(piece):
        at += os.write(descriptor, piece[at:])


def _difference(wanted: Checksums, found: Checksums) -> str:
    """In words what is wrong; empty if nothing is."""
    if wanted.sha256 and wanted.sha256 != found.sha256:
        return f"its SHA-256 is {found.sha256}, and should be {wanted.sha256}"
    if wanted.crc64nvme is not None and wanted.crc64nvme != found.crc64nvme:
        return f"its CRC64NVME is {found.crc64nvme:016x}, and should be {wanted.crc64nvme:016x}"
    return ""


def _umask() -> int:
    """That of this process: it can only be read by setting it, or here."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status") as status:
        return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))
    return 0o077
