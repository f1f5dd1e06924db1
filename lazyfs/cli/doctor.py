"""`lazyfs doctor`: a machine, a cache directory and a source examined, and what mends what is wrong with them."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import click

from lazyfs.cli.settings import resolve, setting_options
from lazyfs.config import source_of
from lazyfs.service.logs import told

COLORS = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "bright_black"}


@click.command()
@click.argument("source", required=False)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON, a list of checks.")
@setting_options
@click.pass_context
def doctor(ctx: click.Context, /, source: str | None, as_json: bool, **_: Any) -> None:
    """Examine this machine, the cache directory and SOURCE, which may be left out, and say how to mend what is wrong.

    Takes the options of `lazyfs mount`, and tries what a mount with them would need. Changes nothing; writes and reads
    64 MiB in the cache directory, and reads as much of SOURCE at most. Exit status 1 if a check fails.
    """
    config, _settings = resolve(ctx)
    place = None if source is None else source_of(source, config)
    # Here: boto3 takes 0.3 s, which no other command should wait for.
    from lazyfs.service.doctor.examination import examination  # noqa: PLC0415

    # What libraries and the client log while they are tried is said by the findings.
    logging.disable(logging.CRITICAL)
    named = None if config.cache_dir is None else Path(config.cache_dir).absolute()
    found = []
    plain = bool(os.environ.get("NO_COLOR"))
    for name, finding in examination(config, place, named):
        status, words, mend = finding.status, told(finding.words), told(finding.mend)
        found.append({"check": name, "status": status, "words": words, "mend": mend})
        if not as_json:
            word = f"{status:<4}" if plain else click.style(f"{status:<4}", fg=COLORS[status])
            click.echo(f"{word}  {name}: {words}")
            if mend:
                click.echo(f"        {mend}")
    if as_json:
        click.echo(json.dumps(found))
    failed = sum(one["status"] == "fail" for one in found)
    if failed:
        if not as_json:
            click.echo(f"{failed} of {len(found)} checks failed")
        raise SystemExit(1)
