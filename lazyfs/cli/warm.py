"""`lazyfs warm`: files of mounts are brought to the disk cache by their daemons, with progress."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from lazyfs.cli.paths import expanded, sized
from lazyfs.errors import UsageError
from lazyfs.service import mounts, warmth
from lazyfs.service.logs import told
from lazyfs.words import parse_size

RECENT = 25
"""Looks over which the rate is taken: 5 s."""


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path())
@click.option("--from-file", "lists", multiple=True, metavar="FILE", help="A list of paths, one a line; - is stdin.")
@click.option("--rate", metavar="SIZE", help="Most bytes a second, like 200MiB; without it, as quick as it can be.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return when all is on disk, or once it began.")
@click.option("--cancel", metavar="MOUNTPOINT", type=click.Path(), help="Stop what is being warmed in this mount.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON, a list with one job for each mount.")
def warm(
    paths: tuple[str, ...], lists: tuple[str, ...], rate: str | None, wait: bool, cancel: str | None, as_json: bool
) -> None:
    """Bring all files at and below PATHs, which are in a mount, to the disk cache: the next start sends no GET.

    PATHs may be quoted patterns like '/srv/models/*/config.json', and lines of a file (--from-file); blank lines and
    those that begin with # are left out. The mount's daemon does the work, behind everything that readers wait for: it
    goes on when this command is interrupted or its terminal closed. To stop it: lazyfs warm --cancel MOUNTPOINT.

    Nothing is fetched if the files cannot fit in the cache beside what is pinned or open. Exit status 0 if all of it is
    on disk (with --no-wait: if it has begun), 1 if not, 2 for a wrong call.
    """
    if cancel is not None:
        if paths or lists:
            raise UsageError("--cancel stops all that is being warmed in the mount; give it no paths")
        (mountpoint,) = expanded([cancel])
        count = mounts.command(mountpoint, "warm-cancel")["cancelled"]
        click.echo(json.dumps({"cancelled": count}) if as_json else f"{count} stopped")
        return
    speed = None if rate is None else _rate(rate)
    finish(begin(expanded(paths, lists), speed), wait=wait, as_json=as_json)


def _rate(text: str) -> int:
    size = parse_size(text.removesuffix("/s"))
    if size <= 0:
        raise UsageError("--rate must be more than 0; leave it out for as quick as it can be")
    return size


def begin(places: Mapping[str, Sequence[str]], rate: int | None = None) -> dict[str, str]:
    """Start a job in each mount; their names by mountpoint."""
    return {mountpoint: warmth.begin(mountpoint, paths, rate) for mountpoint, paths in places.items()}


def finish(jobs: Mapping[str, str], *, wait: bool, as_json: bool) -> None:
    """Show how far they are until they end, or have begun to fetch; exit status 1 if one does not do all of it."""
    try:
        found = _watch(jobs, wait=wait)
    except KeyboardInterrupt:
        places = " ".join(jobs)
        click.echo(f"lazyfs: it goes on in the background; stop it with: lazyfs warm --cancel {places}", err=True)
        raise SystemExit(1) from None
    if as_json:
        click.echo(json.dumps([{"mountpoint": mountpoint, **job} for mountpoint, job in found.items()]))
    else:
        for mountpoint, job in found.items():
            click.echo(told(f"{mountpoint}: {_words(job)}"))
    if any(job["step"] == "done" and job["outcome"] != "warm" for job in found.values()):
        raise SystemExit(1)


def _words(job: Mapping[str, Any]) -> str:
    amount = f"{job['files_here']} of {job['files']} files, {sized(job['bytes_here'])} of {sized(job['bytes'])}"
    if job["outcome"] == "warm":
        return f"all of {job['files']} files, {sized(job['bytes'])}, on disk; {sized(job['fetched'])} fetched for it"
    if job["step"] == "done":
        return f"NOT WARM: {job['words']}" + (f" ({amount} on disk)" if job["files"] else "")
    return f"{amount} on disk; it goes on in the background"


def _watch(jobs: Mapping[str, str], *, wait: bool) -> dict[str, dict[str, Any]]:
    watched = sys.stderr.isatty()
    times: list[tuple[float, int]] = []
    # On stderr, and only if somebody watches: what goes to stdout is for programs.
    with click.progressbar(length=1, label="listing", file=sys.stderr, hidden=not sys.stderr.isatty(), width=24) as bar:
        shown = 0
        while True:
            found = {mountpoint: warmth.progress(mountpoint, job) for mountpoint, job in jobs.items()}
            if all(job["step"] == "done" or (job["step"] == "fetching" and not wait) for job in found.values()):
                return found
            files, files_here, total, here = (
                sum(job[name] for job in found.values()) for name in ("files", "files_here", "bytes", "bytes_here")
            )
            times = [*times[-RECENT:], (time.monotonic(), here)]
            if watched and total:
                bar.length = total
                bar.label = f"{files_here}/{files} files, {sized(here)}/{sized(total)}, {sized(_speed(times))}/s"
                bar.update(max(0, here - shown))
                shown = max(shown, here)
                bar.render_progress()
            time.sleep(warmth.POLL)


def _speed(times: Sequence[tuple[float, int]]) -> float:
    (first, before), (last, now) = times[0], times[-1]
    return max(0, now - before) / (last - first) if last > first else 0.0
