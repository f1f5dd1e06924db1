"""P7: what is on its way when a mount ends: bytes that nobody waits for, listings, more signals, the next mount."""

import errno
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter, environment, is_mounted, run, wait_until
from tests.mounts.reader import Reader, ReaderDied
from tests.servers.fast import FastS3Server
from tests.servers.faults import Gate

END = 15.0
"""Seconds that an end may take, whatever is under way."""

SIZE = 64 * MIB
FAR = 48 * MIB
"""An offset that nothing brings ahead."""

GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}
"""What a read gets whose daemon ended: refused, aborted, or a page that did not come."""


@pytest.fixture
def content(s3: FastS3Server) -> bytes:
    """Of the object `weights`."""
    data = pages(1, SIZE)
    s3.put("models", "weights", data)
    return data


@pytest.fixture
def env(s3: FastS3Server, tmp_path: Path) -> dict[str, str]:
    """The environment of a command."""
    return environment(tmp_path / "home", s3)


@pytest.fixture
def readers() -> Iterator[tuple[Reader, Reader]]:
    """One to read and one to touch a mapping."""
    with Reader() as one, Reader() as other:
        yield one, other


def use(mount: Mount, readers: tuple[Reader, Reader], content: bytes) -> tuple[int, int]:
    """Open the file in both readers, map it in the second, and read its start; the descriptors."""
    path = str(mount.path / "weights")
    opened, mapped = (reader.call("open_file", path) for reader in readers)
    readers[1].call("map_file", mapped, "random")
    assert readers[0].call("pread", opened, 4096, 0) == content[:4096]
    assert readers[1].call("peek", mapped, 4096, 0) == content[:4096]
    mount.settle()
    return opened, mapped


def wait_far(gate: Gate, readers: tuple[Reader, Reader], descriptors: tuple[int, int]) -> None:
    """Let both wait for bytes that the server holds, in different chunks."""
    readers[0].begin("pread", descriptors[0], 4096, FAR)
    gate.wait_for(1)
    readers[1].begin("peek", descriptors[1], 4096, FAR + 12 * MIB)
    gate.wait_for(2)


def assert_readers_end(readers: tuple[Reader, Reader]) -> None:
    """The read fails and the mapped touch dies by SIGBUS; neither hangs, and no task of theirs stays in state D."""
    with pytest.raises(OSError) as failure:  # noqa: PT011 (the number is looked at)
        readers[0].result(END)
    assert failure.value.errno in GONE
    with pytest.raises(ReaderDied, match="SIGBUS"):
        readers[1].result(END)
    wait_until(lambda: not uninterruptible([reader.pid for reader in readers]), "no process in state D", 5)


def uninterruptible(pids: list[int]) -> list[str]:
    """The tasks of these processes that are in state D."""
    found = []
    for pid in pids:
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            try:
                if "\nState:\tD" in status.read_text():
                    found.append(str(status))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def test_more_signals_change_nothing(
    mounter: Mounter, s3: FastS3Server, readers: tuple[Reader, Reader], content: bytes
) -> None:
    """Whoever is impatient sends more than one."""
    mount = mounter.mount(s3, "s3://models")
    descriptors = use(mount, readers, content)
    with s3.hold() as gate:
        wait_far(gate, readers, descriptors)
        started = time.monotonic()
        mount.process.send_signal(signal.SIGTERM)
        mount.process.send_signal(signal.SIGINT)
        assert mount.signal(signal.SIGTERM) == 0
        assert time.monotonic() - started < END
        assert not is_mounted(mount.path)
        assert_readers_end(readers)
    assert not (mount.cache / "open").exists(), "the index was closed"


def test_sigterm_while_a_listing_is_held(mounter: Mounter, s3: FastS3Server, reader: Reader, content: bytes) -> None:
    s3.put("models", "below/weights", b"more")
    mount = mounter.mount(s3, "s3://models")
    with s3.hold(lambda request: request.kind == "LIST") as gate:
        reader.begin("open_file", str(mount.path / "below" / "weights"))
        gate.wait_for(1)
        started = time.monotonic()
        assert mount.signal(signal.SIGTERM) == 0
        assert time.monotonic() - started < END
        with pytest.raises(OSError) as failure:  # noqa: PT011
            reader.result(END)
        assert failure.value.errno in GONE
    assert not is_mounted(mount.path)


