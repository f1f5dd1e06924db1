"""What a mount is doing just now: files that are read, requests under way and the slowest, what went wrong lately.

Its job: a small record, bounded in numbers and bytes, from which `lazyfs top` draws its page: it is told of each
request by standing around the store, and of what went wrong by the log. Counts are kept by those who count; nothing is
worked out before somebody looks. Must not know FUSE, nor who asks.

Concurrency: loop thread only, but for the log's part, which any thread adds to.
"""

import functools
import json
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lazyfs.errors import LazyfsError
from lazyfs.filesystem.files import FileState
from lazyfs.filesystem.nodes import File
from lazyfs.objects import Checksums, Listing, ObjectInfo, ObjectVersion, Stretch
from lazyfs.service.logs import told
from lazyfs.stores.base import Arrived, Claim, Store

T = TypeVar("T")

NAME = "activity"
"""Of the extended attribute of the root: `user.lazyfs.activity`."""

LARGEST_ANSWER = 60_000
"""Bytes: an extended attribute has 65,536 at most (XATTR_SIZE_MAX of the kernel)."""

MOST_FILES = 24
MOST_REQUESTS = 12
MOST_WORDS = 12
LONGEST_WORDS = 300
LONGEST_NAME = 256
"""Characters; of a longer path the end, which tells files apart."""

REMEMBERED = 256
"""Requests that are over and may still be among the slowest."""

LATELY = 60.0
"""Seconds for which a request that is over is told of."""


@dataclass(slots=True, eq=False)
class Request:
    """One request: `size` bytes from `start` on of a key, or none for what is no GET. `ended` is None while it is under
    way; `failure` what it came to, empty if that was an answer."""

    what: str
    key: str
    began: float
    start: int = 0
    size: int = 0
    urgent: bool = True
    ended: float | None = None
    failure: str = ""


class Activity:
    """The record of one mount. `clock` gives seconds that only grow."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._under_way: dict[Request, None] = {}
        self._over: deque[Request] = deque(maxlen=REMEMBERED)
        self.words = _Words()
        """A handler for the log."""

    def watched(self, store: Store) -> Store:
        """The store, every request to which is noted."""
        return _Watched(store, self)

    async def noted(self, request: Request, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask, and note how long that takes and how it ends."""
        self._under_way[request] = None
        try:
            return await ask()
        except LazyfsError as error:
            request.failure = type(error).__name__
            raise
        finally:
            request.ended = self._clock()
            del self._under_way[request]
            self._over.append(request)

    def request(self, what: str, key: str, start: int = 0, size: int = 0, *, urgent: bool = True) -> Request:
        """One that begins now."""
        return Request(what, key, self._clock(), start, size, urgent)

    def slowest(self) -> list[dict[str, Any]]:
        """The slowest requests of the last minute, those under way included, with their seconds until now."""
        now = self._clock()
        lately = [one for one in self._over if one.ended is not None and now - one.ended <= LATELY]
        found = sorted(
            [*self._under_way, *lately],
            key=lambda one: (now if one.ended is None else one.ended) - one.began,
            reverse=True,
        )
        return [
            {
                "what": one.what,
                "key": end_of(one.key),
                "start": one.start,
                "size": one.size,
                "urgent": one.urgent,
                "seconds": round((now if one.ended is None else one.ended) - one.began, 4),
                "under_way": one.ended is None,
                "failure": one.failure,
            }
            for one in found[:MOST_REQUESTS]
        ]

    def report(
        self, counters: Mapping[str, int], files: Sequence[FileState], here: Callable[[ObjectVersion], int]
    ) -> dict[str, Any]:
        """What is going on, which as JSON fits into an extended attribute. `files`: who was read last comes first;
        `here` gives the bytes of a version that are in the cache."""
        told_of = [
            {
                "path": end_of(path_of(state.file)),
                "size": state.file.size,
                "here": here(state.file.version),
                "handles": state.handles,
                "read": state.read_bytes,
                "streams": state.streams,
                "ahead": state.ahead,
            }
            for state in files[:MOST_FILES]
        ]
        answer = {
            "at": self._clock(),
            "counters": dict(counters),
            "open_files": sum(state.handles > 0 for state in files),
            "files": told_of,
            "requests_under_way": len(self._under_way),
            "requests": self.slowest(),
            "words": list(self.words.last),
        }
        while len(json.dumps(answer)) > LARGEST_ANSWER and told_of:
            told_of.pop()
        return answer


def path_of(file: File) -> str:
    """Where the file is in the mount."""
    names, place = [file.name], file.parent
    while place.parent is not None:
        names.append(place.name)
        place = place.parent
    return "/".join(reversed(names))


def end_of(text: str) -> str:
    """The text, or of a longer one the end."""
    return text if len(text) <= LONGEST_NAME else f"...{text[-LONGEST_NAME:]}"


class _Watched:
    """A store around a store; see `base.Store` for what each does."""

    def __init__(self, inner: Store, activity: Activity) -> None:
        self._inner = inner
        self._activity = activity

    async def list(self, prefix: str) -> Listing:
        return await self._noted("LIST", prefix, functools.partial(self._inner.list, prefix))

    async def stretch(self, prefix: str, after: str) -> Stretch:
        return await self._noted("LIST", prefix, functools.partial(self._inner.stretch, prefix, after))

    async def total_size(self, prefix: str) -> int:
        return await self._noted("LIST", prefix, functools.partial(self._inner.total_size, prefix))

    async def stat(self, key: str) -> ObjectInfo:
        return await self._noted("HEAD", key, functools.partial(self._inner.stat, key))

    async def checksums(self, version: ObjectVersion) -> Checksums:
        return await self._noted("HEAD", version.key, functools.partial(self._inner.checksums, version))

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        size = sum(map(len, into))
        request = self._activity.request("GET", version.key, start, size, urgent=claim.urgent)
        await self._activity.noted(request, lambda: self._inner.read(version, start, into, arrived, claim))

    async def _noted(self, what: str, key: str, ask: Callable[[], Awaitable[T]]) -> T:
        return await self._activity.noted(self._activity.request(what, key), ask)


class _Words(logging.Handler):
    """The last warnings and errors: each is logged once, where it is answered."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last: deque[dict[str, Any]] = deque(maxlen=MOST_WORDS)

    def emit(self, record: logging.LogRecord) -> None:
        words = told(record.getMessage())[:LONGEST_WORDS]
        self.last.append({"time": round(record.created, 3), "level": record.levelname.lower(), "words": words})
