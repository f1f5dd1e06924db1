"""Versions of a bucket that keeps them, and the words for what may not be read: a store around a store.

Its job: a version that its key no longer holds is read by its id. The id comes from the first answer about the version
that names one, or, if none was asked for before it was replaced, from one list of the versions of its key; so
nothing is asked for that a bucket without versions would not be asked for, and a warm start asks nothing. A GET names
the id only once the key holds something else: until then If-Match says the same, and s3:GetObject is enough, where a
GET with an id needs s3:GetObjectVersion. A mount of another time has ids from its listings, and always names them.

Concurrency: `VersionIds` any thread; `VersionedStore` on the loop.
"""

import dataclasses
import logging
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import trio

from lazyfs.errors import AccessDenied, ArchivedObject, NotFound, ObjectChanged
from lazyfs.objects import Checksums, Listing, ObjectInfo, ObjectVersion, Stretch
from lazyfs.stores.answers import RangeAnswer, check_range
from lazyfs.stores.base import Arrived, Claim, Store

log = logging.getLogger(__name__)

T = TypeVar("T")

MOST_KNOWN = 10_000
"""Versions whose ids are remembered; one that was forgotten is searched for again if it is needed."""


@dataclasses.dataclass(slots=True)
class _Known:
    """The id of a version, empty for not known, or for none once its key is known to hold another (`displaced`)."""

    version_id: str = ""
    displaced: bool = False


class VersionIds:
    """What is known of where versions are."""

    def __init__(self, most: int = MOST_KNOWN) -> None:
        self._most = most
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, answer: RangeAnswer, version: ObjectVersion, start: int, stop: int) -> None:
        """`answers.check_range`, and remember what an answer that is right says of the version."""
        check_range(answer, version, start, stop)
        if answer.version_id and not version.version_id:
            self.note(version, answer.version_id)

    def note(self, version: ObjectVersion, version_id: str) -> None:
        """The key held this version, by this id. The first one stays: the same bytes may be put there again."""
        with self._lock:
            known = self._of(version)
            if not known.displaced:
                known.version_id = known.version_id or version_id

    def of(self, version: ObjectVersion) -> str:
        """The id, empty if it is not known."""
        with self._lock:
            known = self._known.get(version.object_id)
            return version.version_id or (known.version_id if known else "")

    def to_ask(self, version: ObjectVersion) -> ObjectVersion:
        """The version as it is to be asked for: by its id, if its key holds another."""
        with self._lock:
            known = self._known.get(version.object_id)
            return named(version, known.version_id) if known and known.displaced and known.version_id else version

    def displace(self, version: ObjectVersion, version_id: str) -> None:
        """Its key holds another: from now on it is asked for by this id; empty if it has none, or none of use."""
        with self._lock:
            known = self._of(version)
            known.version_id, known.displaced = version_id, True

    def forget(self, version: ObjectVersion) -> None:
        """Nothing is known of it."""
        with self._lock:
            self._known.pop(version.object_id, None)

    def displaced(self, version: ObjectVersion) -> bool:
        """Whether `displace` was said."""
        with self._lock:
            known = self._known.get(version.object_id)
            return known is not None and known.displaced

    def _of(self, version: ObjectVersion) -> _Known:
        known = self._known.setdefault(version.object_id, _Known())
        self._known.move_to_end(version.object_id)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        return known


def named(version: ObjectVersion, version_id: str) -> ObjectVersion:
    """The same version, by that id."""
    return version if version.version_id == version_id else dataclasses.replace(version, version_id=version_id)


class Origin(Store, Protocol):
    """A store whose answers say where versions are."""

    @property
    def version_ids(self) -> VersionIds:
        """Filled by its answers."""
        ...

    async def find_version(self, version: ObjectVersion) -> str:
        """The id of a version that its key may no longer hold, from the list of the key's versions; empty if there is
        none, or that is not told."""
        ...

    def close(self) -> None:
        """Close the connections that are idle."""
        ...


