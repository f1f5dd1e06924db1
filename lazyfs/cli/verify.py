"""`lazyfs verify`: all bytes of files of a mount, compared with their digests by the daemon, with progress."""

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from lazyfs.errors import SetupError, UsageError
from lazyfs.service import mounts

POLL = 0.1
"""Seconds between two looks at how far the daemon is."""

WORDS = {"sha256": "SHA-256 agrees", "crc64nvme": "CRC64NVME agrees", "none": "whole, and no digest to compare with"}


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="One line of JSON, a list of files.")
def verify(paths: tuple[str, ...], as_json: bool) -> None:
    """Compare all bytes of files below PATHs, which are in a mount, with the digests that S3, a .sha256 beside each, or
    a SHA256SUMS has.

    What is not cached yet is fetched, what is cached is read again from disk. Bytes that are wrong are dropped and
    fetched again. Exit status 1 if a file is wrong or cannot be verified; one without a digest is named and counts as
    right.
    """
    files = [file for path in paths for file in files_at(path)]
    found: list[dict[str, Any]] = []
    # On stderr, and only if somebody watches: what goes to stdout is for programs.
    with click.progressbar(
        length=sum(size for _, size in files), label="verifying", file=sys.stderr, show_pos=False, width=30
    ) as bar:
        for path, size in files:
            result = _verified(path, size, bar)
            found.append({"path": path, "size": size, **result})
    bad = [one for one in found if not one["verified"]]
    if as_json:
        click.echo(json.dumps(found))
    else:
        for one in found:
            click.echo(f"{one['path']}: {WORDS.get(one['verified']) or 'NOT VERIFIED: ' + one['problem']}")
    if bad:
        raise SystemExit(1)


def files_at(path: str) -> Iterator[tuple[str, int]]:
    """The files at or below a path, with their sizes, in the order of their names."""
    if mounts.lazyfs_holding(path) is None:
        raise UsageError(f"{path} is not in a lazyfs mount; `lazyfs status` lists them")

    def failed(error: OSError) -> None:
        raise SetupError(f"cannot read {error.filename}: {error.strerror}") from None

    try:
        if not os.path.isdir(path):
            yield path, os.stat(path).st_size
            return
        for folder, folders, names in os.walk(path, onerror=failed):
            folders.sort()
            for name in sorted(names):
                file = os.path.join(folder, name)
                yield file, os.stat(file).st_size
    except OSError as error:
        failed(error)


def _verified(path: str, size: int, bar: Any) -> dict[str, str]:
    """What came of one file: `verified`, the digest that agreed or none, empty with a `problem`."""
    shown = 0
    try:
        job = mounts.ask(path, "verify")
        while job and job["step"] != "done":
            # Fetching what is missing and reading it again are two passes; each is worth half of the file.
            done = (job["done"] + (size if job["step"] == "verifying" else 0)) // 2
            bar.update(max(0, done - shown))
            shown = max(shown, done)
            time.sleep(POLL)
            job = mounts.ask(path, "verifying")
    except TimeoutError:
        raise SetupError(f"the mount of {path} does not answer") from None
    except OSError as error:
        raise SetupError(f"cannot verify {path}: {error.strerror}") from None
    bar.update(size - shown)
    if not job:
        return {"verified": "", "problem": "the mount has forgotten what came of it; try again"}
    return {"verified": str(job["outcome"]), "problem": str(job["words"])}
