"""`lazyfs pin` and `lazyfs unpin`: what the caches of mounts keep, whatever else is read."""

import json
import os

import click

from lazyfs.cli.paths import expanded
from lazyfs.cli.warm import begin, finish
from lazyfs.service import mounts
from lazyfs.service.logs import told


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path())
@click.option("--from-file", "lists", multiple=True, metavar="FILE", help="A list of paths, one a line; - is stdin.")
@click.option("--warm", "warmed", is_flag=True, help="Also bring them to the cache now, and wait for that.")
@click.option("--list", "listing", is_flag=True, help="Show the pins of the mounts at PATHs; of all without one.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def pin(paths: tuple[str, ...], lists: tuple[str, ...], warmed: bool, listing: bool, as_json: bool) -> None:
    """Keep what is cached of the files at and below PATHs, which are in a mount, whatever else needs the room.

    A pin is of a path and not of bytes: it holds for what is cached later, and for new versions and files below it. It
    lives in the cache, holds for every mount that shares it, and survives restarts. Nothing is fetched for it without
    --warm. When pins fill the cache, other reads go on and are not kept. `lazyfs unpin` ends it.

    Exit status 0 if all is pinned (with --warm: and on disk), 1 if not, 2 for a wrong call.
    """
    if listing:
        places = expanded(paths) if paths else {one.mountpoint: [] for one in mounts.mounts() if _ours(one)}
        found = {mountpoint: _pins(mountpoint) for mountpoint in places}
        if as_json:
            click.echo(json.dumps([{"mountpoint": mountpoint, "pins": keys} for mountpoint, keys in found.items()]))
        else:
            for mountpoint, keys in found.items():
                for key in keys:
                    click.echo(told(f"{mountpoint}: {key or '(all of the bucket)'}"))
        return
    places = expanded(paths, lists)
    every = [path for each in places.values() for path in each]
    for path in every:
        mounts.command(path, "pin")
    if warmed:
        finish(begin(places), wait=True, as_json=as_json)
    else:
        click.echo(json.dumps({"pinned": every}) if as_json else f"{len(every)} pinned")


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def unpin(paths: tuple[str, ...], as_json: bool) -> None:
    """End the pins of PATHs, which are in a mount, and all pins below them. What is cached stays until its room is
    needed.

    Of a file that S3 no longer has, unpin the directory. Exit status 0 if PATHs are not pinned any more, 1 if the pin
    of a directory above still keeps one, 2 for a wrong call.
    """
    count, kept = 0, []
    for path in [path for each in expanded(paths).values() for path in each]:
        found = mounts.command(path, f"unpin:once={os.urandom(8).hex()}")
        count += found["unpinned"]
        if found["over"] is not None:
            kept.append((path, found["over"] or "(all of the bucket)"))
    if as_json:
        click.echo(json.dumps({"unpinned": count, "kept": [{"path": path, "pin": key} for path, key in kept]}))
    else:
        click.echo(f"{count} unpinned")
    for path, key in kept:
        click.echo(told(f"lazyfs: {path} is still kept by the pin of {key}; unpin that"), err=True)
    if kept:
        raise SystemExit(1)


def _ours(mount: mounts.Mount) -> bool:
    return mount.fstype == mounts.FSTYPE


def _pins(mountpoint: str) -> list[str]:
    keys: list[str] = []
    while True:
        found = mounts.command(mountpoint, f"pins:after={len(keys)}")
        keys += found["pins"]
        if not found["more"]:
            return keys
