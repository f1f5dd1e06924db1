"""What a server stores: a table of objects, and listing it as S3 does.

Its job: keys are names in a table and never paths on a disk, so `..`, `//` or a key that is both file and
directory are keys like all others. Bytes that were put are in memory; big files are served from where they
are. Must not know HTTP. Safe for threads: one lock, held for no I/O.
"""

import bisect
import dataclasses
import hashlib
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

from tests.servers.made import Made
from tests.servers.versioning import NULL, VersionsPage, after_put, marker, versions_page


@dataclass(frozen=True, slots=True)
class Object:
    """One version of one object.

    `etag` has its quotes; `modified` is whole seconds since the epoch, as S3 keeps it.
    `headers` are sent with the object (x-amz-meta-*, x-amz-checksum-*, Content-Encoding, x-amz-storage-class,
    ...), with names in lower case.
    """

    content: bytes | Path | Made
    size: int
    etag: str
    modified: int
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    version_id: str = ""
    marker: bool = False
    """A delete marker, which is a version without bytes."""

    @property
    def archived(self) -> bool:
        """Whether it must be restored before it can be read."""
        if self.storage_class == "INTELLIGENT_TIERING":
            return "x-amz-archive-status" in self.headers
        restored = 'ongoing-request="false"' in self.headers.get("x-amz-restore", "")
        return self.storage_class in ("GLACIER", "DEEP_ARCHIVE") and not restored

    @property
    def storage_class(self) -> str:
        """STANDARD unless the object's headers say otherwise."""
        return self.headers.get("x-amz-storage-class", "STANDARD")


