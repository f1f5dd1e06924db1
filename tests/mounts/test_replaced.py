"""P1, P19: overwrites at the worst moments: between any two requests of a reader, under the same size, ETag or time."""

import errno
import hashlib
import os
import random
import threading

import pytest

from tests.mounts.contents import MIB, pages, versions_in
from tests.mounts.mounting import Mount, Mounter
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault
from tests.servers.records import Request

SIZE = 32 * MIB
NO_TTL = "--metadata-ttl=0s"
STALE = ["failed with ESTALE"]
"""What the log may say: that a read met another version."""


def put(s3: FastS3Server, version: int, size: int = SIZE) -> bytes:
    """Make version `version` the object."""
    data = pages(version, size)
    s3.put("models", "weights", data)
    return data


def path_of(mount: Mount) -> str:
    """Of the object in the mount."""
    return str(mount.path / "weights")


def digest(data: bytes) -> tuple[int, str]:
    """What a reader's `digest` gives for it."""
    return len(data), hashlib.sha256(data).hexdigest()


def test_every_chunk_of_an_old_handle(mounter: Mounter, s3: FastS3Server, reader: Reader) -> None:
    """What is cached is old, what is not is ESTALE, also after the new version was read."""
    old = put(s3, 1)
    mount = mounter.mount(s3, "s3://models", NO_TTL, expect=STALE)
    fd = reader.call("open_file", path_of(mount))
    assert reader.call("pread", fd, 4096, 0) == old[:4096]
    mount.settle()
    new = put(s3, 2)
    refused: list[int | None] = []
    for turn in range(2):
        for offset in range(0, SIZE, MIB):
            try:
                assert reader.call("pread", fd, 8192, offset) == old[offset : offset + 8192]
            except OSError as error:
                refused.append(error.errno)
        assert set(refused) == {errno.ESTALE}
        assert 20 * (turn + 1) <= len(refused) <= 31 * (turn + 1)
        assert reader.call("digest", path_of(mount)) == digest(new)


def test_a_wholly_cached_version_outlives_its_object(mounter: Mounter, s3: FastS3Server, reader: Reader) -> None:
    old = put(s3, 1)
    mount = mounter.mount(s3, "s3://models", NO_TTL)
    fd = reader.call("open_file", path_of(mount))
    reader.call("digest", path_of(mount))
    mount.settle()
    put(s3, 2)
    s3.take_log()
    for offset in range(0, SIZE, 8 * MIB):
        assert reader.call("pread", fd, MIB, offset) == old[offset : offset + MIB]
    assert [request for request in s3.take_log() if request.kind == "GET"] == []


