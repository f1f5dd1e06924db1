"""P3: a cache disk that fails at any call, is full, or turns read-only. Bytes are right, no read fails or hangs,
the log says so now and then, the counters count, and when the fault has gone chunks are kept again.
"""

import errno
import itertools
import logging
import os
import re
from pathlib import Path

import pytest

from tests.mounts.books import books, check_at_rest, index_is_clean
from tests.mounts.disks import CHUNKS, LEFT, Disks, fill_bucket
from tests.mounts.failing import EVER, KINDS, WRITING, Failing, describe
from tests.mounts.mounting import Mounter, MountFailed, environment, wait_until
from tests.mounts.reader import Reader
from tests.mounts.test_bounds import FAILING
from tests.mounts.test_cache import ANEW, kinds
from tests.servers.fast import FastS3Server

FULL = os.environ.get("LAZYFS_TEST_FULL") == "1"
NTH = (*range(1, 21), 24, 28, 32, 40, 50) if FULL else (1, 3)
TIMES = (1, 3, EVER) if FULL else (1, EVER)
START_NTH = range(1, 31) if FULL else (1,)
SMALL = ("--memory-budget=16MiB", "--max-cache-size=14MiB", "--min-free-space=0", "--metadata-ttl=1h")
ERRORS = (errno.ENOSPC, errno.EIO)
log = logging.getLogger(__name__)
RUNNING = tuple(kind for kind in KINDS if kind != "fsync")
"""What a daemon calls between start and end; it syncs at both."""


@pytest.fixture
def failing(tmp_path: Path) -> Failing:
    """What makes calls of a daemon fail."""
    return Failing(tmp_path, tmp_path / "cache")


@pytest.fixture
def disks(s3: FastS3Server, mounter: Mounter, reader: Reader, failing: Failing) -> Disks:
    """A daemon of which calls can be made to fail, with so little memory and cache that everything is soon gone from
    both."""
    fill_bucket(s3, 8000 if FULL else 2000)
    env = failing.environment(environment(mounter.work / "home", s3))
    mount = mounter.mount(s3, "s3://models", *SMALL, env=env, expect=[*FAILING, *LEFT])
    made = Disks(s3, reader, mount)
    made.recovers()
    return made


@pytest.mark.parametrize("kinds", [(kind,) for kind in RUNNING] if FULL else [RUNNING], ids=" ".join)
def test_the_nth_call_fails(
    s3: FastS3Server, mounter: Mounter, failing: Failing, disks: Disks, kinds: tuple[str, ...]
) -> None:
    """Of each kind, with each error, once or from then on, while something is read cold, something warm, something
    evicted. After each fault the cache works; after all of them it is as it should be."""
    tried = 0
    warm = disks.read()
    for fault in itertools.product(kinds, ERRORS, NTH, TIMES):
        kind, number, nth, times = fault
        try:
            with failing.at(kind, number, nth, times):
                for _ in range(2):
                    disks.read_again(warm)
                    warm = disks.read()
                    disks.touch()
                disks.mount.settle()
            disks.recovers()
        except BaseException as error:
            error.add_note(f"fault {tried}: {describe(*fault)}")
            raise
        tried += 1
    assert tried == len(kinds) * len(ERRORS) * len(NTH) * len(TIMES)
    assert all(failing.failed()[kind] > 0 for kind in kinds), str(failing.failed())
    log.info("%d faults tried; calls that failed: %s", tried, failing.failed())
    stats = disks.mount.stats()
    assert stats["failures"] == 0
    assert stats["chunks"]["unkept"] + stats["chunks"]["corrupt"] > 0, "it is counted"
    complaints = [line for line in disks.mount.logged().splitlines() if " INFO " not in line and "damaged" not in line]
    assert len(complaints) <= 2 * (2 + stats["uptime"] // 60), "now and then, and not for each call"
    finish(s3, mounter, disks)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ENOSPC] if FULL else [errno.EROFS, errno.EIO])
def test_nothing_can_be_written_for_a_while(
    s3: FastS3Server, mounter: Mounter, failing: Failing, disks: Disks, number: int
) -> None:
    """What is cached is read from the disk all the while, what is not from S3; then chunks are kept again.

    EROFS from every call that writes is what a daemon sees of a filesystem that turned read-only. Turning a real one
    and back is refused by the kernel while the index is open to be written, and an emergency is for good.
    """
    warm = disks.read()
    disks.mount.settle()
    # A disk that is full, or dying, can be opened all the same, which a read-only one cannot.
    calls = WRITING if number == errno.EROFS else set(WRITING) - {"open to write"}
    with failing.always(calls, number):
        for _ in range(4):
            disks.read()
        # LMDB gives the index up at each commit that fails, until it is opened again; a read in that moment asks S3.
        disks.mount.settle()
        s3.take_log()
        disks.read_again(warm)
        assert "GET" not in kinds(s3.take_log()), "it is still on the disk"
        unkept = disks.mount.settle()["chunks"]["unkept"]
    assert unkept >= 4 * CHUNKS
    disks.recovers()
    finish(s3, mounter, disks)


def test_nothing_can_be_done_with_the_disk_for_a_while(
    s3: FastS3Server, mounter: Mounter, failing: Failing, disks: Disks
) -> None:
    """Every call fails, under readers: all bytes come from S3."""
    warm = disks.read()
    with failing.always(KINDS, errno.EIO):
        for _ in range(4):
            disks.read()
            disks.read_again(warm)
    disks.recovers()
    finish(s3, mounter, disks)


def finish(s3: FastS3Server, mounter: Mounter, disks: Disks) -> None:
    """The faults are over: nothing is left to be cleared, nothing is damaged, nothing was lost sight of."""
    for _ in range(4):
        disks.recovers()
    wait_until(lambda: not books(disks.mount.cache).graves, "all graves are dug")
    check_at_rest(disks.mount.cache)
    assert disks.mount.unmount() == 0
    index_is_clean(disks.mount.cache)
    again = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    after = Disks(s3, disks.reader, again)
    for number in range(disks.next - 4, disks.next):
        after.read_again(f"object-{number}")
    assert again.settle()["chunks"]["corrupt"] == 0
    check_at_rest(again.cache)


@pytest.mark.timeout(2400 if FULL else 120)
def test_the_nth_call_of_a_start_fails(s3: FastS3Server, mounter: Mounter, reader: Reader, failing: Failing) -> None:
    """It starts and reads, or says in one sentence why not; the next start works."""
    fill_bucket(s3, 4)
    usual = environment(mounter.work / "home", s3)
    started = 0
    refusals: list[str] = []
    expect = [*FAILING, *LEFT, *ANEW, "^lazyfs: "]
    for fault in itertools.product(KINDS, ERRORS if FULL else [errno.EIO], START_NTH, [1]):
        failing.reset()
        try:
            with failing.at(*fault):
                try:
                    mount = mounter.mount(s3, "s3://models", *SMALL, env=failing.environment(usual), expect=expect)
                except MountFailed as error:
                    refusals.append(str(error))
                    continue
                Disks(s3, reader, mount).read()
                started += 1
                assert mount.unmount() == 0
        except BaseException as error:
            error.add_note(describe(*fault))
            raise
    mount = mounter.mount(s3, "s3://models", *SMALL, expect=expect)
    disks = Disks(s3, reader, mount)
    for _ in range(4):
        disks.read()
    mount.settle()
    check_at_rest(mount.cache)
    assert started >= len(refusals)
    for said in refusals:
        assert "status 1" in said
        assert re.search("^lazyfs: .* cannot be (used|made): .*; choose another --cache-dir", said, re.MULTILINE), said
        assert "Traceback" not in said
