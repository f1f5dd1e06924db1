"""The kernel's parameters of a mount: those that were asked for are set, and what was reached is shown; and GETs that
are behind are restarted in a mount as they are in its rooms."""

import os
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, PAGE, pages
from tests.mounts.mounting import Mount, Mounter, mountinfo, wait_until
from tests.mounts.reader import Reader
from tests.mounts.test_warming import lazyfs
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault
from tests.servers.records import Request

NAMES = ("read_ahead_kb", "max_background", "congestion_threshold")
SHARD = "shard_read_ahead_kb"


def used_by_the_kernel(mount: Mount) -> dict[str, int]:
    """What /sys has of it; of what it does not show, nothing."""
    device = mountinfo(mount.path)[2]
    connection = Path("/sys/fs/fuse/connections") / device.split(":")[1]
    places = dict(zip(NAMES, (Path(f"/sys/class/bdi/{device}"), connection, connection), strict=True))
    return {name: int((at / name).read_text()) for name, at in places.items() if (at / name).exists()}


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ((), (960, 512, 384, 16384)),
        (("--max-background=100", "--memory-budget=64MiB"), (960, 100, 75, 8192)),
        (("--shard-read-ahead-kb=4096",), (960, 512, 384, 4096)),
        (("--read-ahead-kb=256", "--max-background=200", "--congestion-threshold=20"), (256, 200, 20, 16384)),
    ],
)
def test_parameters_are_set_and_shown(
    s3: FastS3Server, mounter: Mounter, options: tuple[str, ...], wanted: tuple[int, ...]
) -> None:
    """In /sys, in the counters, and in what `lazyfs status` says."""
    s3.put("models", "k", b"x")
    mount = mounter.mount(s3, "s3://models", *options)
    expected = dict(zip((*NAMES, SHARD), wanted, strict=True))
    found = used_by_the_kernel(mount)
    assert found["read_ahead_kb"] == wanted[0]
    assert found.items() <= expected.items()
    assert mount.stats()["kernel"] == expected
    line = ", ".join(f"{name} {value}" for name, value in expected.items())
    assert f"  kernel: {line}\n" in lazyfs(mounter, "status", mount.path)


@pytest.mark.root
def test_a_shard_that_follows_has_more_read_ahead(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """It is opened with that of shards, any other file with the mount's; who touches a mapped one has so much read
    around the touch."""
    names = [f"m-0000{number}-of-00002.bin" for number in (1, 2)]
    data = [pages(number, 32 * MIB) for number in (1, 2)]
    for name, one in zip(names, data, strict=True):
        s3.put("models", name, one)
    s3.put("models", "other", data[0])
    mount = mounter.mount(s3, "s3://models", "--memory-budget=256MiB")
    assert used_by_the_kernel(mount)["read_ahead_kb"] == 960
    place = [16 * MIB]

    def touch(name: str) -> int:
        before = int(mount.stats()["reads"]["bytes"])
        assert reader.call("mapped_pages", str(mount.path / name), place) == [data[name == names[1]][place[0] :][:PAGE]]
        mount.settle()
        return int(mount.stats()["reads"]["bytes"]) - before

    with open(mount.path / names[0], "rb") as first:
        assert first.read(24 * MIB) == data[0][: 24 * MIB]
        with open(mount.path / names[1], "rb"):
            assert used_by_the_kernel(mount)["read_ahead_kb"] == 16384
            assert touch("other") == 960 * 1024
            assert used_by_the_kernel(mount)["read_ahead_kb"] == 960
            assert touch(names[1]) == 16 * MIB
            assert used_by_the_kernel(mount)["read_ahead_kb"] == 16384
        wait_until(lambda: used_by_the_kernel(mount)["read_ahead_kb"] == 960, "the last of them is closed")
    with open(mount.path / names[1], "rb"):
        assert used_by_the_kernel(mount)["read_ahead_kb"] == 960, "half of it was read, and it was closed"


def test_a_get_that_is_behind_is_restarted(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """One in a file that is read through comes at a rate at which it would take a quarter of an hour."""
    data = pages(1, 64 * MIB)
    s3.put("models", "weights", data)
    mount = mounter.mount(s3, "s3://models")
    slowed: list[Request] = []

    def slow(request: Request) -> Fault | None:
        if request.kind != "GET" or slowed or request.range is None or request.range[0] < 16 * MIB:
            return None
        slowed.append(request)
        return Fault(rate=1000.0)

    s3.fault = slow
    assert (mount.path / "weights").read_bytes() == data
    assert len(slowed) == 1
    assert mount.stats()["store"]["restarts"] >= 1
    assert os.path.ismount(mount.path)
