"""`lazyfs bake`: a cache directory filled while an image is built, which mounts then have as a lower layer."""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.paths import sized
from lazyfs.cli.settings import resolve, setting_options
from lazyfs.config import SourceConfig, source_of
from lazyfs.errors import SetupError, UsageError
from lazyfs.service.logs import told

if TYPE_CHECKING:
    from lazyfs.cache.warming import Warming


@click.command()
@click.argument("source")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
@setting_options
@click.pass_context
def bake(ctx: click.Context, /, source: str, paths: tuple[str, ...], as_json: bool, **_: Any) -> None:
    """Fill the directory of --cache-dir with all of SOURCE, or with what is at and below PATHs in it, as a mount would
    show them: listings, bytes, and what comparing them with their digests came to.

    No FUSE, no daemon: for the build of an image. A mount with --lower-cache-dir reads from it what it has, and fetches
    the rest. Takes the options of `lazyfs mount`; with --allow-other every user may read the layer, as one does who is
    not root in a container. Run it again to go on where it was, or to bring what is new.

    Exit status 0 if all of it is there and right, 1 if not, 2 for a wrong call.
    """
    config, _settings = resolve(ctx)
    if not config.cache_dir:
        raise UsageError("bake fills a directory that you name; say --cache-dir DIR")
    one = SourceConfig(name="", source=source_of(source, config), config=config)
    # Here: trio, boto3 and lmdb take 0.3 s, which no other command should wait for.
    from lazyfs.service import baking  # noqa: PLC0415
    from lazyfs.service.running import to_the_end  # noqa: PLC0415

    logging.basicConfig(level=logging.ERROR, format="lazyfs: %(message)s")
    place = Path(config.cache_dir).absolute()
    hidden = not sys.stderr.isatty()
    with click.progressbar(length=1, label="baking", file=sys.stderr, hidden=hidden, width=30) as bar:
        shown = 0

        def progress(job: "Warming") -> None:
            nonlocal shown
            if job.bytes:
                bar.length = job.bytes
                bar.update(max(0, job.bytes_here - shown))
                shown = max(shown, job.bytes_here)

        try:
            baked = to_the_end(lambda: baking.bake(place, config, one, paths, progress))
        except KeyboardInterrupt:
            raise SetupError("interrupted; run it again, and it goes on where it was") from None
    if config.allow_other:
        try:
            baking.opened_to_all(place)
        except OSError as error:
            raise SetupError(f"cannot let others read {place}: {error.strerror}") from None
    found = {"files": baked.files, "bytes": baked.bytes, "fetched": baked.fetched, "without_digest": baked.without}
    if as_json:
        click.echo(json.dumps({"cache": str(place), **found}))
        return
    click.echo(told(f"{place}: {baked.files} files, {sized(baked.bytes)}; {sized(baked.fetched)} fetched"))
    for key in baked.without:
        click.echo(told(f"{key}: whole, and no digest to compare with"))
