"""Models on a disk, as plain files beside the chunks of a cache directory and under the same bound.

Layout, below `models/` of the cache directory: `<source>/<model>/<version>/` (the files, 0400), `coming/<name>/` (a
version on its way), `gone/` (what is being removed), `records/` (see `records.py`), `lock` (held while space is
counted), `used` (bytes that all records speak for, which mounts take off their bound).

Why plain files of their own, and not links to the object files of the chunk cache: those are cut short or punched when
they are evicted, under whoever has them open by another name, and an index that is set aside takes them with it. Bytes
are not on a disk twice for it: where a mount serves the source, its files are what is handed out.

Space is spoken for before it is taken, and taken (fallocate) before a byte is fetched. What makes room is what was used
longest ago, a whole version or chunks; never a version that somebody uses, who holds its lock.

Must not know where versions come from. Blocks; safe for threads and processes.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lazyfs.cache.directory import MODELS, USED, CacheDirectory
from lazyfs.cache.disk import Disk
from lazyfs.cache.records import disk_size
from lazyfs.cache.room import Room
from lazyfs.errors import CacheUnavailable, NoRoom, SetupError
from lazyfs.models.manifest import Manifest
from lazyfs.models.names import ModelVersion
from lazyfs.models.records import Record, Records, name_of
from lazyfs.models.unpacked import archive_of, folder_of, unpack
from lazyfs.objects import MIB, Source

RECORD_SIZE = 4096
"""Bytes of disk beyond a file's own: its place in a directory and in the record."""

_opening = threading.Lock()
"""LMDB refuses to open one file twice in a process."""


