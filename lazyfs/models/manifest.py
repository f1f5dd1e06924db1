"""The manifest of a version: which files it has, and what their bytes come to. Pure, and how it is written as JSON.

It is the last object of a version that is written and the first that is removed, so that whoever finds it finds all the
files that it names. Must not know where it is kept.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lazyfs.errors import Corrupt
from lazyfs.models.names import ModelVersion, flaw
from lazyfs.objects import MIB, Checksums

FORMAT = "lazyfs-manifest-1"

LARGEST = 256 * MIB
"""Bytes of one that is read: a million files."""

MOST_BYTES = 1 << 62
"""Of a file, and of all of them: what a disk and the kernel count in."""


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file: its path below the version, its bytes, and its object's ETag when it was published. `modified` is
    seconds since the epoch, of the file that was published."""

    path: str
    size: int
    sha256: str
    crc64nvme: int
    etag: str = ""
    modified: int = 0

    @property
    def checksums(self) -> Checksums:
        """What its bytes must come to."""
        return Checksums(self.sha256, self.crc64nvme)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One whole version. `created` is UTC, as ISO 8601 writes it."""

    of: ModelVersion
    files: Sequence[ManifestFile]
    created: str

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def pack(manifest: Manifest) -> bytes:
    """As JSON, for people too."""
    files = [
        {
            "path": file.path,
            "size": file.size,
            "sha256": file.sha256,
            "crc64nvme": f"{file.crc64nvme:016x}",
            "etag": file.etag,
            "modified": file.modified,
        }
        for file in manifest.files
    ]
    head = {"format": FORMAT, "model": manifest.of.model, "version": manifest.of.version, "created": manifest.created}
    return json.dumps({**head, "size": manifest.size, "files": files}, indent=1, ensure_ascii=False).encode()


def unpack(raw: bytes, of: ModelVersion) -> Manifest:
    """The manifest of this version; `Corrupt` says what is wrong with one that is none. One that was copied to another
    name is taken for that one's."""
    try:
        found = json.loads(raw)
        if found["format"] != FORMAT:
            said = str(found["format"])[:40]
            raise Corrupt(f"the manifest of {of} has the format {said!r}, this lazyfs reads {FORMAT}")
        files = [_file(one) for one in found["files"]]
        created = str(found["created"])[:40]
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise Corrupt(
            f"the manifest of {of} cannot be read ({type(error).__name__}); publish the version again"
        ) from None
    _check(files, of)
    return Manifest(of, files, created)


def _file(one: Any) -> ManifestFile:
    path, size, sha256, crc, modified = (one[name] for name in ("path", "size", "sha256", "crc64nvme", "modified"))
    if not isinstance(size, int) or not isinstance(modified, int) or not 0 <= size < MOST_BYTES:
        raise ValueError("size")
    if flaw(path) or not re.fullmatch(r"[0-9a-f]{64}", sha256) or not re.fullmatch(r"[0-9a-f]{16}", crc):
        raise ValueError("path or digest")
    return ManifestFile(path, size, sha256, int(crc, 16), str(one["etag"]), modified)


def _check(files: Sequence[ManifestFile], of: ModelVersion) -> None:
    """A file is there once, and is no directory of another."""
    paths = {file.path for file in files}
    folders = {path[:at] for path in paths for at, letter in enumerate(path) if letter == "/"}
    if not files or len(paths) < len(files) or paths & folders or sum(file.size for file in files) >= MOST_BYTES:
        raise Corrupt(f"the manifest of {of} names files that cannot be beside each other; publish the version again")
