"""The bench's own arithmetic: turns, lines of the table, plans of walks, and what its programs do on a plain file."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from awscrt.checksums import crc64nvme

from lazyfs.cache.index import Index
from lazyfs.objects import CHUNK_SIZE, MIB
from scripts.benchmarks.__main__ import ROWS, options
from scripts.benchmarks.beside import FIGURES, Beside
from scripts.benchmarks.listings import Deep, Flat, entries
from scripts.benchmarks.peers import Peer
from scripts.benchmarks.results import Line, at_least, at_most, markdown, table
from scripts.benchmarks.rows import Measured, in_turns
from scripts.benchmarks.stage import ROOT, Stage
from scripts.benchmarks.starting import fill
from scripts.benchmarks.walks import walks
from tests.rooms.building import pattern


def test_sides_take_turns() -> None:
    asked: list[tuple[str, int]] = []

    def side(name: str) -> Any:
        def measure(turn: int) -> str:
            asked.append((name, turn))
            return f"{name}{turn}"

        return measure

    assert in_turns(2, side("a"), side("b")) == [["a0", "a1"], ["b0", "b1"]]
    assert asked == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_the_median_of_the_ratios_decides() -> None:
    """Not the ratio of the medians: 2/1, 3/4, 5/4 are 2, 0.75 and 1.25, whose median is 1.25."""
    line = Line(row="R", workload="w", ours=[2, 3, 5], theirs=[1, 4, 4], bound=at_least(1.25))
    assert line.ratios == [2, 0.75, 1.25]
    assert line.reached
    assert not Line(row="R", workload="w", ours=[2, 3, 5], theirs=[1, 4, 4], bound=at_most(1.2)).reached


def test_a_table_can_be_made_of_anything() -> None:
    """Nothing measured, nothing to divide by, one figure of theirs, and a failure."""
    lines = [
        Line(row="a", workload="none"),
        Line(row="b", workload="nothing to divide by", ours=[1], theirs=[0], bound=at_most(1)),
        Line(row="c", workload="one of theirs", ours=[1, 2], theirs=[2]),
        Line(row="d", workload="failed", failure="because"),
    ]
    rows = table(lines).splitlines()[2:]
    assert [row.split()[0] for row in rows] == ["a", "b", "c", "d"]
    assert [line.reached for line in lines] == [None, False, None, False]
    assert lines[2].ratios == [0.5, 1]


def test_what_is_measured_of_a_reading() -> None:
    found = Measured(seconds=2, bytes=4 * 10**9, fetched=6 * 10**9, cpu=8)
    assert (found.rate, found.cpu_per_gb, found.excess) == (2, 2, 1.5)


def test_every_promise_has_a_row() -> None:
    names = {row.name for row in ROWS}
    assert {f"R{number}" for number in range(1, 14)} <= names
    assert len(names) == len(ROWS)
    assert [row.name for row in options(["--peers"]).rows] == ["R13", "R11"]
    assert [row.name for row in options(["--rows", "r9,R1"]).rows] == ["R1", "R9"]
    assert [row.name for row in options(["--peers", "--rows", "r13"]).rows] == ["R13"]


@pytest.mark.parametrize("words", [["--rows", "R99"], ["--peers", "--rows", "R1,R11"]])
def test_rows_that_cannot_be_had(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Are named, and nothing else is run in their place."""
    with pytest.raises(SystemExit):
        options(words)
    assert {"R99": "no row r99", "R1,R11": "r1 is not compared with peers"}[words[-1]] in capsys.readouterr().err


def test_the_keys_of_listings() -> None:
    """As many as there should be, in as many directories."""
    assert (len(entries(Flat().keys(1000))), len(entries(Deep().keys(1000)))) == (1000, 1100)
    assert len(set(Deep().keys(1000))) == 1000


@pytest.mark.parametrize("size", [64 * MIB, 100 * MIB, 1024 * MIB])
def test_walks_stay_in_the_file(size: int) -> None:
    for walk in walks(size):
        for reader in walk.readers:
            steps = [(at, at + count) for start, stop, stride, count in reader for at in range(start, stop, stride)]
            assert steps, walk.name
            assert all(0 <= start < stop <= size for start, stop in steps), walk.name


