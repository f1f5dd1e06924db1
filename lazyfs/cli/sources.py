"""What is mounted, in all the ways to say it: SOURCE, `--source NAME=URL`, `LAZYFS_SOURCE`, `source` in a TOML file.

The first of these that says anything says all: flag over environment over file, as for settings. What a source has of
its own is what `config.py` says a source may have; the rest holds for the whole mount.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lazyfs.cli.settings import FromFile, flag_name, quoted
from lazyfs.config import MOST_SOURCES, Config, SourceConfig, check_source_name, source_of
from lazyfs.errors import UsageError
from lazyfs.moments import split_moment
from lazyfs.words import parse_flag, shortened

_PARSERS = {field.name: field.metadata["parse"] for field in dataclasses.fields(Config)}
_OWN = {field.name for field in dataclasses.fields(Config) if field.metadata["per_source"]}
PATHS = {"ca_bundle", "sse_customer_key_file"}
"""Settings that are relative to where the command was called."""

NAMELESS = ("", "lazyfs", "none")
"""What stands for SOURCE where something must stand, as in fstab, and the sources are named elsewhere."""


@dataclasses.dataclass(frozen=True, slots=True)
class SourceWords:
    """One source as the user wrote it: `name` is empty for one that is the root itself; `own` are its own settings,
    each with the layer that it came from."""

    name: str
    url: str
    where: str
    own: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)


def split_places(places: Sequence[str], environment: Mapping[str, str]) -> tuple[str, str]:
    """The words of the command line as SOURCE, empty if there is none, and MOUNTPOINT. `UsageError` without the
    second."""
    said = list(places)
    if len(said) > 2:
        raise UsageError(f"{shortened(said[2])!r} is too much: lazyfs mount [SOURCE] MOUNTPOINT")
    source = said.pop(0) if len(said) == 2 or (said and "s3://" in said[0]) else ""
    mountpoint = said[0] if said else environment.get("LAZYFS_MOUNTPOINT", "")
    if not mountpoint:
        raise UsageError("name a directory to mount on: lazyfs mount s3://bucket/prefix/ /dir")
    return "" if source in NAMELESS else source, mountpoint


def find_sources(
    place: str, flags: Sequence[str], options: Sequence[str], environment: Mapping[str, str], file: FromFile | None
) -> list[SourceWords]:
    """The sources, by SOURCE, `--source`, `--source-option`, `LAZYFS_SOURCE` and the file."""
    if place and flags:
        raise UsageError(f"give either SOURCE or --source NAME=URL, not both: {shortened(place)!r} is a SOURCE")
    if place:
        found = _in_words(place, "flag")
    elif flags:
        found = [_named(flag, "flag") for flag in flags]
    elif environment.get("LAZYFS_SOURCE", "") not in NAMELESS:
        found = _in_words(environment["LAZYFS_SOURCE"], "environment")
    elif file is not None and file.source is not None:
        found = _in_file(file.source, file.path)
    else:
        raise UsageError("name a source: lazyfs mount s3://bucket/prefix/ /dir, or --source NAME=s3://bucket/prefix/")
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two sources have the name {shortened(name)!r}; each is a directory, so give it its own")
    if len(found) > MOST_SOURCES:
        raise UsageError(f"{len(found)} sources are too many for one mount; {MOST_SOURCES} are the most")
    for option in options:
        _add(found, option)
    return found


def configured(found: Sequence[SourceWords], config: Config) -> list[SourceConfig]:
    """The sources with the settings that hold for each. `UsageError` says which source has a wrong one."""
    made = []
    for one in found:
        try:
            values = {name: _parsed(name, words) for name, (words, _) in one.own.items()}
            if one.name and "version_at" not in values and (moment := split_moment(one.url)[1]):
                values["version_at"] = moment  # its own, too, which goes before that of the mount
            own = dataclasses.replace(config, **values)
            source = source_of(one.url, own)
        except UsageError as error:
            raise UsageError(f"source {shortened(one.name)!r}: {error}" if one.name else str(error)) from None
        made.append(SourceConfig(name=one.name, source=source, config=own))
    return made


def source_arguments(found: Sequence[SourceWords]) -> tuple[list[str], list[str]]:
    """Flags, and words behind `--`, that say the same again, whatever the environment and the directory."""
    if [one.name for one in found] == [""]:
        return [], [found[0].url]
    flags = [f"--source={one.name}={one.url}" for one in found]
    for one in found:
        for name, (words, _) in one.own.items():
            value = os.path.abspath(words) if name in PATHS and words else words
            flags.append(f"--source-option={one.name}:{flag_name(name)}={value}")
    return flags, []


def sources_as_toml(found: Sequence[SourceWords]) -> tuple[str, str]:
    """The sources as a file that `--config` reads has them: what stands at its head, and at its end."""
    if [one.name for one in found] == [""]:
        return f"source = {quoted(found[0].url)}  # {found[0].where}\n", ""
    lines = []
    for one in found:
        lines += ["", f"[[source]]  # {one.where}", f"name = {quoted(one.name)}", f"url = {quoted(one.url)}"]
        for name, (words, where) in one.own.items():
            flag = _PARSERS[name] is parse_flag
            value = str(parse_flag(words)).lower() if flag else quoted(words)
            lines.append(f"{flag_name(name)} = {value}  # {where}")
    return "", "\n".join(lines)


def _in_words(text: str, where: str) -> list[SourceWords]:
    """`s3://bucket/prefix/`, or `NAME=URL NAME=URL` with white space between them."""
    if text.lstrip().startswith("s3://") or "=s3://" not in text:
        return [SourceWords("", text, where)]
    return [_named(one, where) for one in re.split(r"\s+(?=\S+=s3://)", text.strip())]


def _named(text: str, where: str) -> SourceWords:
    """`NAME=URL`. A name has no slash, so the first `=s3://` ends it."""
    name, equals, url = text.partition("=s3://")
    if not equals:
        name, equals, url = text.partition("=")
        if not equals:
            raise UsageError(f"{shortened(text)!r} names no source; write --source NAME=s3://bucket/prefix/")
    else:
        url = f"s3://{url}"
    check_source_name(name)
    return SourceWords(name, url, where)


def _in_file(source: Any, path: str) -> list[SourceWords]:
    if isinstance(source, str):
        return [SourceWords("", source, "file")]
    if not isinstance(source, list) or not source or not all(isinstance(table, dict) for table in source):
        raise UsageError(f"source in the configuration {path} must be s3://bucket/prefix/, or tables [[source]]")
    return [_of_table({key.replace("-", "_"): value for key, value in table.items()}, path) for table in source]


def _of_table(table: dict[str, Any], path: str) -> SourceWords:
    for needed in ("name", "url"):
        if not isinstance(table.get(needed), str):
            raise UsageError(f"a [[source]] in the configuration {path} has no {needed}; write {needed} = \"...\"")
    name, own = table["name"], {}
    check_source_name(name)
    for key, value in table.items():
        if key in ("name", "url"):
            continue
        _check_own(name, key)
        if isinstance(value, dict | list):
            raise UsageError(f"source {shortened(name)!r}: {key} in the configuration {path} must be a single value")
        own[key] = (str(value).lower() if isinstance(value, bool) else str(value), "file")
    return SourceWords(name, table["url"], "file", own)


def _add(found: list[SourceWords], option: str) -> None:
    """`NAME:OPTION=VALUE`, or `NAME:OPTION` for a flag, to the source that it names; names may have colons, too."""
    meant = [(len(one.name), at) for at, one in enumerate(found) if one.name and option.startswith(one.name + ":")]
    if not meant:
        raise UsageError(
            f"--source-option {shortened(option)!r} is for no source of this mount; write NAME:OPTION=VALUE with the "
            "name of a --source"
        )
    length, at = max(meant)
    key, equals, value = option[length + 1 :].partition("=")
    key = key.replace("-", "_")
    _check_own(found[at].name, key)
    if not equals and _PARSERS[key] is not parse_flag:
        raise UsageError(f"--source-option {shortened(option)!r} has no value; write NAME:OPTION=VALUE")
    found[at] = dataclasses.replace(found[at], own={**found[at].own, key: (value, "flag")})


def _check_own(name: str, key: str) -> None:
    said, which = shortened(flag_name(key)), shortened(name)
    if key in _OWN:
        return
    if key in _PARSERS:
        raise UsageError(f"source {which!r}: {said} holds for the whole mount and not for one source")
    raise UsageError(f"source {which!r}: there is no setting {said!r}; {', '.join(map(flag_name, sorted(_OWN)))} are")


def _parsed(name: str, words: str) -> Any:
    try:
        return _PARSERS[name](words)
    except UsageError as error:
        raise UsageError(f"{flag_name(name)}: {error}") from None
