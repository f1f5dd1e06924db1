"""Seeds run one after another, in as many processes as asked for; a failing one is printed and can be run again.

Imported only after `edits.install`, for everything here is at the smaller scale.
"""

import argparse
import contextlib
import logging
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import trio
import trio.testing
from trio._core import _run

from lazyfs.objects import CHUNK_SIZE
from tests.simulation.sabotage import SABOTAGE
from tests.simulation.script import write_script
from tests.simulation.world import Defects, World

BATCH = 20
"""Seeds that a process takes at a time."""

SHOWN = 40
"""Events shown of a seed that failed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a seed. `problem` is empty when everything held."""

    seed: int
    kind: str
    digest: str
    reads: int
    seconds: float
    problem: str
    events: tuple[str, ...]


def play(seed: int, sabotage: str = "") -> Outcome:
    """Run one seed. The same seed does the same, event for event."""
    # As hypothesis does for its own tests of trio programs: batches of tasks are sorted, then shuffled by this dice.
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    _run._r.seed(seed)
    script = write_script(seed)
    worlds: list[World] = []
    seconds = 0.0

    async def live() -> None:
        nonlocal seconds
        worlds.append(World(script, SABOTAGE[sabotage]))
        try:
            await worlds[0].run()
        finally:
            seconds = trio.current_time()

    with listening() as defects:
        problem = ""
        try:
            trio.run(live, clock=trio.testing.MockClock(autojump_threshold=0))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            problem = "".join(traceback.format_exception(error))
    world = worlds[0]
    if world.violations:
        problem = world.violations[0]
    elif defects.heard:
        problem = defects.heard[0]
    return Outcome(seed, script.kind, world.digest, world.reads, seconds, problem, tuple(world.events))


@contextlib.contextmanager
def listening() -> Iterator[Defects]:
    """Hear what lazyfs logs, and let none of it be printed: a script is full of failures."""
    logger, defects = logging.getLogger("lazyfs"), Defects()
    before, logger.propagate = logger.propagate, False
    logger.addHandler(defects)
    try:
        yield defects
    finally:
        logger.removeHandler(defects)
        logger.propagate = before


def run(options: argparse.Namespace) -> int:
    """What the command line asks for; 1 if a seed failed."""
    if CHUNK_SIZE != 4096:
        raise AssertionError("lazyfs was imported before it could be made small")
    seeds = range(options.start, options.start + options.seeds) if options.seed is None else [options.seed]
    began, kinds, failed, reads, seconds = time.perf_counter(), Counter[str](), 0, 0, 0.0
    for outcome in outcomes(list(seeds), options.jobs, options.sabotage):
        kinds[outcome.kind] += 1
        reads += outcome.reads
        seconds += outcome.seconds
        if options.digests:
            print(outcome.seed, outcome.digest)
        if options.verbose:
            print(write_script(outcome.seed), *outcome.events, sep="\n")
        if outcome.problem:
            failed += 1
            if not options.verbose:
                print(*outcome.events[-SHOWN:], sep="\n")
            print(f"seed {outcome.seed} ({outcome.kind}) failed: {outcome.problem}")
            print(f"  again: python -m tests.simulation --seed {outcome.seed} -v")
            if failed >= options.most_failures:
                break
    took = time.perf_counter() - began
    found = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    print(
        f"{kinds.total()} seeds ({found}), {failed} failed; {reads} reads, {seconds:.0f} s of simulated time"
        f" in {took:.1f} s: {kinds.total() / took:.0f} seeds/s",
        file=sys.stderr,
    )
    return 1 if failed else 0


def outcomes(seeds: list[int], jobs: int, sabotage: str) -> Iterator[Outcome]:
    """Of these seeds, in their order."""
    if jobs == 1:
        yield from (play(seed, sabotage) for seed in seeds)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        batches = [(seeds[at : at + BATCH], sabotage) for at in range(0, len(seeds), BATCH)]
        for batch in pool.imap(_batch, batches):
            yield from batch


def _batch(work: tuple[list[int], str]) -> list[Outcome]:
    seeds, sabotage = work
    return [play(seed, sabotage) for seed in seeds]
