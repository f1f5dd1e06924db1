"""Files of this machine, copied onto the shelf: their bytes shared where the filesystem can (reflink), else written.

A copy that is shared takes no space and no time, and neither file sees what is written to the other. Must not know who
wants the copy. Blocks.
"""

import errno
import fcntl
import os
from collections.abc import Sequence

from lazyfs.errors import SetupError
from lazyfs.models.gathering import LocalFile, digests
from lazyfs.models.manifest import Manifest, ManifestFile
from lazyfs.models.names import ModelVersion
from lazyfs.models.shelf import Shelf

_FICLONE = 0x40049409
"""linux/fs.h"""

_CANNOT = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}


def copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> bool:
    """Make `target` with the bytes of `source`; whether they are shared. OSError."""
    with open(source, "rb", buffering=0) as reading, open(target, "xb", buffering=0) as writing:
        if shared(reading.fileno(), writing.fileno()):
            return True
        _copy(reading.fileno(), writing.fileno())
        return False


def shared(reading: int, writing: int) -> bool:
    """Have the file `writing` share all bytes of the other; False where that cannot be. OSError."""
    try:
        fcntl.ioctl(writing, _FICLONE, reading)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def _copy(reading: int, writing: int) -> None:
    try:
        while os.copy_file_range(reading, writing, 1 << 30):
            pass
        return
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    while data := os.read(reading, 1 << 20):
        view = memoryview(data)
        while view:
            view = view[os.write(writing, view) :]


def copied(shelf: Shelf, of: ModelVersion, files: Sequence[LocalFile], manifest: Manifest | None) -> Manifest:
    """Put these files into what is coming of the version; what they are, which is the `manifest` if there is one.
    `SetupError` if that cannot be, or they are not what it says. Files that an origin brought here are moved."""
    root = shelf.clean(of)
    wanted = {file.path: file.checksums for file in manifest.files} if manifest else {}
    made: dict[str, ManifestFile] = {}
    # Links first, while what they lead to is where it was.
    for file in sorted(files, key=_is_itself):
        path = root / file.name
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            same = True
            if file.path.startswith(f"{root.parent}/") and _is_itself(file):
                os.rename(file.path, path)
            else:
                copy(file.path, path)
                same = file.unchanged()
            found = digests(str(path))
            path.chmod(0o400)
        except OSError as error:
            raise SetupError(f"cannot copy {file.path} into the cache: {error.strerror}") from error
        if wanted.get(file.name, found) != found or not same:
            raise SetupError(f"{file.path} changed while it was copied; do it again when nothing writes to it")
        seconds = file.mtime_ns // 10**9
        made[file.name] = ManifestFile(file.name, file.size, found.sha256, found.crc64nvme or 0, "", seconds)
    return manifest or Manifest(of, [made[file.name] for file in files], "")


def _is_itself(file: LocalFile) -> bool:
    """Whether no link is in its path, so that it is nobody else's file, too."""
    return os.path.realpath(file.path) == file.path
