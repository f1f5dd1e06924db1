"""The cache directory: whether it is fit, whose it is, and what earlier daemons left in it.

Layout: `lazyfs-cache.json` (marks the directory as ours), `index/`, `objects/`, `daemons/` (one locked file for each
running daemon), `damaged/` (what was set aside, being deleted), `models/` (models as plain files, see `models.shelf`),
`open` (the boot in which the index is open), `room` (locked by the one daemon that clears the disk just now).
Directories 0700, files 0600, no link followed.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from lazyfs.errors import SetupError

MARK = "lazyfs-cache.json"
OPEN_MARK = "open"
MODELS, USED = "models", "used"
LONGEST_MARK = 4096
"""Bytes of the mark that are read."""

CLOSE_PATIENCE = 1.0
"""Seconds that an end waits for another daemon that is clearing the disk. Without, the next boot audits the index."""
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_REMOTE = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "glusterfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ncpfs",
}


class CacheDirectory:
    """A directory that has passed every check, and this daemon's place in it. `SetupError` says what to do if not."""

    def __init__(self, path: Path, *, create: bool) -> None:
        """`create`: make it if missing, for the default place; a directory that the user names must exist."""
        self.path = path
        self.daemon = secrets.randbits(63)
        try:
            _check(path, create=create)
            for name in ("index", "objects", "daemons"):
                _own_directory(path / name)
            self._check_inside()
            self._room = os.open(path / "room", _FLAGS, 0o600)
            self._lock = _locked(self._daemon_file(self.daemon))
        except OSError as error:
            raise unusable(path, error) from None

    def _check_inside(self) -> None:
        """Nothing of ours is somebody else's under our name. LMDB follows a link in the place of its files, and writes
        into what is behind it; a pipe is waited for. A directory there is only an index that cannot be used."""
        for path in (self.index / "data.mdb", self.index / "lock.mdb"):
            if path.is_symlink() or not path.is_dir():
                _own_file(path)
        for name in (OPEN_MARK, "room"):
            _own_file(self.path / name)
        with os.scandir(self.objects) as folders:
            for folder in folders:
                _own_directory(self.objects / folder.name)
        if os.path.lexists(self._aside):
            _own_directory(self._aside)

    @property
    def index(self) -> Path:
        """Directory of the LMDB index."""
        return self.path / "index"

    @property
    def objects(self) -> Path:
        """Directory of the object files."""
        return self.path / "objects"

    def alive(self) -> set[int]:
        """Daemons that use this directory now, this one included. A dead one's lock is free, and its file is
        removed."""
        found = {self.daemon}
        for path in (self.path / "daemons").iterdir():
            with contextlib.suppress(ValueError, OSError):
                daemon = int(path.name, 16)
                if daemon == self.daemon:
                    continue
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    if _try_lock(descriptor):
                        path.unlink(missing_ok=True)
                    else:
                        found.add(daemon)
                finally:
                    os.close(descriptor)
        return found

    @contextlib.contextmanager
    def alone(self, patience: float) -> Iterator[bool]:
        """Inside, no other daemon clears the disk or sets the index aside, if this gives True; after `patience` seconds
        of waiting it gives False. The lock of a daemon that died is free; not to be nested."""
        deadline = time.monotonic() + patience
        while not (got := _try_lock(self._room)) and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield got
        finally:
            if got:
                fcntl.flock(self._room, fcntl.LOCK_UN)

    def lost_power(self) -> bool:
        """Whether the machine stopped while a daemon had the index open: what it had not synced may be torn."""
        try:
            return (self.path / OPEN_MARK).read_bytes() != _boot_id().encode()
        except FileNotFoundError:
            return False

    def mark_open(self) -> None:
        """From now until `close`, a stop of the machine would leave the index as it happens to be on disk."""
        with contextlib.suppress(FileNotFoundError):
            if (self.path / OPEN_MARK).read_bytes() == _boot_id().encode():
                return
        descriptor = os.open(self.path / OPEN_MARK, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(_boot_id())
            file.flush()
            os.fsync(descriptor)

    def orphaned(self) -> bool:
        """Whether there are object files and no index that could know them, as when that was deleted."""
        index = self.index / "data.mdb"
        missing = not index.exists() or (index.is_file() and index.stat().st_size == 0)
        return missing and any(self.objects.iterdir())

    def set_aside(self, *, wait: bool = False) -> None:
        """Put the index and the object files it knew out of the way, and start with none. Deleting takes its time
        in a thread of its own, unless the caller has time to `wait`.

        Object files go first: a kill in between leaves an index that is set aside by the next start as well, where the
        other order would leave files that no index knows.
        """
        _own_directory(self._aside)
        aside = self._aside / secrets.token_hex(8)
        aside.mkdir(mode=0o700)
        for name in ("objects", "index"):
            with contextlib.suppress(FileNotFoundError):
                (self.path / name).rename(aside / name)
            _own_directory(self.path / name)
        if wait:
            shutil.rmtree(self._aside, ignore_errors=True)
        self.clear_aside()

    def aside_size(self) -> int:
        """Bytes of disk of what was set aside and is not yet deleted."""
        if not self._aside.exists():
            return 0
        total = 0
        for folder, _, names in os.walk(self._aside):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += os.lstat(os.path.join(folder, name)).st_blocks * 512
        return total

    def models_size(self) -> int:
        """Bytes of disk that models kept as plain files take, or are going to; `models.shelf` says so."""
        try:
            return int((self.path / MODELS / USED).read_bytes())
        except (FileNotFoundError, ValueError):
            return 0

    def clear_aside(self) -> None:
        """Delete what was set aside, now or by an earlier daemon, without waiting for it."""
        if self._aside.exists():
            threading.Thread(target=shutil.rmtree, args=(self._aside, True), name="clear-damaged", daemon=True).start()

    def close(self) -> None:
        """Leave the directory, the index being synced: this daemon is no longer alive in it."""
        # Who starts marks the index as open with this lock held, after it is counted as alive.
        with self.alone(CLOSE_PATIENCE) as alone:
            if alone and self.alive() == {self.daemon}:
                (self.path / OPEN_MARK).unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        """The same, of who has only looked: whether the machine stopped while the index was open is still to be
        told."""
        self._daemon_file(self.daemon).unlink(missing_ok=True)
        os.close(self._lock)
        os.close(self._room)

    @property
    def _aside(self) -> Path:
        return self.path / "damaged"

    def _daemon_file(self, daemon: int) -> Path:
        return self.path / "daemons" / f"{daemon:016x}"


def _locked(path: Path) -> int:
    """A descriptor of the file, made if missing, with its lock held."""
    while True:
        descriptor = os.open(path, _FLAGS, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Between the two, somebody may have taken it for the file of a dead daemon and removed it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
                return descriptor
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _boot_id() -> str:
    """Another after each start of the machine; the same in every container on it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def unusable(path: Path, error: OSError) -> SetupError:
    """What to tell the user of a failure of the disk."""
    return SetupError(f"the cache directory {path} cannot be used: {error.strerror}; choose another --cache-dir")


def _check(path: Path, *, create: bool) -> None:
    try:
        if create:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except FileNotFoundError:
        raise SetupError(f"the cache directory {path} does not exist; create it with: mkdir -m 700 -p {path}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise SetupError(f"the cache directory {path} is not a directory; choose another --cache-dir")
    if found.st_uid != os.geteuid():
        raise SetupError(
            f"the cache directory {path} belongs to user {found.st_uid}, not to you; choose another --cache-dir"
        )
    kind = filesystem_type(path)
    if kind in _REMOTE or kind.startswith("fuse."):
        raise SetupError(
            f"the cache directory {path} is on a network filesystem ({kind}), where an index is not safe; "
            "choose a --cache-dir on a local disk"
        )
    if found.st_mode & 0o077:
        path.chmod(0o700)
    if not os.access(path, os.W_OK | os.X_OK) or os.statvfs(path).f_flag & os.ST_RDONLY:
        raise SetupError(f"the cache directory {path} is not writable; choose another --cache-dir")
    _check_mark(path)


def _check_mark(path: Path) -> None:
    mark = path / MARK
    _own_file(mark)
    if not mark.exists():
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # of several that start at once in a new directory, one makes it
            if not mark.exists():
                _make_mark(path, mark)
        finally:
            os.close(descriptor)
    try:
        with mark.open("rb") as marked:
            layout = json.loads(marked.read(LONGEST_MARK))["layout"]
    except (ValueError, KeyError, TypeError, RecursionError):
        layout = None
    if layout != 1:
        raise SetupError(
            f"the cache directory {path} has a layout that this lazyfs does not know; "
            "choose another --cache-dir or delete its contents"
        )


def _make_mark(path: Path, mark: Path) -> None:
    temporary = path / f"{MARK}.new"  # what a kill may leave of the next lines
    if any(found.name not in ("lost+found", temporary.name) for found in path.iterdir()):
        raise SetupError(
            f"the cache directory {path} holds files that are not lazyfs's; choose an empty directory as --cache-dir"
        )
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
        json.dump({"what": "a lazyfs chunk cache; safe to delete while no mount uses it", "layout": 1}, file)
        file.flush()
        os.fsync(file.fileno())  # else a power failure may leave a mark without a word in it
    temporary.rename(mark)


def _own_directory(path: Path) -> None:
    """Make it, or make sure that what is there is a directory of ours and not a link."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise SetupError(f"{path} is not a directory of yours; remove it or choose another --cache-dir") from None
    except OSError as error:
        raise SetupError(f"{path} cannot be made: {error.strerror}; choose another --cache-dir") from None


def _own_file(path: Path) -> None:
    """Make sure that what is there, if anything is, is a file of ours that has no other name: no link, no pipe."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
        raise SetupError(f"{path} is not a plain file of yours; remove it or choose another --cache-dir")


def filesystem_type(path: Path) -> str:
    """The type of the filesystem that holds `path`, as /proc/self/mountinfo names it; empty if it cannot be told."""
    device = os.stat(path).st_dev
    wanted = b"%d:%d" % (os.major(device), os.minor(device))
    kind = b""
    # As bytes: any user may mount at a path with what Python takes for the end of a line or for white space.
    for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n"):
        fields = line.split(b" ")
        if len(fields) > 6 and fields[2] == wanted:
            kind = fields[fields.index(b"-", 6) + 1]
    return os.fsdecode(kind)
