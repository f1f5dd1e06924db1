"""What a page of ListObjectVersions says, and which versions are those of a moment. Pure.

Must not know how pages come.
"""

from dataclasses import dataclass

from lazyfs.dense import Row
from lazyfs.errors import Transient
from lazyfs.stores.pages import decoded, document, fields_of, modified, name_of, row_of, said


@dataclass(frozen=True, slots=True)
class Change:
    """One version of a key, or its delete marker, which has no row. `at` is seconds since the epoch."""

    key: str
    at: float
    latest: bool
    row: Row | None


@dataclass(frozen=True, slots=True)
class VersionPage:
    """Changes and common prefixes in the order of the page; `following` is where the next one begins, a key and one of
    its versions, None after the last."""

    changes: list[Change]
    prefixes: list[str]
    following: tuple[str, str] | None


def read_version_page(body: bytes) -> VersionPage:
    """The page; `Transient` as for `pages.read_page`."""
    root, top, encoded = document(body, "ListVersionsResult")
    following = None
    if top["IsTruncated"] == "true":
        if not top.get("NextKeyMarker"):
            raise Transient("the listing goes on and does not say where")
        following = decoded(top["NextKeyMarker"], encoded=encoded), top.get("NextVersionIdMarker", "")
    changes, prefixes = [], []
    for child in root:
        kind = name_of(child)
        if kind in ("Version", "DeleteMarker"):
            fields = fields_of(child)
            if kind == "Version":
                row = row_of(fields, encoded=encoded, version=said(fields, "VersionId"))
                key = row[0]
            else:
                row, key = None, decoded(said(fields, "Key"), encoded=encoded)
            latest = fields.get("IsLatest", "").strip().lower() == "true"
            changes.append(Change(key, modified(fields), latest, row))
        elif kind == "CommonPrefixes":
            prefixes.append(decoded(said(fields_of(child), "Prefix"), encoded=encoded))
    return VersionPage(changes, prefixes, following)


class AsOf:
    """What there was at a moment, in seconds since the epoch: per key the newest version that is not after it, unless
    that is a delete marker.

    Of two in one second the one that is listed first is newer, as S3 lists them; the present one goes before all, for
    there are servers that list the markers behind the versions.
    """

    def __init__(self, moment: float) -> None:
        self._moment = moment
        self._newest: dict[str, Change | None] = {}

    def feed(self, page: VersionPage) -> list[Row]:
        """The rows that are certain with this page, in the order of their keys; its last key may go on in the next."""
        for change in page.changes:
            known = self._newest.setdefault(change.key, None)
            if change.at > self._moment:
                continue
            if known is None or (change.at, change.latest) > (known.at, known.latest):
                self._newest[change.key] = change
        last = max(self._newest, default="") if page.following is not None else None
        rest = {last: self._newest.pop(last)} if last else {}
        found = [change.row for _, change in sorted(self._newest.items()) if change is not None and change.row]
        self._newest = rest
        return found
