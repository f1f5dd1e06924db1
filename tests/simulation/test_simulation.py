"""Seeds of the simulation: all hold, each is the same whenever it is run, and what is wrong is noticed.

Each run is a process of its own, for lazyfs is imported at a 256th of its size there.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.edits import SMALL, Edit, install
from tests.simulation.mutants import MUTANTS

FULL = os.environ.get("LAZYFS_TEST_FULL") == "1"

SEEDS = 20_000 if FULL else 400

LIES = {
    "asked-twice": "asked for twice at once",
    "blind-disk": "wrong bytes",
    "displaced-bytes": "wrong bytes|asked for twice at once",
    "forgotten-request": "hangs",
    "hasty-store": "wrong bytes",
    "leaking-gate": "left in the end: .* places in use|hangs",
    "lost-result": "hangs",
    "swapped-chunks": "wrong bytes|is taken for wrong",
    "wrong-block": "wrong bytes",
}
"""What lies, and what is said of it."""

QUICK = (
    "a reader keeps its pin",
    "one pin for all who wait",
    "bytes on disk are taken as they are",
    "who is short of memory is not woken",
    "a place that is free is not passed on",
    "a broken body is resumed a byte late",
)
"""Mutants that are noticed within the first few seeds."""


def simulate(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the simulation with these arguments to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=3600 if FULL else 290,
    )


@pytest.mark.timeout(3600 if FULL else 300)
def test_whatever_goes_wrong_reads_are_right() -> None:
    """Of hundreds of seeds each holds, or is printed with what happened in it."""
    done = simulate("--seeds", str(SEEDS), "--jobs", str(min(4, os.cpu_count() or 1)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SEEDS} seeds" in done.stderr


def test_a_seed_is_the_same_whenever_it_is_run() -> None:
    """Event for event, in another process and whatever its hashes, and it is another than its neighbour."""
    one, two = (simulate("--seeds", "25", "--digests", PYTHONHASHSEED=seed).stdout for seed in ("1", "2"))
    assert one == two
    assert len({line.split()[1] for line in one.splitlines()}) == 25
    alone = simulate("--seed", "17", "--digests", PYTHONHASHSEED="3").stdout
    assert alone.strip() == one.splitlines()[17]


@pytest.mark.parametrize("lie", LIES)
def test_what_lies_is_noticed(lie: str) -> None:
    """A store, a disk, a gate or a worker that does not keep its promise fails a seed, which is named to be run
    again."""
    done = simulate("--seeds", "300", "--sabotage", lie)
    assert done.returncode == 1, done.stderr
    assert re.search(rf"seed \d+ \(\w+\) failed: .*({LIES[lie]})", done.stdout)
    assert re.search(r"again: python -m tests.simulation --seed \d+ -v", done.stdout)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS if FULL else QUICK)
def test_a_defect_is_noticed(mutant: str) -> None:
    """Some seed fails when lazyfs is broken in this way; without that, none does."""
    done = simulate("--seeds", "3000" if FULL else "100", "--mutant", mutant)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"seed \d+ \(\w+\) failed: ", done.stdout), done.stderr


def test_an_edit_that_fits_nothing_is_an_error() -> None:
    """A mutant whose line is gone says so instead of changing nothing; and nothing is edited that was imported."""
    for edit in (*SMALL, *MUTANTS.values()):
        found = importlib.util.find_spec(edit.module)
        assert found is not None
        assert found.origin is not None
        assert Path(found.origin).read_text(encoding="utf-8").count(edit.old) == 1, edit
    with pytest.raises(AssertionError, match="before it could be edited"):
        install([Edit("sys", "a", "b")])
