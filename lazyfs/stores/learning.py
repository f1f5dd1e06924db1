"""How GETs of a bucket go without botocore: what `signing` learned of them, and the wires to send them over.

Its job: learn from GETs that botocore made, and forget where that was of no use. Botocore can make one without sending
it: while a first listing is waited for, which whoever is about to read asks for first, it shows how a GET looks. Else
all that are sent before the first one is answered go its way, which takes 5 ms of the interpreter the first time, and
1.5 then.

Must not know what is read. Any thread.
"""

import contextlib
import os
import ssl
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from lazyfs.errors import StoreError
from lazyfs.stores.border import translated
from lazyfs.stores.client import Connection
from lazyfs.stores.signing import Pattern, authorities
from lazyfs.stores.wire import Wires

T = TypeVar("T")

REHEARSED = "rehearsal"
"""The key of the GET that is not sent; of a pattern it is no part."""

LONGEST = 1.0
"""Seconds for which a listing that is here waits for the rehearsal, which sends nothing."""


class QuickWay:
    """The quick way to the bucket of a client of botocore's, once it is known; `most` connections are kept idle. With
    `used` False there is none."""

    def __init__(self, connection: Connection, *, used: bool, most: int) -> None:
        self._connection = connection
        self._used = used
        self._most = most
        self._rehearsed = not used
        self._learning = threading.Lock()
        self.known: tuple[Pattern, Wires] | None = None
        """Replaced as a whole, by whatever thread has the lock."""

    def learn(self, key: str, *, plain: bool) -> None:
        """Go the quick way from the next read on, if the GET of `key` that this thread just sent by botocore can be
        done alike: not where a body is not `plain`, for who sends one like that may send them all, and each would be
        asked for twice."""
        pattern = self._connection.ready()[1].learn(key) if self._used and plain else None
        # One at a time: many first reads end at once, and the wires that one of them made are used by then.
        with self._learning:
            old = self.known
            if pattern is None:
                self.known = None
            elif old is not None and old[0].server == pattern.server:
                self.known = (pattern, old[1])
                return
            else:
                self.known = self._with_wires(pattern)
        if old is not None:
            old[1].close()

    def beside_rehearsal(self, common: Callable[[], dict[str, Any]], function: Callable[..., T], *args: Any) -> T:
        """Call `function`, which lists by botocore; meanwhile, until that has worked once, have a GET with the `common`
        arguments made that is not sent. It shows the quick way only if the listing went to the same server, signed for
        the same region: one that was redirected went elsewhere. If it fails, the first one that is sent will tell
        why."""
        if self._rehearsed:
            return function(*args)
        self._rehearsed = True
        shown: list[Pattern] = []
        rehearsal = threading.Thread(target=self._rehearse, args=(common, shown), name="rehearsal", daemon=True)
        rehearsal.start()
        try:
            found = function(*args)
        except BaseException:
            self._rehearsed = False
            raise
        rehearsal.join(LONGEST)
        if shown and self._connection.ready()[1].sent_like(shown[0]):
            with self._learning:
                if self.known is None:
                    self.known = self._with_wires(shown[0])
        return found

    def _rehearse(self, common: Callable[[], dict[str, Any]], shown: list[Pattern]) -> None:
        def made() -> Pattern | None:
            client, signer = self._connection.ready()
            arguments = common()
            # Of an S3 Express bucket a session is asked for, and nothing can be learned.
            if arguments["Bucket"].endswith("--x-s3"):
                return None
            asking = partial(client.get_object, **arguments, Key=REHEARSED, IfMatch='""', Range="bytes=0-0")
            return signer.learn(REHEARSED) if signer.rehearse(asking) else None

        with contextlib.suppress(StoreError):
            pattern = translated(made)
            if pattern is not None:
                shown.append(pattern)

    def _with_wires(self, pattern: Pattern) -> tuple[Pattern, Wires]:
        tls = self._trust() if pattern.tls else None
        return pattern, Wires(pattern.host, pattern.port, tls, most=self._most)

    @property
    def authorities(self) -> str | None:
        """The file or folder of certificates that botocore trusts; None if it is told to trust anybody."""
        return authorities(self._connection.ready()[0])

    def _trust(self) -> ssl.SSLContext:
        found = self.authorities
        folder = found is not None and os.path.isdir(found)
        context = ssl.create_default_context(cafile=None if folder else found, capath=found if folder else None)
        # As botocore's: strict, which is Python's default from 3.13, refuses authorities that it takes.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context

    def close(self) -> None:
        """Close the wires that are idle."""
        if self.known is not None:
            self.known[1].close()
