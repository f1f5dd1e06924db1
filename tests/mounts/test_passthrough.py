"""--passthrough: what is here and was compared with its digest is read by the kernel itself, and still right."""

import ctypes
import mmap
import os
import platform
import signal
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter, run, wait_until
from tests.mounts.reader import Reader
from tests.mounts.test_cache import object_files, sum_of
from tests.mounts.test_verification import crc_header
from tests.servers.fast import FastS3Server

SIZE = 9 * MIB + 4097
DATA = pages(1, SIZE)
PLAIN = {"PATH": "/usr/bin:/bin"}


def kernel_passes() -> bool:
    """Whether this machine has what it takes; the kernel's half is of Linux 6.9."""
    release = tuple(int(part) for part in platform.release().split(".")[:2])
    return os.geteuid() == 0 and release >= (6, 9)


pytestmark = pytest.mark.skipif(not kernel_passes(), reason="needs root and Linux 6.9")


def put(s3: FastS3Server, name: str = "weights", data: bytes = DATA) -> None:
    """An object whose digest S3 keeps."""
    s3.put("models", name, data, headers=crc_header(data))


def bring(mount: Mount, name: str = "weights", data: bytes = DATA) -> None:
    """Read it to its end, and wait until all of it is kept and judged."""
    path = mount.path / name
    assert sum_of(path.read_bytes()) == sum_of(data)

    def judged() -> bool:
        return os.getxattr(path, "user.lazyfs.verified") == b"crc64nvme"

    wait_until(judged, f"{name} is here and was compared")


def warm(s3: FastS3Server, mounter: Mounter, *options: str, **more: object) -> Mount:
    """A mount with passthrough that finds everything in its cache."""
    first = mounter.mount(s3, "s3://models", *options)
    for key in ("weights", "other"):
        if (first.path / key).exists():
            bring(first, key, pages(1 if key == "weights" else 2, os.stat(first.path / key).st_size))
    assert first.unmount() == 0
    return mounter.mount(s3, "s3://models", "--passthrough", *options, **more)  # type: ignore[arg-type]


