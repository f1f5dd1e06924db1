"""Logging of one mount: human lines or JSON lines, on stderr.

What is told may come from a server, or be the name of an object, and either may mean harm: a line break in it would be
a line of its own in the log, an escape sequence an order to the terminal. Nor does a URL keep its password there.
"""

import json
import logging
import re
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

LEVELS = ("debug", "info", "warning", "error")

_PASSWORD = re.compile(r"(?<=://)[^/\s'\"]*@")


def told(text: str) -> str:
    """The text as one line that can be printed anywhere, without the user and password of any URL in it."""
    plain = "".join(c if c.isprintable() else c.encode("unicode-escape").decode() for c in text)
    return _PASSWORD.sub("***@", plain)


class TextLines(logging.Formatter):
    """Time, level, logger and message in one line; a traceback, which only a defect has, below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line."""
        record.message = told(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """The traceback."""
        return _traceback(super().formatException(ei))


def _traceback(text: str) -> str:
    return "\n".join(told(line) for line in text.split("\n"))


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        fields = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": told(record.getMessage()),
        }
        if record.exc_info:
            fields["traceback"] = _traceback(self.formatException(record.exc_info))
        return json.dumps(fields)


def answers_somebody(record: logging.LogRecord) -> bool:
    """Not so of pyfuse3's errors that an answer came when the kernel had given its request up (ENOENT from a write to
    /dev/fuse): who asked was killed, or the mount is gone since, and nothing is lost."""
    return not record.getMessage().endswith("failed with No such file or directory")


def set_up_logging(level: str, format_: str) -> None:
    """Send everything of `level` and above to stderr. botocore's own debug output, which holds signatures, never."""
    handler = logging.StreamHandler(sys.stderr)
    if format_ == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("pyfuse3").addFilter(answers_somebody)
    for name in ("botocore", "boto3", "urllib3", "s3transfer"):
        logging.getLogger(name).setLevel(logging.WARNING)


def log_level() -> str:
    """The level of now, one of LEVELS."""
    return logging.getLevelName(logging.getLogger().level).lower()


def change_log_level(level: str, who: str) -> None:
    """Log everything of `level`, one of LEVELS, and above from now on, and say so. Any thread; what libraries log of
    their own stays as it is."""
    before = log_level()
    logging.getLogger().setLevel(level.upper())
    # As severe as both levels, so that it is seen whichever way the change goes.
    severity = max(logging.getLevelNamesMapping()[word.upper()] for word in (before, level))
    logging.getLogger(__name__).log(severity, "the log level is now %s, it was %s (%s)", level, before, who)


def level_signals(configured: str) -> dict[signal.Signals, Callable[[], None]]:
    """What signals do to the log level: SIGUSR1 has everything logged, SIGUSR2 what was asked for at the start."""
    return {
        signal.SIGUSR1: partial(change_log_level, "debug", "SIGUSR1"),
        signal.SIGUSR2: partial(change_log_level, configured, "SIGUSR2"),
    }
