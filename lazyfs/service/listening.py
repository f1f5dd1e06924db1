"""A socket that listens where the user said, and nowhere else.

Its job: bind before anything is mounted, so that an address that cannot be had is one sentence and no mount; a unix
socket belongs to who runs the daemon, and is gone with it. Must not know what is served.
"""

import contextlib
import os
import socket
import stat

from lazyfs.errors import SetupError
from lazyfs.words import Address

BACKLOG = 16
"""Connections that wait in the kernel until they are taken."""


class Listening:
    """A bound socket. `where` says in words where it is, with the port that the kernel chose."""

    def __init__(self, address: Address) -> None:
        """Bind. `SetupError` says what is in the way."""
        try:
            self.socket = _unix(address.path) if address.path else _tcp(address)
        except OSError as error:
            place = address.path or _url(address.host, address.port)
            raise SetupError(
                f"cannot listen at {place}: {error.strerror or error}; choose another --metrics-address"
            ) from None
        self._path = address.path
        self._mine = _identity(address.path)
        self.where = f"unix:{address.path}" if address.path else _url(address.host, self.socket.getsockname()[1])

    def close(self) -> None:
        """Take the name of a unix socket away, if it is still this one's; the socket is closed by who serves it."""
        if self._path:
            with contextlib.suppress(OSError):
                if _identity(self._path) == self._mine:
                    os.unlink(self._path)


def _identity(path: str) -> tuple[int, int] | None:
    """Of what has this name now. The number of an inode alone is soon another's."""
    found = os.lstat(path) if path else None
    return None if found is None else (found.st_ino, found.st_ctime_ns)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _tcp(address: Address) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # `[::]` is not also 0.0.0.0
        made.bind((address.host, address.port))
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def _unix(path: str) -> socket.socket:
    _clear(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(path)
        os.chmod(path, 0o600)
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def _clear(path: str) -> None:
    """Remove a socket that nobody listens at: a daemon that was killed left it."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(0, "there is something else")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(0, "another process listens there")
