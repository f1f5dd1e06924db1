"""Versions of a bucket that keeps them, and the words for what may not be read: a store around a store.

Its job: a version that its key no longer holds is read by its id. The id comes from the first answer about the version
that names one, or, if none was asked for before it was replaced, from one list of the versions of its key; so
nothing is asked for that a bucket without versions would not be asked for, and a warm start asks nothing. A GET names
the id only once the key holds something else: until then If-Match says the same, and s3:GetObject is enough, where a
GET with an id needs s3:GetObjectVersion. A mount of another time has ids from its listings, and always names them.

Concurrency: `Pins` any thread; `VersionedStore` on the loop.
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

MOST_PINNED = 10_000
"""Versions whose ids are remembered; one that was forgotten is searched for again if it is needed."""


@dataclasses.dataclass(slots=True)
class _Pin:
    """The id of a version, empty for not known; whether its key is known to hold another, and whether it was searched
    for already."""

    version_id: str = ""
    displaced: bool = False
    searched: bool = False


class Pins:
    """What is known of where versions are."""

    def __init__(self, most: int = MOST_PINNED) -> None:
        self._most = most
        self._pins: OrderedDict[bytes, _Pin] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, answer: RangeAnswer, version: ObjectVersion, start: int, stop: int) -> None:
        """`answers.check_range`, and remember what an answer that is right says of the version."""
        check_range(answer, version, start, stop)
        if answer.version_id and not version.version_id:
            self.note(version, answer.version_id)

    def note(self, version: ObjectVersion, version_id: str) -> None:
        """The key held this version, by this id. The first one stays: the same bytes may be put there again."""
        with self._lock:
            pin = self._pin(version)
            pin.version_id = pin.version_id or version_id

    def of(self, version: ObjectVersion) -> str:
        """The id, empty if it is not known."""
        with self._lock:
            pin = self._pins.get(version.object_id)
            return version.version_id or (pin.version_id if pin else "")

    def to_ask(self, version: ObjectVersion) -> ObjectVersion:
        """The version as it is to be asked for: by its id, if its key holds another."""
        with self._lock:
            pin = self._pins.get(version.object_id)
            return named(version, pin.version_id) if pin and pin.displaced and pin.version_id else version

    def displaced(self, version: ObjectVersion, version_id: str) -> None:
        """From now on it is asked for by this id; empty if it has none, which ends the search."""
        with self._lock:
            pin = self._pin(version)
            pin.version_id, pin.displaced, pin.searched = version_id, True, True

    def forget(self, version: ObjectVersion) -> None:
        """Nothing is known of it."""
        with self._lock:
            self._pins.pop(version.object_id, None)

    def searched(self, version: ObjectVersion) -> bool:
        """Whether `displaced` was said."""
        with self._lock:
            pin = self._pins.get(version.object_id)
            return pin is not None and pin.searched

    def _pin(self, version: ObjectVersion) -> _Pin:
        pin = self._pins.setdefault(version.object_id, _Pin())
        self._pins.move_to_end(version.object_id)
        while len(self._pins) > self._most:
            self._pins.popitem(last=False)
        return pin


def named(version: ObjectVersion, version_id: str) -> ObjectVersion:
    """The same version, by that id."""
    return version if version.version_id == version_id else dataclasses.replace(version, version_id=version_id)


class Origin(Store, Protocol):
    """A store whose answers say where versions are."""

    @property
    def pins(self) -> Pins:
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
    """`inner`, with versions. `hint` is what is added to a refusal: what the mount's options may have to do with it,
    for a listing or not."""

    def __init__(self, inner: Origin, *, hint: Callable[[bool], str] = lambda _: "") -> None:
        self._inner = inner
        self._hint = hint
        self._search = trio.Lock()

    def version_id(self, version: ObjectVersion) -> str:
        """The id of a version, empty where it is not known."""
        return self._inner.pins.of(version)

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
        asked = self._inner.pins.to_ask(version)
        try:
            return await ask(asked)
        except (NotFound, ObjectChanged) as error:
            failed = error
        if asked.version_id != version.version_id:  # it is gone for good, and the key may hold the same bytes again
            self._inner.pins.forget(version)
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
            self._inner.pins.displaced(version, "")
            raise failed from error

    async def _another(self, version: ObjectVersion, asked: ObjectVersion) -> ObjectVersion | None:
        """The version by an id under which it was not asked for; None if it has none."""
        pins = self._inner.pins
        async with self._search:  # all reads of one fail at once, and the first finds it
            known = pins.to_ask(version).version_id
            if known == asked.version_id and not pins.searched(version):
                known = pins.of(version)
                if known == asked.version_id:
                    known = await self._inner.find_version(version)
                pins.displaced(version, known)
        return named(version, known) if known and known != asked.version_id else None

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
