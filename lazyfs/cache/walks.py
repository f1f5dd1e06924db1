"""Walks over many directories: one request for a stretch of keys instead of one for each directory.

A LIST with a delimiter brings one directory, one without it a thousand keys, of which every directory that begins and
ends among them can be listed: `find` over 10,000 directories of ten files takes 100 requests instead of 10,000. Who
asks for a third directory of the same parent is taken to walk over them. A stretch begins at the directory that is
asked for and reaches as far as one request goes. Where the walk follows, the next ones are brought ahead of it, up to
`MOST_AHEAD` at once, each from the child of the parent at which the one before will probably end. So a guess that was
wrong costs as many requests as were ahead; one in vain has ever more directories asked for one by one before the next.

Must not know disks nor how long a listing is believed. Loop thread only; of a walk, who needs a stretch waits for the
one that somebody needs already.
Invariant: a directory is listed only if all of its keys lie between the ends of one stretch.
"""

import logging
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import trio

from lazyfs.dense import Infos, Row, Rows, row
from lazyfs.errors import StoreError, Unordered
from lazyfs.objects import Listing, Stretch

log = logging.getLogger(__name__)

ONE_BY_ONE = 2
"""Directories of a parent that are asked for one by one before a walk is taken to be one."""

FEW = 2
"""Directories of a stretch with which it paid, though the one that was asked for goes on behind it."""

MOST_WALKS = 16
"""Parents that are remembered; one holds up to a stretch of listings."""

MOST_AHEAD = 4
"""Stretches ahead of a walk: a LIST takes S3 0.1 s, and a walk through 100 directories half of that."""

MOST_LISTINGS = 20_000
"""Of one stretch of 1,000 keys, which may have many slashes; what is behind them is asked for alone."""


@dataclass(slots=True)
class _Walk:
    """What is known of walks over the directories right below one prefix: how many are to be asked for one by one
    before the next stretch, and how many that was the last time; the last one that was asked for.

    `children` are those directories, and `per` how many of them the last stretch held; `following` is the number of the
    child at which the next stretch ahead begins, `starts` are the beginnings of those ahead of the walk, `window` how
    many of them there may be. `brought` is what stretches brought last, `flights` those under way, by their beginnings.
    """

    one_by_one: int = ONE_BY_ONE
    last: int = ONE_BY_ONE
    begun: bool = False
    latest: str = ""
    children: Sequence[str] = ()
    per: int = 0
    following: int = 0
    window: int = 0
    starts: deque[str] = field(default_factory=deque)
    brought: deque[dict[str, Listing]] = field(default_factory=lambda: deque(maxlen=2 * MOST_AHEAD))
    flights: dict[str, trio.Event] = field(default_factory=dict)
    lock: trio.Lock = field(default_factory=trio.Lock)

    def take(self, prefix: str, fresh: Callable[[Listing], bool]) -> Listing | None:
        """What was brought of a directory, once."""
        for listings in reversed(self.brought):
            found = listings.pop(prefix, None)
            if found is not None and fresh(found):
                return found
        return None


