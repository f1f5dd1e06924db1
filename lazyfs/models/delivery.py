"""A published version brought from its bucket to a directory of the user's, as plain files.

Its job: fetch into a directory of its own inside of that (`models.download` goes on there after a kill), and give the
files their names once all of them are right. Must not know mounts or caches.
"""

import fcntl
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from lazyfs.errors import Corrupt, SetupError
from lazyfs.models.bucket import Bucket
from lazyfs.models.download import Download, Told
from lazyfs.models.exporting import COMING, Wanted, adopt, same
from lazyfs.models.manifest import Manifest, ManifestFile
from lazyfs.models.names import ModelVersion


def missing(manifest: Manifest, folder: Path) -> list[ManifestFile]:
    """The files that are not in `folder` as the manifest says. Reads those that may be. Blocks."""
    return [
        file for file in manifest.files if not same(Wanted("", str(folder / file.path), file.size, 0, file.checksums))
    ]


async def deliver(
    bucket: Bucket,
    of: ModelVersion,
    manifest: Manifest,
    files: Sequence[ManifestFile],
    folder: Path,
    *,
    connections: int,
    told: Told,
    force: bool,
) -> None:
    """Bring `files` of the manifest into `folder`, which exists. `Corrupt` for bytes that are wrong also when they are
    fetched again, `SetupError` if another process does the same or the disk cannot take it."""
    if not files:
        return
    there = await bucket.catalogue.objects(of)
    for file in files:
        if file.path not in there or there[file.path].size != file.size:
            raise Corrupt(f"the manifest of {of} names {file.path!r}, and the bucket has not that; publish it again")
    coming = folder / f"{COMING}version"
    lock = await trio.to_thread.run_sync(_locked, coming, folder)
    try:
        versions = {file.path: bucket.catalogue.version(there[file.path]) for file in files}
        part = Manifest(of, files, manifest.created)
        await Download(bucket.store, coming, connections=connections, told=told).bring(part, versions)
        await trio.to_thread.run_sync(partial(_named, coming, folder, files, force=force))
    finally:
        os.close(lock)


def _locked(coming: Path, folder: Path) -> int:
    try:
        coming.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(coming, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if os.fstat(descriptor).st_uid != os.geteuid():
            os.close(descriptor)
            raise SetupError(f"{coming} is somebody else's; remove it")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise SetupError(f"another process exports to {folder}; wait for it") from None
    except OSError as error:
        raise SetupError(f"cannot write to {folder}: {error.strerror}") from error
    return descriptor


def _named(coming: Path, folder: Path, files: Sequence[ManifestFile], *, force: bool) -> None:
    try:
        for file in files:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            adopt(str(coming / "files" / file.path), str(target), mtime_ns=file.modified * 10**9, force=force)
        shutil.rmtree(coming)
    except OSError as error:
        raise SetupError(f"cannot write to {folder}: {error.strerror}") from error
