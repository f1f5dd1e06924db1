"""Logging of one mount: human lines or JSON lines, on stderr.

What is told may come from a server, or be the name of an object, and either may mean harm: a line break in it would be
a line of its own in the log, an escape sequence an order to the terminal. Nor does a URL keep its password there.
"""

import json
import logging
import re
import sys
import time
from typing import Any

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


def set_up_logging(level: str, format_: str) -> None:
    """Send everything of `level` and above to stderr. botocore's own debug output, which holds signatures, never."""
    handler = logging.StreamHandler(sys.stderr)
    if format_ == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("botocore", "boto3", "urllib3", "s3transfer"):
        logging.getLogger(name).setLevel(logging.WARNING)
