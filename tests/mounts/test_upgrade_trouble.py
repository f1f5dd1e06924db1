"""`lazyfs upgrade` while S3 is slow, and when one of the processes ends before it should."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter, is_mounted, run, wait_until
from tests.mounts.reader import Reader
from tests.mounts.test_upgrade import LATE, PLAIN, THEN, ended, upgrade
from tests.servers.fast import FastS3Server
from tests.servers.faults import Gate
from tests.servers.records import Request

SIZE = 24 * MIB + 777
DATA = pages(1, SIZE)
QUICK = pages(2, MIB)

ASKED_AGAIN = r"fuse_read\(\): fuse_reply_\* failed with No such file or directory"
"""pyfuse3, of an answer to the first of two copies of a request."""


def kernel_asks_again() -> bool:
    """Whether the kernel has FUSE_NOTIFY_RESEND."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor)) >= (6, 9)


asks_again = pytest.mark.skipif(not kernel_asks_again(), reason="needs Linux 6.9")


def of_slow(request: Request) -> bool:
    """A GET of the object that S3 is slow to give."""
    return request.kind == "GET" and request.key == "slow"


@contextlib.contextmanager
def held_reads(s3: FastS3Server, mount: Mount, count: int) -> Iterator[tuple[Gate, list[Reader]]]:
    """Readers, each of which waits for the MiB of its number, and the gate behind which S3 holds all of that."""
    with contextlib.ExitStack() as stack:
        gate = stack.enter_context(s3.hold(of_slow))
        readers = [stack.enter_context(Reader()) for _ in range(count)]
        for number, reader in enumerate(readers):
            fd = reader.call("open_file", str(mount.path / "slow"))
            reader.begin("pread", fd, MIB, number * MIB)
        gate.wait_for(1)
        wait_until(lambda: all(map(waits, readers)), "all of them wait")
        yield gate, readers


def waits(reader: Reader) -> bool:
    """Whether it waits for a page."""
    return "State:\tD" in Path(f"/proc/{reader.pid}/status").read_text()


@pytest.fixture
def mount(s3: FastS3Server, mounter: Mounter) -> Mount:
    """Of something slow and something quick."""
    s3.put("models", "slow", DATA)
    s3.put("models", "quick", QUICK)
    s3.put("models", "far/away", QUICK)
    return mounter.mount(s3, "s3://models", expect=["is gone; the kernel is told", ASKED_AGAIN])


def test_reads_that_outlast_two_upgrades(s3: FastS3Server, mount: Mount) -> None:
    """Eight wait for S3 while the mount goes from one process to the next, and to the next: each is answered by who
    began it, who ends then and not before; a process that nobody waits for ends at once."""
    with held_reads(s3, mount, 8) as (gate, readers):
        second = upgrade(mount)
        third = upgrade(mount)
        wait_until(lambda: ended(second), "nobody waits for the second one")
        assert (mount.path / "quick").read_bytes() == QUICK
        assert mount.process.poll() is None
        gate.release()
        for number, reader in enumerate(readers):
            assert reader.result() == DATA[number * MIB : (number + 1) * MIB]
    assert mount.process.wait(20) == 0
    assert "is gone" not in mount.logged()
    done = run(["status", mount.path], PLAIN)
    assert f"pid {third}," in done.stdout
    assert mount.stats()["failures"] == 0


@asks_again
@pytest.mark.parametrize(("upgrades", "number"), [(1, signal.SIGKILL), (2, signal.SIGKILL), (2, signal.SIGTERM)])
def test_who_began_reads_ends_without(s3: FastS3Server, mount: Mount, upgrades: int, number: int) -> None:
    """Killed, or asked to end, before S3 has answered: whoever serves the mount by then answers in its place."""
    with held_reads(s3, mount, 2) as (gate, readers):
        for _ in range(upgrades):
            upgrade(mount)
        mount.killed = True
        mount.signal(number)
        wait_until(lambda: "is gone; the kernel is told" in mount.logged(), "it was noticed")
        gate.release()
        for at, reader in enumerate(readers):
            assert reader.result() == DATA[at * MIB : (at + 1) * MIB]
    assert mount.stats()["failures"] == 0
    assert run(["unmount", mount.path], PLAIN).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_who_serves_ends_first(s3: FastS3Server, mount: Mount, number: int) -> None:
    """Nobody serves the mount any more: who still waits for S3 ends as well, and no reader is left waiting."""
    with held_reads(s3, mount, 2) as (_, readers):
        pid = upgrade(mount)
        os.kill(pid, number)
        wait_until(lambda: ended(pid), "it has ended")
        assert mount.process.wait(20) == 0
        for reader in readers:
            with pytest.raises(OSError, match=r"not connected|abort"):
                reader.result()
    if number == signal.SIGTERM:
        assert not is_mounted(mount.path)


def test_one_that_fails_while_reads_wait(s3: FastS3Server, mount: Mount, tmp_path: Path) -> None:
    """The process that was told all, and ended, may have read requests: the kernel asks again, and all is answered."""
    mount.expect.append("is not handed over, and goes on")
    program = tmp_path / "p"
    program.write_text(LATE.format(python=sys.executable, then=THEN["ends"]))
    program.chmod(0o755)
    with held_reads(s3, mount, 2) as (gate, readers):
        for attempt in range(2):
            os.getxattr(mount.path, f"user.lazyfs.upgrade:once={attempt},python={os.fsencode(program).hex()}")
            wait_until(lambda: not step(mount), "it was given up")
            assert (mount.path / "quick").read_bytes() == QUICK
        gate.release()
        for at, reader in enumerate(readers):
            assert reader.result() == DATA[at * MIB : (at + 1) * MIB]
    assert upgrade(mount) != mount.pid
    assert mount.process.wait(20) == 0


def step(mount: Mount) -> str:
    """What is being done towards another process."""
    return str(json.loads(os.getxattr(mount.path, "user.lazyfs.upgrading"))["step"])


def test_a_name_that_is_asked_for(s3: FastS3Server, mount: Mount, reader: Reader) -> None:
    """What the kernel is told of a name must be known to the next process, so that is waited for. The mount is served
    meanwhile."""
    with s3.hold(lambda request: request.kind == "LIST" and request.query.get("prefix") == "far/") as gate:
        reader.begin("os:stat", str(mount.path / "far" / "away"))
        gate.wait_for(1)
        os.getxattr(mount.path, "user.lazyfs.upgrade:once=1,python=")
        wait_until(lambda: step(mount) == "waiting", "it waits for the name")
        assert (mount.path / "quick").read_bytes() == QUICK
        assert mount.stats()["pid"] == mount.pid
        gate.release()
        assert reader.result().st_size == MIB
    wait_until(lambda: mount.stats()["pid"] != mount.pid, "another process serves it")
    assert (mount.path / "far" / "away").read_bytes() == QUICK
    assert mount.process.wait(20) == 0


def test_attributes_stay(s3: FastS3Server, mounter: Mounter) -> None:
    """Of directories, too, of which S3 does not say when they were changed."""
    s3.put("models", "far/away", QUICK)
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=0s")
    paths = [mount.path, mount.path / "far", mount.path / "far" / "away"]
    held = [os.open(path, os.O_RDONLY) for path in paths]  # what the kernel forgets may get another number
    before = [os.stat(path) for path in paths]
    wait_until(lambda: time.time() > before[1].st_mtime + 1, "a second has passed, as between two starts")
    upgrade(mount)
    assert [os.stat(path) for path in paths] == before
    assert [os.fstat(fd) for fd in held] == before
    for fd in held:
        os.close(fd)
