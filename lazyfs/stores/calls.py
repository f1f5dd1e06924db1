"""One exchange with a server that another thread may break off. Must not know how it goes over the network."""

import threading
from typing import Protocol


class Shuts(Protocol):
    """What an exchange goes over."""

    def shut(self) -> None:
        """See `Wire.shut`."""
        ...


class Call:
    """One exchange on a wire, which another thread may break off: not before it began, and not once it is over, for
    the wire is somebody else's then."""

    def __init__(self, wire: Shuts) -> None:
        self._wire: Shuts | None = wire
        self._lock = threading.Lock()

    def sever(self) -> None:
        """Break the connection off: the exchange fails as if the network had done it."""
        with self._lock:
            if self._wire is not None:
                self._wire.shut()

    def over(self) -> None:
        """From here on `sever` does nothing."""
        with self._lock:
            self._wire = None
