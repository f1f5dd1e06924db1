"""Sizes at which something ends: a chunk, a span, a segment; nothing at all; and the largest object that S3 takes."""

import os

from tests.mounts.books import allocated
from tests.mounts.contents import MIB, PAGE
from tests.mounts.mounting import Mounter
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server
from tests.servers.made import Made
from tests.servers.objects import made_up

TIB = 1 << 40
UNITS = {"chunk": MIB, "span": 8 * MIB, "segment": 64 * MIB}
SIZES = {"nothing": 0, "a byte": 1}
SIZES |= {f"{unit}{more:+d}": size + more for unit, size in UNITS.items() for more in (-1, 0, 1)}


def test_sizes_at_which_something_ends(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """All of it read and mapped, cold, and once more out of the cache: each byte, and not one more."""
    for name, size in SIZES.items():
        s3.objects.put("models", name, made_up(1, size))
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=1h", "--verify-objects=off")
    for name, size in SIZES.items():
        path, made = mount.path / name, Made(1, size)
        assert path.stat().st_size == size
        fd = reader.call("open_file", str(path))
        assert reader.call("pread", fd, PAGE, size) == b""
        last = max(0, size - 10_000)
        assert reader.call("pread", fd, 20_000, last) == made.piece(last, size)
        if size:
            reader.call("map_file", fd)
            assert reader.call("peek", fd, size - last, last) == made.piece(last, size)
            assert reader.call("peek", fd, 1, 0) == made.piece(0, 1)
            reader.call("unmap", fd)
        reader.call("close_file", fd)
        assert path.read_bytes() == made.piece(0, size)
    mount.settle()
    mount.unmount()
    again = mounter.mount(s3, "s3://models", "--metadata-ttl=1h", "--verify-objects=off")
    for name, size in SIZES.items():
        assert (again.path / name).read_bytes() == Made(1, size).piece(0, size)


def test_the_largest_object_there_is(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """5 TiB: at its end, in its middle, mapped, in a cache of 128 MiB, whose bound holds; again after a remount."""
    size = 5 * TIB
    made = Made(1, size)
    s3.objects.put("models", "huge", made_up(1, size))
    bound = 128 * MIB
    for _ in range(2):
        mount = mounter.mount(s3, "s3://models", f"--max-cache-size={bound}", "--metadata-ttl=1h")
        path = mount.path / "huge"
        found = path.stat()
        assert (found.st_size, found.st_blocks) == (size, size // 512)
        assert os.statvfs(mount.path).f_blocks * 4096 == size
        fd = reader.call("open_file", str(path))
        reader.call("map_file", fd)
        for offset in (0, 4 * TIB - 5 * MIB, size // 2 - 1000, size - 3 * MIB, size - 10_000):
            expected = made.piece(offset, offset + 10_000)
            assert reader.call("pread", fd, 10_000, offset) == expected
            assert reader.call("peek", fd, 10_000, offset) == expected
            assert allocated(mount.cache) <= bound
        assert reader.call("pread", fd, PAGE, size - 1) == made.piece(size - 1, size)
        assert reader.call("pread", fd, PAGE, size) == b""
        for offset in range(3 * TIB, 3 * TIB + 200 * MIB, MIB):
            assert reader.call("pread", fd, 100, offset) == made.piece(offset, offset + 100)
            assert allocated(mount.cache) <= bound
        mount.settle()
        stats = mount.stats()
        assert stats["failures"] == 0
        assert int(os.getxattr(path, "user.lazyfs.cached_bytes")) <= bound
        reader.call("unmap", fd)
        reader.call("close_file", fd)
        mount.unmount()
