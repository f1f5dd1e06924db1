"""Columns instead of objects: names, and what a listing says of many objects, in about a hundred bytes for each.

A hundred thousand `ObjectInfo` with their strings are 35 MiB; here they are 10, and come from a file of the cache
without being made one by one. Immutable once made. Pure: no library, disk, network or clock.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, overload

from lazyfs.objects import ObjectInfo


class Names(Sequence[str]):
    """Strings one after another: equal to any sequence of the same strings. `text` is all of them, `ends` where each
    ends in it."""

    __slots__ = ("_ends", "text")

    def __init__(self, text: str, ends: "array[int]") -> None:
        """`ValueError` if `ends` do not cut the text into pieces."""
        if (ends[-1] if ends else 0) != len(text) or any(start > stop for start, stop in pairwise(ends)):
            raise ValueError("names that are cut where there is no text")
        self.text = text
        self._ends = ends

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Those."""
        pieces = list(names)
        return cls("".join(pieces), array("I", accumulate(map(len, pieces))))

    @property
    def ends(self) -> bytes:
        """As bytes, four for each, as this machine has them."""
        return self._ends.tobytes()

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return tuple(self[index] for index in range(*at.indices(len(self))))
        at = range(len(self._ends))[at]
        return self.text[self._ends[at - 1] if at else 0 : self._ends[at]]

    def __iter__(self) -> Iterator[str]:
        text, start = self.text, 0
        for stop in self._ends:
            yield text[start:stop]
            start = stop

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return self.text == other.text and self._ends == other._ends
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Names.of({list(self)!r})"


_NONE = Names.of(())


class Infos(Sequence[ObjectInfo]):
    """What is known of objects below `prefix`, whose names are their keys without it. Equal to any sequence of the same
    `ObjectInfo`. Sizes, times and storage classes (numbers in `classes`) are columns; times in seconds, for S3 keeps no
    fractions of them. `versions` are version ids, empty if none is known."""

    __slots__ = ("classes", "etags", "kinds", "names", "prefix", "sizes", "times", "versions")

    def __init__(
        self,
        prefix: str,
        names: Names,
        etags: Names,
        sizes: "array[int]",
        times: "array[int]",
        kinds: "array[int]",
        classes: Sequence[str],
        versions: Names | None = None,
    ) -> None:
        """`ValueError` if the columns do not belong together."""
        if len({len(names), len(etags), len(sizes), len(times), len(kinds)}) != 1:
            raise ValueError("columns of different lengths")
        if versions and len(versions) != len(names):
            raise ValueError("versions of other objects")
        if kinds and max(kinds) >= len(classes):
            raise ValueError("a storage class without a name")
        if sizes and max(sizes) >= 1 << 63:
            raise ValueError("a size that the kernel cannot be told")
        self.prefix = prefix
        self.names = names
        self.etags = etags
        self.sizes = sizes
        self.times = times
        self.kinds = kinds
        self.classes = classes
        self.versions = versions or _NONE

    @classmethod
    def of(cls, prefix: str, infos: Iterable[ObjectInfo]) -> "Infos":
        """Those. `ValueError` for a key that does not begin with the prefix, or a number that no object has."""
        if isinstance(infos, Infos) and infos.prefix == prefix:
            return infos
        rows = Rows(prefix)
        rows.extend(row(info) for info in infos)
        return rows.done()

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, at: int) -> ObjectInfo: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[ObjectInfo]: ...
    def __getitem__(self, at: int | slice) -> ObjectInfo | Sequence[ObjectInfo]:
        if isinstance(at, slice):
            return tuple(self[index] for index in range(*at.indices(len(self))))
        key = self.prefix + self.names[at]
        version = self.versions[at] if self.versions else ""
        kind = self.classes[self.kinds[at]]
        return ObjectInfo(key, self.etags[at], self.sizes[at], self.times[at] * 10**9, kind, version)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Infos):
            return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash((self.prefix, self.names))

    def __repr__(self) -> str:
        return f"Infos.of({self.prefix!r}, {list(self)!r})"


