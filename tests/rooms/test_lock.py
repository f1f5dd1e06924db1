"""What is installed is what was locked: every package by version and hashes, from wherever, and nothing that is asked
for is missing. And what scripts/audit makes of what it is told."""

import importlib.util
import re
import tomllib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE = re.compile(
    r"^([a-z0-9]+(?:-[a-z0-9]+)*)==([^\s;\\]+)(?: ; [^\\\n]+?)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$",
    re.MULTILINE,
)
"""An entry as the tool writes it; a comment about who wants it may follow."""


def test_every_line_is_a_package_with_hashes_or_a_comment() -> None:
    """No entry without a hash, by URL, from a folder, or with an option; and no line that is something else."""
    rest = PACKAGE.sub("", LOCK)
    assert [line for line in rest.splitlines() if line.strip() and not line.lstrip().startswith("#")] == []
    packages = PACKAGE.findall(LOCK)
    assert len(packages) == sum(line[:1].isalpha() for line in LOCK.splitlines()) > 40
    assert len({(name, version) for name, version, _ in packages}) == len(packages)


def test_no_host_is_named() -> None:
    """Where packages come from is for who installs them to say."""
    assert not re.search(r"https?:|index-url|find-links|trusted-host|@ ", LOCK)


def test_what_is_asked_for_is_locked() -> None:
    """By lazyfs, by its tests, and by what builds it."""
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["test"]]
    wanted += [*PROJECT["dependency-groups"]["build"], *PROJECT["build-system"]["requires"]]
    names = {re.split(r"[^A-Za-z0-9._-]", one)[0].lower().replace("_", "-").replace(".", "-") for one in wanted}
    assert names - {name for name, _, _ in PACKAGE.findall(LOCK)} == set()


def test_each_rule_that_is_ignored_says_why() -> None:
    """Of ruff, whose S are bandit's; and bandit's run on all that is shipped."""
    lint = PROJECT["tool"]["ruff"]["lint"]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "S" in lint["select"]
    for rule in [*lint["ignore"], *(rule for rules in lint["per-file-ignores"].values() for rule in rules)]:
        assert re.search(rf'^ +"{rule}", +# \w+', text, re.MULTILINE), rule
    assert all(place.startswith(("tests/", "scripts/")) for place in lint["per-file-ignores"])
    assert [rule for rule in lint["ignore"] if re.fullmatch(r"S\d*", rule)] == ["S311", "S603", "S607"]


# ---- scripts/audit


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    """The script, as a module."""
    loader = SourceFileLoader("audit", str(ROOT / "scripts" / "audit"))
    spec = importlib.util.spec_from_loader("audit", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


GOOD = {"name": "trio", "version": "1", "vulns": []}
BAD = {"name": "click", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}, {"id": "CVE-2"}]}
UNKNOWN = {"name": "swift", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("found", "status", "said"),
    [
        ([GOOD, GOOD], 0, "no vulnerability is known in 2 packages"),
        ([GOOD, BAD], 1, "click 2: CVE-1, fixed in 3\nclick 2: CVE-2, fixed in no version yet\n"),
        ([UNKNOWN, BAD], 1, "CVE-1"),
        ([GOOD, UNKNOWN], 3, "could not be done here: nothing is told of 1 of 2 packages"),
        ([UNKNOWN, UNKNOWN], 3, "nothing is told of 2 of 2 packages"),
        ([GOOD], 3, "nothing is told of 1 of 2 packages"),
        ([], 3, "nothing is told of 2 of 2 packages"),
    ],
)
def test_what_was_not_audited_is_not_called_good(
    audit: ModuleType, capsys: pytest.CaptureFixture[str], found: list[dict[str, Any]], status: int, said: str
) -> None:
    """pip-audit ends with 0 when it found nothing about anything."""
    try:
        ended = audit.verdict(found, 2)
    except SystemExit as error:
        ended = error.code
    shown = capsys.readouterr()
    assert ended == status
    assert said in shown.out + shown.err
    assert status != 3 or (shown.out == "" and shown.err.count("\n") == 1)
