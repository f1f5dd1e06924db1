"""Many keys, as S3 has them: a walk takes a request for a thousand of them and a remount none, what the kernel forgets
is forgotten, and an outage takes no name away."""

import errno
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.mounts.mounting import Mount, Mounter, environment, outlive_moment, run, wait_until
from tests.servers.fast import FastS3Server
from tests.servers.records import Request

HOUR = "--metadata-ttl=1h"
FIND = ["find", ".", "-type", "f", "-size", "-9c"]

WALKS = [FIND, ["ls", "-lR", "--time-style=+"], ["ls", "-R"]]


def flat(count: int) -> list[str]:
    """Keys in one prefix."""
    return [f"big/shard-{number:06}-of-{count:06}.safetensors" for number in range(count)]


def deep(count: int) -> list[str]:
    """Ten keys in each prefix."""
    return [f"big/model-{number // 10:05}/part-{number % 10}.safetensors" for number in range(count)]


def fill(server: FastS3Server, keys: Sequence[str]) -> None:
    """Seven bytes under each key."""
    for key in keys:
        server.put("models", key, b"weights", modified=1_600_000_000)


def walk(mount: Mount, command: Sequence[str]) -> list[str]:
    """What the command says, line by line."""
    done = subprocess.run(command, cwd=mount.path, capture_output=True, text=True, timeout=110, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def lists(server: FastS3Server) -> list[Request]:
    """The requests since the last time, which are for nothing but listings."""
    log = server.take_log()
    assert {request.kind for request in log} <= {"LIST"}
    return log


def check_walk(
    mounter: Mounter, server: FastS3Server, keys: Callable[[int], list[str]], count: int, command: Sequence[str]
) -> None:
    """A request for a thousand keys, and for nothing more than these a few; the same lines after a remount, which
    sends nothing."""
    fill(server, keys(count))
    mount = mounter.mount(server, "s3://models", HOUR)
    found = walk(mount, command)
    assert sum(line.count(".safetensors") for line in found) == count
    # The root, what begins a walk, and for `find` some to answer statfs; a stretch ends inside a directory.
    assert len(lists(server)) <= 1.15 * count / 1000 + 20
    assert mount.unmount() == 0
    again = mounter.mount(server, "s3://models", HOUR)
    assert walk(again, command) == found
    assert walk(again, command) == found
    assert lists(server) == []


@pytest.mark.parametrize("command", WALKS, ids=" ".join)
@pytest.mark.parametrize("keys", [flat, deep])
def test_a_walk_takes_a_request_for_a_thousand_keys(
    mounter: Mounter, s3: FastS3Server, keys: Callable[[int], list[str]], command: list[str]
) -> None:
    check_walk(mounter, s3, keys, 4000, command)


@pytest.mark.slow
@pytest.mark.parametrize("command", WALKS, ids=" ".join)
@pytest.mark.parametrize("keys", [flat, deep])
def test_a_walk_over_a_hundred_thousand_keys(
    mounter: Mounter, s3: FastS3Server, keys: Callable[[int], list[str]], command: list[str]
) -> None:
    check_walk(mounter, s3, keys, 100_000, command)


def forgotten(mount: Mount, most: int) -> bool:
    """Have the kernel forget the names and inodes that nobody uses; whether the daemon then knows no more than that."""
    Path("/proc/sys/vm/drop_caches").write_text("2")
    return int(mount.stats()["inodes"]) <= most


@pytest.mark.root
@pytest.mark.parametrize("keys", [flat, deep])
def test_what_the_kernel_forgets_is_forgotten(
    mounter: Mounter, s3: FastS3Server, keys: Callable[[int], list[str]]
) -> None:
    """And known again when somebody looks, without a request; a file that is open stays what it is."""
    fill(s3, keys(4000))
    mount = mounter.mount(s3, "s3://models", HOUR)
    path = mount.path / keys(4000)[7]
    found = walk(mount, FIND)
    before = os.lstat(path)
    assert mount.stats()["inodes"] > 4000
    with path.open("rb") as file:
        lists(s3)
        wait_until(lambda: forgotten(mount, 100), "the inodes are forgotten")
        assert os.fstat(file.fileno()) == before
        assert walk(mount, FIND) == found
        assert os.path.samestat(os.lstat(path), before)
        assert file.read() == b"weights"
    # All of it is here then, and may have been compared with what the store says already.
    assert {request.kind for request in s3.take_log()} - {"HEAD"} == {"GET"}


def test_an_outage_takes_no_name_away(mounter: Mounter, s3: FastS3Server) -> None:
    """Past the time of every listing: what was listed before is shown, also after a remount; the store is asked again
    now and then, and not for each directory."""
    keys = deep(600)
    fill(s3, keys)
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=0s")
    found = walk(mount, FIND)
    assert len(found) == 600
    assert mount.unmount() == 0
    s3.stop()
    again = mounter.mount(s3, "s3://models", "--metadata-ttl=0s", expect=["going on with the listing", "statfs"])
    assert walk(again, FIND) == found
    outlive_moment()
    assert walk(again, FIND) == found
    assert again.stats()["store"]["list_requests"] < 30
    s3.start()


def test_what_is_hidden_is_counted_after_a_remount(mounter: Mounter, s3: FastS3Server) -> None:
    """From listings that came from the index, and out of stretches as well as alone."""
    for number in range(20):
        for name in ("seen", "..", "a//b", ""):
            s3.put("models", f"d{number:02}/{name}", b"x")
    hidden = {"name is . or ..": 20, "empty name between slashes": 20, "directory marker": 20}
    for requests in (True, False):
        mount = mounter.mount(s3, "s3://models", HOUR)
        assert len([line for line in walk(mount, ["find", ".", "-type", "f"]) if line.endswith("seen")]) == 20
        shown = run(["status", mount.path, "--json"], environment(mounter.work / "home", s3))
        (status,) = json.loads(shown.stdout)
        assert status["hidden"] == hidden
        said = run(["status", mount.path], environment(mounter.work / "home", s3)).stdout
        for reason in hidden:
            assert f"20 keys hidden: {reason}" in said
        assert bool(lists(s3)) == requests
        assert mount.unmount() == 0


def test_other_attributes_are_not_supported(mounter: Mounter, s3: FastS3Server) -> None:
    """So that `ls -l` asks for an ACL once, and not for every file."""
    s3.put("models", "k", b"x")
    path = mounter.mount(s3, "s3://models", HOUR).path / "k"
    for name, number in (("security.selinux", errno.EOPNOTSUPP), ("user.other", errno.ENODATA)):
        with pytest.raises(OSError, match=os.strerror(number)):
            os.getxattr(path, name)
