"""What a running mount logs, changed from outside; and the access log."""

import json
import signal

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mounter, environment, run, wait_until
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server


def test_the_level_of_a_running_mount(s3: FastS3Server, mounter: Mounter) -> None:
    """By the command, and by signals."""
    s3.put("models", "k", b"k")
    env = environment(mounter.work / "home", s3)
    mount = mounter.mount(s3, "s3://models", "--log-level=info")

    def says(*arguments: str) -> tuple[int, str]:
        done = run(["log-level", *arguments], env)
        return done.returncode, done.stdout + done.stderr

    path = str(mount.path)
    assert says(path) == (0, "info\n")
    assert says(path, "DEBUG") == (0, "debug\n")
    assert mount.stats()["log_level"] == "debug"
    mount.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: mount.stats()["log_level"] == "info", "as it was mounted")
    mount.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: mount.stats()["log_level"] == "debug", "everything")
    assert "the log level is now info, it was debug (SIGUSR2)" in mount.logged()
    status, words = says(path, "loud")
    assert (status, "'loud' is not one of" in words) == (2, True)
    status, words = says(str(mounter.work), "debug")
    assert (status, words.count("\n")) == (2, 1)


@pytest.mark.parametrize("format_", ["text", "json"])
def test_the_access_log(s3: FastS3Server, mounter: Mounter, reader: Reader, format_: str) -> None:
    """A line for each request of the kernel, with its key, range and result."""
    s3.put("models", "a/weights", pages(1, MIB))
    place = mounter.work / "access"
    mount = mounter.mount(s3, "s3://models", f"--access-log={place}", f"--log-format={format_}", expect=["^{"])
    assert reader.call("digest", str(mount.path / "a" / "weights"))[0] == MIB
    assert not (mount.path / "a" / "missing").exists()
    reads = mount.stats()["reads"]["count"]
    assert mount.signal(signal.SIGTERM) == 0
    assert place.stat().st_mode & 0o077 == 0
    lines = place.read_text().splitlines()
    if format_ == "json":
        found = [json.loads(line) for line in lines]
        read = [one for one in found if one["operation"] == "read"]
        assert {(one["key"], one["result"]) for one in read} == {("a/weights", "ok")}
        assert {one["offset"] for one in read} >= {0}
        assert "a/missing" in {one["key"] for one in found if one["operation"] == "lookup"}
    else:
        read = [line for line in lines if " read 'a/weights' offset " in line]
        assert any(" lookup 'a/missing' ok " in line for line in lines)
    assert len(read) == reads
