"""P10: every system call that would change something gives EROFS and sends no request.

EROFS comes from the kernel, which knows that the mount is `ro`. Where it is something else, the table says why.
"""

import ctypes
import errno
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounts.mounting import Mount, Mounter
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server

libc = ctypes.CDLL(None, use_errno=True)


def _checked(status: int) -> None:
    """As os does with a system call that it does not know."""
    if status < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _opened(path: Path, flags: int, call: Callable[[int], object] = lambda fd: None) -> None:
    fd = os.open(path, flags)
    try:
        call(fd)
    finally:
        os.close(fd)


def _map_writable(fd: int) -> None:
    mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def _copy_into(root: Path) -> None:
    """Both descriptors readable only, for no other can be had of a file here."""
    source, target = os.open(root / "file", os.O_RDONLY), os.open(root / "other", os.O_RDONLY)
    try:
        os.copy_file_range(source, target, 10)
    finally:
        os.close(source)
        os.close(target)


def _rename_exchange(root: Path) -> None:
    _checked(libc.renameat2(-100, os.fsencode(root / "file"), -100, os.fsencode(root / "other"), 2))


def _fchmodat(root: Path) -> None:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chmod("file", 0o600, dir_fd=fd)
    finally:
        os.close(fd)


READ = os.O_RDONLY
CALLS: dict[str, Callable[[Path], object]] = {
    "open for writing": lambda root: _opened(root / "file", os.O_WRONLY),
    "open for both": lambda root: _opened(root / "file", os.O_RDWR),
    "open to append": lambda root: _opened(root / "file", os.O_WRONLY | os.O_APPEND),
    "open to truncate": lambda root: _opened(root / "file", os.O_RDONLY | os.O_TRUNC),
    "open to create": lambda root: _opened(root / "new", os.O_WRONLY | os.O_CREAT),
    "open to create exclusively": lambda root: _opened(root / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "open a nameless file": lambda root: _opened(root, os.O_WRONLY | os.O_TMPFILE),
    "mkdir": lambda root: os.mkdir(root / "new"),
    "mknod": lambda root: os.mknod(root / "new", 0o100600),
    "mkfifo": lambda root: os.mkfifo(root / "new"),
    "unlink": lambda root: os.unlink(root / "file"),
    "rmdir": lambda root: os.rmdir(root / "dir"),
    "rename": lambda root: os.rename(root / "file", root / "new"),
    "rename over another": lambda root: os.rename(root / "file", root / "other"),
    "renameat2 that exchanges": _rename_exchange,
    "link": lambda root: os.link(root / "file", root / "new"),
    "symlink": lambda root: os.symlink("file", root / "new"),
    "chmod": lambda root: os.chmod(root / "file", 0o600),
    "chmod of a directory": lambda root: os.chmod(root / "dir", 0o700),
    "fchmod": lambda root: _opened(root / "file", READ, lambda fd: os.fchmod(fd, 0o600)),
    "fchmodat": _fchmodat,
    "chown": lambda root: os.chown(root / "file", os.getuid(), os.getgid()),
    "fchown": lambda root: _opened(root / "file", READ, lambda fd: os.fchown(fd, os.getuid(), os.getgid())),
    "lchown": lambda root: os.lchown(root / "file", os.getuid(), os.getgid()),
    "truncate": lambda root: os.truncate(root / "file", 0),
    "utimensat": lambda root: os.utime(root / "file", ns=(0, 0)),
    "utimensat to now": lambda root: os.utime(root / "file"),
    "futimens": lambda root: _opened(root / "file", READ, lambda fd: os.utime(fd, ns=(0, 0))),
    "setxattr": lambda root: os.setxattr(root / "file", "user.new", b"1"),
    "setxattr of ours": lambda root: os.setxattr(root / "file", "user.lazyfs.etag", b"1"),
    "removexattr": lambda root: os.removexattr(root / "file", "user.lazyfs.etag"),
    "access for writing": lambda root: _checked(libc.access(os.fsencode(root / "file"), os.W_OK)),
}
OTHERWISE: dict[str, tuple[int, str, Callable[[Path], object]]] = {
    "write": (
        errno.EBADF, "no descriptor for writing can be had, and the kernel looks at that first",
        lambda root: _opened(root / "file", READ, lambda fd: os.write(fd, b"x")),
    ),
    "pwrite": (errno.EBADF, "as write", lambda root: _opened(root / "file", READ, lambda fd: os.pwrite(fd, b"x", 0))),
    "ftruncate": (
        errno.EINVAL, "what the kernel says of a descriptor that is not for writing",
        lambda root: _opened(root / "file", READ, lambda fd: os.ftruncate(fd, 0)),
    ),
    "fallocate": (
        errno.EBADF, "as write", lambda root: _opened(root / "file", READ, lambda fd: os.posix_fallocate(fd, 0, 10)),
    ),
    "copy_file_range into": (errno.EBADF, "as write", _copy_into),
    "mmap to write, shared": (
        errno.EACCES, "what mmap(2) says of a descriptor that is not for writing",
        lambda root: _opened(root / "file", READ, _map_writable),
    ),
}  # fmt: skip
REMOUNTED = {"access for writing": "done", "open a nameless file": "ENOTSUP"}
"""What is not EROFS once root has taken the `ro` away: access(2) looks at mode bits only, and the kernel knows from
pyfuse3 that there are no nameless files.

"""


@pytest.fixture(scope="module")
def server() -> Iterator[FastS3Server]:
    """Its log tells whether a call sent a request."""
    with FastS3Server() as made:
        made.put("models", "file", b"x" * 5000)
        made.put("models", "other", b"y" * 5000)
        made.put("models", "dir/inner", b"z")
        yield made


@pytest.fixture(scope="module")
def mount(server: FastS3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """Listed once, and trusted for ever, so that every request that comes is the call's doing."""
    mounter = Mounter(tmp_path_factory.mktemp("read-only"))
    made = mounter.mount(server, "s3://models", "--metadata-ttl=indefinite", "--file-mode=0666", "--dir-mode=0777")
    assert sorted(os.listdir(made.path)) == ["dir", "file", "other"]
    assert os.listdir(made.path / "dir") == ["inner"]
    yield made
    mounter.end()


@pytest.mark.parametrize("name", CALLS)
def test_is_refused_with_erofs(mount: Mount, server: FastS3Server, name: str) -> None:
    server.take_log()
    with pytest.raises(OSError) as raised:  # noqa: PT011 (its errno is what is tried)
        CALLS[name](mount.path)
    assert errno.errorcode[raised.value.errno or 0] == "EROFS"
    assert server.take_log() == []


@pytest.mark.parametrize("name", OTHERWISE)
def test_is_refused_by_the_kernel_in_its_own_words(mount: Mount, server: FastS3Server, name: str) -> None:
    number, _, call = OTHERWISE[name]
    server.take_log()
    with pytest.raises(OSError) as raised:  # noqa: PT011 (its errno is what is tried)
        call(mount.path)
    assert errno.errorcode[raised.value.errno or 0] == errno.errorcode[number]
    assert server.take_log() == []


def test_writes_into_a_private_mapping_stay_private(mount: Mount, reader: Reader) -> None:
    """A loader may scribble on its own copy of a page."""
    assert reader.call("scribble", str(mount.path / "file")) == (b"abcxx", b"xxxxx")


@pytest.mark.root
def test_even_when_remounted_for_writing(server: FastS3Server, mounter: Mounter) -> None:
    """Root may take the kernel's `ro` away; then lazyfs itself refuses. It is asked, and sends no request."""
    own = mounter.mount(server, "s3://models", "--metadata-ttl=indefinite", "--file-mode=0666", "--dir-mode=0777")
    assert sorted(os.listdir(own.path)) == ["dir", "file", "other"]
    assert os.listdir(own.path / "dir") == ["inner"]
    assert (own.path / "other").stat().st_size == 5000
    # -i: not by way of a mount.fuse helper, which would mount once more.
    subprocess.run(["mount", "-i", "-o", "remount,rw", str(own.path)], check=True, timeout=30)
    server.take_log()
    found = {}
    for name, call in CALLS.items():
        try:
            call(own.path)
            found[name] = "done"
        except OSError as error:
            found[name] = errno.errorcode[error.errno or 0]
    assert {name: how for name, how in found.items() if how != "EROFS"} == REMOUNTED
    assert server.take_log() == []
    assert (own.path / "file").read_bytes() == b"x" * 5000
