"""Options, the order of the rows, and the table. See `scripts/bench --help`."""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lazyfs.errors import UsageError
from lazyfs.words import parse_size
from scripts.benchmarks.bare import Least
from scripts.benchmarks.beside import Beside, WarmTouches
from scripts.benchmarks.compared import Compared
from scripts.benchmarks.listings import Deep, Flat
from scripts.benchmarks.models import Load, LoadTls, Ranks, WarmLoad
from scripts.benchmarks.passing import Passing
from scripts.benchmarks.results import Line, markdown, table
from scripts.benchmarks.rows import Row
from scripts.benchmarks.sequential import Cold, ColdTls, Disk, Fetched, PageCache, SlowConnections
from scripts.benchmarks.stage import MIB, Stage
from scripts.benchmarks.standing import Idle, OpenFiles, Resident
from scripts.benchmarks.starting import Ready
from scripts.benchmarks.touches import Floor, Touches, TouchesTls
from scripts.benchmarks.walks import Mapped, MappedTls, Walks
from tests.servers.processes import exit_on_sigterm

ROWS: list[type[Row]] = [
    Cold,
    ColdTls,
    PageCache,
    Disk,
    Mapped,
    MappedTls,
    Load,
    LoadTls,
    Ranks,
    WarmLoad,
    Fetched,
    Touches,
    TouchesTls,
    Walks,
    SlowConnections,
    Ready,
    Flat,
    Deep,
    OpenFiles,
    Idle,
    WarmTouches,
    Passing,
    Floor,
    Least,
    Beside,
    Compared,
    Resident,
]
"""In the order in which they run and are printed; those that are `last` after all others."""


def say(text: str) -> None:
    """One line for the person who waits; the table alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def size(text: str) -> int:
    """A whole number of MiB, at least 64."""
    try:
        found = parse_size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if found < 64 * MIB or found % MIB:
        raise argparse.ArgumentTypeError("a whole number of MiB, at least 64MiB")
    return found


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="scripts/bench", description="How fast lazyfs is, in ratios within one run.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here, as the README has it")
    parser.add_argument("--rows", help=f"which rows, of {','.join(names)}; default: all")
    parser.add_argument("--peers", action="store_true", help="only what compares with rclone and s3fs: R11 and R13")
    parser.add_argument("--size", type=size, help="of the file that is read; default 2GiB, with --quick 512MiB")
    parser.add_argument("--model-size", type=size, help="of the model's four shards together; default: SIZE")
    parser.add_argument("--repeat", type=int, metavar="N", help="pairs of measurements; default 3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="a first look: smaller, once, and 15 s idle, not 60")
    parser.add_argument("--keep", action="store_true", help="leave the files, and the daemons' log, where they are")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="for files: 5 times SIZE; default: by free space")
    found = parser.parse_args(arguments)
    found.size = found.size or (512 * MIB if found.quick else 2048 * MIB)
    found.model_size = found.model_size or found.size
    found.repeat = max(1, found.repeat or (1 if found.quick else 3))
    beside = {"r11", "r13"} if found.peers else {name.casefold() for name in names}
    wanted = beside if found.rows is None else {name.casefold() for name in found.rows.split(",")}
    if found.peers and (alone := wanted - beside):
        parser.error(f"{', '.join(sorted(alone))} is not compared with peers; leave --peers out, or --rows")
    if unknown := wanted - {name.casefold() for name in names}:
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [row() for row in ROWS if row.name.casefold() in wanted]
    found.rows = sorted(chosen, key=lambda row: row.last)
    return found


@contextmanager
def scratch(parent: Path | None, *, keep: bool) -> Iterator[Path]:
    """A directory for everything: where one is named, else on the disk with most room (memory is no disk)."""
    places = [Path(os.environ.get("TMPDIR") or tempfile.gettempdir()), Path("/var/tmp")]
    disks = [place for place in places if place.is_dir() and filesystem(place) != "tmpfs"] or places[:1]
    made = tempfile.mkdtemp(prefix="lazyfs-bench-", dir=parent or max(disks, key=lambda at: shutil.disk_usage(at).free))
    try:
        yield Path(made)
    finally:
        if keep:
            say(f"kept: {made}")
        elif not any(line.split()[1].startswith(made) for line in Path("/proc/self/mounts").read_text().splitlines()):
            shutil.rmtree(made, ignore_errors=True)


def filesystem(path: Path) -> str:
    """The type of the filesystem that a path is on."""
    found, depth = "?", -1
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind = line.split()[:3]
        if path.resolve().is_relative_to(where) and len(Path(where).parts) > depth:
            found, depth = kind, len(Path(where).parts)
    return found


def machine(place: Path) -> str:
    """The machine in one line."""
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores ({platform.machine()}), Linux {platform.release()}, Python {platform.python_version()}, "
        f"files on {filesystem(place)}, load {os.getloadavg()[0]:.1f}"
    )


def measure(rows: Sequence[Row], stage: Stage) -> Iterator[Line]:
    """Run the rows; one that fails is a line that says so, and the others go on."""
    for row in rows:
        say(f"{row.name}: {(type(row).__doc__ or '').splitlines()[0]}")
        stage.row = row.name
        started = time.monotonic()
        try:
            for line in row.run(stage):
                say("    " + "  ".join(cell for cell in line.cells()[1:] if cell))
                yield line
        except Exception as error:  # noqa: BLE001 - whatever it was, the other rows go on
            traceback.print_exc()
            yield Line(row=row.name, workload=type(row).__name__, failure=f"{type(error).__name__}: {error}")
        say(f"    {time.monotonic() - started:.0f} s")


def main() -> int:
    """1 if a row failed (one that only misses its bound has not), else 0."""
    asked = options()
    exit_on_sigterm()
    with scratch(asked.directory, keep=asked.keep) as place:
        most = max(asked.size, asked.model_size)
        if shutil.disk_usage(place).free < 5 * most:
            say(f"{place} has less than 5 times {most >> 20} MiB free; try --size or --directory")
            return 1
        facts = machine(place)
        sizes = {"size": asked.size, "model_size": asked.model_size}
        with Stage(place, **sizes, repeat=asked.repeat, idle=15 if asked.quick else 60) as stage:
            lines = list(measure(asked.rows, stage))
        print(table(lines))
        print(f"{facts}; file of {asked.size >> 20} MiB, {asked.repeat} pairs")
        if asked.markdown:
            asked.markdown.write_text(markdown(lines))
        if asked.json:
            found = {"machine": facts, **sizes, "repeat": asked.repeat}
            asked.json.write_text(json.dumps({**found, "lines": [line.as_dict() for line in lines]}, indent=1) + "\n")
    return 1 if any(line.failure for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