class Shelf:
    """The models of one source in a cache directory. `max_size` and `min_free` as for `cache.disk.Disk`."""

    def __init__(
        self, path: Path, *, source: Source | None, max_size: int | None, min_free: int | float, create: bool
    ) -> None:
        """`SetupError` for a directory that is not fit for a cache."""
        self._path = path
        self._source = source
        self._max_size = max_size
        self._min_free = min_free
        self._create = create
        with self._room():
            pass  # every check of the directory and of its index
        self.root = path / MODELS
        for name in ("", "records", "coming", "gone"):
            _own(self.root / name)
        self.records = Records(self.root / "records")
        self.evicted_bytes = 0
        self._clear_gone()

    # ---- what is here

    def name(self, of: ModelVersion) -> str:
        """Of its record."""
        return name_of(self._source, of)

    def place(self, of: ModelVersion) -> Path:
        """Where its files are, if they are here. Links to nothing of ours are in this path."""
        return self._place(*self._of_source(), of)

    @property
    def bucket(self) -> str:
        """What identifies the bucket that the models are from; empty if they are from none."""
        return self._of_source()[0]

    def _of_source(self) -> tuple[str, str]:
        return (self._source.listing_place, self._source.prefix) if self._source else ("", "")

    def _place(self, place: str, prefix: str, of: ModelVersion) -> Path:
        digest = hashlib.sha256(json.dumps([place, prefix]).encode()).hexdigest()
        return self.root / digest[:12] / of.folder / of.version

    def lease(self, of: ModelVersion) -> int | None:
        """A descriptor that keeps the version from being evicted until it is closed; None if it is not here, whole."""
        name = self.name(of)
        if self.records.used(name) == 0 or (descriptor := self.records.lock(name, alone=False)) is None:
            return None
        if self.whole(of):
            self.records.touch(name)
            return descriptor
        os.close(descriptor)
        return None

    def whole(self, of: ModelVersion) -> bool:
        """Whether all of its files are here, by their sizes."""
        record = self.records.get(self.name(of))
        if record is None or not record.here:
            return False
        place = self.place(of)
        try:
            if record.unpacked and not (place / record.unpacked).is_dir():
                return False
            return all((place / file.path).stat().st_size == file.size for file in record.manifest.files)
        except OSError:
            return False

    def here(self) -> list[Record]:
        """The versions of this source that are here, the least recently used first."""
        mine = self._of_source()
        return [one for one in self.records.all().values() if one.here and (one.place, one.prefix) == mine]

    def size(self) -> int:
        """Bytes that all versions of all sources take here, or are going to."""
        return sum(record.size for record in self.records.all().values())

    # ---- bringing, with the version's lock held alone

    def coming(self, of: ModelVersion) -> Path:
        """The directory in which it is put together; what an earlier attempt left is in it."""
        path = self.root / "coming" / self.name(of)
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def workspace(self, of: ModelVersion) -> Path:
        """An empty directory for an origin, removed when the version is here."""
        path = self.coming(of) / "origin"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        return path

    def clean(self, of: ModelVersion) -> Path:
        """The empty directory `coming/<name>/files`, for files that are copied."""
        path = self.coming(of) / "files"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        return path

    def reserve(self, manifest: Manifest) -> None:
        """Speak for its bytes, making room. `NoRoom` if it does not fit, and then nothing was evicted."""
        name, of = self.name(manifest.of), manifest.of
        need = sum(disk_size(file.size) + RECORD_SIZE for file in manifest.files)
        with self._counting():
            self._set_aside(self.place(of))
            self._clear_gone()
            self.records.remove(name)
            self._put_used()
            try:
                with self._room() as room:
                    self._make_room(room, of, need, _allocated(self.root / "coming" / name))
            except BaseException:
                # What an earlier attempt has left is spoken for by nobody from here on.
                self._set_aside(self.root / "coming" / name)
                self._clear_gone()
                raise
            self.records.put(name, Record(*self._of_source(), manifest, need, here=False))

    def unpack(self, manifest: Manifest) -> str:
        """Of a version that is one archive, unpack it beside itself in `coming/<name>/files`, making room; the
        directory, empty if it is none. `NoRoom` if that does not fit."""
        path = archive_of(manifest.files)
        if not path:
            return ""
        archive = self.coming(manifest.of) / "files" / path
        shutil.rmtree(folder_of(str(archive)), ignore_errors=True)  # what a kill has left
        return folder_of(path) if unpack(archive, lambda sizes: self._reserve_more(manifest.of, sizes)) else ""

    def _reserve_more(self, of: ModelVersion, sizes: Sequence[int]) -> None:
        more = sum(disk_size(size) + RECORD_SIZE for size in sizes)
        with self._counting():
            record = self.records.get(self.name(of))
            if record is None:
                raise SetupError(f"the record of {of} in {self.root} was removed while it was fetched; get it again")
            with self._room() as room:
                self._make_room(room, of, more, 0)
            self.records.put(self.name(of), replace(record, size=record.size + more))

    def given(self, of: ModelVersion) -> Path:
        """What is handed out of a version that is here: its files, or those in the archive that it is."""
        record = self.records.get(self.name(of))
        return self.place(of) / record.unpacked if record is not None and record.unpacked else self.place(of)

    def finish(self, manifest: Manifest, unpacked: str = "") -> Path:
        """All files are in `coming/<name>/files`, and right: they are here."""
        of, name = manifest.of, self.name(manifest.of)
        coming, place = self.coming(of), self.place(of)
        for folder in (place.parent.parent, place.parent):
            _own(folder)
        with self._counting():
            record = self.records.get(name)
            if record is None:
                raise SetupError(f"the record of {of} in {self.root} was removed while it was fetched; get it again")
            self._set_aside(place)
            (coming / "files").rename(place)
            self.records.put(name, replace(record, manifest=manifest, here=True, unpacked=unpacked))
        self._set_aside(coming)
        self._clear_gone()
        return place

    def remove(self, of: ModelVersion) -> int:
        """Take it off the disk; the bytes that it had. Who has a file open keeps it until it is closed."""
        with self._counting():
            return self._remove(self.name(of))

    # ---- counting; the lock is held

    def _make_room(self, room: Room, of: ModelVersion, need: int, have: int) -> None:
        """`have` of the bytes are on the disk already."""
        lacking = room.lacking(need, have)
        if lacking <= 0:
            return
        with contextlib.ExitStack() as held:
            unused: list[tuple[int, str, int]] = []
            for name, record in self.records.all().items():
                if (lock := self.records.lock(name, alone=True)) is not None:
                    held.callback(os.close, lock)
                    unused.append((self.records.used(name), name, record.size))
            could = room.chunks_size() + sum(size for _, _, size in unused)
            if could < lacking:
                raise NoRoom(
                    f"{of} needs {_mib(need)} MiB of disk and {_mib(lacking - could)} MiB are not to be had in "
                    f"{self._path}, whatever is evicted; raise the size of the cache, free space on the disk, or end "
                    "who uses other models"
                )
            while (lacking := room.lacking(need, have)) > 0:
                chunks = room.oldest_use()
                if unused and (chunks is None or unused[0][0] <= chunks):
                    _, name, _ = unused.pop(0)
                    self.evicted_bytes += self._remove(name)
                elif chunks is None or not (freed := room.evict(max(lacking, MIB))):
                    if not unused:
                        raise NoRoom(f"{of} does not fit in {self._path} now, for others are writing there; try again")
                    self.evicted_bytes += self._remove(unused.pop(0)[1])
                else:
                    self.evicted_bytes += freed

    def _remove(self, name: str) -> int:
        record = self.records.get(name)
        if record is None:
            return 0
        # Before the record: a kill in between leaves a record of nothing, which the next eviction takes.
        self._set_aside(self._place(record.place, record.prefix, record.of))
        self._set_aside(self.root / "coming" / name)
        self._clear_gone()
        self.records.remove(name)
        self._put_used()
        return record.size

    def _set_aside(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.rename(self.root / "gone" / secrets.token_hex(8))

    def _clear_gone(self) -> None:
        for path in (self.root / "gone").iterdir():
            shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        """Nobody else counts or takes space for models meanwhile."""
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._put_used()
            yield
            self._put_used()
        finally:
            os.close(descriptor)

    def _put_used(self) -> None:
        temporary = self.root / f"{USED}.new"
        temporary.write_text(str(self.size()))
        temporary.rename(self.root / USED)

    @contextlib.contextmanager
    def _room(self) -> Iterator[Room]:
        with _opening:
            directory = CacheDirectory(self._path, create=self._create)
            disk = Disk(directory, max_size=self._max_size, min_free=self._min_free)
            try:
                yield disk.room
            except CacheUnavailable as error:
                raise SetupError(f"the cache in {self._path} cannot be used: {error}; choose another") from error
            finally:
                disk.close()


def _own(path: Path) -> None:
    """Make it, or make sure that it is a directory of ours and no link."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise SetupError(f"{path} is not a directory of yours; remove it or choose another one") from None
    except OSError as error:
        raise SetupError(f"{path} cannot be made: {error.strerror}; choose another cache directory") from None


def _allocated(path: Path) -> int:
    """Bytes of disk of all files below a path."""
    return sum(one.lstat().st_blocks * 512 for one in path.rglob("*") if one.is_file())


def _mib(size: int) -> int:
    return -(-size // MIB)
