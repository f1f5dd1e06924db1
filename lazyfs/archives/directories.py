"""Listings in which archives stand as directories beside themselves.

Its job: stand before the listings of one source; add the directories, and list what is in them. Whether an object with
such a name is an archive is found out when somebody looks into its directory, since a listing of a thousand would be a
thousand GETs: the directory of one that is none is empty. A key or prefix that has the directory's name goes before it.

What is in an archive is believed as long as the listing that names the archive. Loop thread only.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from lazyfs.archives.library import Library
from lazyfs.archives.names import SUFFIX, directory_of, may_be_archive
from lazyfs.objects import Listing, ObjectInfo, ObjectVersion

Lists = Callable[[str, bool], Awaitable[Listing]]


class Directories:
    """The listings of one source, `place`, below `root`; `origin` is its name."""

    def __init__(self, lists: Lists, library: Library, *, place: str, root: str, origin: str) -> None:
        self._lists = lists
        self._library = library
        self._place = place
        self._root = root
        self._origin = origin

    async def list(self, prefix: str, doubted: bool = False) -> Listing:
        """The listing of a prefix, which may lie in an archive."""
        found = await self._archive(prefix, doubted)
        if found is None:
            return _with_archives(await self._lists(prefix, doubted))
        info, listed_at = found
        archive = ObjectVersion(self._place, info.key, info.etag, info.size, info.version_id, self._origin)
        contents = await self._library.contents(archive)
        if contents is None:
            return Listing(prefix, (), (), listed_at)
        return contents.listing(archive, prefix[len(directory_of(info.key)) :], listed_at, info.storage_class)

    async def _archive(self, prefix: str, doubted: bool) -> tuple[ObjectInfo, float] | None:
        """The archive that the prefix lies in, and when it was listed; None if it is in none."""
        cut = len(self._root)
        while (cut := prefix.find("/", cut) + 1) > 0:
            key = prefix[: cut - 1].removesuffix(SUFFIX)
            if len(key) == cut - 1 or not may_be_archive(key):
                continue
            above = await self._lists(key[: key.rfind("/") + 1], doubted)
            if prefix[:cut] in _shown(above):
                info = next(one for one in above.objects if one.key == key)
                return info, above.listed_at
        return None


def _shown(listing: Listing) -> set[str]:
    """The directories of archives that a listing has room for."""
    may = {directory_of(info.key) for info in listing.objects if may_be_archive(info.key)}
    if not may:
        return may
    return may - set(listing.prefixes) - {f"{info.key}/" for info in listing.objects}


def _with_archives(listing: Listing) -> Listing:
    more = _shown(listing)
    return replace(listing, prefixes=tuple(sorted({*listing.prefixes, *more}))) if more else listing