def test_a_size_never_shrinks_under_a_handle(mounter: Mounter, s3: FastS3Server, reader: Reader) -> None:
    put(s3, 1)
    mount = mounter.mount(s3, "s3://models", NO_TTL)
    before = os.stat(path_of(mount))
    fd = os.open(path_of(mount), os.O_RDONLY)
    try:
        new = put(s3, 2, SIZE // 2)
        after = os.stat(path_of(mount))
        assert (after.st_size, after.st_ino != before.st_ino) == (SIZE // 2, True)
        assert (os.fstat(fd).st_size, os.fstat(fd).st_ino) == (SIZE, before.st_ino)
    finally:
        os.close(fd)
    assert os.getxattr(path_of(mount), "user.lazyfs.etag") == f'"{hashlib.md5(new).hexdigest()}"'.encode()
    assert reader.call("digest", path_of(mount)) == digest(new)


def test_within_the_ttl_nothing_is_asked(mounter: Mounter, s3: FastS3Server, reader: Reader) -> None:
    old = put(s3, 1)
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    reader.call("digest", path_of(mount))
    mount.settle()
    inode = os.stat(path_of(mount)).st_ino
    put(s3, 2)
    s3.take_log()
    assert reader.call("digest", path_of(mount)) == digest(old)
    assert os.stat(path_of(mount)).st_ino == inode
    assert s3.take_log() == []


def test_the_same_bytes_and_etag_again(mounter: Mounter, s3: FastS3Server, reader: Reader) -> None:
    """Only the time differs: another inode, for attributes never change, but no byte is fetched again."""
    data = pages(1, SIZE)
    s3.put("models", "weights", data, modified=1_700_000_000)
    mount = mounter.mount(s3, "s3://models", NO_TTL)
    before = os.stat(path_of(mount))
    reader.call("digest", path_of(mount))
    mount.settle()
    s3.put("models", "weights", data, modified=1_700_000_060)
    s3.take_log()
    after = os.stat(path_of(mount))
    assert (after.st_mtime - before.st_mtime, after.st_ino != before.st_ino) == (60, True)
    assert reader.call("digest", path_of(mount)) == digest(data)
    assert {request.kind for request in s3.take_log()} == {"LIST"}


def test_the_same_size_with_another_etag_after_a_remount(mounter: Mounter, s3: FastS3Server, reader: Reader) -> None:
    """What the disk has of the old version is never given for the new one."""
    put(s3, 1)
    first = mounter.mount(s3, "s3://models", NO_TTL)
    reader.call("digest", path_of(first))
    first.settle()
    assert first.unmount() == 0
    new = put(s3, 2)
    second = mounter.mount(s3, "s3://models", NO_TTL)
    assert reader.call("digest", path_of(second)) == digest(new)


def test_another_etag_in_the_answer_is_believed(mounter: Mounter, s3: FastS3Server, reader: Reader) -> None:
    """A server that ignores If-Match and sends the new version under its own name."""
    put(s3, 1)
    mount = mounter.mount(s3, "s3://models", NO_TTL, expect=STALE)
    fd = reader.call("open_file", path_of(mount))
    s3.fault = lambda request: Fault(etag='"other"') if request.kind == "GET" else None
    with pytest.raises(OSError) as failure:  # noqa: PT011 (the number is looked at)
        reader.call("pread", fd, 4096, SIZE // 2)
    assert failure.value.errno == errno.ESTALE


# ---- the storm

STORM_SIZES = [8 * MIB, 5 * MIB + 4096, 8 * MIB, 12 * MIB]
"""Of versions 0, 1, 2, 3, 4 (the first again), ... ; mostly another size, sometimes the same."""


def storm_size(version: int) -> int:
    """Of a version in the storm."""
    return STORM_SIZES[version % len(STORM_SIZES)]


def read_in_storm(path: str, seed: int) -> tuple[list[int], int]:
    """Open and read at random places again and again (in a child): the version that each handle gave, and how often it
    was ESTALE. AssertionError if a handle gave bytes or a size of anything but one version."""
    dice, seen, stale = random.Random(seed), [], 0
    for _ in range(40):
        found: set[int] = set()
        size, fd = 0, -1
        try:
            fd = os.open(path, os.O_RDONLY)
            size = os.fstat(fd).st_size
            for _ in range(6):
                offset = dice.randrange(size // 4096) * 4096
                stop = min(offset + 65536, size)
                while offset < stop:  # the kernel gives the pages that it has before it says that one did not come
                    data = os.pread(fd, stop - offset, offset)
                    assert data, "the end before the end"
                    found |= versions_in(data, offset)
                    offset += len(data)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            stale += 1
        finally:
            if fd >= 0:
                os.close(fd)
        assert len(found) <= 1, f"one handle gave versions {found}"
        assert 0 not in found, "bytes of no version"
        for version in found:
            assert size == storm_size(version)
            seen.append(version)
    return seen, stale


def test_an_overwrite_between_any_two_requests(mounter: Mounter, s3: FastS3Server) -> None:
    """Every third request of three readers meets an overwrite, between its arrival and its answer: so also between a
    listing and the GETs that follow from it, and between the GETs of one file."""
    lock, version, requests = threading.Lock(), 1, 0
    ready = {number: pages(number, storm_size(number)) for number in range(1, 9)}
    put(s3, 1, storm_size(1))
    mount = mounter.mount(s3, "s3://models", NO_TTL, expect=STALE)

    def overwrite(request: Request) -> None:
        nonlocal version, requests
        with lock:
            requests += 1
            if requests % 3 == 0:
                version = version % len(ready) + 1
                s3.put("models", "weights", ready[version])

    s3.fault = overwrite
    readers = [Reader() for _ in range(3)]
    try:
        for seed, one in enumerate(readers):
            one.begin("tests.mounts.test_replaced:read_in_storm", path_of(mount), seed)
        results = [one.result(90) for one in readers]
    finally:
        for one in readers:
            one.close()
    s3.fault = None
    assert len({number for seen, _ in results for number in seen}) >= 3, "several versions were read"
    assert 412 in {request.status for request in s3.take_log()}, "the storm did meet reads"
    final = put(s3, 9)
    with Reader() as calm:
        assert calm.call("digest", path_of(mount)) == digest(final)
