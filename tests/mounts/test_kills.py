"""P6: SIGKILL at any moment of any work, hundreds of times on one cache. The next mount is ready, nothing is corrupt,
what was settled is warm, and nothing is left behind.

    LAZYFS_TEST_SEED=7 LAZYFS_TEST_KILLS=500 scripts/test tests/mounts/test_kills.py

replays a seed that a failure named: the same lives and the same moments, as far as a machine has the same moments.
"""

import contextlib
import logging
import os
import random
import secrets
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.mounts.books import check_after_a_kill, check_at_rest
from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter, environment, force_away
from tests.mounts.reader import Reader, ReaderDied
from tests.mounts.test_cache import sum_of
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault
from tests.servers.records import Request

FULL = os.environ.get("LAZYFS_TEST_FULL") == "1"
SEED = int(os.environ.get("LAZYFS_TEST_SEED", "0")) or (secrets.randbits(30) + 1 if FULL else 1)
KILLS = int(os.environ.get("LAZYFS_TEST_KILLS", "300" if FULL else "12"))
SIZES = {"a": MIB - 1, "b": 3 * MIB + 5, "c": 8 * MIB, "d": 11 * MIB + 4097, "e": 17 * MIB, "f": 5 * MIB}
BOUNDS = (None, None, None, 14, 24)
"""MiB; less than all objects together, which are 45."""
MOMENTS = ("a request", "a request", "a moment", "a moment", "settled", "starting", "stopping")
SECONDS_TO_READY = 2.0
log = logging.getLogger(__name__)


