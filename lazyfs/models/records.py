"""What a disk knows of the models on it: one small file for each version, and locks that die with their holder.

A record is written before the first byte of its version, so that no space is taken that nobody speaks for, and removed
after the last. Its modification time is the last use. Beside it is a lock: held shared by who uses the version, alone
by who brings or removes it. Must not know where versions come from.

Blocks. flock(2) is of an open file, so threads exclude each other as processes do.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazyfs.errors import Corrupt
from lazyfs.models.manifest import Manifest, pack, unpack
from lazyfs.models.names import ModelVersion
from lazyfs.models.unpacked import archive_of, folder_of
from lazyfs.objects import Source


@dataclass(frozen=True, slots=True)
class Record:
    """One version on this disk: its `size` in bytes of disk, and whether it is `here`, or is going to be. `unpacked` is
    the directory with what is in its archive, relative to its own; empty if there is none."""

    place: str
    prefix: str
    manifest: Manifest
    size: int
    here: bool
    unpacked: str = ""

    @property
    def of(self) -> ModelVersion:
        """Which it is."""
        return self.manifest.of


def name_of(source: Source | None, of: ModelVersion) -> str:
    """The name of a version's record, another for each version of each source."""
    parts = (source.listing_place if source else "", source.prefix if source else "", of.model, of.version)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _unpacked(found: dict[str, Any], manifest: Manifest) -> str:
    """As it was written; nothing else leads anywhere."""
    path = archive_of(manifest.files)
    return folder_of(path) if path and found.get("unpacked") == folder_of(path) else ""


class Records:
    """The records in one directory, which is nobody else's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str) -> Record | None:
        """The record, or None; one that is damaged is none."""
        try:
            found = json.loads((self._folder / f"{name}.json").read_bytes())
            of = ModelVersion(found["model"], found["version"])
            manifest = unpack(json.dumps(found["manifest"]).encode(), of)
            size, here = int(found["size"]), bool(found["here"])
            return Record(found["place"], found["prefix"], manifest, size, here, _unpacked(found, manifest))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError, Corrupt):
            return None

    def all(self) -> dict[str, Record]:
        """All records, the least recently used first."""
        names = {}
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                names[path.stem] = path.stat().st_mtime_ns
        found = {name: self.get(name) for name in sorted(names, key=lambda name: names[name])}
        return {name: record for name, record in found.items() if record is not None}

    def put(self, name: str, record: Record) -> None:
        """Write it, whole or not at all."""
        of = record.of
        body = {
            "place": record.place,
            "prefix": record.prefix,
            "model": of.model,
            "version": of.version,
            "size": record.size,
            "here": record.here,
            "unpacked": record.unpacked,
            "manifest": json.loads(pack(record.manifest)),
        }
        temporary = self._folder / f"{name}.new"
        temporary.write_text(json.dumps(body))
        temporary.rename(self._folder / f"{name}.json")

    def remove(self, name: str) -> None:
        """Forget it."""
        (self._folder / f"{name}.json").unlink(missing_ok=True)

    def used(self, name: str) -> int:
        """Nanoseconds since the epoch of its last use; 0 if there is no such record."""
        try:
            return (self._folder / f"{name}.json").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def touch(self, name: str) -> None:
        """It is used now."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._folder / f"{name}.json")

    def lock(self, name: str, *, alone: bool) -> int | None:
        """A descriptor that holds the version's lock until it is closed; None if somebody else has it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._folder / f"{name}.lock", flags, 0o600)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
                return None
            raise
        return descriptor
