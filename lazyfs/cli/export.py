"""`lazyfs export`: a model as plain files, out of a mount or out of its bucket."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.connection import reached, source_options, work
from lazyfs.cli.paths import sized
from lazyfs.cli.verify import WORDS, files_at
from lazyfs.errors import Corrupt, SetupError, UsageError
from lazyfs.models.names import MANIFEST, parse
from lazyfs.objects import Checksums
from lazyfs.service import borrowing, mounts
from lazyfs.service.logs import told

if TYPE_CHECKING:
    from lazyfs.models.bucket import Bucket
    from lazyfs.models.exporting import Wanted

HOW = {"shared": "shares its bytes with the cache", "copied": "copied", "here": "was there"}
DIGESTS = ("SHA256SUMS", MANIFEST)
"""What is published beside the files of a version."""


@dataclass(slots=True)
class Row:
    """What came of one file: `how` of HOW, and `verified`, the digest that agreed; empty with a `problem`."""

    path: str
    size: int
    how: str = ""
    verified: str = ""
    problem: str = ""


@click.command()
@click.argument("path", metavar="PATH|MODEL/VERSION", type=click.Path())
@click.argument("dest", type=click.Path())
@click.option("--force", is_flag=True, help="Replace files that are there and are others.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON, a list of files.")
@source_options("--source", "Export MODEL/VERSION as published in s3://bucket/prefix/; a mount of it is used.")
def export(path: str, dest: str, force: bool, as_json: bool, source: str | None, **given: Any) -> None:
    """Make DEST a plain copy of PATH, a file or directory in a mount, or of MODEL/VERSION in the bucket of --source.

    A file that is all in the cache takes neither time nor space where the filesystem can share bytes (XFS, Btrfs) and
    DEST is on that of the cache; else it is copied. Each is compared with its digest, and has its name only then. What
    is there already and is the same stays, so that the command goes on where it was; what is another file is refused
    before anything is written, unless --force replaces it.

    Exit status 0 if all of DEST is right, 1 if not, 2 for a wrong call.
    """
    if source is None:
        _refuse_unless_mounted(path)
        rows = _from_mount(path, dest, force)
    else:
        rows = _published(path, dest, force, source, given)
    if as_json:
        click.echo(json.dumps([_public(row) for row in rows]))
    else:
        for row in rows:
            words = row.problem and f"NOT EXPORTED: {row.problem}"
            click.echo(told(f"{row.path}: {words or f'{HOW[row.how]}, {WORDS[row.verified]}'}"))
    if any(row.problem for row in rows):
        raise SystemExit(1)


def _public(row: Row) -> dict[str, Any]:
    found = {"path": row.path, "size": row.size, "how": row.how, "verified": row.verified}
    return found | ({"problem": row.problem} if row.problem else {})


def _refuse_unless_mounted(path: str) -> None:
    if mounts.lazyfs_holding(path) is None:
        raise UsageError(
            f"{path} is not in a lazyfs mount; `lazyfs status` lists them, and of a bucket MODEL/VERSION is exported "
            "with --source s3://bucket/prefix/"
        )


def _refuse_what_is_in_the_way(targets: Mapping[str, int], force: bool) -> None:
    from lazyfs.models.exporting import in_the_way  # noqa: PLC0415 - awscrt takes 0.06 s

    found = [words for target, size in targets.items() if (words := in_the_way(target, size, force=force))]
    if found:
        more = f", and so with {len(found) - 1} more" if len(found) > 1 else ""
        raise UsageError(f"{found[0]}{more}: nothing was written")


# ---- out of a mount


def _from_mount(path: str, dest: str, force: bool, without: tuple[str, ...] = ()) -> list[Row]:
    """Each file at or below `path`, which is in a mount, at its place in `dest`."""
    plain = not os.path.isdir(path)
    targets: dict[str, tuple[str, int]] = {}
    for file, size in files_at(path):
        if plain:
            at = os.path.join(dest, os.path.basename(file)) if os.path.isdir(dest) else dest
        else:
            at = os.path.join(dest, os.path.relpath(file, path))
        if os.path.basename(file) not in without:
            targets[file] = (at, size)
    if not plain and os.path.lexists(dest) and not os.path.isdir(dest):
        raise UsageError(
            f"{dest} is a file, and {path} a directory; name a directory, which is made if it is not there"
        )
    _refuse_what_is_in_the_way(dict(targets.values()), force)
    here = {file: row for file, (at, size) in targets.items() if (row := _there(file, at, size, force)) is not None}
    if not plain:
        _made(dest)
    rows = []
    # On stderr, and only if somebody watches: what goes to stdout is for programs.
    hidden, length = not sys.stderr.isatty(), sum(size for _, size in targets.values())
    with click.progressbar(length=length, label="exporting", file=sys.stderr, hidden=hidden, width=30) as bar:
        for file, (at, size) in targets.items():
            rows.append(here.get(file) or _exported(file, at, size, force, bar))
    return rows


def _there(file: str, target: str, size: int, force: bool) -> Row | None:
    """The row of a file that is there with the very bytes; None for one that is to be made."""
    from lazyfs.models.exporting import same  # noqa: PLC0415 - awscrt takes 0.06 s

    if not os.path.lexists(target):
        return None
    try:
        asked = borrowing.asked(file)
        if same(_wanted(file, target, size, asked)):
            return Row(target, size, "here", asked["digest"])
    except (Corrupt, OSError):
        return None  # which is said when it is made
    _refuse_what_is_in_the_way({target: -1}, force)
    return None


def _wanted(file: str, target: str, size: int, asked: Mapping[str, Any]) -> "Wanted":
    from lazyfs.models.exporting import Wanted  # noqa: PLC0415 - see above

    crc = int(asked["crc64nvme"], 16) if asked["crc64nvme"] else None
    return Wanted(file, target, size, os.stat(file).st_mtime_ns, Checksums(asked["sha256"], crc))


def _made(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise SetupError(f"cannot make the directory {folder}: {error.strerror}") from None


def _exported(file: str, target: str, size: int, force: bool, bar: Any) -> Row:
    from lazyfs.models.exporting import export as make  # noqa: PLC0415 - see above

    row, shown = Row(target, size), 0

    def advance(done: int) -> None:
        nonlocal shown
        bar.update(max(0, done - shown))
        shown = max(shown, done)

    try:
        asked = borrowing.asked(file)
        wanted = _wanted(file, target, size, asked)
        is_shared = make(wanted, lend=lambda: borrowing.lent(file, asked["file"], size), told=advance, force=force)
        row.how, row.verified = "shared" if is_shared else "copied", asked["digest"]
    except Corrupt as error:
        row.problem = str(error)
    except OSError as error:
        row.problem = f"{file}: {error.strerror}"
    bar.update(size - shown)
    return row


# ---- out of a bucket


def _published(name: str, dest: str, force: bool, source: str, given: dict[str, Any]) -> list[Row]:
    from lazyfs.models.delivery import deliver, missing  # noqa: PLC0415 - trio and boto3 take 0.3 s
    from lazyfs.service.modelcache import in_a_mount  # noqa: PLC0415

    config, where = reached(source, "--source", given)
    of = parse(name)
    if (mounted := in_a_mount(where, of, unpacked=False)) is not None:
        return _from_mount(str(mounted), dest, force, without=DIGESTS)
    if os.path.lexists(dest) and not os.path.isdir(dest):
        raise UsageError(f"{dest} is a file, and {of} is a directory; name one, which is made if it is not there")
    folder = Path(dest)
    rows: list[Row] = []
    hidden = not sys.stderr.isatty()
    with click.progressbar(length=1, label=f"exporting {of}", file=sys.stderr, hidden=hidden, width=30) as bar:

        async def job(bucket: "Bucket") -> None:
            manifest = await bucket.catalogue.manifest(of)
            if manifest is None:
                raise UsageError(f"{of} is not published in {where.url}; `lazyfs ls` lists what is")
            _refuse_what_is_in_the_way({str(folder / file.path): file.size for file in manifest.files}, force)
            _made(dest)
            left = missing(manifest, folder)
            _refuse_what_is_in_the_way({str(folder / file.path): -1 for file in left}, force)
            bar.length = sum(file.size for file in left) or 1
            bar.label = f"exporting {of}, {sized(bar.length)}"
            await deliver(
                bucket, of, manifest, left, folder, connections=config.max_connections, told=bar.update, force=force
            )
            here = {file.path for file in manifest.files} - {file.path for file in left}
            rows.extend(
                Row(str(folder / file.path), file.size, "here" if file.path in here else "copied", "sha256")
                for file in manifest.files
            )

        work(config, where, job)
    return rows
