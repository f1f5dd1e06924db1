"""P3: a cache disk that fails at any call, is full, dies, or turns read-only. Bytes are right, no read fails or hangs,
the log says so now and then, the counters count, and when the fault has gone chunks are kept again.
"""

import contextlib
import errno
import fcntl
import functools
import itertools
import logging
import os
import re
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts.books import books, check_at_rest, index_is_clean
from tests.mounts.contents import MIB, pages
from tests.mounts.failing import EVER, KINDS, WRITING, Failing, describe
from tests.mounts.mounting import Mount, Mounter, MountFailed, environment, wait_until
from tests.mounts.reader import Reader
from tests.mounts.test_bounds import FAILING
from tests.mounts.test_cache import ANEW, kinds, sum_of
from tests.servers.fast import FastS3Server

FULL = os.environ.get("LAZYFS_TEST_FULL") == "1"
NTH = (*range(1, 21), 24, 28, 32, 40, 50) if FULL else (1, 3)
TIMES = (1, 3, EVER) if FULL else (1, EVER)
START_NTH = range(1, 31) if FULL else (1,)
SMALL = ("--memory-budget=16MiB", "--max-cache-size=14MiB", "--min-free-space=0", "--metadata-ttl=1h")
ERRORS = (errno.ENOSPC, errno.EIO)
SIZE = 3 * MIB + 4097
CHUNKS = 4
log = logging.getLogger(__name__)
RUNNING = tuple(kind for kind in KINDS if kind != "fsync")
"""What a daemon calls between start and end; it syncs at both."""
WITH_SBIN = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
LEFT = ["what an earlier daemon left in the cache could not be cleared", "ERROR lazyfs.cache.disk: index"]


class Disks:
    """One daemon on a cache that fails, and objects that nobody has read: each name is used once."""

    def __init__(self, s3: FastS3Server, reader: Reader, mount: Mount) -> None:
        self._s3 = s3
        self.reader = reader
        self.mount = mount
        self.next = 0

    def read(self) -> str:
        """Read an object that is not cached, and return its name."""
        name = f"object-{self.next}"
        self.next += 1
        self.read_again(name)
        return name

    def touch(self) -> None:
        """Read 4 KiB here and there of an object too large for the cache, so that holes are punched to make room."""
        fd = self.reader.call("open_at_random", str(self.mount.path / "huge"))
        for segment in range(2):
            chunk = segment * 64 + self.next % 60
            assert self.reader.call("pread", fd, 4096, chunk * MIB) == huge()[chunk * MIB : chunk * MIB + 4096]
        self.reader.call("close_file", fd)

    def read_again(self, name: str) -> None:
        """Read an object to its end, past the kernel's own cache."""
        data = content(int(name.partition("-")[2]))
        path = str(self.mount.path / name)
        assert self.reader.call("cold_digest", path) == sum_of(data)

    def recovers(self) -> None:
        """What is read now is kept, all of it; the first writes may be what notices that the fault has gone."""

        def kept() -> bool:
            before = self.mount.settle()["chunks"]["kept"]
            self.read()
            return bool(self.mount.settle()["chunks"]["kept"] - before == CHUNKS)

        wait_until(kept, "chunks are kept again", 10)


@functools.cache
def of_kind(kind: int) -> bytes:
    """Of every 16th object, for memory's sake."""
    return pages(kind + 1, SIZE)


def content(number: int) -> bytes:
    """Of `object-N`."""
    return of_kind(number % 16)


@pytest.fixture
def failing(tmp_path: Path) -> Failing:
    """What makes calls of a daemon fail."""
    return Failing(tmp_path, tmp_path / "cache")


@functools.cache
def huge() -> bytes:
    """Of `huge`: two segments."""
    return pages(99, 126 * MIB)


def fill_bucket(s3: FastS3Server, count: int) -> None:
    """Objects of a few MiB, and a large one."""
    s3.put("models", "huge", huge(), etag='"huge"')
    for number in range(count):
        s3.put("models", f"object-{number}", content(number), etag=f'"{number}"')


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
        assert re.search("^lazyfs: the cache directory .* cannot be used", said, re.MULTILINE), said
        assert "Traceback" not in said