Row = tuple[str, str, int, int, str, str]
"""Key, ETag, size, time in nanoseconds, storage class, version id: the fields of `ObjectInfo`, which is not made."""


def row(info: ObjectInfo) -> Row:
    """The fields."""
    return info.key, info.etag, info.size, info.mtime_ns, info.storage_class, info.version_id


class Rows:
    """`Infos` in the making."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._names: list[str] = []
        self._etags: list[str] = []
        self._versions: list[str] = []
        self._ends = (array("I"), array("I"), array("I"))
        self._numbers = (array("Q"), array("q"), array("H"))
        self._classes: dict[str, int] = {}

    def extend(self, rows: Iterable[Row]) -> None:
        """Add these. `ValueError` for a key that does not begin with the prefix, or a number that no object has."""
        cut, prefix = len(self._prefix), self._prefix
        names: list[str] = []
        etags: list[str] = []
        versions: list[str] = []
        sizes, times, kinds = self._numbers
        try:
            for key, etag, size, time_ns, storage_class, version in rows:
                if not key.startswith(prefix):
                    raise ValueError(f"a key {key!r} that does not begin with {prefix!r}")
                names.append(key[cut:])
                etags.append(etag)
                versions.append(version)
                sizes.append(size)
                times.append(time_ns // 10**9)
                kinds.append(self._classes.setdefault(storage_class, len(self._classes)))
            found = zip((names, etags, versions), self._ends, (self._names, self._etags, self._versions), strict=True)
            for pieces, ends, all_pieces in found:
                ends.extend(accumulate(map(len, pieces), initial=ends[-1] if ends else 0))
                del ends[len(ends) - len(pieces) - 1]
                all_pieces.append("".join(pieces))
        except (OverflowError, TypeError) as error:
            raise ValueError(f"no number of an object: {error}") from None

    def done(self) -> Infos:
        """All of them, in the order in which they came."""
        names, etags, versions = (
            Names("".join(pieces), ends)
            for pieces, ends in zip((self._names, self._etags, self._versions), self._ends, strict=True)
        )
        sizes, times, kinds = self._numbers
        known = versions if versions.text else None
        return Infos(self._prefix, names, etags, sizes, times, kinds, tuple(self._classes), known)


def columns(infos: Infos) -> list[bytes]:
    """All that `infos` holds, for a file; see `from_columns`. Nine, and eleven where versions are known."""
    classes = Names.of(infos.classes)
    numbers = [column.tobytes() for column in (infos.sizes, infos.times, infos.kinds)]
    names = [part for text in (infos.names, infos.etags, classes) for part in name_columns(text)]
    return names + numbers + (list(name_columns(infos.versions)) if infos.versions else [])


def from_columns(prefix: str, parts: Sequence[Any]) -> Infos:
    """What `columns` gave. `ValueError` for anything else."""
    names, etags, classes = (names_from(parts[at], parts[at + 1]) for at in (0, 2, 4))
    sizes, times, kinds = (_column(code, part) for code, part in zip("QqH", parts[6:9], strict=True))
    versions = names_from(*parts[9:11]) if len(parts) > 9 else None
    return Infos(prefix, names, etags, sizes, times, kinds, tuple(classes), versions)


def _column(code: str, part: Any) -> "array[int]":
    found = array(code)
    found.frombytes(part)
    return found


def name_columns(names: Names) -> tuple[bytes, bytes]:
    """All that `names` holds, for a file; surrogates of keys that are no UTF-8 as well."""
    return names.text.encode("utf-8", "surrogatepass"), names.ends


def names_from(text: Any, ends: Any) -> Names:
    """What `name_columns` gave. `ValueError` for anything else."""
    return Names(str(text, "utf-8", "surrogatepass"), _column("I", ends))
