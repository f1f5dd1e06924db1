"""What a cache disk is tried with: objects that nobody has read, a daemon that reads them, filesystems that can fail.

Must not know which faults there are.
"""

import contextlib
import fcntl
import functools
import os
import struct
import subprocess
from pathlib import Path

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, wait_until
from tests.mounts.reader import Reader
from tests.mounts.test_cache import sum_of
from tests.servers.fast import FastS3Server

SIZE = 3 * MIB + 4097
CHUNKS = 4
LEFT = ["what an earlier daemon left in the cache could not be cleared", "ERROR lazyfs.cache.disk: index"]
WITH_SBIN = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


class Disks:
    """One daemon on a cache that fails, and objects that nobody has read: each name is used once."""

    def __init__(self, s3: FastS3Server, reader: Reader, mount: Mount) -> None:
        self._s3 = s3
        self.reader = reader
        self.mount = mount
        self.next = 0

    def read(self) -> str:
        """Read an object that is not cached, and return its name."""
        name = f"object-{self.next}"
        self.next += 1
        self.read_again(name)
        return name

    def touch(self) -> None:
        """Read 4 KiB here and there of an object too large for the cache, so that holes are punched to make room."""
        fd = self.reader.call("open_at_random", str(self.mount.path / "huge"))
        for segment in range(2):
            chunk = segment * 64 + self.next % 60
            assert self.reader.call("pread", fd, 4096, chunk * MIB) == huge()[chunk * MIB : chunk * MIB + 4096]
        self.reader.call("close_file", fd)

    def read_again(self, name: str) -> None:
        """Read an object to its end, past the kernel's own cache."""
        data = content(int(name.partition("-")[2]))
        path = str(self.mount.path / name)
        assert self.reader.call("cold_digest", path) == sum_of(data)

    def recovers(self) -> None:
        """What is read now is kept, all of it; the first writes may be what notices that the fault has gone."""

        def kept() -> bool:
            before = self.mount.settle()["chunks"]["kept"]
            self.read()
            return bool(self.mount.settle()["chunks"]["kept"] - before == CHUNKS)

        wait_until(kept, "chunks are kept again", 10)


@functools.cache
def of_kind(kind: int) -> bytes:
    """Of every 16th object, for memory's sake."""
    return pages(kind + 1, SIZE)


def content(number: int) -> bytes:
    """Of `object-N`."""
    return of_kind(number % 16)


@functools.cache
def huge() -> bytes:
    """Of `huge`: two segments."""
    return pages(99, 126 * MIB)


def fill_bucket(s3: FastS3Server, count: int) -> None:
    """Objects of a few MiB, and a large one."""
    s3.put("models", "huge", huge(), etag='"huge"')
    for number in range(count):
        s3.put("models", f"object-{number}", content(number), etag=f'"{number}"')


class Image:
    """A filesystem in a file, mounted below `work`."""

    def __init__(self, work: Path, kind: str) -> None:
        self.path = work / "filesystem"
        self.path.mkdir()
        self._file = work / "image"
        self.kind = kind
        if kind != "tmpfs":
            # What xfs takes at least; nothing of it is allocated before it is used.
            os.truncate(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), 320 * MIB)
            # Blocks of 4 KiB, as a larger filesystem has by default: the index counts in them.
            blocks = {"ext4": ["-b", "4096"], "xfs": ["-b", "size=4096"]}[kind]
            command = [f"mkfs.{kind}", "-q", *blocks, str(self._file)]
            subprocess.run(command, check=True, timeout=60, env=WITH_SBIN)
        self.mount()
        self.cache = self.path / "cache"
        self.cache.mkdir(mode=0o700)

    def mount(self) -> None:
        """Mount it."""
        if self.kind == "tmpfs":
            command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(self.path)]
        else:
            command = ["mount", "-t", self.kind, "-o", "loop", str(self._file), str(self.path)]
        subprocess.run(command, check=True, timeout=60)

    def unmount(self) -> None:
        """Take it away, which the kernel refuses while a daemon is on it."""
        subprocess.run(["umount", str(self.path)], check=True, timeout=60)

    def fill(self) -> None:
        """Leave nothing, in a file of somebody else's."""
        with (self.path / "filler").open("ab", buffering=0) as file:
            for size in (MIB, 4096):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    def empty(self) -> None:
        """Give that back."""
        (self.path / "filler").unlink()

    def die(self) -> None:
        """From now on every call fails with EIO, and what was not synced is lost: FS_IOC_SHUTDOWN, linux/fs.h, as after
        the disk has gone."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, 0x8004587D, struct.pack("I", 2))
        finally:
            os.close(descriptor)
