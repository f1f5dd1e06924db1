"""Requests that libfuse splices: as it takes them wherever a daemon may have pipes of more than 1 MiB."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts.mounting import Mount, Mounter, wait_until
from tests.mounts.test_many import HOUR, forgotten
from tests.servers.fast import FastS3Server

LIMIT = Path("/proc/sys/fs/pipe-max-size")
ENOUGH = 2 << 20
NAMES = [f"weights-{number:04}" for number in range(4000)]
"""More than `device.FORGETS`."""


@pytest.fixture
def large_pipes() -> Iterator[None]:
    """Everybody may have pipes of 2 MiB, which CAP_SYS_RESOURCE gives to a daemon of root's on most machines."""
    before = LIMIT.read_text()
    LIMIT.write_text(str(max(ENOUGH, int(before))))
    yield
    LIMIT.write_text(before)


def largest_pipe(mount: Mount) -> int:
    """Bytes that the largest pipe of the daemon takes."""
    found = 0
    for path in Path(f"/proc/{mount.process.pid}/fd").iterdir():
        if os.readlink(path).startswith("pipe:"):
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            found = max(found, fcntl.fcntl(number, fcntl.F_GETPIPE_SZ))
            os.close(number)
    return found


@pytest.mark.root
@pytest.mark.usefixtures("large_pipes")
def test_names_reads_and_forgets(mounter: Mounter, s3: FastS3Server) -> None:
    """Names looked up, bytes read, and the names forgotten in pieces that fill half of a socket."""
    for name in NAMES:
        s3.put("models", name, name.encode())
    mount = mounter.mount(s3, "s3://models", HOUR)
    for name in NAMES:
        assert (mount.path / name).stat().st_size == len(name)
    assert largest_pipe(mount) >= ENOUGH
    for name in NAMES[::100]:
        assert (mount.path / name).read_bytes() == name.encode()
    wait_until(lambda: forgotten(mount, 100), "the inodes are forgotten")
    assert sorted(os.listdir(mount.path)) == NAMES
    assert mount.stats()["failures"] == 0
    assert mount.unmount() == 0
