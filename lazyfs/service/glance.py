"""What the page for people is told of a mount's files: what goes on, a directory, the chunks of a file.

Its job: answers bounded in size, and in the work that they are, from what is known here: looking sends no request, but
for a directory that nobody has listed yet. Must not know how they get there, nor who may ask.

Concurrency: the mount's loop; what takes longer is looked up in the thread for that.
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from lazyfs.cache.disk import Disk
from lazyfs.errors import NoSuchName
from lazyfs.filesystem.entries import NOTHING, Entries
from lazyfs.filesystem.nodes import Branch
from lazyfs.objects import CHUNK_SIZE, SEGMENT_CHUNKS, Listing, ObjectVersion
from lazyfs.service.mount import RunningMount

MOST_ENTRIES = 500
"""Of a directory that are told of."""

MOST_COUNTED = 20_000
"""Files below the entries of one directory that are looked at, some 10 us each; what is beyond is said to miss."""

MOST_CELLS = 1024
"""Of the map of a file. A larger one has several chunks in each."""

LONGEST_PATH = 4096
"""Characters; PATH_MAX of the kernel."""


async def recent(mount: RunningMount) -> dict[str, Any]:
    """What it does just now, and its last loads."""
    return {"activity": mount.doing(), "loads": mount.loads.report()}


async def directory(mount: RunningMount, path: str) -> dict[str, Any]:
    """The entries of a directory, with how much of each is in the cache on disk. `NoSuchName` if there is none; what
    listing raises."""
    branch, rest = _branch(mount, path)
    if branch.below:
        below = list(branch.below.items())
        told = await mount.chunks.workers.look(_tops, mount, below)
        return {"path": path, "listed_at": None, "entries": told, "more": 0}
    prefix = f"{branch.prefix}{rest}/" if rest else branch.prefix
    listing = mount.origins.peek(branch.name, prefix)
    if listing is None:
        listing = await branch.list_prefix(prefix, False)
    if rest and not listing.objects and not listing.prefixes:
        raise NoSuchName(f"there is no directory {path!r}")
    told, more = await mount.chunks.workers.look(_entries, mount, branch, listing)
    return {"path": path, "listed_at": listing.listed_at, "entries": told, "more": more}


async def chunks(mount: RunningMount, path: str) -> dict[str, Any]:
    """Where the chunks of a file are, in cells of `per_cell` chunks each: how many of each cell are on disk, in memory,
    on their way. A chunk may be on disk and in memory. `NoSuchName` if there is none."""
    above, _, name = path.rpartition("/")
    branch, rest = _branch(mount, above)
    prefix = f"{branch.prefix}{rest}/" if rest else branch.prefix
    listing = None if branch.below else mount.origins.peek(branch.name, prefix)
    if listing is None and not branch.below:
        listing = await branch.list_prefix(prefix, False)
    entries = await mount.chunks.workers.look(_entries_of, listing) if listing is not None else NOTHING
    at = entries.find(name)
    if at < 0 or entries.is_directory(at):
        raise NoSuchName(f"there is no file {path!r}")
    version = entries.version(at, branch.place, branch.name)
    count = version.chunk_count
    per_cell = -(-count // MOST_CELLS) or 1
    if per_cell > 1:
        per_cell += -per_cell % 8  # whole bytes of presence bits
    in_memory, coming = mount.memory.numbers(version.object_id), mount.chunks.coming(version)
    verdict = mount.verifier.verdict(version)
    on_disk, cached = await mount.chunks.workers.look(_on_disk, mount.disk, version, per_cell)
    return {
        "path": path,
        "size": version.size,
        "chunk_size": CHUNK_SIZE,
        "chunks": count,
        "per_cell": per_cell,
        "cached": cached,
        "disk": on_disk,
        "memory": _counted(in_memory, count, per_cell),
        "coming": _counted(coming, count, per_cell),
        "verified": "no" if verdict is None else "wrong" if verdict.wrong else verdict.held,
    }


def _branch(mount: RunningMount, path: str) -> tuple[Branch, str]:
    """The branch that a path is in, and the rest of the path. `NoSuchName` for what is no path."""
    parts = path.split("/") if path else []
    strange = any(part in ("", ".", "..") or "\0" in part for part in parts)
    if len(path) > LONGEST_PATH or strange or not _is_unicode(path):
        raise NoSuchName("a path here is of names below the mount, with / between them")
    branch = mount.origins.branch
    while branch.below and parts:
        found = branch.below.get(parts[0])
        if found is None:
            raise NoSuchName(f"there is no source {parts[0]!r}")
        branch, parts = found, parts[1:]
    return branch, "/".join(parts)


def _is_unicode(path: str) -> bool:
    """Whether it may be a key: S3 has no others."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- in the thread for long looks


