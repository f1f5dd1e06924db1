"""P3: filesystems of several kinds that run full, or die, under the cache."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts.books import check_at_rest, index_is_clean
from tests.mounts.disks import LEFT, Disks, Image, fill_bucket, huge
from tests.mounts.mounting import Mounter
from tests.mounts.reader import Reader
from tests.mounts.test_bounds import FAILING
from tests.mounts.test_cache import ANEW, kinds, sum_of
from tests.servers.fast import FastS3Server

FULL = os.environ.get("LAZYFS_TEST_FULL") == "1"


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
