"""`lazyfs upgrade`: a mount goes on in a new process, which runs the code that is installed now."""

import json
import os
import sys
import time

import click

from lazyfs.errors import SetupError, UsageError
from lazyfs.service import mounts

PATIENCE = 300.0
"""Seconds until nothing is heard of it any more."""

LONGEST_PYTHON = 90
"""Bytes of an interpreter's path: it is asked for by the name of an extended attribute, in hexadecimal."""


@click.command()
@click.argument("mountpoint", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def upgrade(mountpoint: str, as_json: bool) -> None:
    """Have the mount at MOUNTPOINT served by a new process, of this installation of lazyfs, with the same options.

    Files stay open and mapped, and no read fails: the new process becomes ready beside the old one, which ends when it
    has answered what it has read. If the new one cannot serve, the old one goes on. Counters begin at zero.
    """
    path = mounts.chosen(mountpoint)
    before = _report(path)
    python = "" if before.get("python") == sys.executable else sys.executable
    if len(os.fsencode(python)) > LONGEST_PYTHON:
        raise UsageError(f"the path of this Python is longer than {LONGEST_PYTHON} bytes; install lazyfs nearer to /")
    started = time.monotonic()
    mounts.command(path, f"upgrade:once={os.urandom(8).hex()},python={os.fsencode(python).hex()}")
    while (now := _report(path))["pid"] == before["pid"]:
        found = mounts.command(path, "upgrading")
        if not found.get("step") and found.get("trouble"):
            raise SetupError(f"{path} is not upgraded, and goes on as it was: {found['trouble']}")
        if time.monotonic() - started > PATIENCE:
            raise SetupError(f"{path} is not upgraded after {PATIENCE:.0f} s; its log says why")
        time.sleep(0.05)
    seconds = round(time.monotonic() - started, 2)
    if as_json:
        click.echo(json.dumps({"pid": now["pid"], "version": now["version"], "seconds": seconds}))
    else:
        click.echo(f"{path} is served by process {now['pid']}, lazyfs {now['version']}, after {seconds} s")


def _report(path: str) -> dict[str, object]:
    try:
        return dict(json.loads(mounts.stats_of(path)))
    except (OSError, TimeoutError, ValueError) as error:
        raise SetupError(f"the mount at {path} does not answer: {error}") from None
