"""The entries of a directory as its listing names them: sorted, each a file or a directory, with its inode.

No object for each: what a listing says stays in its columns, and an entry is a number. Must not know what the kernel
knows. Nothing changes once it is made, but for an inode that has to be another one (`renumber`).
"""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from lazyfs.dense import Infos, Names
from lazyfs.filesystem.names import NAME_MAX, Hidden, problem
from lazyfs.objects import Listing, ObjectVersion

_SHORT = NAME_MAX // 4
"""Characters that are not too long in UTF-8, whatever they are."""


_NO_NAMES = Names.of(())
_NONE_HIDDEN: Counter[Hidden] = Counter()
"""Of most directories, of which there may be many."""


class Entries:
    """Entry `at` of [0, len): names ascend. `hidden` counts what has no entry, by reason."""

    __slots__ = ("_directories", "_order", "hidden", "infos", "inodes")

    def __init__(
        self,
        infos: Infos,
        directories: Names,
        order: Sequence[int],
        inodes: Sequence[int],
        hidden: Counter[Hidden],
    ) -> None:
        self.infos = infos
        self.inodes = inodes
        self.hidden = hidden
        self._directories = directories
        # The number of a file in `infos`, or -1 less that of a directory.
        self._order = order

    @classmethod
    def of(cls, listing: Listing, before: "Entries", new_inodes: Callable[[int], int]) -> "Entries":
        """Those of the listing. What is as it was `before` keeps its inode; `new_inodes` gives the first of so many."""
        infos = Infos.of(listing.prefix, listing.objects)
        cut = len(listing.prefix)
        hidden: Counter[Hidden] = Counter()
        names = list(_shown((prefix[cut:-1] for prefix in listing.prefixes), hidden))
        directories = Names.of(names) if names else _NO_NAMES
        order = _order(infos.names, directories, hidden)
        made = cls(infos, directories, order, range(0), hidden or _NONE_HIDDEN)
        same = made._same_as(before)
        if same is not None:
            made.inodes = same
        else:
            first = new_inodes(len(order))
            made.inodes = made._numbered(before, range(first, first + len(order)))
        return made

    def __len__(self) -> int:
        return len(self._order)

    def is_directory(self, at: int) -> bool:
        """Whether the entry is a directory."""
        return self._order[at] < 0

    def name(self, at: int) -> str:
        """The name of the entry."""
        number = self._order[at]
        return self.infos.names[number] if number >= 0 else self._directories[-1 - number]

    def file(self, at: int) -> int:
        """The number in `infos` of an entry that is a file."""
        return self._order[at]

    def version(self, at: int, place: str, origin: str = "") -> ObjectVersion:
        """That of an entry that is a file, found by the source `origin`."""
        info = self.infos[self._order[at]]
        return ObjectVersion(place, info.key, info.etag, info.size, info.version_id, origin)

    def storage_class(self, at: int) -> str:
        """That of an entry that is a file; empty where the store does not tell."""
        return self.infos.classes[self.infos.kinds[self._order[at]]]

    def names(self) -> Iterator[str]:
        """All names, in order."""
        return map(self.name, range(len(self)))

    def find(self, name: str) -> int:
        """The entry of that name, -1 if there is none."""
        at = bisect_left(range(len(self)), name, key=self.name)
        return at if at < len(self) and self.name(at) == name else -1

    def renumber(self, at: int, inode: int) -> None:
        """The entry gets another inode."""
        if not isinstance(self.inodes, array):
            self.inodes = array("Q", self.inodes)
        self.inodes[at] = inode

    def alone(self, at: int) -> "Entries":
        """The one entry by itself, when the others are no longer needed."""
        if self.is_directory(at):
            return Entries(NOTHING.infos, Names.of([self.name(at)]), range(-1, 0), range(0), _NONE_HIDDEN)
        info = self.infos[self._order[at]]
        return Entries(Infos.of(self.infos.prefix, [info]), _NO_NAMES, range(1), range(0), _NONE_HIDDEN)

    def _same_as(self, before: "Entries") -> Sequence[int] | None:
        """The inodes of `before`, if nothing has changed."""
        same = self.infos == before.infos and self._directories == before._directories and self._order == before._order
        return before.inodes if same and len(self) else None

    def _numbered(self, before: "Entries", fresh: range) -> Sequence[int]:
        """The inodes, those of `before` where an entry is the same; both are walked in the order of their names."""
        if not len(before):
            return fresh
        found = array("Q", fresh)
        other, limit = 0, len(before)
        for at, name in enumerate(self.names()):
            while other < limit and before.name(other) < name:
                other += 1
            if other < limit and before.name(other) == name and self._equal(at, before, other):
                found[at] = before.inodes[other]
        return found

    def _equal(self, at: int, before: "Entries", other: int) -> bool:
        one, two = self._order[at], before._order[other]
        if one < 0 or two < 0:
            return one < 0 and two < 0
        # Not by storage class, which may change under the same bytes.
        old = before.infos
        return (self.infos.etags[one], self.infos.sizes[one], self.infos.times[one]) == (
            old.etags[two],
            old.sizes[two],
            old.times[two],
        )


def _shown(names: Iterator[str], hidden: Counter[Hidden]) -> Iterator[str]:
    """Those that can be names, the others counted."""
    for name in names:
        reason = _problem(name)
        if reason is None:
            yield name
        else:
            hidden[reason] += 1


def _problem(name: str) -> Hidden | None:
    """`names.problem`, quicker for the usual name."""
    if 2 < len(name) <= _SHORT and name.isascii() and "\0" not in name and "/" not in name:
        return None
    return problem(name)


def _order(files: Names, directories: Names, hidden: Counter[Hidden]) -> Sequence[int]:
    """The files and directories that are shown, in the order of their names; a directory wins over a file."""
    taken = set(directories)
    shown = array("i")
    for number, name in enumerate(files):
        # A key that is the prefix itself: the directory's own marker.
        reason = (_problem(name) if name else Hidden.MARKER) or (Hidden.SHADOWED if name in taken else None)
        if reason is None:
            shown.append(number)
        else:
            hidden[reason] += 1
    both = [*shown, *range(-1, -len(directories) - 1, -1)]
    names = [files[number] if number >= 0 else directories[-1 - number] for number in both]
    if any(one >= other for one, other in pairwise(names)):
        places = sorted(range(len(both)), key=names.__getitem__)
        # A name that a server says twice is one entry, what it said last.
        places = [at for at, after in zip(places, [*places[1:], None], strict=True) if not _twice(names, at, after)]
        both = [both[at] for at in places]
    if both == list(range(len(both))):
        return range(len(both))
    return array("i", both)


def _twice(names: list[str], at: int, after: int | None) -> bool:
    return after is not None and names[at] == names[after]


NOTHING = Entries(Infos.of("", ()), _NO_NAMES, range(0), range(0), _NONE_HIDDEN)
"""Those of a directory that was not listed yet."""
