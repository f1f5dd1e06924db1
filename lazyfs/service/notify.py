"""Telling systemd: the datagram protocol of sd_notify(3)."""

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """Send `READY=1` and the like to the service manager, if there is one. One that does not listen is no failure."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    with channel, contextlib.suppress(OSError):
        channel.connect(address)
        channel.sendall("\n".join(lines).encode())
