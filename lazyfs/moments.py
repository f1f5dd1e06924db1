"""Moments: a time of the past as somebody writes it, alone or at the end of a source.

Pure: no library, disk, network or clock.
"""

import datetime
import re
from urllib.parse import unquote

from lazyfs.errors import UsageError


def parse_moment(text: str) -> str:
    """A time in ISO 8601, in UTC where it names no zone, as `2026-01-31T12:00:00Z` with the fraction of a second that
    it has: the same time is the same text. `UsageError` for anything else."""
    words = text.strip()
    try:
        found = datetime.datetime.fromisoformat(words)
        found = (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        said = words if len(words) <= 100 else f"{words[:100]}..."
        raise UsageError(f"{said!r} is not a time in ISO 8601; write it like 2026-01-31T12:00:00Z") from None
    return found.replace(tzinfo=None).isoformat() + "Z"


def seconds_of(moment: str) -> float:
    """What `parse_moment` gave, in seconds since the epoch."""
    return datetime.datetime.fromisoformat(moment).timestamp()


def split_moment(source: str) -> tuple[str, str]:
    """`s3://bucket/prefix/?versionAt=TIME` as the source without it and the moment, which is empty if there is none.
    `UsageError` for a time that is none. A question mark elsewhere belongs to a key."""
    match = re.fullmatch(r"(.*)\?versionAt=([^/]*)", source, re.DOTALL | re.IGNORECASE)
    return (source, "") if match is None else (match[1], parse_moment(unquote(match[2])))
