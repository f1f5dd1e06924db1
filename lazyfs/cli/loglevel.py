"""`lazyfs log-level`: what a running mount logs, and how to change it."""

import json

import click

from lazyfs.errors import SetupError
from lazyfs.service import mounts
from lazyfs.service.logs import LEVELS


@click.command("log-level")
@click.argument("mountpoint", type=click.Path())
@click.argument("level", required=False, type=click.Choice(LEVELS, case_sensitive=False))
def log_level(mountpoint: str, level: str | None) -> None:
    """Set what the daemon of MOUNTPOINT logs to LEVEL and above, until it ends; without LEVEL, say what it logs now.

    Only root, and who mounted, may change it. The signals SIGUSR1 (everything) and SIGUSR2 (as it was mounted) do the
    same, also to a daemon that does not answer.
    """
    path = mounts.chosen(mountpoint)
    if level is not None:
        click.echo(mounts.command(path, f"log-level:level={level.lower()}", seconds=10.0)["level"])
        return
    try:
        click.echo(json.loads(mounts.stats_of(path))["log_level"])
    except (OSError, TimeoutError, ValueError, KeyError) as error:
        raise SetupError(f"the mount at {path} does not say what it logs: {error}") from None
