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
        """Go the quick way from the next read on, if the GET of `key` that this thread just had botocore make can be
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
                tls = self._trust() if pattern.tls else None
                self.known = (pattern, Wires(pattern.host, pattern.port, tls, most=self._most))
        if old is not None:
            old[1].close()

    def beside_rehearsal(self, common: Callable[[], dict[str, Any]], function: Callable[..., T], *args: Any) -> T:
        """Call `function`, which waits for the network; meanwhile, the first time, learn from a GET with the `common`
        arguments that is not sent. If that fails, the first one that is will tell why."""
        if self._rehearsed:
            return function(*args)
        self._rehearsed = True
        rehearsal = threading.Thread(target=self._rehearse, args=(common,), name="rehearsal", daemon=True)
        rehearsal.start()
        try:
            return function(*args)
        finally:
            rehearsal.join()

    def _rehearse(self, common: Callable[[], dict[str, Any]]) -> None:
        def ask() -> None:
            client, _ = self._connection.ready()
            client.get_object(**common(), Key=REHEARSED, IfMatch='""', Range="bytes=0-0")

        with contextlib.suppress(StoreError):
            _, signer = self._connection.ready()
            if translated(signer.rehearse, ask) and self.known is None:
                translated(partial(self.learn, REHEARSED, plain=True))

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
