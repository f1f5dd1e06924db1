"""`lazyfs fsck`: a cache that no mount uses, checked and mended."""

import json
import sys
from typing import Any

import click

from lazyfs.cli.paths import sized
from lazyfs.errors import LazyfsError, UsageError
from lazyfs.service.logs import told

STATUS = {"clean": 0, "mended": 1, "damaged": 4}
NOT_CHECKED, WRONG_CALL = 8, 16
"""fsck(8)."""

SHOWN = 50
"""Problems that are printed; --json has all."""


class _Fsck(click.Command):
    """A command with the exit statuses of fsck(8), in which 1 and 2 mean something else than elsewhere."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            # What click would do, with its own status.
            error.show()
            raise SystemExit(WRONG_CALL) from None


@click.command(cls=_Fsck)
@click.argument("cache_dir", metavar="CACHE_DIR", type=click.Path())
@click.option("--repair", is_flag=True, help="Mend what is wrong: it is forgotten, and fetched again when it is read.")
@click.option("--quick", is_flag=True, help="Do not read and verify the bytes of every chunk.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def fsck(cache_dir: str, repair: bool, quick: bool, as_json: bool) -> None:
    """Check the cache in CACHE_DIR, which no mount may use meanwhile: index, books, object files, files that do not
    belong, and the checksum of every chunk. A mount needs none of this, for it verifies whatever it reads.

    Exit status as of fsck(8): 0 nothing wrong, 1 all that was wrong is mended, 4 something wrong is left, 8 it could
    not be checked, 16 a wrong call.
    """
    from lazyfs.service import caches  # noqa: PLC0415 - lmdb takes its time, and no other command needs it

    unseen = not sys.stderr.isatty()
    with click.progressbar(length=1, label="verifying", file=sys.stderr, hidden=unseen, width=30) as bar:

        def show(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        try:
            found = caches.check(cache_dir, mend=repair, quick=quick, told=show)
        except LazyfsError as error:
            click.echo(told(f"lazyfs: {error}"), err=True)
            raise SystemExit(WRONG_CALL if isinstance(error, UsageError) else NOT_CHECKED) from None
    if as_json:
        click.echo(json.dumps(found))
    else:
        for problem in found["problems"][:SHOWN]:
            click.echo(told(f"{problem['words']}{': mended' if problem['mended'] else ''}"))
        if len(found["problems"]) > SHOWN:
            click.echo(f"and {len(found['problems']) - SHOWN} more")
        if found["leftovers"]:
            done = "cleared" if repair else "the next mount clears them"
            click.echo(f"{found['leftovers']} claims and graves of a daemon that was killed: {done}")
        how = {"clean": "clean", "mended": "mended", "damaged": "DAMAGED; --repair mends what can be"}[found["status"]]
        counted = f"{found['objects']} objects, {found['chunks']} chunks, {sized(found['bytes'])}"
        click.echo(told(f"{cache_dir}: {how}; {counted}"))
    raise SystemExit(STATUS[found["status"]])
