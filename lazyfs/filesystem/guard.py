"""What surrounds every handler of a FUSE request: counts, the log, and one table from failure to errno.

Its job: whatever a handler raises, the kernel gets one errno, and the mount lives on. Must not know what any handler
does.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from pyfuse3 import FUSEError

from lazyfs import errors
from lazyfs.filesystem.calls import Calls, done_about

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Guarded(Protocol):
    """What has handlers. `received` is called before one begins: its request has been read."""

    calls: Calls
    failures: int
    received: Callable[[], None]


S = TypeVar("S", bound=Guarded)

ERRNO: dict[type[errors.LazyfsError], int] = {
    errors.NoSuchName: errno.ENOENT,
    errors.NotFound: errno.ESTALE,  # a listed object that is gone: changed under the handle, not a missing name
    errors.ArchivedObject: errno.EACCES,
    errors.AccessDenied: errno.EACCES,
    errors.ObjectChanged: errno.ESTALE,
    errors.StaleHandle: errno.ESTALE,
    errors.NotADirectory: errno.ENOTDIR,
    errors.IsADirectory: errno.EISDIR,
    errors.NoSuchAttribute: errno.ENODATA,
    errors.NotPermitted: errno.EPERM,
    errors.Unreachable: errno.EIO,
}
"""From failure to errno; whatever is not here is EIO. Never EAGAIN, ENOMEM or a short read: a mapped reader dies of
it."""

_QUIET = {errno.ENOENT, errno.ENODATA, errno.ENOTDIR, errno.EISDIR, errno.EPERM}


def _errno(error: errors.LazyfsError) -> int:
    return next((ERRNO[kind] for kind in type(error).__mro__ if kind in ERRNO), errno.EIO)


def guarded(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The one guard: a failure of ours becomes its errno, a defect becomes EIO with a traceback in the log, and the
    mount lives on. Every call is counted. No await after the handler's, so that a view it returns is still good when
    pyfuse3 replies."""

    operation = handler.__name__
    counted = int(operation != "read")

    async def answer(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.received()
        started, number = perf_counter(), 0
        self.calls.under_way += counted
        try:
            return await handler(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever it is, the mount lives on
            number = refusal(self, operation, args, error)
            raise FUSEError(number) from None
        finally:
            self.calls.under_way -= counted
            self.calls.answered(operation, args, number, started)

    functools.update_wrapper(answer, handler)
    return answer


def refusal(self: Guarded, operation: str, arguments: tuple[Any, ...], error: Exception) -> int:
    """The errno that a call is answered with which raised this; counted, and logged if somebody should know."""
    if isinstance(error, FUSEError):
        self.calls.failed(operation, error.errno)
        return int(error.errno)
    if not isinstance(error, errors.LazyfsError):
        self.failures += 1
        self.calls.failed(operation, errno.EIO)
        about = self.calls.about(operation, arguments)
        log.error("a defect in %s of %s, answered with EIO", operation, about, exc_info=error)
        return errno.EIO
    number = _errno(error)
    result = self.calls.failed(operation, number)
    if number not in _QUIET:
        done, about = done_about(error), self.calls.about(operation, arguments)
        # What is archived stays so for hours, and whoever loads it tries again and again.
        again = isinstance(error, errors.ArchivedObject) and self.calls.told_before(str(error))
        level = logging.DEBUG if again else logging.ERROR
        log.log(level, "%s failed with %s: %s (%s%s)", operation, result, error, about, done and f"; {done}")
    self.failures += number not in _QUIET
    return number


def read_only(name: str) -> Callable[..., Coroutine[Any, Any, None]]:
    """A call that would change something. A mount that is `ro` never gets here; one remounted `rw` does."""

    async def refused(_self: Guarded, /, *_: object, **__: object) -> None:
        raise FUSEError(errno.EROFS)

    refused.__name__ = name
    return guarded(refused)
