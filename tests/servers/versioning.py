"""The versions of a bucket's objects as S3 keeps them, and the list of them.

Its job: what a put or a delete leaves behind in each state of a bucket. `Enabled`: a version of its own, or a delete
marker. `Suspended`: the one whose id is `null`, which replaces the one there was. What was there before is `null`, too.
Must not know sockets; the table has the lock.
"""

import bisect
import dataclasses
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.servers.objects import Object

NULL = "null"


def after_put(old: "list[Object]", entry: "Object", *, enabled: bool) -> "list[Object]":
    """The versions of a key, newest first, when `entry` was put on top of `old`."""
    if enabled:
        return [dataclasses.replace(entry, version_id=entry.version_id or uuid.uuid4().hex), *old]
    return [dataclasses.replace(entry, version_id=NULL), *(one for one in old if one.version_id != NULL)]


def marker(like: "Object", modified: float | None) -> "Object":
    """What a delete without a version leaves on top."""
    moment = int(time.time() if modified is None else modified)
    none = MappingProxyType[str, str]({})
    return dataclasses.replace(
        like, content=b"", size=0, etag="", modified=moment, headers=none, version_id="", marker=True
    )


@dataclass(frozen=True, slots=True)
class VersionsPage:
    """A part of a list of versions: (key, version, whether it is the latest), and common prefixes. `last` is the key
    and the version where the next page goes on behind, None after the last page."""

    versions: "tuple[tuple[str, Object, bool], ...]"
    prefixes: tuple[str, ...]
    last: tuple[str, str] | None


def versions_page(
    keys: list[str],
    of: "Callable[[str], list[Object]]",
    *,
    prefix: str,
    delimiter: str,
    after: tuple[str, str],
    limit: int,
) -> VersionsPage:
    """At most `limit` versions and common prefixes, of the sorted `keys` that begin with `prefix`, behind a key and, if
    that is not empty, one of its versions; a key that is a common prefix stands for all below it."""
    found: list[tuple[str, Object, bool]] = []
    prefixes: list[str] = []
    last = ("", "")
    key_marker, version_marker = after
    for key in keys[bisect.bisect_left(keys, max(prefix, key_marker)) :]:
        if not key.startswith(prefix):
            break
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        if cut >= 0:
            common = key[: cut + len(delimiter)]
            if common == key_marker or common in prefixes[-1:]:
                continue
            if len(found) + len(prefixes) == limit:
                return VersionsPage(tuple(found), tuple(prefixes), last)
            prefixes.append(common)
            last = (common, "")
            continue
        versions = [(one, number == 0) for number, one in enumerate(of(key))]
        if key == key_marker:
            ids = [one.version_id or NULL for one, _ in versions]
            versions = versions[ids.index(version_marker) + 1 :] if version_marker in ids else []
        for one, latest in versions:
            if len(found) + len(prefixes) == limit:
                return VersionsPage(tuple(found), tuple(prefixes), last)
            found.append((key, one, latest))
            last = (key, one.version_id or NULL)
    return VersionsPage(tuple(found), tuple(prefixes), None)