class Starting(Mount):
    """A mount that is given `lead` seconds to get ready, and may not be."""

    def __init__(self, lead: float, source: str, path: Path, **more: Any) -> None:
        self._lead = lead
        super().__init__(source, path, **more)

    def _wait_ready(self, channel: object, deadline: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(self._lead)


@dataclass
class Lives:
    """One cache and the daemons that lived on it. `warm`: names of which every chunk is known to be on disk."""

    server: FastS3Server
    mounter: Mounter
    dice: random.Random
    contents: dict[str, bytes]
    warm: set[str] = field(default_factory=set)
    readers: list[Reader] = field(default_factory=list)
    ready_after: list[float] = field(default_factory=list)
    moments: dict[str, int] = field(default_factory=dict)

    def reader(self, number: int) -> Reader:
        """One of the readers; a new one in the place of one that died."""
        while len(self.readers) <= number:
            self.readers.append(Reader())
        return self.readers[number]

    def options(self) -> list[str]:
        """Of the next life. A bounded one may evict, so nothing is known to be warm after it."""
        bound = self.dice.choice(BOUNDS)
        budget = self.dice.choice(["16MiB", "64MiB"])
        more = [] if bound is None else [f"--max-cache-size={bound}MiB"]
        return ["--metadata-ttl=1h", f"--memory-budget={budget}", "--min-free-space=0", *more]

    def live(self) -> None:
        """One life from start to kill, and what it left."""
        moment, options = self.dice.choice(MOMENTS), self.options()
        self.moments[moment] = self.moments.get(moment, 0) + 1
        bounded = any(option.startswith("--max-cache-size") for option in options)
        if moment == "starting":
            self.die_starting(options)
        else:
            self.server.take_log()
            mount = self.mounter.mount(self.server, "s3://models", *options)
            self.ready_after.append(mount.ready_after)
            check_at_rest(mount.cache)
            if bounded:
                self.warm.clear()
            else:
                self.read_warm(mount)
            self.work_and_die(mount, moment, bounded)
        check_after_a_kill(self.mounter.cache())

    def die_starting(self, options: list[str]) -> None:
        """SIGKILL before it says that it is ready, or soon after."""
        made = Starting(
            self.dice.uniform(0.1, 0.9),
            "s3://models",
            self.mounter.place(),
            cache=self.mounter.cache(),
            log=self.mounter.work / f"log-{len(self.mounter.mounts)}",
            options=[*self.mounter.options(self.server), *options],
            env=environment(self.mounter.work / "home", self.server),
            expect=(),
        )
        self.mounter.mounts.append(made)
        made.kill()

    def read_warm(self, mount: Mount) -> None:
        """What an earlier life had settled comes from the disk."""
        for name in sorted(self.warm):
            assert self.reader(0).call("digest", str(mount.path / name)) == sum_of(self.contents[name])
        assert [request.key for request in self.server.take_log() if request.kind == "GET"] == []

    def work_and_die(self, mount: Mount, moment: str, bounded: bool) -> None:
        """Some readers read some files in some ways; then SIGKILL."""
        jobs = [self.begin(number, mount) for number in range(self.dice.randint(1, 3))]
        if moment == "a request":
            with self.killing_at(mount, self.dice.randint(1, 10)) as killed:
                self.end(jobs, killed.is_set)
        elif moment == "settled":
            self.end(jobs, lambda: False)
            stats = mount.settle()
            if not bounded and stats["chunks"]["unkept"] == 0:
                self.warm |= {name for _, _, name in jobs}
        else:
            if moment == "stopping":
                mount.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                mount.process.wait(self.dice.uniform(0, 0.25))
            mount.process.kill()
            self.end(jobs, lambda: True)
        mount.kill()

    def begin(self, number: int, mount: Mount) -> tuple[int, str, str]:
        """Start a reader on a file: which, how, what."""
        name = self.dice.choice(sorted(SIZES))
        how = self.dice.choice(["digest", "mapped_digest", "mapped_digest", "mapped_parts"])
        advice = self.dice.choice(["random", "normal"])
        more: dict[str, list[object]] = {"digest": [], "mapped_digest": [advice], "mapped_parts": [3]}
        self.reader(number).begin(how, str(mount.path / name), *more[how])
        return number, how, name

    def end(self, jobs: list[tuple[int, str, str]], killed: Callable[[], bool]) -> None:
        """Every reader got the right bytes, or an error or SIGBUS of a mount that was killed."""
        for number, how, name in jobs:
            try:
                found = self.readers[number].result()
            except (OSError, ReaderDied):
                assert killed(), "an error, and the mount is alive"
                self.readers[number].close()
                self.readers[number] = Reader()
                continue
            data = self.contents[name]
            if how == "mapped_parts":
                size = -(-len(data) // 3)
                right = [sum_of(data[at : at + size])[1] for at in range(0, len(data), size)]
                assert all(one == other or (killed() and not one) for one, other in zip(found, right, strict=True))
            else:
                assert found == (sum_of(data) if how == "digest" else sum_of(data)[1])

    @contextlib.contextmanager
    def killing_at(self, mount: Mount, count: int) -> Iterator[threading.Event]:
        """SIGKILL at the arrival of the `count`th GET, by the thread that would answer it."""
        killed, lock, left = threading.Event(), threading.Lock(), [count]

        def hook(request: Request) -> Fault | None:
            if request.kind == "GET":
                with lock:
                    left[0] -= 1
                    if left[0] == 0:
                        killed.set()
                        mount.process.kill()
            return None

        self.server.fault = hook
        try:
            yield killed
        finally:
            self.server.fault = None


def import_time() -> float:
    """Seconds that Python takes for its imports on this machine, as busy as it is."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import boto3, lmdb, pyfuse3, trio"], check=True, timeout=60)
    return time.monotonic() - started


@pytest.fixture
def lives(s3: FastS3Server, mounter: Mounter) -> Iterator[Lives]:
    """With all objects in the bucket; it says which seed it was, whatever happens."""
    contents = {name: pages(number + 1, size) for number, (name, size) in enumerate(SIZES.items())}
    for name, data in contents.items():
        s3.put("models", name, data)
    made = Lives(s3, mounter, random.Random(SEED), contents)
    yield made
    for reader in made.readers:
        reader.close()
    force_away(mounter.place())


@pytest.mark.timeout(60 + 12 * KILLS)
def test_a_cache_outlives_every_kill(lives: Lives) -> None:
    """The bound of each start is 2 seconds beyond the imports: held by the median, since others use this machine."""
    for life in range(KILLS):
        try:
            lives.live()
        except BaseException as error:
            error.add_note(f"life {life} of LAZYFS_TEST_SEED={SEED} LAZYFS_TEST_KILLS={KILLS}; so far {lives.moments}")
            raise
    last = lives.mounter.mount(lives.server, "s3://models", "--metadata-ttl=1h")
    check_at_rest(last.cache)
    for name, data in lives.contents.items():
        assert lives.reader(0).call("digest", str(last.path / name)) == sum_of(data)
    assert last.settle()["chunks"]["corrupt"] == 0
    check_at_rest(last.cache)
    most = max(lives.ready_after)
    log.info("%d kills, seed %d: %s; ready after %.2f s at most", KILLS, SEED, lives.moments, most)
    assert statistics.median(lives.ready_after) < SECONDS_TO_READY + import_time()
