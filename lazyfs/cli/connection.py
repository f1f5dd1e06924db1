"""The options of commands that speak to a bucket and to no mount: where the models are, and how it is reached.

Those settings of a mount of which each source may have its own, under the same names, in the environment as well.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.settings import flag_name
from lazyfs.config import Config
from lazyfs.errors import SetupError, UsageError
from lazyfs.models.places import source_said
from lazyfs.objects import Source
from lazyfs.words import parse_flag

if TYPE_CHECKING:
    from lazyfs.models.bucket import Bucket

SETTINGS = [field for field in dataclasses.fields(Config) if field.metadata["per_source"]]


def source_options(flag: str, words: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the option of the source, called `flag`, and those of the connection."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(SETTINGS):
            is_flag = field.metadata["parse"] is parse_flag
            name = flag_name(field.name)
            command = click.option(
                f"--{name}" + (f"/--no-{name}" if is_flag else ""),
                field.name,
                type=bool if is_flag else str,
                default=parse_flag(field.metadata["default"]) if is_flag else field.metadata["default"],
                envvar=f"LAZYFS_{field.name.upper()}",
                help=field.metadata["help"],
                metavar=None if is_flag else field.metadata["parse"].__name__.removeprefix("parse_").upper(),
            )(command)
        return click.option(flag, "source", metavar="SOURCE", help=words)(command)

    return add


def reached(source: str | None, flag: str, given: dict[str, Any]) -> tuple[Config, Source]:
    """The configuration and the source that these options give; `UsageError` if one is missing or wrong."""
    values: dict[str, Any] = {}
    for field in SETTINGS:
        raw = given[field.name]
        words = None if raw is None else str(raw).lower() if isinstance(raw, bool) else str(raw)
        try:
            values[field.name] = None if words is None else field.metadata["parse"](words)
        except UsageError as error:
            raise UsageError(f"--{flag_name(field.name)}: {error}") from None
    config = Config(**values)
    found = source_said(source, os.environ, config)
    if found is None:
        raise UsageError(f"where the models are is not said; use {flag} s3://bucket/prefix/, or set LAZYFS_SOURCE")
    return config, found


def work(config: Config, source: Source, job: "Callable[[Bucket], Any]") -> Any:
    """Run the job with the bucket open, to its end."""
    # Here and not above: boto3 and trio take 0.3 s, which every other command can do without.
    from lazyfs.service.buckets import with_models  # noqa: PLC0415
    from lazyfs.service.running import to_the_end  # noqa: PLC0415

    try:
        return to_the_end(lambda: with_models(config, source, job))
    except KeyboardInterrupt:
        raise SetupError("interrupted; run it again, and it goes on where it was") from None
