"""Listings of a bucket, page by page, through botocore's client; blocking, for threads of `s3`.

Its job: which pages make a listing, and that every page is one. Must not know threads, patience or failures of the
network, which pass through here as botocore raises them.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lazyfs.dense import Rows
from lazyfs.errors import Transient
from lazyfs.objects import Listing, Stretch
from lazyfs.stores.pages import Page, read_page

MOST_COUNTED = 10
"""Requests to find out how much there is, for a `df` that nobody needs to be exact: 10,000 objects."""


class Lister:
    """Lists one bucket; `client` gives the client, `common` is what every request to it says. One request at a time in
    each thread."""

    def __init__(self, client: Callable[[], Any], common: Mapping[str, Any]) -> None:
        self._client = client
        self._common = common
        self._lock = threading.Lock()
        self._seen = threading.local()  # the page that this thread was sent last

    def list(self, prefix: str) -> Listing:
        """See `base.Store.list`."""
        listed_at = time.time()
        rows, prefixes = Rows(prefix), []
        for page in self._pages(Prefix=prefix, Delimiter="/"):
            rows.extend(page.rows)
            prefixes.extend(page.prefixes)
        return Listing(prefix, rows.done(), tuple(prefixes), listed_at)

    def stretch(self, prefix: str, after: str) -> Stretch:
        """See `base.Store.stretch`."""
        listed_at = time.time()
        page = self._page(Prefix=prefix, StartAfter=after)
        rows = Rows(prefix)
        rows.extend(page.rows)
        return Stretch(prefix, after, rows.done(), not page.following, listed_at)

    def total_size(self, prefix: str) -> int:
        """See `base.Store.total_size`; of `MOST_COUNTED` pages at most."""
        pages = itertools.islice(self._pages(Prefix=prefix), MOST_COUNTED)
        return sum(row[2] for page in pages for row in page.rows)

    def _pages(self, **arguments: Any) -> Iterator[Page]:
        """All pages of a listing, whose tokens must lead on: a server that sends us where we were never ends."""
        seen: set[str] = set()
        token: dict[str, str] = {}
        while True:
            page = self._page(**arguments, **token)
            yield page
            if not page.following:
                return
            if page.following in seen:
                raise Transient("the listing goes on where it was before")
            seen.add(page.following)
            token = {"ContinuationToken": page.following}

    def _page(self, **arguments: Any) -> Page:
        self._seen.page = None
        client = self._client()
        with self._lock:  # botocore remembers the name and does it once, but not if two threads come at once
            client.meta.events.register_last("before-parse.s3.ListObjectsV2", self._read, unique_id="lazyfs-lister")
        client.list_objects_v2(**self._common, **arguments)
        found: Page | None = self._seen.page
        if found is None:
            raise Transient("asked for a listing, got something else")
        return found

    def _read(self, response_dict: dict[str, Any], **_: Any) -> None:
        """Take a page before botocore takes it apart, for which it needs ten times as long. An error is left to it."""
        if response_dict["status_code"] == 200:
            self._seen.page = read_page(response_dict["body"])
            response_dict["body"] = b"<ListBucketResult/>"
