"""`lazyfs evict`: the local copies of files of mounts go, and their disk space comes back."""

import json
import os
from collections import Counter

import click

from lazyfs.cli.paths import expanded, sized
from lazyfs.service import mounts


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path())
@click.option("--from-file", "lists", multiple=True, metavar="FILE", help="A list of paths, one a line; - is stdin.")
@click.option("--pinned", is_flag=True, help="Also what is pinned; the pins stay.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def evict(paths: tuple[str, ...], lists: tuple[str, ...], pinned: bool, as_json: bool) -> None:
    """Drop what is cached of the files at and below PATHs, which are in a mount: every version of them, not what is
    pinned. Nothing in S3 is touched; who has a file open reads on, and brings again what he needs.

    Exit status 0 if it is gone, 1 if some of it stays, for it is being written just now or read by the kernel itself, 2
    for a wrong call.
    """
    total: Counter[str] = Counter(freed=0, files=0, pinned=0, busy=0)
    for each in expanded(paths, lists).values():
        for path in each:
            total.update(mounts.command(path, f"evict:once={os.urandom(8).hex()},pinned={int(pinned)}"))
    if as_json:
        click.echo(json.dumps(total))
    else:
        kept = f"; {total['pinned']} that are pinned stay" if total["pinned"] else ""
        click.echo(f"{sized(total['freed'])} freed, of {total['files']} files{kept}")
    if total["busy"]:
        click.echo(f"lazyfs: {total['busy']} files are being written or read just now and stay; try again", err=True)
        raise SystemExit(1)
