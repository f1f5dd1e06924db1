"""A bucket as it was at a moment, from the list of its versions; blocking, for threads of `s3`.

Its job: the same listings as `lister`'s, of another time. A page of versions has no word for what was there at a time,
so a listing without delimiter is tried first: of a small tree one request says all. In a larger one a directory whose
objects are all younger, or were deleted before, looks like any other, and each is looked into until something is found.
Must not know threads or patience.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import botocore.exceptions

from lazyfs.dense import Row, Rows
from lazyfs.errors import StoreError, Transient
from lazyfs.moments import seconds_of
from lazyfs.objects import Listing, ObjectVersion, Stretch
from lazyfs.stores.answers import opaque
from lazyfs.stores.lister import MOST_COUNTED, as_they_are
from lazyfs.stores.profiles import Profile
from lazyfs.stores.version_pages import AsOf, VersionPage, read_version_page

log = logging.getLogger(__name__)

MOST_LOOKS = 256
"""Directories of one listing that are looked into; the others are shown, and are empty if nothing was in them then."""

MOST_SEARCHED = 10
"""Requests for one version of one key: 10,000 versions of it and of keys that begin with it."""


class VersionPages:
    """Pages of versions of one bucket on a server of a kind; `client` and `common` as for `lister.Lister`. One request
    at a time in each thread."""

    def __init__(self, client: Callable[[], Any], common: Mapping[str, Any], server: Profile) -> None:
        self._client = client
        self._server = server
        self._common = common
        self._lock = threading.Lock()
        self._seen = threading.local()

    def pages(self, **arguments: Any) -> Iterator[VersionPage]:
        """All pages of a listing, whose markers must lead on."""
        seen: set[tuple[str, str]] = set()
        while True:
            page = self._page(**arguments)
            yield page
            if page.following is None:
                return
            if page.following in seen:
                raise Transient("the listing goes on where it was before")
            seen.add(page.following)
            key, version = page.following
            arguments = {**arguments, "KeyMarker": key, "VersionIdMarker": version}
            if not version:
                del arguments["VersionIdMarker"]

    def find(self, version: ObjectVersion) -> str:
        """The id of the version of its key that has its ETag and size, empty if there is none, or if the server knows
        nothing of versions or does not tell."""
        if not self._server.versions:
            return ""
        pages = itertools.islice(self.pages(Prefix=version.key), MOST_SEARCHED)
        try:
            for change in (change for page in pages for change in page.changes):
                if change.key > version.key:
                    return ""
                row = change.row if change.key == version.key else None
                if row and (opaque(row[1]), row[2]) == (opaque(version.etag), version.size):
                    return row[5]
        except botocore.exceptions.ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if status not in (400, 401, 403, 404, 405, 501):
                raise
            log.debug("no versions of %r are told: %s", version.key, error)
        return ""

    def keeps(self) -> bool:
        """Whether the bucket has versions or had them; also where that is not told."""
        if not self._server.versions:
            return False
        try:
            return bool(self._client().get_bucket_versioning(**_owned(self._common)).get("Status"))
        except botocore.exceptions.ClientError as error:
            log.info("whether the bucket keeps versions is not told: %s", error)
            return True

    def _page(self, **arguments: Any) -> VersionPage:
        self._seen.page = None
        client = self._client()
        with self._lock:  # as in `lister`
            name = "before-parse.s3.ListObjectVersions"
            client.meta.events.register_last(name, self._read, unique_id="lazyfs-versions")
            if not self._server.listing[0].encoded:
                name = "before-parameter-build.s3.ListObjectVersions"
                client.meta.events.register_last(name, as_they_are, unique_id="lazyfs-versions-plain")
        client.list_object_versions(**self._common, **arguments)
        found: VersionPage | None = self._seen.page
        if found is None:
            raise Transient("asked for a listing of versions, got something else")
        return found

    def _read(self, response_dict: dict[str, Any], **_: Any) -> None:
        if response_dict["status_code"] == 200:
            self._seen.page = read_version_page(response_dict["body"])
            response_dict["body"] = b"<ListVersionsResult/>"


class History:
    """Lists one bucket as it was at `moment`, see `moments`."""

    def __init__(self, pages: VersionPages, moment: str) -> None:
        self._pages = pages
        self._moment = moment
        self._at = seconds_of(moment)
        self._known = False

    def list(self, prefix: str) -> Listing:
        """See `base.Store.list`. `StoreError` if the bucket has no versions, so that nobody knows what it held."""
        listed_at = time.time()
        self._check()
        first = next(self._pages.pages(Prefix=prefix))
        found = AsOf(self._at).feed(first)
        if first.following is None:
            return _listing(prefix, found, set(), listed_at)
        alive = {below for row in found if (below := _below(prefix, row[0]))}
        rows: list[Row] = []
        prefixes: dict[str, None] = {}
        at = AsOf(self._at)
        for page in self._pages.pages(Prefix=prefix, Delimiter="/"):
            rows += at.feed(page)
            prefixes.update(dict.fromkeys(page.prefixes))
        # What lies before the end of the first page is known from it.
        end = first.following[0]
        unknown = [name for name in prefixes if name not in alive and (name > end or end.startswith(name))]
        for looks, below in enumerate(unknown):
            if looks >= MOST_LOOKS or self._any(below):
                alive.add(below)
        return _listing(prefix, rows, alive, listed_at)

    def stretch(self, prefix: str, after: str) -> Stretch:
        """See `base.Store.stretch`. The last key is left out where there are more: older versions of it may follow."""
        listed_at = time.time()
        self._check()
        page = next(self._pages.pages(Prefix=prefix, **({"KeyMarker": after} if after else {})))
        rows = Rows(prefix)
        rows.extend(AsOf(self._at).feed(page))
        return Stretch(prefix, after, rows.done(), page.following is None, listed_at)

    def total_size(self, prefix: str) -> int:
        """See `base.Store.total_size`; of `lister.MOST_COUNTED` pages at most."""
        at = AsOf(self._at)
        pages = itertools.islice(self._pages.pages(Prefix=prefix), MOST_COUNTED)
        return sum(row[2] for page in pages for row in at.feed(page))

    def _any(self, prefix: str) -> bool:
        at = AsOf(self._at)
        return any(at.feed(page) for page in self._pages.pages(Prefix=prefix))

    def _check(self) -> None:
        if not self._known and not self._pages.keeps():
            raise StoreError(
                f"it keeps no versions, so what it held at {self._moment} is not known; mount it as it is now, without "
                "--version-at"
            )
        self._known = True


def _below(prefix: str, key: str) -> str:
    """The directory right below the prefix in which a key is, empty if it is in none."""
    cut = key.find("/", len(prefix))
    return key[: cut + 1] if cut >= 0 else ""


def _listing(prefix: str, found: list[Row], alive: set[str], listed_at: float) -> Listing:
    rows = Rows(prefix)
    rows.extend(row for row in found if not _below(prefix, row[0]))
    prefixes = alive | {_below(prefix, row[0]) for row in found}
    return Listing(prefix, rows.done(), tuple(sorted(prefixes - {""})), listed_at)


def _owned(common: Mapping[str, Any]) -> dict[str, Any]:
    """Without who pays, which this request cannot say."""
    return {name: value for name, value in common.items() if name != "RequestPayer"}
