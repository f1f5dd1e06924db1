"""Opening the index of a cache directory, or one in its place.

Its job: decide whether an index may be opened, and what becomes of one that may not. Must not know chunks.
"""

import errno
import logging
import os

from lazyfs.cache.audit import cut_short, verify
from lazyfs.cache.directory import CacheDirectory, unusable
from lazyfs.cache.index import Index
from lazyfs.errors import CacheUnavailable, SetupError

log = logging.getLogger(__name__)

NO_FAULT_OF_THE_INDEX = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
}
"""What opening it may fail with though it is sound. A warm cache is not thrown away for that."""


def open_index(directory: CacheDirectory, *, others: bool) -> Index:
    """The index; one that cannot be used is set aside. Not while `others` have it open: they would lose what they
    have, so `SetupError` says that they must end first."""
    try:
        if not others:
            _audit(directory)
        return Index(directory.index)
    except CacheUnavailable as error:
        cause = error.__cause__
        number = cause.errno if isinstance(cause, OSError) else getattr(cause, "code", None)
        if number in NO_FAULT_OF_THE_INDEX:
            raise unusable(directory.path, OSError(number, os.strerror(number))) from error
        if others:
            raise SetupError(
                f"the cache index in {directory.path} cannot be used ({error}), and other mounts have it open; "
                "unmount those first, or choose another --cache-dir"
            ) from error
        log.warning("the cache index cannot be used and is started anew, cached bytes are fetched again: %s", error)
        directory.set_aside()
        return Index(directory.index)


def _audit(directory: CacheDirectory) -> None:
    """`CacheUnavailable` for an index that must not even be opened. Not while others write it: it is never at rest."""
    if directory.orphaned():
        raise CacheUnavailable("it is missing")
    if (directory.lost_power() or cut_short(directory.index)) and not verify(directory.index):
        raise CacheUnavailable("it was not written to its end, as when the machine stops, and it does not verify")