def from_bytes(
    data: bytes,
    *,
    etag: str | None = None,
    modified: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> Object:
    """An object in memory. Its ETag is the MD5 of its bytes, as for any object that was put in one piece."""
    etag = etag or '"' + hashlib.md5(data, usedforsecurity=False).hexdigest() + '"'
    moment = int(time.time() if modified is None else modified)
    return Object(data, len(data), etag, moment, _lowered(headers))


def from_file(path: Path, *, etag: str | None = None, headers: Mapping[str, str] | None = None) -> Object:
    """A file served where it is; it must not change. OSError if it is not there.

    Its ETag comes from path, size and mtime and ends in `-1`, as one of a multipart upload does: a client
    that takes 32 hexadecimal digits for an MD5 (rclone) compares it with the bytes and would fail.
    """
    path = path.resolve()
    status = path.stat()
    seed = f"{path}|{status.st_size}|{status.st_mtime_ns}".encode("utf-8", "surrogateescape")
    etag = etag or f'"{hashlib.sha256(seed).hexdigest()[:32]}-1"'
    return Object(path, status.st_size, etag, int(status.st_mtime), _lowered(headers))


def made_up(version: int, size: int, *, headers: Mapping[str, str] | None = None) -> Object:
    """An object of any size that takes no room, see `made.Made`."""
    return Object(Made(version, size), size, f'"{version}-{size}"', int(time.time()), _lowered(headers))


def _lowered(headers: Mapping[str, str] | None) -> Mapping[str, str]:
    return MappingProxyType({name.lower(): value for name, value in (headers or {}).items()})


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing.

    `resume` is the least key that the next page may hold, None after the last page.
    """

    objects: tuple[tuple[str, Object], ...]
    prefixes: tuple[str, ...]
    resume: str | None


class ObjectTable:
    """Buckets and their objects.

    `versioning` is the state of all buckets: empty, `Enabled` or `Suspended`; see `versioning`.
    """

    def __init__(self) -> None:
        self.versioning = ""
        self._lock = threading.Lock()
        self._buckets: dict[str, dict[str, Object]] = {}
        self._sorted: dict[str, list[str]] = {}
        self._versions: dict[str, dict[str, list[Object]]] = {}

    def add_bucket(self, bucket: str) -> None:
        """Make a bucket; nothing happens if it is there."""
        with self._lock:
            self._buckets.setdefault(bucket, {})

    def add_folder(self, bucket: str, folder: Path) -> None:
        """Make a bucket of the files below `folder` as they are now; the key is the relative path."""
        self.add_bucket(bucket)
        for parent, _, names in os.walk(folder):
            for name in names:
                path = Path(parent, name)
                self.put(bucket, str(path.relative_to(folder)), from_file(path))

    def buckets(self) -> list[str]:
        """The names of all buckets, sorted."""
        with self._lock:
            return sorted(self._buckets)

    def has_bucket(self, bucket: str) -> bool:
        """Whether there is such a bucket."""
        with self._lock:
            return bucket in self._buckets

    def put(self, bucket: str, key: str, entry: Object) -> Object:
        """Store, replacing what was there, and return the object as stored.

        KeyError if there is no such bucket.
        """
        with self._lock:
            objects = self._buckets[bucket]
            if self.versioning:
                entry = self._on_top(bucket, key, entry)
            if key not in objects:
                self._sorted.pop(bucket, None)
            objects[key] = entry
            return entry

    def get(self, bucket: str, key: str, version_id: str = "") -> Object | None:
        """The object, or the version of it; None if there is none."""
        with self._lock:
            versions = self._history(bucket, key)
            if version_id:
                return next((one for one in versions if one.version_id == version_id), None)
            return versions[0] if versions and not versions[0].marker else None

    def deleted(self, bucket: str, key: str) -> Object | None:
        """The marker, if the object is one that was deleted."""
        with self._lock:
            versions = self._history(bucket, key)
            return versions[0] if versions and versions[0].marker else None

    def delete(self, bucket: str, key: str, version_id: str = "", *, modified: float | None = None) -> Object | None:
        """Remove the object; with versions put a marker on it, which is returned, or remove one version for good.
        Nothing happens if it is not there."""
        with self._lock:
            objects, made = self._buckets.get(bucket, {}), None
            left: list[Object] = []
            if version_id:
                left = [one for one in self._history(bucket, key) if one.version_id != version_id]
                self._versions.setdefault(bucket, {})[key] = left
            elif self.versioning and bucket in self._buckets:
                made = self._on_top(bucket, key, marker(from_bytes(b""), modified))
            if left and not left[0].marker:
                objects[key] = left[0]
            else:
                objects.pop(key, None)
            self._sorted.pop(bucket, None)
            return made

    def versions(
        self, bucket: str, prefix: str, delimiter: str, after: tuple[str, str], limit: int
    ) -> VersionsPage:
        """See `versioning.versions_page`. KeyError if there is no such bucket."""
        with self._lock:
            keys = sorted(self._buckets[bucket].keys() | self._versions.get(bucket, {}).keys())
            of = partial(self._history, bucket)
            return versions_page(keys, of, prefix=prefix, delimiter=delimiter, after=after, limit=limit)

    def _on_top(self, bucket: str, key: str, entry: Object) -> Object:
        versions = after_put(self._history(bucket, key), entry, enabled=self.versioning == "Enabled")
        self._versions.setdefault(bucket, {})[key] = versions
        return versions[0]

    def _history(self, bucket: str, key: str) -> list[Object]:
        """All versions of a key, newest first; what was put when there were none yet is `null` once there are."""
        kept = self._versions.get(bucket, {}).get(key)
        if kept is not None:
            return kept
        entry = self._buckets.get(bucket, {}).get(key)
        if entry is None:
            return []
        return [dataclasses.replace(entry, version_id=NULL) if self.versioning else entry]

    def page(self, bucket: str, prefix: str, delimiter: str, resume: str, limit: int) -> Page:
        """At most `limit` keys and common prefixes, of the keys that begin with `prefix` and are >= `resume`.

        The order is that of UTF-8 bytes, S3's, which is also the order of Python's strings. KeyError if there
        is no such bucket.
        """
        with self._lock:
            objects = self._buckets[bucket]
            keys = self._sorted.get(bucket)
            if keys is None:
                keys = self._sorted[bucket] = sorted(objects)
            found: list[tuple[str, Object]] = []
            prefixes: list[str] = []
            index = bisect.bisect_left(keys, max(prefix, resume))
            while index < len(keys) and keys[index].startswith(prefix):
                key = keys[index]
                if len(found) + len(prefixes) == limit:
                    return Page(tuple(found), tuple(prefixes), key)
                cut = key.find(delimiter, len(prefix)) if delimiter else -1
                if cut < 0:
                    found.append((key, objects[key]))
                    index += 1
                else:
                    common = key[: cut + len(delimiter)]
                    prefixes.append(common)
                    index = bisect.bisect_left(keys, after_prefix(common), lo=index)
            return Page(tuple(found), tuple(prefixes), None)


def after_prefix(prefix: str) -> str:
    """The least string above all strings that begin with `prefix`, which is not empty."""
    return prefix[:-1] + chr(min(ord(prefix[-1]) + 1, 0x10FFFF))