def run(program: str, **arguments: Any) -> subprocess.CompletedProcess[str]:
    """A program of `worker`, as the bench runs it: it forks, which a test's own process had better not."""
    command = [sys.executable, "-m", "scripts.benchmarks.worker", program, json.dumps(arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three MiB and a bit."""
    path = tmp_path / "file"
    path.write_bytes(pattern(3 * MIB + 5))
    return path


def test_slices_are_the_whole_file(file: Path) -> None:
    data = file.read_bytes()
    found = json.loads(run("slices", path=str(file), readers=3).stdout)
    edges = [len(data) * index // 3 for index in range(4)]
    assert found["sums"] == [crc64nvme(data[start:stop]) for start, stop in itertools.pairwise(edges)]
    assert found["bytes"] == len(data)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_walk_reads_what_its_plan_says(file: Path, *, mapped: bool) -> None:
    """Forward with a stride, and backward: each reader's bytes in its own order."""
    data = file.read_bytes()
    readers = [[[0, 2 * MIB, MIB, 7]], [[2 * MIB, -1, -MIB, 4]]]
    found = json.loads(run("walk", path=str(file), readers=readers, mapped=mapped).stdout)
    there = data[:7] + data[MIB : MIB + 7]
    back = data[2 * MIB : 2 * MIB + 4] + data[MIB : MIB + 4] + data[:4]
    assert found["sums"] == [crc64nvme(there), crc64nvme(back)]
    assert found["bytes"] == 26


def test_a_reader_that_fails_is_told(tmp_path: Path) -> None:
    """What ends too early cannot be a sum that nobody compares."""
    short = tmp_path / "short"
    short.write_bytes(b"x" * 10)
    done = run("walk", path=str(short), readers=[[[0, 1, 1, 20]]], mapped=False)
    assert done.returncode != 0
    assert "a reader failed" in done.stderr


def test_an_index_that_was_filled_is_one_of_complete_objects(tmp_path: Path) -> None:
    for name in ("index", "objects"):
        (tmp_path / name).mkdir()
    made = fill(tmp_path, "http://s3|models", objects=2, chunks=70)
    index = Index(tmp_path / "index")
    assert [index.present_chunks(version.object_id) for version in made] == [70, 70]
    assert index.used() >= 140 * CHUNK_SIZE
    index.close()
    paths = sorted(path for path in (tmp_path / "objects").glob("*/*"))
    assert [path.stat().st_size for path in paths] == [70 * CHUNK_SIZE] * 2
    assert sum(path.stat().st_blocks for path in paths) == 0


def test_a_peer_that_is_not_installed_is_named_and_left_out() -> None:
    class Absent(Peer):
        program = "a-filesystem-that-nobody-has"

    lines = list(Beside([Absent]).run(cast(Stage, None)))
    assert [line.workload for line in lines] == ["a-filesystem-that-nobody-has: not installed, left out"]
    assert lines[0].reached is None


def test_figures_of_peers_have_words() -> None:
    assert all(words and unit for words, unit, _ in FIGURES.values())
    assert len({words for words, _, _ in FIGURES.values()}) == len(FIGURES)


def test_the_table_as_markdown() -> None:
    """A heading, a rule and a row for each line, as many cells in each, and no cell that breaks the table."""
    lines = [
        Line(row="R1", workload="cold | read", unit="GB/s", ours=[1.0, 2.0], theirs=[2.0, 2.0], bound=at_least(0.8)),
        Line(row="R2", workload="nothing", failure="broke"),
    ]
    rows = markdown(lines).splitlines()
    assert len(rows) == 4
    assert len({row.count("|") for row in rows}) == 1
    assert rows[2] == "| R1 | cold / read | 1.5 GB/s | 2 GB/s | 0.75 (0.5..1) | >= 0.8 | NO |"
