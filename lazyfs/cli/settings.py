"""The settings of `config.Config` as options: on the command line, in the environment, in a TOML file.

Flag over environment over file over default; click does the layering, `config.py` the reading of each value.
"""

import dataclasses
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lazyfs.config import Config
from lazyfs.errors import UsageError
from lazyfs.words import parse_flag, shortened

_WHERE = {
    ParameterSource.COMMANDLINE: "flag",
    ParameterSource.ENVIRONMENT: "environment",
    ParameterSource.DEFAULT_MAP: "file",
    ParameterSource.DEFAULT: "default",
}


CONFIG_FILE = "lazyfs.config"
"""In a context's `meta`: the file that `--config` named."""


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One resolved setting: its value as the user wrote it (None: unset) and which layer it came from."""

    name: str
    words: str | None
    where: str


@dataclasses.dataclass(frozen=True, slots=True)
class FromFile:
    """What a TOML file says of sources, not looked at yet; None for nothing."""

    path: str
    source: Any


FROM_FILE = "lazyfs.cli.settings.file"
"""Where a `FromFile` is in click's `Context.meta`."""


def flag_name(field: str) -> str:
    """`max_cache_size` as `max-cache-size`."""
    return field.replace("_", "-")


OF_SOURCES = [flag_name(field.name) for field in dataclasses.fields(Config) if field.metadata["per_source"]]
"""Settings of which each source may have a value of its own."""


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for every setting, and `--config`."""
    for field in reversed(dataclasses.fields(Config)):
        is_flag = field.metadata["parse"] is parse_flag
        default = field.metadata["default"]
        command = click.option(
            f"--{flag_name(field.name)}" + (f"/--no-{flag_name(field.name)}" if is_flag else ""),
            field.name,
            type=bool if is_flag else str,
            default=parse_flag(default) if is_flag else default,
            envvar=f"LAZYFS_{field.name.upper()}",
            show_default=default is not None and not is_flag,
            help=field.metadata["help"],
            metavar=None if is_flag else field.metadata["parse"].__name__.removeprefix("parse_").upper(),
        )(command)
    return click.option(
        "--config",
        type=click.Path(dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_read_file,
        envvar="LAZYFS_CONFIG",
        help="TOML file with settings, named as the flags are.",
    )(command)


def _read_file(ctx: click.Context, _: click.Parameter, path: str | None) -> None:
    """Make the file's settings click's defaults."""
    if path is None:
        return
    ctx.meta[CONFIG_FILE] = path
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # what is no TOML or no text, a number of 5,000 digits, nested lists
        raise UsageError(f"the configuration {path} is not TOML: {error}") from None
    ctx.meta[FROM_FILE] = FromFile(path, found.pop("source", None))
    known = {field.name for field in dataclasses.fields(Config)}
    named = {key.replace("-", "_"): value for key, value in found.items()}
    unknown = sorted(set(named) - known)
    if unknown:
        raise UsageError(f"the configuration {path} has unknown settings: {shortened(', '.join(unknown))}")
    for key, value in named.items():
        if isinstance(value, dict | list):
            raise UsageError(f"{key} in the configuration {path} must be a single value")
    ctx.default_map = {
        **(ctx.default_map or {}),
        **{key: value if isinstance(value, bool) else str(value) for key, value in named.items()},
    }


def reread(ctx: click.Context, name: str) -> Any:
    """One setting as the file of `--config` has it now; what a flag or the environment said stays. `UsageError` for a
    file or a value that is wrong."""
    (field,) = (field for field in dataclasses.fields(Config) if field.name == name)
    words = ctx.params[name]
    path, source = ctx.meta.get(CONFIG_FILE), ctx.get_parameter_source(name)
    if path is not None and source not in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
        ctx.default_map = {}
        _read_file(ctx, ctx.command.params[0], path)
        words = ctx.default_map.get(name, field.metadata["default"])
    return field.metadata["parse"](words)


def resolve(ctx: click.Context) -> tuple[Config, list[Setting]]:
    """The configuration of this call, and where each setting came from. `UsageError` names a value that is wrong."""
    values: dict[str, Any] = {}
    settings = []
    for field in dataclasses.fields(Config):
        raw = ctx.params[field.name]
        words = None if raw is None else str(raw).lower() if isinstance(raw, bool) else str(raw)
        source = ctx.get_parameter_source(field.name)
        settings.append(Setting(field.name, words, _WHERE.get(source, "flag") if source else "default"))
        try:
            values[field.name] = None if words is None else field.metadata["parse"](words)
        except UsageError as error:
            raise UsageError(f"--{flag_name(field.name)}: {error}") from None
    return Config(**values), settings


def as_arguments(settings: list[Setting]) -> list[str]:
    """Flags that give the same configuration again, whatever the environment of the process that gets them."""
    arguments = []
    parsers = {field.name: field.metadata["parse"] for field in dataclasses.fields(Config)}
    for setting in settings:
        if setting.words is None or setting.where == "default":
            continue
        if parsers[setting.name] is parse_flag:
            arguments.append(f"--{'' if setting.words == 'true' else 'no-'}{flag_name(setting.name)}")
        else:
            arguments.append(f"--{flag_name(setting.name)}={setting.words}")
    return arguments


def quoted(words: str) -> str:
    """The words as a string of TOML. What is not UTF-8, as a path may be, has no place in one and becomes U+FFFD."""
    plain = words.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007f")


def as_toml(settings: list[Setting]) -> str:
    """The configuration as a file that `--config` reads, each line with where its value came from."""
    lines = []
    for setting in settings:
        if setting.words is None:
            lines.append(f"# {flag_name(setting.name)} is not set")
        else:
            value = setting.words if setting.words in ("true", "false") else quoted(setting.words)
            lines.append(f"{flag_name(setting.name)} = {value}  # {setting.where}")
    return "\n".join(lines)
