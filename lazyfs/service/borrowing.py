"""A file of a mount for somebody who wants a copy of it: from outside, as `exports` is from inside.

Its job: the words in which a mount's daemon is asked, and the order in which its object file is made safe. Must not
know what becomes of the copy, nor how that is shown.
"""

import fcntl
import os
import secrets
import stat
from typing import Any

from lazyfs.errors import Corrupt, SetupError
from lazyfs.service import mounts


def asked(path: str) -> dict[str, Any]:
    """What a copy of the file at `path` must come to (`exports.described`). `Corrupt` if it is refused, or its digest
    cannot be had."""
    try:
        return mounts.command(path, f"export:once={secrets.token_hex(8)}")
    except SetupError as error:
        raise Corrupt(str(error)) from None


def lent(path: str, file: str, size: int) -> int | None:
    """A descriptor of the object file `file`, which the daemon named for the file of `size` bytes at `path`; until it
    is closed, safe from eviction, by the lock that `cache.lending` speaks of, which is taken before the daemon is asked
    again. None if it is not that file any more; OSError if it cannot be opened or is locked."""
    if not file:
        return None
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
        right = stat.S_ISREG(found.st_mode) and found.st_size == size
        right = right and mounts.command(path, "export:only=file")["file"] == file
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, SetupError):
            return None
        raise
    if right:
        return descriptor
    os.close(descriptor)
    return None
