"""Listings of a bucket, page by page, through botocore's client; blocking, for threads of `s3`.

Its job: which pages make a listing, that every page is one, and how this server is asked for one. Must not know
threads, patience or failures of the network, which pass through here as botocore raises them.

A server that says that it does not know how it was asked, or shows it by what it answers, is asked in the next way of
its profile, and that is remembered once it worked.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import botocore.exceptions

from lazyfs.dense import Row, Rows
from lazyfs.errors import Transient, Unordered
from lazyfs.objects import Listing, Stretch
from lazyfs.stores.pages import Page, read_page
from lazyfs.stores.profiles import Dialect

log = logging.getLogger(__name__)

MOST_COUNTED = 10
"""Requests to find out how much there is, for a `df` that nobody needs to be exact: 10,000 objects."""

_UNKNOWN = {"NotImplemented", "InvalidArgument"}
"""What a server says of a parameter that it does not know."""


class Lister:
    """Lists one bucket; `client` gives the client, `common` is what every request to it says, `ways` how to ask, the
    best first. One request at a time in each thread."""

    def __init__(self, client: Callable[[], Any], common: Mapping[str, Any], ways: Sequence[Dialect]) -> None:
        self._client = client
        self._common = common
        self._ways = ways
        self._way = 0  # the number of the first that may work; set by whatever thread finds out
        self._lock = threading.Lock()
        self._seen = threading.local()  # the page that this thread was sent last, and how it asked

    def list(self, prefix: str) -> Listing:
        """See `base.Store.list`."""
        listed_at = time.time()
        rows, prefixes = Rows(prefix), dict[str, None]()
        for page in self._pages(Prefix=prefix, Delimiter="/"):
            rows.extend(_below(prefix, page))
            # Behind a marker that is a common prefix some servers have that one again.
            prefixes.update(dict.fromkeys(page.prefixes))
        return Listing(prefix, rows.done(), tuple(prefixes), listed_at)

    def stretch(self, prefix: str, after: str) -> Stretch:
        """See `base.Store.stretch`. `Unordered` if it does not begin after the key, however it is asked for."""
        listed_at = time.time()
        page = self._page(after=after, Prefix=prefix)
        way = self._way
        while any(row[0] < after for row in page.rows):
            # As from a server that knows no StartAfter, and another way may have it.
            way += 1
            if way >= len(self._ways):
                raise Unordered(f"what comes after {after[:80]!r} was asked for, and other keys came")
            page = self._asked(self._ways[way], after, {"Prefix": prefix})
        self._way = max(self._way, way)
        rows = Rows(prefix)
        # The key itself may come: as the marker of a directory that is listed without its slash.
        rows.extend(row for row in _below(prefix, page) if row[0] != after)
        return Stretch(prefix, after, rows.done(), not page.following, listed_at)

    def total_size(self, prefix: str) -> int:
        """See `base.Store.total_size`; of `MOST_COUNTED` pages at most."""
        pages = itertools.islice(self._pages(Prefix=prefix), MOST_COUNTED)
        return sum(row[2] for page in pages for row in page.rows)

    def _pages(self, **arguments: Any) -> Iterator[Page]:
        """All pages of a listing, which must lead on: a server that sends us where we were never ends."""
        seen: set[str] = set()
        page = self._page(**arguments)
        while True:
            yield page
            if not page.following:
                return
            if page.following in seen:
                raise Transient("the listing goes on where it was before")
            seen.add(page.following)
            if page.second:
                page = self._page(**arguments, ContinuationToken=page.following)
            else:
                page = self._page(after=page.following, **arguments)

    def _page(self, *, after: str = "", **arguments: Any) -> Page:
        """A page of what comes after a key, asked for in the first way that the server knows."""
        way = self._way
        while True:
            try:
                page = self._asked(self._ways[way], after, arguments)
            except botocore.exceptions.ClientError as error:
                if way + 1 == len(self._ways) or not _unknown(error) or "ContinuationToken" in arguments:
                    raise
                log.info("the server is asked for listings in another way: %s", error)
                way += 1
                continue
            known = self._ways[way]
            if known.second and not page.second:  # it took no notice of the difference
                way = next((n for n, one in enumerate(self._ways) if n > way and not one.second), way)
            self._way = max(self._way, way)
            if known.second and not self._ways[way].second and after:
                continue  # nor of where to begin
            return page

    def _asked(self, way: Dialect, after: str, arguments: Mapping[str, Any]) -> Page:
        self._seen.page, self._seen.way = None, way
        client = self._client()
        name = "ListObjectsV2" if way.second else "ListObjects"
        with self._lock:  # botocore remembers the names and does it once, but not if two threads come at once
            events = client.meta.events
            events.register_last(f"before-parse.s3.{name}", self._read, unique_id=f"lazyfs-lister-{name}")
            events.register_last(f"before-parameter-build.s3.{name}", self._build, unique_id=f"lazyfs-plain-{name}")
        where = {"StartAfter" if way.second else "Marker": after} if after else {}
        ask = client.list_objects_v2 if way.second else client.list_objects
        ask(**self._common, **arguments, **where)
        found: Page | None = self._seen.page
        if found is None:
            raise Transient("asked for a listing, got something else")
        return found

    def _read(self, response_dict: dict[str, Any], **_: Any) -> None:
        """Take a page before botocore takes it apart, for which it needs ten times as long. An error is left to it."""
        if response_dict["status_code"] == 200:
            self._seen.page = read_page(response_dict["body"], second=self._seen.way.second)
            response_dict["body"] = b"<ListBucketResult/>"

    def _build(self, params: dict[str, Any], **_: Any) -> None:
        if not self._seen.way.encoded:
            as_they_are(params)


def _below(prefix: str, page: Page) -> Iterator[Row]:
    """Without the marker of the directory itself, which some servers list without its slash."""
    return (row for row in page.rows if not prefix or row[0] != prefix[:-1])


def as_they_are(params: dict[str, Any], **_: Any) -> None:
    """Do not ask for keys that are url-encoded, as botocore does of itself; for before-parameter-build."""
    params.pop("EncodingType", None)


def _unknown(error: botocore.exceptions.ClientError) -> bool:
    """Whether a server says that it does not know how it was asked."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status == 501 or (status == 400 and error.response.get("Error", {}).get("Code") in _UNKNOWN)
