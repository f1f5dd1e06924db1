"""Telling systemd: the datagram protocol of sd_notify(3), and the watchdog it asks for, sd_watchdog_enabled(3)."""

import contextlib
import os
import socket


def listens() -> bool:
    """Whether there is a service manager to tell something."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


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
        # A manager that is busy must not hold up whoever tells it: the loop does.
        channel.setblocking(False)
        channel.sendall("\n".join(line.replace("\n", " ") for line in lines).encode(errors="replace"))


def watchdog_time() -> float | None:
    """Seconds after which the manager ends a service that sends no `WATCHDOG=1`; None if it does not watch this one."""
    text, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not text.isdigit() or int(text) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(text) / 1e6
