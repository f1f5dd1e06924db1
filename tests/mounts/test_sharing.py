"""P16: several daemons on one cache and under one bound, started together, killed in turn, replaced while they run."""

import contextlib
import functools
import json
import os
import random
import signal
from collections.abc import Iterator, Mapping, Sequence

import lmdb
import pytest

from tests.mounts.books import books, check_after_a_kill, check_at_rest, index_is_clean
from tests.mounts.contents import MIB, pages
from tests.mounts.failing import Failing
from tests.mounts.mounting import Mount, Mounter, MountFailed, environment, wait_until
from tests.mounts.reader import Reader, ReaderDied
from tests.mounts.test_bounds import Sampler
from tests.mounts.test_cache import ANEW, completed, sum_of
from tests.servers.fast import FastS3Server
from tests.servers.records import Request

FULL = os.environ.get("LAZYFS_TEST_FULL") == "1"
SEED = int(os.environ.get("LAZYFS_TEST_SEED", "1"))
ROUNDS = 60 if FULL else 3
BOUND = 24 * MIB
PLACES = {"one": "s3://models", "two": "s3://models", "three": "s3://others"}
CONTENTS = {
    bucket: {f"{bucket}-{number}": pages(base + number, size) for number, size in enumerate(sizes)}
    for bucket, base, sizes in (
        ("models", 1, (3 * MIB + 5, 9 * MIB, 6 * MIB - 1, 14 * MIB)),
        ("others", 50, (8 * MIB, 5 * MIB + 4097)),
    )
}


class Unready(Mount):
    """A mount that was started, and is not waited for until `wait`."""

    def _wait_ready(self, channel: object, deadline: float) -> None:
        """Not now."""

    def wait(self) -> None:
        """Until it answers."""

        def answers() -> bool:
            assert self.process.poll() is None, self.logged()
            with contextlib.suppress(OSError):
                return bool(json.loads(os.getxattr(self.path, "user.lazyfs.stats"))["pid"] == self.pid)
            return False

        wait_until(answers, f"{self.path} answers", 60)


@pytest.fixture
def buckets(s3: FastS3Server) -> FastS3Server:
    """Both of them, filled."""
    for bucket, contents in CONTENTS.items():
        for name, data in contents.items():
            s3.put(bucket, name, data)
    return s3


@pytest.fixture
def readers() -> Iterator[dict[str, Reader]]:
    """One for each place."""
    made = {name: Reader() for name in PLACES}
    yield made
    for reader in made.values():
        reader.close()


