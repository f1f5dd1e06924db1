"""The FUSE session of a process: mounted, answered, ended. With `fuse.py` the only importer of pyfuse3.

Its job: begin and end what the kernel sees; what is answered is `fuse.Operations`'s. Loop thread only.
"""

import contextlib
import os
import select
from typing import Any, cast

import pyfuse3
import trio

from lazyfs import errors
from lazyfs.filesystem.fuse import Operations
from lazyfs.filesystem.options import advice


class Session:
    """The one FUSE session of this process, between `__init__` (mounted) and `close` (unmounted)."""

    def __init__(self, operations: Operations, mountpoint: str, options: set[str]) -> None:
        try:
            pyfuse3.init(operations, mountpoint, options)
        except (RuntimeError, OSError) as error:
            raise errors.SetupError(f"cannot mount at {mountpoint}: {error}; {advice(options)}") from None

    async def run(self) -> None:
        """Answer the kernel until the filesystem is unmounted or `stop` is called."""
        await cast(Any, pyfuse3.main)(max_tasks=MAX_TASKS)

    async def unmounted(self) -> None:
        """Return once the kernel has let go of the mount; `run` still waits for the requests that it handles then."""
        with select.epoll() as gone:
            for name in os.listdir("/proc/self/fd"):
                with contextlib.suppress(FileNotFoundError):
                    if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                        # No events but EPOLLERR, which fs/fuse/dev.c gives when the connection is gone.
                        gone.register(int(name), 0)
            await trio.lowlevel.wait_readable(gone.fileno())

    def stop(self) -> None:
        """Make `run` return."""
        pyfuse3.terminate()

    def close(self) -> None:
        """Unmount, if that has not happened, and end the session."""
        pyfuse3.close(unmount=True)


MAX_TASKS = 512
"""Requests handled at once. Each waiting read holds one, and a mapped reader's fault must not wait for another's."""