class Walks:
    """The walks below `root`. `stretch` asks the store, `keep` is given what it brought, `children` says which
    directories were right below a prefix when it was listed last; `nursery` runs what is ahead of a walk, without it
    nothing is."""

    def __init__(
        self,
        *,
        root: str,
        stretch: Callable[[str, str], Awaitable[Stretch]],
        keep: Callable[[Sequence[Listing]], Awaitable[object]],
        children: Callable[[str], Sequence[str]],
        nursery: trio.Nursery | None,
    ) -> None:
        self._root = root
        self._stretch = stretch
        self._keep = keep
        self._children = children
        self._nursery = nursery
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
            listing = walk.take(prefix, fresh)
            if listing is None and (under_way := [start for start in walk.flights if start <= prefix]):
                await walk.flights[max(under_way)].wait()
                listing = walk.take(prefix, fresh)
            if listing is not None:
                self.passed(prefix)
                return listing
            if walk.one_by_one == 0:
                await self._go_on(walk, below, prefix)
                return walk.take(prefix, fresh)
            for one in {id(walk): walk, id(nearest): nearest}.values():
                if one.latest != prefix:  # the same again and again is no walk
                    one.latest, one.one_by_one = prefix, max(0, one.one_by_one - 1)
            return None

    def walking(self, prefix: str) -> bool:
        """Whether somebody has walked over what is below an ancestor of this directory."""
        return any(name in self._walks and self._walks[name].begun for name in ancestors(prefix))

    def passed(self, prefix: str) -> None:
        """Somebody lists this directory: a walk that comes to a stretch that was brought ahead has more brought."""
        for below, walk in self._walks.items():
            if walk.starts and walk.starts[0] <= prefix and prefix.startswith(below):
                while walk.starts and walk.starts[0] <= prefix:
                    walk.starts.popleft()
                walk.window = min(2 * walk.window, MOST_AHEAD)
                self._look_ahead(walk, below)

    def listed(self, prefix: str) -> None:
        """The directory was asked for alone: what a stretch said of it before is no longer true."""
        for walk in self._walks.values():
            for listings in walk.brought:
                listings.pop(prefix, None)

    async def _go_on(self, walk: _Walk, below: str, prefix: str) -> None:
        """Bring the stretch that begins at a directory which somebody needs now."""
        found = await self._bring(walk, below, prefix)
        if found is None:
            return
        paid = prefix in found or len(found) >= FEW
        walk.last = 1 if paid else 2 * walk.last
        walk.one_by_one = 0 if paid else walk.last
        if not walk.begun or prefix < walk.latest:
            walk.children, walk.following, walk.window = self._children(below), 0, 1
            walk.starts.clear()
        walk.begun, walk.latest = True, prefix
        held = [name for name in found if name.count("/") == below.count("/") + 1]
        walk.per = len(held)
        if paid and held:
            walk.following = max(walk.following, bisect_right(walk.children, max(held)))
            self._look_ahead(walk, below)

    def _look_ahead(self, walk: _Walk, below: str) -> None:
        """Set on its way what lies ahead, as much as the window allows."""
        while self._nursery and walk.per and len(walk.starts) < walk.window and walk.following < len(walk.children):
            start = walk.children[walk.following]
            walk.following += walk.per
            walk.starts.append(start)
            if start not in walk.flights:
                walk.flights[start] = trio.Event()
                self._nursery.start_soon(self._fly, walk, below, start)

    async def _fly(self, walk: _Walk, below: str, start: str) -> None:
        """A stretch ahead of the walk. It is advice: a defect in it must not end the mount."""
        try:
            await self._bring(walk, below, start)
        except Exception:
            log.exception("a defect in a walk, which goes on without what lies ahead")
        finally:
            walk.flights.pop(start).set()

    async def _bring(self, walk: _Walk, below: str, start: str) -> dict[str, Listing] | None:
        """The listings of a stretch from a directory on, kept; None if there is none."""
        try:
            stretch = await self._stretch(below, start[:-1])
        except Unordered:
            self._give_up()
            return None
        except StoreError as error:
            log.debug("no stretch below %r: %s", below, error)
            return None
        names = Infos.of(below, stretch.objects).names
        if any(one >= other for one, other in pairwise(names)) or (names and below + names[0] <= stretch.after):
            self._give_up()
            return None
        found = {listing.prefix: listing for listing in split(stretch)}
        walk.brought.append(dict(found))
        await self._keep(list(found.values()))
        return found

    def _give_up(self) -> None:
        if not self.unordered:
            log.warning("the store does not list keys in order, so that each directory is asked for alone")
        self.unordered = True

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
        path[-1][1].append(row(info))
    while stretch.complete and path:
        end()
    return found
