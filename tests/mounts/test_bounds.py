"""P3, P8: the cache stays under its bound at every instant, and one that fails makes reads slower and nothing else."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts.books import allocated, check_at_rest
from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mounter, is_mounted
from tests.mounts.reader import Reader
from tests.mounts.test_cache import DAMAGED, kinds, sum_of
from tests.servers.fast import FastS3Server

FAILING = [
    "the disk cache does not work, reads go on without it",
    "ERROR lazyfs.cache.disk: (index|cannot clear)",
    *DAMAGED,
]


class Sampler:
    """Measures a directory ten times a second until the end of the block; `most` is the largest it was."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.samples: list[int] = []

    def _run(self) -> None:
        while True:
            self.samples.append(allocated(self._directory))
            if self._stop.wait(0.1):
                return

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def most(self) -> int:
        """The largest sample."""
        return max(self.samples)


def test_the_bound_holds_at_every_instant(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """100 MiB through 16 MiB, twice, index included; a file that is open and mapped is evicted under its reader."""
    contents = {f"part-{n}": pages(n, 20 * MIB) for n in range(1, 6)}
    for name, data in contents.items():
        s3.put("models", name, data)
    mount = mounter.mount(s3, "s3://models", "--max-cache-size=16MiB", "--memory-budget=32MiB")
    fd = reader.call("open_file", str(mount.path / "part-1"))
    reader.call("map_file", fd, "random")
    assert reader.call("peek", fd, 4096, 0) == contents["part-1"][:4096]
    with Sampler(mount.cache) as sampler:
        for _ in range(2):
            for name, data in contents.items():
                assert reader.call("digest", str(mount.path / name)) == sum_of(data)
        stats = mount.settle()
    assert sampler.most <= 16 * MIB, sampler.samples
    assert stats["disk"]["used"] <= 16 * MIB
    assert stats["disk"]["evicted_bytes"] > 0
    assert stats["chunks"]["corrupt"] == 0
    for offset in range(0, 20 * MIB, MIB + 4096):
        assert reader.call("peek", fd, 8192, offset) == contents["part-1"][offset : offset + 8192]
    assert allocated(mount.cache / "objects") > 4 * MIB, "a bound is there to be used"


def test_a_smaller_bound_is_reached_by_the_next_mount(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    data = pages(1, 40 * MIB)
    s3.put("models", "old", data)
    s3.put("models", "new", data[: 6 * MIB])
    first = mounter.mount(s3, "s3://models")
    assert reader.call("digest", str(first.path / "old")) == sum_of(data)
    first.settle()
    assert first.unmount() == 0
    again = mounter.mount(s3, "s3://models", "--max-cache-size=16MiB")
    assert reader.call("digest", str(again.path / "new")) == sum_of(data[: 6 * MIB])
    again.settle()
    assert allocated(again.cache) <= 16 * MIB


def test_the_cache_is_deleted_under_load(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    data = pages(1, 48 * MIB)
    s3.put("models", "weights", data)
    s3.put("models", "more", data[: 16 * MIB])
    mount = mounter.mount(s3, "s3://models", "--memory-budget=32MiB", expect=FAILING)
    with s3.hold() as gate:
        reader.begin("digest", str(mount.path / "weights"))
        gate.release(3)
        gate.wait_for(1)
        shutil.rmtree(mount.cache, ignore_errors=True)
    assert reader.result() == sum_of(data)
    assert reader.call("digest", str(mount.path / "more")) == sum_of(data[: 16 * MIB])
    assert reader.call("digest", str(mount.path / "weights")) == sum_of(data)
    assert mount.unmount() == 0
    shutil.rmtree(mount.cache, ignore_errors=True)  # what the daemon made while it was being deleted
    for gets in (True, False):
        again = mounter.mount(s3, "s3://models", "--memory-budget=32MiB", cache=mounter.cache())
        s3.take_log()
        assert reader.call("digest", str(again.path / "more")) == sum_of(data[: 16 * MIB])
        again.settle()
        assert ("GET" in kinds(s3.take_log())) == gets, "made again, the directory is a cache again"
        check_at_rest(again.cache)
        assert again.unmount() == 0


def test_the_cache_is_closed_to_its_owner(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """chmod 0, which root does not feel, so for root it is only a test that nothing happens."""
    data = pages(1, 24 * MIB)
    s3.put("models", "weights", data)
    mount = mounter.mount(s3, "s3://models", "--memory-budget=16MiB", expect=FAILING)
    fd = reader.call("open_file", str(mount.path / "weights"))
    assert reader.call("pread", fd, 4096, 0) == data[:4096]
    mount.cache.chmod(0)
    try:
        assert reader.call("digest", str(mount.path / "weights")) == sum_of(data)
        assert reader.call("mapped_digest", str(mount.path / "weights"), "random") == sum_of(data)[1]
    finally:
        mount.cache.chmod(0o700)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 12 MiB. A test asks for it first, so that it goes last."""
    path = tmp_path / "tiny"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m,mode=0700", "tmpfs", str(path)], check=True, timeout=30)
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True, timeout=30)
    assert not is_mounted(path)


@pytest.mark.root
@pytest.mark.parametrize("full", [False, True], ids=["small", "filled-up"])
def test_a_disk_that_is_full(tiny: Path, s3: FastS3Server, mounter: Mounter, reader: Reader, full: bool) -> None:
    """No free space is asked for, so that it does run full; or somebody else has filled it."""
    data = pages(1, 40 * MIB)
    s3.put("models", "weights", data)
    mount = mounter.mount(s3, "s3://models", "--min-free-space=0", "--memory-budget=16MiB", cache=tiny, expect=FAILING)
    if full:
        with (tiny / "filler").open("wb") as file, pytest.raises(OSError, match="No space"):
            os.posix_fallocate(file.fileno(), 0, 12 * MIB)
        with (tiny / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, tiny_free(tiny))
    for _ in range(2):
        assert reader.call("digest", str(mount.path / "weights")) == sum_of(data)
    assert mount.settle()["failures"] == 0


@pytest.mark.root
def test_free_space_is_left(tiny: Path, s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """--min-free-space, as measured by the filesystem itself."""
    data = pages(1, 40 * MIB)
    s3.put("models", "weights", data)
    mount = mounter.mount(s3, "s3://models", "--min-free-space=5MiB", "--memory-budget=16MiB", cache=tiny)
    low = threading.Event()
    least = [tiny_free(tiny)]

    def sample() -> None:
        while not low.wait(0.1):
            least.append(tiny_free(tiny))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        for _ in range(2):
            assert reader.call("digest", str(mount.path / "weights")) == sum_of(data)
        mount.settle()
    finally:
        low.set()
        sampler.join()
    assert min(least) >= 5 * MIB, least
    assert allocated(tiny) > MIB


def tiny_free(path: Path) -> int:
    """Bytes that a filesystem has left."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
