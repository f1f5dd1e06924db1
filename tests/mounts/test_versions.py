"""P1, P19: an object that changes while it is read. Each read is of one version, and of which one is known."""

import errno
import signal
import threading
from collections import Counter

import pytest

from tests.mounts.contents import MIB, pages, versions_in
from tests.mounts.mounting import Mounter, outlive_moment, wait_until
from tests.mounts.reader import Reader, ReaderDied
from tests.servers.fast import FastS3Server

STALE = ["read failed with ESTALE", "open failed with ESTALE"]
SIZE = 12 * MIB


def test_an_open_handle_keeps_its_version(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """What of it is cached is given on, what is not is ESTALE; an open within the TTL may still be the old one."""
    old, new = pages(1, SIZE), pages(2, SIZE + 5000)
    s3.put("models", "weights", old)
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=0s", expect=STALE)
    path = str(mount.path / "weights")
    fd = reader.call("open_file", path)
    assert reader.call("pread", fd, 100_000, 0) == old[:100_000]
    mount.settle()
    s3.put("models", "weights", new)
    outlive_moment()
    assert reader.call("pread", fd, 50_000, 0) == old[:50_000]
    with pytest.raises(OSError, match="Stale") as raised:
        reader.call("pread", fd, 4096, SIZE - 4096)
    assert raised.value.errno == errno.ESTALE
    again = reader.call("open_file", path)
    assert reader.call("pread", again, 4096, SIZE) == new[SIZE : SIZE + 4096]
    assert reader.call("pread", fd, 50_000, 0) == old[:50_000], "the pages of both versions live side by side"
    assert reader.call("pread", again, 50_000, 0) == new[:50_000]


def test_a_listing_is_believed_for_its_ttl(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """P19: the name stands for the old version until the TTL has passed, and for the new one afterwards."""
    old, new = pages(1, SIZE), pages(2, SIZE)
    s3.put("models", "weights", old)
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=2s", expect=STALE)
    path = mount.path / "weights"
    inode = path.stat().st_ino
    reader.call("digest", str(path))
    mount.settle()
    s3.put("models", "weights", new)
    wait_until(lambda: path.stat().st_ino != inode, "the name stands for the new version", timeout=10)
    fd = reader.call("open_file", str(path))
    assert reader.call("pread", fd, SIZE, 0) == new


def test_a_changed_object_that_is_found_out_early(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """The listing is trusted for an hour, but a GET says that the object is another: the next open gets that one."""
    old, new = pages(1, SIZE), pages(2, SIZE)
    s3.put("models", "weights", old)
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=1h", expect=STALE)
    path = str(mount.path / "weights")
    fd = reader.call("open_file", path)
    s3.put("models", "weights", new)
    with pytest.raises(OSError, match="Stale"):
        reader.call("pread", fd, 4096, 5 * MIB)
    # The kernel may use the name as it knows it once more; open itself then says ESTALE, and the kernel looks again.
    again = reader.call("open_file", path)
    assert reader.call("pread", again, SIZE, 0) == new


def test_deleted_while_open(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    old = pages(1, SIZE)
    s3.put("models", "weights", old)
    s3.put("models", "other", b"stays")
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=0s", "--negative-metadata-ttl=0s", expect=STALE)
    path = str(mount.path / "weights")
    fd = reader.call("open_file", path)
    assert reader.call("pread", fd, 4096, 0) == old[:4096]
    mount.settle()
    s3.delete("models", "weights")
    outlive_moment()
    with pytest.raises(FileNotFoundError):
        reader.call("open_file", path)
    assert reader.call("pread", fd, 4096, 0) == old[:4096]
    with pytest.raises(OSError, match="Stale"):
        reader.call("pread", fd, 4096, SIZE - 4096)


def test_a_mapping_of_what_is_gone_is_sigbus_and_not_other_bytes(
    s3: FastS3Server, mounter: Mounter, reader: Reader
) -> None:
    old, new = pages(1, SIZE), pages(2, SIZE)
    s3.put("models", "weights", old)
    mount = mounter.mount(s3, "s3://models", expect=STALE)
    fd = reader.call("open_file", str(mount.path / "weights"))
    reader.call("map_file", fd)
    assert reader.call("peek", fd, 10_000, 0) == old[:10_000]
    s3.put("models", "weights", new)
    with pytest.raises(ReaderDied, match=signal.SIGBUS.name):
        reader.call("peek", fd, 10_000, SIZE - 10_000)


def test_a_storm_of_overwrites(s3: FastS3Server, mounter: Mounter) -> None:
    """Two readers, and a writer that replaces the object as soon as somebody has read of it: never a mix."""
    versions = {number: pages(number, 6 * MIB) for number in range(1, 9)}
    s3.put("models", "weights", versions[1])
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=0s", expect=STALE)
    stop, turns = threading.Event(), threading.Semaphore(0)

    def overwrite() -> None:
        number = 1
        while not stop.is_set():
            if turns.acquire(timeout=0.1):
                number = number % len(versions) + 1
                s3.put("models", "weights", versions[number])

    writer = threading.Thread(target=overwrite)
    writer.start()
    outcomes: Counter[str] = Counter()
    try:
        with Reader() as one, Reader() as two:
            for turn in range(40):
                for reader in (one, two):
                    reader.begin("tests.mounts.storm:read_through", str(mount.path / "weights"), turn)
                turns.release()
                for reader in (one, two):
                    for outcome, offset, data in reader.result():
                        outcomes[outcome] += 1
                        assert outcome in ("read", "stale")
                        seen = versions_in(data, offset)
                        assert len(seen - {0}) <= 1, seen
                        assert 0 not in seen, "bytes of no version"
    finally:
        stop.set()
        writer.join()
    assert outcomes["read"] >= 40