def test_unmount_while_bytes_nobody_waits_for_are_on_their_way(
    mounter: Mounter, s3: FastS3Server, content: bytes, env: dict[str, str]
) -> None:
    """Their reader was killed, so nothing is in use; the daemon hears of its unmount although a request waits."""
    mount = mounter.mount(s3, "s3://models")
    with s3.hold() as gate:
        with Reader() as killed:
            fd = killed.call("open_file", str(mount.path / "weights"))
            killed.begin("pread", fd, 4096, FAR)
            gate.wait_for(1)
        started = time.monotonic()

        def unmounted() -> bool:
            """A killed reader leaves its file a moment after its death."""
            done = run(["unmount", mount.path], env, timeout=40)
            assert done.returncode == 0 or "in use" in done.stderr, done.stderr
            return done.returncode == 0

        wait_until(unmounted, "nothing in use", END)
        assert mount.process.wait(END) == 0
        assert time.monotonic() - started < END
    assert not is_mounted(mount.path)


def test_a_refused_unmount_harms_nobody(
    mounter: Mounter, s3: FastS3Server, readers: tuple[Reader, Reader], content: bytes, env: dict[str, str]
) -> None:
    mount = mounter.mount(s3, "s3://models")
    descriptors = use(mount, readers, content)
    with s3.hold() as gate:
        wait_far(gate, readers, descriptors)
        refused = run(["unmount", mount.path], env)
        assert refused.returncode == 1
        assert "in use" in refused.stderr
    assert readers[0].result() == content[FAR : FAR + 4096]
    assert readers[1].result() == content[FAR + 12 * MIB : FAR + 12 * MIB + 4096]


def test_a_lazy_unmount_lets_held_reads_finish(
    mounter: Mounter, s3: FastS3Server, readers: tuple[Reader, Reader], content: bytes, env: dict[str, str]
) -> None:
    mount = mounter.mount(s3, "s3://models")
    opened, mapped = use(mount, readers, content)
    with s3.hold() as gate:
        wait_far(gate, readers, (opened, mapped))
        started = time.monotonic()
        assert run(["unmount", "--lazy", mount.path], env).returncode == 0
        assert time.monotonic() - started < END
        assert not is_mounted(mount.path)
    assert readers[0].result() == content[FAR : FAR + 4096]
    assert readers[1].result() == content[FAR + 12 * MIB : FAR + 12 * MIB + 4096]
    readers[0].call("close_file", opened)
    readers[1].call("close_file", mapped)
    assert readers[1].call("peek", mapped, 4096, 30 * MIB) == content[30 * MIB : 30 * MIB + 4096]
    readers[1].call("unmap", mapped)
    assert mount.process.wait(END) == 0


@pytest.mark.parametrize("by", ["mount", "unmount"])
def test_what_sigkill_left_is_cleared(
    mounter: Mounter, s3: FastS3Server, readers: tuple[Reader, Reader], content: bytes, by: str, env: dict[str, str]
) -> None:
    """Killed while open, mapped and waited for, and still open when it is cleared."""
    dead = mounter.mount(s3, "s3://models")
    descriptors = use(dead, readers, content)
    with s3.hold() as gate:
        wait_far(gate, readers, descriptors)
        dead.kill(clear=False)
        assert_readers_end(readers)
    assert is_mounted(dead.path)
    if by == "unmount":
        assert run(["unmount", dead.path], env).returncode == 0
        assert not is_mounted(dead.path)
    again = mounter.mount(s3, "s3://models")
    with Reader() as fresh:
        fd = fresh.call("open_file", str(again.path / "weights"))
        assert fresh.call("pread", fd, 4096, FAR) == content[FAR : FAR + 4096]
    with pytest.raises(OSError) as failure:  # noqa: PT011
        readers[0].call("pread", descriptors[0], 4096, 30 * MIB)
    assert failure.value.errno in GONE, "the old descriptor stays dead"
    assert again.signal(signal.SIGTERM) == 0
    assert not is_mounted(again.path), "nothing is left below it"