class Image:
    """A filesystem in a file, mounted below `work`."""

    def __init__(self, work: Path, kind: str) -> None:
        self.path = work / "filesystem"
        self.path.mkdir()
        self._file = work / "image"
        self.kind = kind
        if kind != "tmpfs":
            # What xfs takes at least; nothing of it is allocated before it is used.
            os.truncate(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), 320 * MIB)
            # Blocks of 4 KiB, as a larger filesystem has by default: the index counts in them.
            blocks = {"ext4": ["-b", "4096"], "xfs": ["-b", "size=4096"]}[kind]
            command = [f"mkfs.{kind}", "-q", *blocks, str(self._file)]
            subprocess.run(command, check=True, timeout=60, env=WITH_SBIN)
        self.mount()
        self.cache = self.path / "cache"
        self.cache.mkdir(mode=0o700)

    def mount(self) -> None:
        """Mount it."""
        if self.kind == "tmpfs":
            command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(self.path)]
        else:
            command = ["mount", "-t", self.kind, "-o", "loop", str(self._file), str(self.path)]
        subprocess.run(command, check=True, timeout=60)

    def unmount(self) -> None:
        """Take it away, which the kernel refuses while a daemon is on it."""
        subprocess.run(["umount", str(self.path)], check=True, timeout=60)

    def fill(self) -> None:
        """Leave nothing, in a file of somebody else's."""
        with (self.path / "filler").open("ab", buffering=0) as file:
            for size in (MIB, 4096):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    def empty(self) -> None:
        """Give that back."""
        (self.path / "filler").unlink()

    def die(self) -> None:
        """From now on every call fails with EIO, and what was not synced is lost: FS_IOC_SHUTDOWN, linux/fs.h, as after
        the disk has gone."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, 0x8004587D, struct.pack("I", 2))
        finally:
            os.close(descriptor)


@pytest.fixture
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Image]:
    """Of the kind that the test asks for. A test asks for it first, so that it goes last."""
    made = Image(tmp_path, request.param)
    yield made
    subprocess.run(["umount", "-l", str(made.path)], check=False, timeout=60, capture_output=True)


@pytest.mark.root
@pytest.mark.parametrize("image", ["tmpfs", "ext4", "xfs"], indirect=True)
def test_a_filesystem_that_runs_full_and_is_emptied(
    image: Image, s3: FastS3Server, mounter: Mounter, reader: Reader
) -> None:
    """By others, while the cache has no bound of its own and nothing has to be left free. What the filesystem counts as
    used by the cache's files is what the index says, before and after."""
    fill_bucket(s3, 400)
    options = ("--memory-budget=16MiB", "--min-free-space=0", "--metadata-ttl=1h")
    mount = mounter.mount(s3, "s3://models", *options, cache=image.cache, expect=[*FAILING, *LEFT])
    disks = Disks(s3, reader, mount)
    for _ in range(4):
        disks.read()
    mount.settle()
    check_at_rest(image.cache)
    image.fill()
    for number in range(8):
        disks.read()
        disks.read_again(f"object-{number % 4}")
    disks.touch()
    image.empty()
    for _ in range(4):
        disks.recovers()
    assert mount.stats()["failures"] == 0
    check_at_rest(image.cache)
    assert mount.unmount() == 0
    image.unmount()
    image.mount()
    if image.cache.exists():
        again = Disks(s3, reader, mounter.mount(s3, "s3://models", *options, cache=image.cache))
        s3.take_log()
        again.read_again(f"object-{disks.next - 1}")
        assert "GET" not in kinds(s3.take_log())
        again.mount.settle()
        assert again.mount.stats()["chunks"]["corrupt"] == 0


@pytest.mark.root
@pytest.mark.parametrize(
    ("image", "end"),
    [(kind, end) for kind in ("ext4", "xfs") for end in ("unmounted", "killed") if FULL or end == "unmounted"],
    indirect=["image"],
)
def test_a_disk_that_dies(image: Image, s3: FastS3Server, mounter: Mounter, reader: Reader, end: str) -> None:
    """Under load: reads go on, and the mount ends in order. When the disk is back, without what was not synced, a mount
    starts on it, and every byte is right.

    Not so on xfs: it answers the next touch of a page of LMDB's mapping by SIGBUS, even where the page is in memory, so
    the daemon may be dead. Then readers get errors, and what is promised is the start that follows.
    """
    fill_bucket(s3, 400)
    options = ("--memory-budget=16MiB", "--min-free-space=0", "--metadata-ttl=1h")
    expect = [*FAILING, *LEFT, *ANEW]
    mount = mounter.mount(s3, "s3://models", *options, cache=image.cache, expect=expect)
    disks = Disks(s3, reader, mount)
    for _ in range(6):
        disks.read()
    reader.begin("digest", str(mount.path / "huge"))
    image.die()
    try:
        assert reader.result() == sum_of(huge())
        for number in range(6):
            disks.read_again(f"object-{number}")
        disks.read()
        assert mount.stats()["failures"] == 0
    except OSError:
        assert image.kind == "xfs"
        assert mount.process.wait(20) == -signal.SIGBUS
    if end == "unmounted" and mount.process.poll() is None:
        assert mount.unmount() == 0
    else:
        mount.kill()
    image.unmount()
    image.mount()
    again = Disks(s3, reader, mounter.mount(s3, "s3://models", *options, cache=image.cache, expect=expect))
    for number in range(8):
        again.read_again(f"object-{number}")
    assert reader.call("cold_digest", str(again.mount.path / "huge")) == sum_of(huge())
    again.mount.settle()
    assert again.mount.unmount() == 0
    index_is_clean(image.cache)