class VersionedStore:
    """`inner`, with versions. `displaced` is told of one that its key no longer holds, once. `hint` is what is added to
    a refusal: what the mount's options may have to do with it, for a listing or not."""

    def __init__(self, inner: Origin, *, hint: Callable[[bool], str] = lambda _: "") -> None:
        self._inner = inner
        self._hint = hint
        self.displaced: Callable[[ObjectVersion], None] = lambda _: None
        self._search = trio.Lock()

    def version_id(self, version: ObjectVersion) -> str:
        """The id of a version, empty where it is not known."""
        return self._inner.version_ids.of(version)

    async def list(self, prefix: str) -> Listing:
        """See `base.Store.list`."""
        return await self._told(lambda: self._inner.list(prefix), "")

    async def stretch(self, prefix: str, after: str) -> Stretch:
        """See `base.Store.stretch`."""
        return await self._told(lambda: self._inner.stretch(prefix, after), "")

    async def total_size(self, prefix: str) -> int:
        """See `base.Store.total_size`."""
        return await self._told(lambda: self._inner.total_size(prefix), "")

    async def stat(self, key: str) -> ObjectInfo:
        """See `base.Store.stat`."""
        return await self._told(lambda: self._inner.stat(key), key)

    async def checksums(self, version: ObjectVersion) -> Checksums:
        """See `base.Store.checksums`; also of a version that its key no longer holds."""
        return await self._told(lambda: self._by_version(version, self._inner.checksums), version.key)

    async def read(
        self, version: ObjectVersion, start: int, into: Sequence[memoryview], arrived: Arrived, claim: Claim
    ) -> None:
        """See `base.Store.read`; also of a version that its key no longer holds."""

        async def ask(asked: ObjectVersion) -> None:
            await self._inner.read(asked, start, into, arrived, claim)

        await self._told(lambda: self._by_version(version, ask), version.key)

    def close(self) -> None:
        """Close the connections that are idle."""
        self._inner.close()

    async def _by_version(self, version: ObjectVersion, ask: Callable[[ObjectVersion], Awaitable[T]]) -> T:
        """Ask; where the key does not hold the version, once more by its id. Such an answer comes before any byte."""
        asked = self._inner.version_ids.to_ask(version)
        try:
            return await ask(asked)
        except (NotFound, ObjectChanged) as error:
            failed = error
        if asked.version_id != version.version_id:  # it is gone for good, and the key may hold the same bytes again
            self._inner.version_ids.forget(version)
            return await self._by_version(version, ask)
        other = await self._another(version, asked)
        if other is None:
            raise failed
        try:
            return await ask(other)
        except (AccessDenied, NotFound, ObjectChanged) as error:
            if isinstance(error, ArchivedObject):
                raise
            log.debug("%r cannot be had by its version %s: %s", version.key, other.version_id, error)
            self._inner.version_ids.displace(version, "")
            raise failed from error

    async def _another(self, version: ObjectVersion, asked: ObjectVersion) -> ObjectVersion | None:
        """The version by an id under which it was not asked for; None if it has none."""
        ids = self._inner.version_ids
        async with self._search:  # all reads of one fail at once, and the first finds it
            if not ids.displaced(version):
                found = ids.of(version)
                if found == asked.version_id:
                    found = await self._inner.find_version(version)
                ids.displace(version, found)
                if found:
                    self.displaced(version)
        other = ids.to_ask(version)
        return other if other.version_id and other.version_id != asked.version_id else None

    async def _told(self, ask: Callable[[], Awaitable[T]], key: str) -> T:
        """Ask, and have a refusal say what to do; `key` is empty for a listing."""
        try:
            return await ask()
        except ArchivedObject as error:
            raise ArchivedObject(
                f"{key!r} is in an archive and cannot be read; restore it (aws s3api restore-object), and open it "
                f"again when that is done ({error})"
            ) from error
        except AccessDenied as error:
            hint = self._hint(not key)
            if not hint:
                raise
            raise AccessDenied(f"{error} ({hint})") from error
