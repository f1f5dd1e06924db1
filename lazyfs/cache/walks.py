"""Walks over many directories: one request for a stretch of keys instead of one for each directory.

A LIST with a delimiter brings one directory, one without it a thousand keys, of which every directory that begins and
ends among them can be listed: `find` over 10,000 directories of ten files takes 100 requests instead of 10,000. Who
asks for a third directory of the same parent is taken to walk over them. Each request begins at the directory that is
asked for and reaches as far as one goes, so nothing is fetched that is far ahead of the walk, and a guess that was
wrong has cost one request; after it, ever more directories are asked for one by one before the next guess.

Must not know disks nor how long a listing is believed. Loop thread only; one stretch of a walk at a time.
Invariant: a directory is listed only if all of its keys lie between the ends of one stretch.
"""

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import trio

from lazyfs.dense import Infos, Row, Rows
from lazyfs.errors import StoreError
from lazyfs.objects import Listing, Stretch

log = logging.getLogger(__name__)

ONE_BY_ONE = 2
"""Directories of a parent that are asked for one by one before a walk is taken to be one."""

FEW = 2
"""Directories of a stretch with which it paid, though the one that was asked for goes on behind it."""

MOST_WALKS = 16
"""Parents that are remembered; one holds up to a stretch of listings."""

MOST_LISTINGS = 20_000
"""Of one stretch of 1,000 keys, which may have many slashes; what is behind them is asked for alone."""


@dataclass(slots=True)
class _Walk:
    """What is known of walks over the directories right below one prefix: how many are to be asked for one by one
    before the next stretch, and how many that was the last time."""

    one_by_one: int = ONE_BY_ONE
    last: int = ONE_BY_ONE
    begun: bool = False
    latest: str = ""
    ahead: dict[str, Listing] = field(default_factory=dict)
    lock: trio.Lock = field(default_factory=trio.Lock)


class Walks:
    """The walks below `root`. `stretch` asks the store, `keep` is given what it brought."""

    def __init__(
        self,
        *,
        root: str,
        stretch: Callable[[str, str], Awaitable[Stretch]],
        keep: Callable[[Sequence[Listing]], Awaitable[object]],
    ) -> None:
        self._root = root
        self._stretch = stretch
        self._keep = keep
        self._walks: OrderedDict[str, _Walk] = OrderedDict()
        self.unordered = False
        """The store gives keys in an order of its own: nothing can be told from a stretch."""

    async def bring(self, prefix: str, fresh: Callable[[Listing], bool]) -> Listing | None:
        """The listing of a directory out of a stretch, if somebody walks there and it can be had so, as old as `fresh`
        allows. None: ask for it alone."""
        above = [name for name in ancestors(prefix) if name.startswith(self._root)]
        if not above or self.unordered:
            return None
        nearest = self._walk(above[-1])
        below = next((name for name in above if name in self._walks and self._walks[name].begun), above[-1])
        walk = self._walk(below)
        async with walk.lock:
            listing = walk.ahead.pop(prefix, None)
            if listing is not None and fresh(listing):
                return listing
            if walk.one_by_one == 0:
                return await self._go_on(walk, below, prefix)
            for one in {id(walk): walk, id(nearest): nearest}.values():
                if one.latest != prefix:  # the same again and again is no walk
                    one.latest, one.one_by_one = prefix, max(0, one.one_by_one - 1)
            return None

    def listed(self, prefix: str) -> None:
        """The directory was asked for alone: what a stretch said of it before is no longer true."""
        for walk in self._walks.values():
            walk.ahead.pop(prefix, None)

    async def _go_on(self, walk: _Walk, below: str, prefix: str) -> Listing | None:
        try:
            stretch = await self._stretch(below, prefix[:-1])
        except StoreError as error:
            log.debug("no stretch below %r: %s", below, error)
            return None
        names = Infos.of(below, stretch.objects).names
        if any(one >= other for one, other in pairwise(names)) or (names and below + names[0] <= stretch.after):
            self.unordered = True
            log.warning("the store does not list keys in order, so that each directory is asked for alone")
            return None
        walk.begun = True
        walk.ahead = {listing.prefix: listing for listing in split(stretch)}
        await self._keep(list(walk.ahead.values()))
        paid = prefix in walk.ahead or len(walk.ahead) >= FEW
        walk.last = 1 if paid else 2 * walk.last
        walk.one_by_one = 0 if paid else walk.last
        return walk.ahead.pop(prefix, None)

    def _walk(self, below: str) -> _Walk:
        walk = self._walks.setdefault(below, _Walk())
        self._walks.move_to_end(below)
        while len(self._walks) > MOST_WALKS:
            self._walks.popitem(last=False)
        return walk


def ancestors(prefix: str) -> list[str]:
    """The prefixes that a prefix is below, from the empty one down."""
    if not prefix:
        return []
    pieces = prefix.split("/")[:-2]
    return ["".join(piece + "/" for piece in pieces[:depth]) for depth in range(len(pieces) + 1)]


def split(stretch: Stretch) -> list[Listing]:
    """The listings of all directories below its prefix that begin and end in the stretch."""
    found: list[Listing] = []
    # From the prefix down to where the last key was: directory, its objects, its prefixes.
    path: list[tuple[str, list[Row], list[str]]] = [(stretch.prefix, [], [])]
    after = stretch.after

    def end() -> None:
        prefix, rows, prefixes = path.pop()
        if path and not after.startswith(prefix):
            made = Rows(prefix)
            made.extend(rows)
            found.append(Listing(prefix, made.done(), tuple(prefixes), stretch.listed_at))

    for info in stretch.objects:
        key = info.key
        if len(found) + len(path) > MOST_LISTINGS:
            return found
        while not key.startswith(path[-1][0]):
            end()
        start = len(path[-1][0])
        while (cut := key.find("/", start)) >= 0:
            below = key[: cut + 1]
            path[-1][2].append(below)
            path.append((below, [], []))
            start = cut + 1
        path[-1][1].append((key, info.etag, info.size, info.mtime_ns, info.storage_class))
    while stretch.complete and path:
        end()
    return found
