"""The README speaks of what is there: tests it names, options and their defaults, commands, rooms."""

import dataclasses
import re
from pathlib import Path

import pytest

from lazyfs.cli.main import cli
from lazyfs.cli.settings import flag_name
from lazyfs.config import Config

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROMISES = [f"P{number}" for number in range(1, 21)]


@pytest.mark.parametrize("promise", PROMISES)
def test_each_promise_names_tests_that_exist(promise: str) -> None:
    """A row for each, and in it at least one file of tests."""
    (row,) = (line for line in README.splitlines() if line.startswith(f"| {promise} |"))
    named = re.findall(r"`((?:mounts|rooms|fuzz|simulation)/)?(test_[a-z_]+\.py)`", row)
    assert named
    for folder, name in named:
        assert list((ROOT / "tests" / folder).rglob(name)), name


def test_options_and_defaults_are_true() -> None:
    """Every option in the table exists, and a default that is written as a value is the default."""
    fields = {flag_name(field.name): field.metadata["default"] for field in dataclasses.fields(Config)}
    rows = [line.split("|") for line in README.splitlines() if line.startswith("| `--")]
    assert len(rows) >= 8
    for _, options, default, *_ in rows:
        names = re.findall(r"`--([a-z0-9-]+)`", options)
        values = [] if "cache" in default else re.findall(r"`([^`]+)`", default)  # a place is found out at run time
        for name, value in zip(names, values or [None] * len(names), strict=True):
            assert name in fields
            assert value is None or fields[name] == value, name


def test_commands_exist() -> None:
    """`lazyfs WORD` in the README is a command of lazyfs, and every command is in the README."""
    named = set(re.findall(r"^    lazyfs ([a-z-]+)", README, re.MULTILINE))
    assert named == set(cli.commands)


def test_programs_and_folders_exist() -> None:
    """Every path of this checkout that the README names."""
    for path in set(re.findall(r"`?((?:scripts|systemd|tests|lazyfs/deploy)/[A-Za-z0-9@._/-]+)", README)):
        assert (ROOT / path.rstrip(".")).exists(), path
