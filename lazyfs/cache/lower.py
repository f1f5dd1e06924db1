"""A read-only lower layer: a cache directory that somebody else filled, as at the build of an image.

Its job: decide whether one may be used, and what of it is. Nothing in it is written, made or locked, so that it may be
on a read-only filesystem, another user's, and shared by many daemons. Whoever could write there could put bytes and
their checksums side by side, so it must be root's or this user's, and writable by nobody else.

Why not while its `open` mark is there: then a mount has its index open and changes it, which a reader without LMDB's
lock must not see; or whoever filled it did not come to the end.

A layer that fails is as one that has nothing. Any thread.
"""

import json
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lazyfs.cache import catalogue
from lazyfs.cache.audit import cut_short
from lazyfs.cache.directory import LONGEST_MARK, MARK, OPEN_MARK
from lazyfs.cache.index import Index
from lazyfs.cache.objectfile import ObjectFiles, Scratch
from lazyfs.cache.records import Kept
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import SEGMENT_CHUNKS, ObjectVersion

log = logging.getLogger(__name__)

T = TypeVar("T")

LAYOUT = 1


class Unfit(Exception):
    """Why a directory cannot be a lower layer, in words."""


def lower_layer(path: Path) -> "LowerLayer | None":
    """The layer in this directory; None, with one warning, for what cannot be one."""
    try:
        return LowerLayer(path)
    except Unfit as error:
        why = str(error)
    except OSError as error:
        why = f"it cannot be read: {error.strerror}" + (f" ({error.filename})" if error.filename else "")
    except CacheUnavailable as error:
        why = f"its index cannot be used ({error})"
    log.warning("the lower layer %s is not used: %s; fill one with `lazyfs bake`", path, why)
    return None


class LowerLayer:
    """The layer in a directory. `Unfit`, OSError or `CacheUnavailable` say why it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _check(path)
        self._index = Index(path / "index", to_read=True, alone=True)
        try:
            self.files = ObjectFiles(path / "objects")
        except BaseException:
            self._index.close()
            raise
        self.scratch = Scratch()
        self._wrong: set[tuple[bytes, int]] = set()
        self._hidden: set[bytes] = set()
        self._failed = False

    def kept(self, object_id: bytes, number: int, *, marked: bool = False) -> Kept | None:
        """The record of a chunk that may be read here, with its marks where somebody wants those."""
        if object_id in self._hidden or (object_id, number) in self._wrong:
            return None
        found = self._ask(lambda: self._index.kept(object_id, number, partly=True), None) if marked else None
        if found is not None and found.marks:
            return found
        return self._ask(lambda: self._index.kept(object_id, number), None)

    def present(self, object_id: bytes, segment: int) -> int:
        """The presence bits of a segment."""
        if object_id in self._hidden:
            return 0
        bits = self._ask(lambda: self._index.present(object_id, segment), 0)
        for owner, number in list(self._wrong) if bits else ():
            if owner == object_id and number // SEGMENT_CHUNKS == segment:
                bits &= ~(1 << number % SEGMENT_CHUNKS)
        return bits

    def chunks(self, version: ObjectVersion) -> int:
        """How many chunks of the version are here."""
        if version.object_id in self._hidden:
            return 0
        wrong = sum(owner == version.object_id for owner, _ in list(self._wrong))
        return max(0, self._ask(lambda: self._index.present_chunks(version.object_id), 0) - wrong)

    def complete(self, version: ObjectVersion) -> int | None:
        """The generation of the object file, if all of its chunks are here."""
        if self.chunks(version) < version.chunk_count:
            return None
        return self._ask(lambda: self._index.complete(version), None)

    def whole(self, object_id: bytes, generation: int) -> bool:
        """See `catalogue.whole`."""
        return self._ask(lambda: catalogue.whole(self._index, object_id, generation), False)

    def listing(self, key: bytes) -> bytes | None:
        """A listing that is kept here."""
        return self._ask(lambda: self._index.listing(key), None)

    def verdict(self, object_id: bytes) -> bytes | None:
        """What was found of an object when the layer was filled."""
        return None if object_id in self._hidden else self._ask(lambda: self._index.verdict(object_id), None)

    def discard(self, object_id: bytes, number: int) -> None:
        """The bytes of this chunk are damaged: it is not here any more, as long as this daemon lives."""
        self._wrong.add((object_id, number))

    def hide(self, object_id: bytes) -> None:
        """The same of a whole object."""
        self._hidden.add(object_id)

    def close(self) -> None:
        """Nothing is asked for after this."""
        self._failed = True
        self.files.close()
        self._index.close()

    def _ask(self, question: Callable[[], T], nothing: T) -> T:
        try:
            return question()
        except CacheUnavailable as error:
            if not self._failed:
                self._failed = True
                log.error("the lower layer %s cannot be read, what is missing is fetched: %s", self.path, error)
            return nothing


def _check(path: Path) -> None:
    for place in (path, path / "index", path / "objects"):
        _check_place(place, stat.S_ISDIR)
    for place in (path / MARK, path / "index" / "data.mdb"):
        _check_place(place, stat.S_ISREG)
    with os.scandir(path / "objects") as folders:
        for folder in folders:
            _check_place(Path(folder.path), stat.S_ISDIR)
    try:
        with (path / MARK).open("rb") as mark:
            layout = json.loads(mark.read(LONGEST_MARK))["layout"]
    except (ValueError, KeyError, TypeError, RecursionError):
        layout = None
    if layout != LAYOUT:
        raise Unfit("it has a layout that this lazyfs does not know")
    if os.path.lexists(path / OPEN_MARK):
        raise Unfit("a mount has it open as its own cache, or did not end in order")
    if cut_short(path / "index"):
        raise Unfit("its index is cut short")


def _check_place(place: Path, wanted: Callable[[int], bool]) -> None:
    found = place.lstat()
    if not wanted(found.st_mode):
        raise Unfit(f"{place} is not what a cache directory has there")
    if found.st_uid not in (0, os.geteuid()):
        raise Unfit(f"{place} belongs to user {found.st_uid}, neither to root nor to you")
    if found.st_mode & 0o022:
        raise Unfit(f"others may write to {place}")
