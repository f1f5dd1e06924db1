"""What was found of an archive, in the bucket beside it, so that one machine goes through it and the others do not.

Its job: read and write `<archive>.lazyfs-index`, where the source says so. What is there may have been written by
anybody who may write to the bucket: it is bounded, it must name the archive's very ETag and size, and come to the
SHA-256 that it says; what it holds is checked by who unpacks it. Nothing here is needed: whatever fails is told once,
and the archive is gone through as if there were none. Loop thread only.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from functools import partial

import trio

from lazyfs.archives.library import LONGEST_INDEX
from lazyfs.config import SourceConfig
from lazyfs.errors import LazyfsError, NotFound
from lazyfs.objects import MIB, ObjectVersion
from lazyfs.service.engines import boto_store
from lazyfs.stores.base import Claim
from lazyfs.stores.several import Stores
from lazyfs.stores.writer import Writer

log = logging.getLogger(__name__)

ENDING = ".lazyfs-index"

FORMAT = "lazyfs-shared-index-1"

LONGEST_HEAD = 4096

PATIENCE = 10.0
"""Seconds for either: to go through the archive takes longer than that, and is what happens otherwise."""

PIECE = 8 * MIB


def framed(archive: ObjectVersion, packed: bytes) -> bytes:
    """As it is in the bucket: a line that says of what it is, and what follows."""
    digest = hashlib.sha256(packed).hexdigest()
    head = {"format": FORMAT, "etag": archive.etag, "size": archive.size, "sha256": digest}
    return json.dumps(head).encode() + b"\n" + packed


def unframed(archive: ObjectVersion, raw: bytes) -> bytes | None:
    """What follows the line, if that is of this archive and the bytes are what it says."""
    line, newline, packed = raw[:LONGEST_HEAD].partition(b"\n")
    packed = raw[len(line) + 1 :]
    try:
        head = json.loads(line)
        wanted = {"format": FORMAT, "etag": archive.etag, "size": archive.size}
        same = bool(newline) and {name: head[name] for name in wanted} == wanted
        return packed if same and head["sha256"] == hashlib.sha256(packed).hexdigest() else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


class SharedIndexes:
    """Those of the sources of one mount that share; see `archives.library.Shares`."""

    def __init__(self, stores: Stores, sources: Mapping[str, SourceConfig]) -> None:
        self._stores = stores
        self._sources = sources
        self._told: set[str] = set()

    async def get(self, archive: ObjectVersion) -> bytes | None:
        """What somebody has found of the archive, unchecked but for whose it is; None if there is nothing."""
        if archive.origin not in self._sources:
            return None
        store, key = self._stores[archive.origin], archive.key + ENDING
        try:
            info = await store.stat(key, budget=PATIENCE)
            if not 0 < info.size <= LONGEST_INDEX + LONGEST_HEAD:
                return None
            version = ObjectVersion(archive.place, key, info.etag, info.size, info.version_id, archive.origin)
            raw = bytearray(info.size)
            view = memoryview(raw)
            for start in range(0, info.size, PIECE):
                piece = [view[start : start + PIECE]]
                await store.read(version, start, piece, lambda _: None, Claim(urgent=True))
        except NotFound:
            return None
        except LazyfsError as error:
            log.info("%r cannot be read, and the archive is gone through: %s", key, error)
            return None
        found = await trio.to_thread.run_sync(unframed, archive, bytes(raw))
        if found is None:
            log.warning("%r is not of the archive that is there now, or damaged: it is made anew", key)
        return found

    async def put(self, archive: ObjectVersion, packed: bytes) -> None:
        """Leave what was found for others."""
        source = self._sources.get(archive.origin)
        if source is None:
            return
        try:
            raw = await trio.to_thread.run_sync(framed, archive, packed)
            s3 = await trio.to_thread.run_sync(partial(boto_store, source.config, source.source))
            try:
                await Writer(s3, retry_budget=PATIENCE, connections=1).put(archive.key + ENDING, raw)
            finally:
                s3.close()
        except LazyfsError as error:
            if archive.origin not in self._told:
                self._told.add(archive.origin)
                log.warning("what was found of archives cannot be left in the bucket for others: %s", error)
