"""`lazyfs publish`, `ls` and `rm`: models in a bucket, by name and version, without a mount."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.connection import reached, source_options, work
from lazyfs.errors import UsageError
from lazyfs.models.names import parse
from lazyfs.service.logs import told
from lazyfs.words import parse_size

if TYPE_CHECKING:  # boto3 and trio take 0.3 s, which other commands can do without
    from lazyfs.models.bucket import Bucket
    from lazyfs.models.catalogue import Listed
    from lazyfs.models.manifest import Manifest
    from lazyfs.models.publish import Published

JSON = click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
WHERE = "Where the models are, s3://bucket/prefix/; default: LAZYFS_SOURCE."


@click.command()
@click.argument("path", type=click.Path())
@click.argument("name", metavar="MODEL/VERSION")
@click.option("--force", is_flag=True, help="Replace a version that is there; nobody can read it until the new one is.")
@click.option("--max-size", metavar="SIZE", envvar="LAZYFS_MAX_MODEL_SIZE", help="Refuse what has more bytes.")
@JSON
@source_options("--to", WHERE)
def publish(
    path: str, name: str, force: bool, max_size: str | None, as_json: bool, source: str | None, **given: Any
) -> None:
    """Publish the file or directory PATH as MODEL/VERSION, so that a reader sees all of it or nothing.

    Files are uploaded in parts, in parallel, with checksums that S3 compares; a SHA256SUMS goes beside them, and a
    manifest at last. Broken off, run it again: what is there already is not sent again.
    """
    from lazyfs.models.gathering import gather  # noqa: PLC0415 - awscrt takes 0.06 s, too

    config, where = reached(source, "--to", given)
    of = parse(name)
    most = None if max_size is None else parse_size(max_size)
    files = gather(Path(path))
    size = sum(file.size for file in files)
    # On stderr, and only if somebody watches: what goes to stdout is for programs.
    hidden = not sys.stderr.isatty()
    with click.progressbar(length=2 * size, label=f"publishing {of}", file=sys.stderr, hidden=hidden, width=30) as bar:

        async def job(bucket: "Bucket") -> "Published":
            return await bucket.publisher.publish(of, files, force=force, max_size=most, told=bar.update)

        done: Published = work(config, where, job)
    if as_json:
        click.echo(json.dumps({**_described(done.manifest), "sent_bytes": done.sent_bytes, "source": where.url}))
    else:
        sent = _human(done.sent_bytes)
        click.echo(told(f"published {of} in {where.url}: {len(files)} files, {_human(size)}; sent {sent}"))


@click.command()
@click.argument("name", metavar="[MODEL[/VERSION]]", required=False, default="")
@JSON
@source_options("--source", WHERE)
def ls(name: str, as_json: bool, source: str | None, **given: Any) -> None:
    """List the models that are published, the versions of one, or the files of a version."""
    config, where = reached(source, "--source", given)
    name = name.strip("/")

    async def job(bucket: "Bucket") -> "tuple[Manifest | None, list[Listed]]":
        manifest = await bucket.catalogue.manifest(parse(name)) if "/" in name else None
        return manifest, [] if manifest else await bucket.catalogue.versions(name)

    manifest, versions = work(config, where, job)
    if manifest is None and not versions and name:
        raise UsageError(f"{name} is not published in {where.url}; `lazyfs ls` lists what is")
    if manifest is not None:
        if as_json:
            click.echo(json.dumps(_described(manifest, files=True)))
            return
        for file in manifest.files:
            click.echo(told(f"{file.sha256}  {_human(file.size):>10}  {file.path}"))
        return
    if as_json:
        click.echo(json.dumps([_row(one) for one in versions]))
        return
    for one in versions:
        click.echo(told(f"{one.of}: {one.problem or f'{_human(one.size)} in {one.files} files, {one.created}'}"))
    if not versions:
        click.echo(told(f"no model is published in {where.url}"), err=True)


@click.command()
@click.argument("name", metavar="MODEL/VERSION")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@JSON
@source_options("--source", WHERE)
def rm(name: str, yes: bool, as_json: bool, source: str | None, **given: Any) -> None:
    """Remove a version from the bucket: the manifest first, so that nobody reads half of it.

    What an earlier publication that was broken off has left goes as well.
    """
    config, where = reached(source, "--source", given)
    of = parse(name)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"removing {of} cannot be undone; say --yes")
        click.confirm(f"Remove {of} from {where.url}, for everybody?", abort=True)

    async def job(bucket: "Bucket") -> int:
        return await bucket.publisher.remove(of)

    count = work(config, where, job)
    if as_json:
        click.echo(json.dumps({"model": of.model, "version": of.version, "objects": count}))
    else:
        click.echo(told(f"removed {of} from {where.url}: {count} objects"))


def _described(manifest: "Manifest", *, files: bool = False) -> dict[str, Any]:
    of = manifest.of
    found: dict[str, Any] = {"model": of.model, "version": of.version, "created": manifest.created}
    found |= {"size": manifest.size}
    if files:
        rows = [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in manifest.files]
        return {**found, "files": rows}
    return {**found, "files": len(manifest.files)}


def _row(one: "Listed") -> dict[str, Any]:
    found: dict[str, Any] = {"model": one.of.model, "version": one.of.version, "created": one.created}
    found |= {"size": one.size, "files": one.files}
    return {**found, "problem": one.problem} if one.problem else found


def _human(size: int) -> str:
    """Bytes for people."""
    number = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