def test_the_kernel_reads_it(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """All ways to read give the bytes, none of them comes to the daemon, and nothing is asked for."""
    put(s3)
    mount = warm(s3, mounter)
    path = str(mount.path / "weights")
    s3.take_log()
    fd = reader.call("open_file", path)
    other = reader.call("open_file", path)
    assert mount.stats()["passthrough"] == {"opens": 2, "files": 1, "unable": ""}
    reader.call("map_file", fd)
    assert sum_of(reader.call("peek", fd, SIZE - 5, 5)) == sum_of(DATA[5:])
    assert reader.call("pread", other, 3 * MIB, MIB - 1) == DATA[MIB - 1 : 4 * MIB - 1]
    assert reader.call("pread", fd, 9000, SIZE - 4000) == DATA[-4000:], "short only at the end"
    reader.call("unmap", fd)
    reader.call("close_file", fd)
    reader.call("close_file", other)
    assert sum_of(Path(path).read_bytes()) == sum_of(DATA)
    stats = mount.stats()
    assert (stats["reads"], stats["failures"]) == ({"count": 0, "bytes": 0}, 0)
    assert s3.take_log() == []
    wait_until(lambda: mount.stats()["passthrough"] == {"opens": 3, "files": 0, "unable": ""}, "it is let go")


def test_while_it_comes_we_read_it(s3: FastS3Server, mounter: Mounter) -> None:
    """A file that was opened before it was here stays with the daemon for as long as anybody has it open, and while the
    kernel has the mount's pages of it; then it is the kernel's."""
    put(s3)
    mount = mounter.mount(s3, "s3://models", "--passthrough")
    path = mount.path / "weights"
    with path.open("rb") as held:
        assert held.read(4096) == DATA[:4096]
        bring(mount)
        with path.open("rb") as again:
            assert again.read() == DATA
        assert mount.stats()["passthrough"]["opens"] == 0
    Path("/proc/sys/vm/drop_caches").write_text("1")
    assert sum_of(path.read_bytes()) == sum_of(DATA)
    assert mount.stats()["passthrough"]["opens"] == 0
    Path("/proc/sys/vm/drop_caches").write_text("1")
    assert sum_of(path.read_bytes()) == sum_of(DATA)
    assert mount.stats()["passthrough"]["opens"] == 1


def test_what_is_not_known_to_be_right_is_not_passed(s3: FastS3Server, mounter: Mounter) -> None:
    """Without a verdict every byte goes through its checksum: here a flipped one, which is found and mended."""
    put(s3)
    first = mounter.mount(s3, "s3://models", "--verify-objects=off")
    assert sum_of((first.path / "weights").read_bytes()) == sum_of(DATA)
    first.settle()
    assert first.unmount() == 0
    (file,) = object_files(first.cache)
    with file.open("r+b") as stream:
        stream.seek(5 * MIB)
        stream.write(b"\xff\xfe\xfd")
    mount = mounter.mount(
        s3, "s3://models", "--passthrough", "--verify-objects=off", expect=["damaged"]
    )
    assert sum_of((mount.path / "weights").read_bytes()) == sum_of(DATA)
    assert mount.stats()["passthrough"]["opens"] == 0


def test_eviction_leaves_it_while_it_is_read(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """Another file needs its room and does not get it, the bound holds, and the mapping keeps its bytes; closed, it may
    go as any other."""
    put(s3)
    put(s3, "other", pages(2, SIZE))
    bound = "--max-cache-size=22MiB"
    first = mounter.mount(s3, "s3://models", bound)
    bring(first)
    assert first.unmount() == 0
    mount = mounter.mount(s3, "s3://models", "--passthrough", bound)
    weights, other = mount.path / "weights", mount.path / "other"
    fd = reader.call("open_file", str(weights))
    reader.call("map_file", fd)
    assert mount.stats()["passthrough"]["files"] == 1
    s3.put("models", "third", pages(3, SIZE), headers=crc_header(pages(3, SIZE)))
    for _ in range(2):
        for number, path in ((2, other), (3, mount.path / "third")):
            if path.exists():
                assert sum_of(path.read_bytes()) == sum_of(pages(number, SIZE))
                mount.settle()
                assert mount.stats()["disk"]["used"] <= 22 * MIB
    assert os.getxattr(weights, "user.lazyfs.cached_bytes") == str(SIZE).encode()
    evicted = run(["evict", weights], PLAIN)
    assert evicted.returncode == 1, evicted
    assert "are being written or read just now and stay" in evicted.stderr
    assert sum_of(reader.call("peek", fd, SIZE, 0)) == sum_of(DATA)
    reader.call("unmap", fd)
    reader.call("close_file", fd)
    wait_until(lambda: mount.stats()["passthrough"]["files"] == 0, "it is closed")
    assert run(["evict", weights], PLAIN).returncode == 0
    assert os.getxattr(weights, "user.lazyfs.cached_bytes") == b"0"
    assert sum_of(weights.read_bytes()) == sum_of(DATA)


def test_mapped_readers_outlive_the_daemon(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """SIGKILL: who has it mapped reads on, also pages it never touched, and what the next daemon evicts is not that."""
    put(s3)
    put(s3, "other", pages(2, 2 * SIZE))
    mount = warm(s3, mounter, "--max-cache-size=34MiB")
    fd = reader.call("open_file", str(mount.path / "weights"))
    reader.call("map_file", fd, "random")
    mount.kill(clear=False)
    Path("/proc/sys/vm/drop_caches").write_text("1")
    assert sum_of(reader.call("peek", fd, 4096, 4 * MIB)) == sum_of(DATA[4 * MIB : 4 * MIB + 4096])
    fresh = mounter.mount(s3, "s3://models", "--max-cache-size=12MiB", at=mounter.place("fresh"))
    assert sum_of((fresh.path / "other").read_bytes()) == sum_of(pages(2, 2 * SIZE))
    fresh.settle()
    assert sum_of(reader.call("peek", fd, SIZE, 0)) == sum_of(DATA)
    reader.call("unmap", fd)


def test_two_daemons_share_the_files(s3: FastS3Server, mounter: Mounter) -> None:
    """Each passes the same file to its own mount, and neither evicts it under the other."""
    put(s3)
    one = warm(s3, mounter)
    two = mounter.mount(s3, "s3://models", "--passthrough", at=mounter.place("two"))
    with (one.path / "weights").open("rb") as held:
        assert sum_of((two.path / "weights").read_bytes()) == sum_of(DATA)
        evicted = run(["evict", two.path / "weights"], PLAIN)
        assert evicted.returncode == 1, evicted
        assert "are being written or read just now and stay" in evicted.stderr
        assert held.read() == DATA
    assert one.stats()["passthrough"]["opens"] == two.stats()["passthrough"]["opens"] == 1


def test_where_the_kernel_refuses(s3: FastS3Server, mounter: Mounter, tmp_path: Path) -> None:
    """A cache on overlayfs cannot be passed: said once, with what to do, and the daemon reads it."""
    layers = [tmp_path / name for name in ("lower", "upper", "work", "stacked")]
    for layer in layers:
        layer.mkdir()
    lower, upper, work, stacked = map(str, layers)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}".encode()
    assert libc.mount(b"overlay", stacked.encode(), b"overlay", 0, options) == 0, os.strerror(ctypes.get_errno())
    try:
        cache = layers[3] / "cache"
        cache.mkdir(mode=0o700)
        put(s3)
        first = mounter.mount(s3, "s3://models", cache=cache)
        bring(first)
        assert first.unmount() == 0
        mount = mounter.mount(s3, "s3://models", "--passthrough", cache=cache, expect=["stacked filesystem"])
        assert sum_of((mount.path / "weights").read_bytes()) == sum_of(DATA)
        assert "stacked filesystem" in mount.stats()["passthrough"]["unable"]
        assert mount.logged().count("cannot read cached files by itself") == 1
        assert mount.unmount() == 0
    finally:
        libc.umount2(stacked.encode(), 0)


def test_opened_by_many_at_once(s3: FastS3Server, mounter: Mounter) -> None:
    """Opens, reads and closes of several files at a time, passed and not: no answer is lost or another's."""
    put(s3)
    put(s3, "other", pages(2, SIZE))
    s3.put("models", "cold", pages(3, 40 * MIB))
    sizes = {"weights": (1, SIZE), "other": (2, SIZE), "cold": (3, 40 * MIB)}
    files = [(name, pages(*each)) for name, each in sizes.items()]
    mount = warm(s3, mounter)
    children = []
    for number in range(8):
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            wrong = 0
            for turn in range(40):
                name, data = files[(number + turn) % 3]
                at = (number * 7 + turn * 13) % (len(data) // 4096) * 4096
                fd = os.open(mount.path / name, os.O_RDONLY)
                with mmap.mmap(fd, len(data), prot=mmap.PROT_READ) as mapped:
                    found = mapped[at : at + 64], os.pread(fd, 64, at)
                os.close(fd)
                wrong += found != (data[at : at + 64], data[at : at + 64])
            os._exit(min(wrong, 100))
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 8
    assert mount.stats()["passthrough"]["opens"] >= 8
