"""What SIGHUP does to a mount: `systemctl reload`.

Its job: read the file of `--config` again and take over what can change while a mount is up, which is the log level.
All else belongs to rooms that are built once; that takes a new mount.
"""

import logging
import os
import signal
import time
from collections.abc import Callable

import click

from lazyfs.cli.settings import reread
from lazyfs.errors import LazyfsError
from lazyfs.service.notify import notify

log = logging.getLogger(__name__)


def reloading(ctx: click.Context) -> dict[signal.Signals, Callable[[], None]]:
    """What is done about SIGHUP, in a thread. At a terminal nothing: there it says that the terminal is gone."""
    if os.isatty(0):
        return {}

    def reload() -> None:
        notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            level = reread(ctx, "log_level")
            logging.getLogger().setLevel(level.upper())
            # At least a warning, so that it is seen whatever the level was and is.
            log.warning("SIGHUP: the log level is %s; other settings take a new mount", level)
        except LazyfsError as error:
            log.error("SIGHUP: nothing is changed: %s", error)
        finally:
            notify("READY=1")

    return {signal.SIGHUP: reload}