def _entries_of(listing: Listing) -> Entries:
    return Entries.of(listing, NOTHING, lambda _: 1)


def _tops(mount: RunningMount, below: Sequence[tuple[str, Branch]]) -> list[dict[str, Any]]:
    left = [MOST_COUNTED]
    return [{"name": name, "kind": "directory", **_below(mount, one, one.prefix, left)} for name, one in below]


def _entries(mount: RunningMount, branch: Branch, listing: Listing) -> tuple[list[dict[str, Any]], int]:
    entries, left = _entries_of(listing), [MOST_COUNTED]
    told: list[dict[str, Any]] = []
    for at in range(min(len(entries), MOST_ENTRIES)):
        name = entries.name(at)
        if entries.is_directory(at):
            found = _below(mount, branch, f"{listing.prefix}{name}/", left)
            told.append({"name": name, "kind": "directory", **found})
        else:
            version = entries.version(at, branch.place, branch.name)
            cached = mount.disk.cached_bytes(version) if version.size else 0
            told.append({"name": name, "kind": "file", "size": version.size, "cached": cached})
    return told, len(entries) - len(told)


def _below(mount: RunningMount, branch: Branch, prefix: str, left: list[int]) -> dict[str, Any]:
    """The files at any depth below a prefix, as far as somebody has listed them (`whole`: all of them)."""
    files = size = cached = 0
    whole, prefixes = True, [prefix]
    while prefixes:
        listing = mount.origins.peek(branch.name, prefixes.pop()) if left[0] > 0 else None
        if listing is None:
            whole = False
            continue
        left[0] -= 1
        prefixes += listing.prefixes
        for info in listing.objects:
            if left[0] <= 0:
                whole = False
                break
            left[0] -= 1
            version = ObjectVersion(branch.place, info.key, info.etag, info.size)
            files, size = files + 1, size + info.size
            cached += mount.disk.cached_bytes(version) if info.size else 0
    return {"files": files, "size": size, "cached": cached, "whole": whole}


def _on_disk(disk: Disk, version: ObjectVersion, per_cell: int) -> tuple[list[int], int]:
    """By cells, how many chunks are on disk; and their bytes in all."""
    count, present = version.chunk_count, disk.cached_chunks(version)
    if present in (0, count):
        full = present > 0
        found = [min(per_cell, count - first) if full else 0 for first in range(0, count, per_cell)]
    else:
        segments = range(-(-count // SEGMENT_CHUNKS))
        bits = array("Q", (disk.present(version.object_id, segment) for segment in segments)).tobytes()
        found = list(_cells(bits, count, per_cell))
    return found, min(version.size, present * CHUNK_SIZE)


def _cells(bits: bytes, count: int, per_cell: int) -> Iterator[int]:
    if per_cell == 1:
        yield from (bits[number // 8] >> number % 8 & 1 for number in range(count))
        return
    for first in range(0, count, per_cell):
        yield int.from_bytes(bits[first // 8 : (first + per_cell) // 8], "little").bit_count()


def _counted(numbers: Sequence[int], count: int, per_cell: int) -> list[int]:
    found = [0] * -(-count // per_cell)
    for number in numbers:
        found[number // per_cell] += 1
    return found