def start(
    mounter: Mounter,
    server: FastS3Server,
    name: str,
    *options: str,
    expect: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Mount:
    """A daemon in one of the places, on the cache of all."""
    usual = ("--memory-budget=16MiB", "--min-free-space=0", "--metadata-ttl=1h")
    return mounter.mount(server, PLACES[name], *usual, *options, at=mounter.place(name), expect=expect, env=env)


def ranges(server: FastS3Server) -> list[Request]:
    """The GETs of bytes since the last time; what asks for an object's digest is none."""
    return [request for request in server.take_log() if request.kind == "GET" and request.range is not None]


def of_place(name: str) -> dict[str, bytes]:
    """What is to be read there."""
    return CONTENTS[PLACES[name].removeprefix("s3://")]


def test_started_together(buckets: FastS3Server, mounter: Mounter, readers: dict[str, Reader]) -> None:
    """On a directory in which nothing is yet: all get ready, all read, what one has fetched the others have."""
    mounts = {}
    for name, source in PLACES.items():
        mounts[name] = Unready(
            source,
            mounter.place(name),
            cache=mounter.cache(),
            log=mounter.work / f"log-{name}",
            options=[*mounter.options(buckets), "--metadata-ttl=1h"],
            env=environment(mounter.work / "home", buckets),
            expect=(),
        )
        mounter.mounts.append(mounts[name])
    for mount in mounts.values():
        mount.wait()
    for name in PLACES:
        for key, data in of_place(name).items():
            assert readers[name].call("digest", str(mounts[name].path / key)) == sum_of(data)
        mounts[name].settle()
    sizes = [len(data) for contents in CONTENTS.values() for data in contents.values()]
    assert sum(request.bytes_sent for request in ranges(buckets)) == sum(sizes)
    found = check_at_rest(mounter.cache(), daemons=3)
    assert sum(map(len, found.present.values())) == sum(-(-size // MIB) for size in sizes)
    for mount in mounts.values():
        assert mount.unmount() == 0
    index_is_clean(mounter.cache())


@pytest.mark.timeout(1200 if FULL else 120)
def test_killed_in_turn_under_one_bound(buckets: FastS3Server, mounter: Mounter, readers: dict[str, Reader]) -> None:
    """All read more than there is room for; each round the next of them is killed and started again. The bound, sampled
    ten times a second, holds; every byte is right; nothing is damaged; what the dead left is cleared by who lives."""
    dice = random.Random(SEED)
    bound = f"--max-cache-size={BOUND}"
    mounts = {name: start(mounter, buckets, name, bound) for name in PLACES}
    with Sampler(mounter.cache()) as sampler:
        for number in range(ROUNDS):
            victim = sorted(PLACES)[number % len(PLACES)]
            jobs = {name: dice.choice(sorted(of_place(name))) for name in PLACES}
            how = {name: dice.choice([("digest",), ("mapped_digest", "normal")]) for name in PLACES}
            for name, key in jobs.items():
                readers[name].begin(how[name][0], str(mounts[name].path / key), *how[name][1:])
            begun = functools.partial(progressed, mounts[victim], dice.randint(0, 6))
            wait_until(begun, "the victim has begun")
            mounts[victim].kill()
            for name, key in jobs.items():
                right = sum_of(of_place(name)[key])
                try:
                    found = readers[name].result()
                except (OSError, ReaderDied):
                    assert name == victim, f"round {number}, seed {SEED}: an error of a mount that lives"
                    readers[name].close()
                    readers[name] = Reader()
                    continue
                assert found == (right if how[name] == ("digest",) else right[1]), f"round {number}, seed {SEED}"
            mounts[victim] = start(mounter, buckets, victim, bound)
        for name, mount in mounts.items():
            for key, data in of_place(name).items():
                assert readers[name].call("cold_digest", str(mount.path / key)) == sum_of(data)
        for mount in mounts.values():
            stats = mount.settle()
            assert stats["chunks"]["corrupt"] == 0
            assert stats["failures"] == 0
    assert sampler.most <= BOUND, max(sampler.samples)
    assert sampler.most > BOUND // 2, "a bound is there to be used"
    check_at_rest(mounter.cache(), daemons=3)
    for mount in mounts.values():
        assert mount.unmount() == 0
    index_is_clean(mounter.cache())


def progressed(mount: Mount, chunks: int) -> bool:
    """Whether so many chunks came to it, or it has nothing to do."""
    stats = mount.stats()
    return bool(stats["chunks"]["misses"] + stats["chunks"]["disk_hits"] >= chunks) or stats["memory"]["lent"] == 0


def test_a_rolling_restart_keeps_everything_warm(
    buckets: FastS3Server, mounter: Mounter, readers: dict[str, Reader]
) -> None:
    """The new daemon starts elsewhere before the old one ends, by every kind of end; it sends no GET."""
    old = start(mounter, buckets, "one")
    for key, data in of_place("one").items():
        assert readers["one"].call("digest", str(old.path / key)) == sum_of(data)
        completed(old.path / key)
    for number, end in enumerate(("unmount", "SIGTERM", "SIGKILL")):
        buckets.take_log()
        new = start(mounter, buckets, ("two", "one")[number % 2])
        if end == "SIGTERM":
            assert old.signal(signal.SIGTERM) == 0
        elif end == "unmount":
            assert old.unmount() == 0
        else:
            old.kill()
        for key, data in of_place("one").items():
            assert readers["one"].call("digest", str(new.path / key)) == sum_of(data)
            assert readers["two"].call("mapped_digest", str(new.path / key), "random") == sum_of(data)[1]
        assert ranges(buckets) == [], end
        old = new
    check_at_rest(mounter.cache(), daemons=2)
    assert old.unmount() == 0


@pytest.fixture
def failing(mounter: Mounter) -> Failing:
    """What stops one daemon in the middle of a call."""
    return Failing(mounter.work, mounter.cache())


def preloaded(failing: Failing, mounter: Mounter, server: FastS3Server) -> dict[str, str]:
    """The environment of a daemon whose calls can be held."""
    return failing.environment(environment(mounter.work / "home", server))


@pytest.mark.parametrize("call", ["ftruncate", "unlink"], ids=["claimed", "buried"])
def test_what_the_dead_were_doing_is_finished_by_the_living(
    buckets: FastS3Server, mounter: Mounter, readers: dict[str, Reader], failing: Failing, call: str
) -> None:
    """A daemon that never stops finds, when it needs room, what one that was killed had claimed and not written, or
    forgotten and not cleared; its place and its lock are free."""
    bound = f"--max-cache-size={BOUND}"
    living = start(mounter, buckets, "one", bound)
    fill(living)
    dying = start(mounter, buckets, "three", bound, env=preloaded(failing, mounter, buckets))
    with failing.held(call) as is_held:
        readers["three"].begin("digest", str(dying.path / "others-0"))
        wait_until(is_held, f"it is in {call}")
        dying.kill()
    found = books(living.cache)
    assert (found.claims if call == "ftruncate" else found.graves), "what this is about has not happened"
    assert found.used == found.sum
    read_all(readers["one"], living)
    assert len(list((mounter.cache() / "daemons").iterdir())) == 1
    assert living.stats()["chunks"]["corrupt"] == 0
    check_at_rest(mounter.cache())


def test_nobody_waits_for_one_that_is_stuck(
    buckets: FastS3Server, mounter: Mounter, readers: dict[str, Reader], failing: Failing
) -> None:
    """One daemon hangs while it makes room: the other reads on, keeps nothing beyond the bound, and can be started and
    ended; then all is as before."""
    bound = f"--max-cache-size={BOUND}"
    other = start(mounter, buckets, "one", bound)
    fill(other)
    stuck = start(mounter, buckets, "three", bound, env=preloaded(failing, mounter, buckets))
    with failing.held("unlink") as is_held:
        readers["three"].begin("digest", str(stuck.path / "others-0"))
        wait_until(is_held, "it makes room")
        read_all(readers["one"], other)
        assert other.stats()["chunks"]["unkept"] > 0
        assert other.unmount() == 0
        other = start(mounter, buckets, "one", bound)
        read_all(readers["one"], other)
    assert readers["three"].result() == sum_of(CONTENTS["others"]["others-0"])
    stuck.settle()
    kept = other.stats()["chunks"]["kept"]
    read_all(readers["one"], other)
    assert other.stats()["chunks"]["kept"] > kept
    check_at_rest(mounter.cache(), daemons=2)


def fill(mount: Mount) -> None:
    """The cache is full: who reads 8 MiB more must make room, however slow the disk was."""
    for key in ("models-3", "models-0"):
        completed(mount.path / key)
    assert BOUND - books(mount.cache).used < 8 * MIB


def read_all(reader: Reader, mount: Mount) -> None:
    """Everything, which is more than there is room for, and wait until it is on the disk or given up."""
    for key, data in CONTENTS[mount.source.removeprefix("s3://")].items():
        assert reader.call("cold_digest", str(mount.path / key)) == sum_of(data)
    mount.settle()


def test_an_index_that_cannot_be_used_is_not_taken_from_others(
    buckets: FastS3Server, mounter: Mounter, readers: dict[str, Reader]
) -> None:
    """Of a newer format, say: who starts is refused with a word on what to do, and who runs goes on; when all have
    ended it is set aside."""
    running = start(mounter, buckets, "one")
    assert readers["one"].call("digest", str(running.path / "models-0")) == sum_of(CONTENTS["models"]["models-0"])
    running.settle()
    with lmdb.open(str(running.cache / "index"), max_dbs=16) as env, env.begin(write=True) as txn:
        txn.put(b"format", b"lazyfs-index-99", db=env.open_db(b"meta", txn=txn))
    with pytest.raises(MountFailed, match="other mounts have it open; unmount those first") as refused:
        start(mounter, buckets, "two")
    assert "status 1" in str(refused.value)
    assert "Traceback" not in str(refused.value)
    buckets.take_log()
    assert readers["one"].call("cold_digest", str(running.path / "models-0")) == sum_of(CONTENTS["models"]["models-0"])
    assert ranges(buckets) == []
    assert running.unmount() == 0
    after = start(mounter, buckets, "two", expect=[*ANEW, "^lazyfs: the cache index in .* other mounts have it open"])
    assert readers["two"].call("digest", str(after.path / "models-0")) == sum_of(CONTENTS["models"]["models-0"])
    after.settle()
    check_at_rest(after.cache)


def test_a_cache_that_was_deleted_and_made_anew_is_not_written_by_the_old_daemon(
    buckets: FastS3Server, mounter: Mounter, readers: dict[str, Reader]
) -> None:
    """It reads on, and what it fetches takes no space that the index of the new one does not know."""
    expect = ["the disk cache does not work", "ERROR lazyfs.cache.disk", "are damaged and will be fetched again"]
    old = start(mounter, buckets, "one", expect=expect)
    assert readers["one"].call("digest", str(old.path / "models-0")) == sum_of(CONTENTS["models"]["models-0"])
    old.settle()
    old.cache.rename(mounter.work / "gone")
    new = start(mounter, buckets, "two")
    for name, mount in (("one", old), ("two", new)):
        for key, data in of_place(name).items():
            assert readers[name].call("cold_digest", str(mount.path / key)) == sum_of(data)
        mount.settle()
    check_at_rest(mounter.cache(), daemons=1)
    assert old.unmount() == 0
    assert new.unmount() == 0
    check_after_a_kill(mounter.cache())
