"""Every failure lazyfs knows by name, and nothing else.

A library's exception is translated into one of these at the edge where the library is called, and ends there.
They are translated out again in two places only: into an errno by `filesystem/guard.py`, into one sentence and an
exit status by `cli/`.
"""


class LazyfsError(Exception):
    """The root of the tree. Its text is one sentence that a person can act on."""


class UsageError(LazyfsError):
    """What the user asked for cannot be done as asked; the text says what to do. Exit status 2."""


class SetupError(LazyfsError):
    """The machine, the bucket or the cache is not fit for a mount; the text says what to do. Exit status 1."""


class StoreError(LazyfsError):
    """A store did not give what it was asked for."""


class NotFound(StoreError):
    """The store says with authority that there is no such object or bucket (404)."""


class AccessDenied(StoreError):
    """The store refuses the request (403), or there are no credentials to ask with."""


class ArchivedObject(AccessDenied):
    """The object is in an archive class and must be restored before it can be read."""


class ObjectChanged(StoreError):
    """The object is no longer the version that was asked for (412, another ETag, another size)."""


class Unordered(StoreError):
    """The store gives keys in an order of its own, so that what follows a key cannot be had from it."""


class Transient(StoreError):
    """The request failed in a way that asking again may mend.

    `slow_down` is true when the store asked for fewer requests (503 SlowDown, 429).
    """

    def __init__(self, text: str, *, slow_down: bool = False) -> None:
        super().__init__(text)
        self.slow_down = slow_down


class Unreachable(StoreError):
    """Asking again did not help within the retry budget; names key, range, attempts and the last cause."""


class Dropped(StoreError):
    """A queued read that nobody wants any more was given up before it was sent. Never reaches a reader."""


class Corrupt(LazyfsError):
    """The bytes of an object are not those that its digest stands for; they are never served."""


class NoRoom(LazyfsError):
    """A model does not fit on the disk, whatever is evicted; the text says what it needs and what there is."""


class CacheUnavailable(LazyfsError):
    """The disk cache cannot do this now (full, read-only, gone, damaged). Readers never see it."""


class StaleHandle(LazyfsError):
    """An inode or handle whose object version is no longer what its name stands for (ESTALE)."""


class NoSuchName(LazyfsError):
    """There is no entry of that name (ENOENT)."""


class NotADirectory(LazyfsError):
    """The inode is a file where a directory is needed (ENOTDIR)."""


class IsADirectory(LazyfsError):
    """The inode is a directory where a file is needed (EISDIR)."""


class NotPermitted(LazyfsError):
    """What was asked for is for the owner of the mount and for root (EPERM)."""


class NoSuchAttribute(LazyfsError):
    """The inode has no extended attribute of that name (ENODATA)."""
