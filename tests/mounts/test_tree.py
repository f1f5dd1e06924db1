"""P11, P13, P14: what stat, df and xattrs say is what the bucket holds, the same from every system call; odd keys are
readable, and hidden ones are counted."""

import ctypes
import errno
import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter, environment, run, wait_until
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server

FOREVER = "--metadata-ttl=indefinite"
CREATED = 1_600_000_000
FILES = {"config.json": 17, "weights.bin": 3 * MIB + 5, "empty": 0, "nested/a.bin": 4096, "nested/deeper/b.bin": 1}

ODD = [
    "with space", " leading and trailing ", "plus+plus", "percent%20percent%", "question?x=1&y=2", "#hash", "quote'\"",
    "back\\slash", "<&>", "new\nline", "tab\t", "a:b|c*d", "~", "...", "-rf", "\u00fc\u00f1\u00ef", "u\u0308",
    "\u6a21\u578b.bin", "\U0001f999", "UPPER", "upper", "\x01\x7f", "x" * 255, "\u00e9" * 127 + "x",
]  # fmt: skip
"""Names that are valid, also some that only look like trouble."""


@dataclass(frozen=True)
class Forest:
    """A mount with a little of everything, which nobody changes."""

    server: FastS3Server
    mount: Mount

    def path(self, name: str) -> str:
        """Of an entry in the mount."""
        return str(self.mount.path / name)


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forest]:
    """One mount for all tests that change nothing."""
    mounter = Mounter(tmp_path_factory.mktemp("tree"))
    with FastS3Server() as server:
        for number, (name, size) in enumerate(FILES.items(), 1):
            server.put("models", name, pages(number, size), modified=CREATED + number)
        for number, name in enumerate(ODD):
            server.put("models", f"odd/{name}", f"{number}".encode())
        yield Forest(server, mounter.mount(server, "s3://models", FOREVER))
        mounter.end()


def test_sizes_times_modes_and_links(forest: Forest) -> None:
    for number, (name, size) in enumerate(FILES.items(), 1):
        found = os.lstat(forest.path(name))
        assert (found.st_size, found.st_mtime_ns) == (size, (CREATED + number) * 10**9)
        assert (found.st_mode, found.st_nlink, found.st_blocks) == (0o100444, 1, -(-size // 512))
        assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())
    for name in ("", "nested", "nested/deeper"):
        found = os.lstat(forest.path(name))
        assert (found.st_mode, found.st_nlink) == (0o40555, 1)
        assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())


@pytest.mark.root
def test_owner_and_modes_as_asked(forest: Forest, mounter: Mounter) -> None:
    """By root, for nobody else may look into a directory that 1234 owns."""
    options = ["--uid=1234", "--gid=4321", "--file-mode=0440", "--dir-mode=0550", "--noexec"]
    mount = mounter.mount(forest.server, "s3://models", FOREVER, *options)
    file = os.statvfs(mount.path)
    assert file.f_flag & os.ST_NOEXEC
    assert file.f_flag & os.ST_RDONLY
    for name, mode in (("nested", 0o40550), ("nested/a.bin", 0o100440)):
        found = os.lstat(mount.path / name)
        assert (found.st_uid, found.st_gid, found.st_mode) == (1234, 4321, mode)


# ---- agreement

_STATX_MASK, _FORCE_SYNC, _AT_FDCWD = 0x7FF, 0x2000, -100
libc = ctypes.CDLL(None, use_errno=True)


def forced(path: str) -> tuple[int, ...]:
    """What statx says when the kernel has to ask the daemon (getattr), as `words` has it."""
    buffer = ctypes.create_string_buffer(256)
    if libc.statx(_AT_FDCWD, os.fsencode(path), _FORCE_SYNC, _STATX_MASK, buffer) != 0:
        raise OSError(ctypes.get_errno(), path)
    links, uid, gid, mode = struct.unpack_from("<IIIH", buffer, 16)
    inode, size, blocks = struct.unpack_from("<QQQ", buffer, 32)
    times = [struct.unpack_from("<qI", buffer, at) for at in (64, 96, 112)]
    return inode, size, blocks, mode, links, uid, gid, *(seconds * 10**9 + rest for seconds, rest in times)


def words(found: os.stat_result) -> tuple[int, ...]:
    """All that is the same for an inode whoever asks."""
    times = (found.st_atime_ns, found.st_ctime_ns, found.st_mtime_ns)
    owner = (found.st_mode, found.st_nlink, found.st_uid, found.st_gid)
    return found.st_ino, found.st_size, found.st_blocks, *owner, *times


def by_lookup(path: str) -> tuple[int, ...]:
    """From the lookup of a name."""
    return words(os.lstat(path))


def by_readdirplus(path: str) -> tuple[int, ...]:
    """From a directory read."""
    with os.scandir(os.path.dirname(path)) as entries:
        (found,) = [entry for entry in entries if entry.name == os.path.basename(path)]
    assert found.inode() == os.lstat(path).st_ino
    return words(found.stat(follow_symlinks=False))


def by_descriptor(path: str) -> tuple[int, ...]:
    """From an open file or directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return words(os.fstat(fd))
    finally:
        os.close(fd)


WAYS: list[Callable[[str], tuple[int, ...]]] = [by_lookup, by_readdirplus, forced, by_descriptor]


@pytest.mark.parametrize("first", [by_lookup, by_readdirplus])
def test_all_ways_to_ask_agree(forest: Forest, mounter: Mounter, first: Callable[[str], tuple[int, ...]]) -> None:
    """On a mount that knows nothing yet, whatever is asked first."""
    mount = mounter.mount(forest.server, "s3://models", FOREVER)
    for name in [*FILES, "nested", "nested/deeper", "odd", f"odd/{ODD[0]}"]:
        path = str(mount.path / name)
        expected = first(path)
        assert [way(path) for way in WAYS] == [expected] * len(WAYS), name


# ---- df and attributes


def total(root: Path | str) -> int:
    """What df would show as the size, which must be as much as is used."""
    found = os.statvfs(root)
    assert found.f_bfree == found.f_bavail == 0
    return found.f_blocks * found.f_frsize


def test_df_says_what_the_objects_take(forest: Forest, mounter: Mounter) -> None:
    size = sum(FILES.values()) + sum(len(str(number)) for number in range(len(ODD)))
    assert 0 <= total(forest.mount.path) - size < 4096
    assert total(forest.path("nested")) == total(forest.mount.path)
    below = mounter.mount(forest.server, "s3://models/nested/", FOREVER)
    assert total(below.path) == 8192, "4097 bytes in whole blocks"
    assert os.statvfs(below.path).f_namemax == 255


def test_extended_attributes(forest: Forest, reader: Reader) -> None:
    path = forest.path("weights.bin")
    etag = forest.server.objects.get("models", "weights.bin")
    assert etag is not None
    names = {f"user.lazyfs.{name}" for name in ("etag", "key", "cached_bytes", "verified", "storage_class")}
    assert set(os.listxattr(path)) == names
    assert os.getxattr(path, "user.lazyfs.etag") == etag.etag.encode()
    assert os.getxattr(path, "user.lazyfs.key") == b"weights.bin"
    assert os.getxattr(path, "user.lazyfs.cached_bytes") == b"0"
    assert os.getxattr(path, "user.lazyfs.verified") == b"no"
    reader.call("digest", path)
    size = str(FILES["weights.bin"]).encode()
    wait_until(lambda: os.getxattr(path, "user.lazyfs.cached_bytes") == size, "all of it on disk")
    assert os.getxattr(forest.path("nested/deeper/b.bin"), "user.lazyfs.key") == b"nested/deeper/b.bin"
    assert os.listxattr(forest.path("nested")) == []
    for place, name in ((path, "user.lazyfs.none"), (path, "user.other"), (forest.path("nested"), "user.lazyfs.etag")):
        with pytest.raises(OSError) as failure:  # noqa: PT011 (the number is looked at)
            os.getxattr(place, name)
        assert failure.value.errno == errno.ENODATA


# ---- keys that are odd or hidden


@pytest.mark.parametrize("number", range(len(ODD)))
def test_odd_names_are_readable(forest: Forest, number: int) -> None:
    name = ODD[number]
    assert name in os.listdir(forest.path("odd"))
    assert Path(forest.path(f"odd/{name}")).read_bytes() == str(number).encode()
    assert os.fsdecode(os.getxattr(forest.path(f"odd/{name}"), "user.lazyfs.key")) == f"odd/{name}"


def test_hidden_keys_follow_the_rule_and_are_counted(mounter: Mounter, s3: FastS3Server) -> None:
    """That of lazyfs/filesystem/names.py."""
    hidden = {
        "empty name between slashes": ["a//b", "/leading"],
        "name is . or ..": ["./x", "d/../e", "d/."],
        "directory marker": ["marker/", "a/"],
        "name is longer than 255 bytes": ["x" * 256, "a/" + "\u00e9" * 128, "y" * 256 + "/z"],
        "a directory has the same name": ["both"],
    }
    for keys in hidden.values():
        for key in keys:
            s3.put("models", key, b"hidden")
    for key in ("both/inner", "a/seen", "d/seen"):
        s3.put("models", key, b"seen")
    mount = mounter.mount(s3, "s3://models", FOREVER)
    found = {str(Path(top, name).relative_to(mount.path)) for top, dirs, files in os.walk(mount.path) for name in files}
    assert found == {"both/inner", "a/seen", "d/seen"}
    assert sorted(os.listdir(mount.path)) == ["a", "both", "d", "marker"]
    assert os.listdir(mount.path / "marker") == []
    shown = run(["status", mount.path, "--json"], environment(mounter.work / "home", s3))
    (status,) = json.loads(shown.stdout)
    assert status["hidden"] == {reason: len(keys) for reason, keys in hidden.items()}


def test_a_new_etag_is_a_new_inode(mounter: Mounter, s3: FastS3Server) -> None:
    """After the TTL, and only for what changed."""
    for name in ("changed", "stays"):
        s3.put("models", name, b"first", modified=CREATED)
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=1s")
    before = {name: os.lstat(mount.path / name).st_ino for name in ("changed", "stays")}
    s3.put("models", "changed", b"other", modified=CREATED)
    wait_until(lambda: os.lstat(mount.path / "changed").st_ino != before["changed"], "a new inode", 10)
    assert os.lstat(mount.path / "stays").st_ino == before["stays"]
    assert (mount.path / "changed").read_bytes() == b"other"


def test_an_empty_bucket_fills(mounter: Mounter, s3: FastS3Server) -> None:
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=0s", expect=["has no objects yet"])
    assert os.listdir(mount.path) == []
    assert total(mount.path) == 0
    s3.put("models", "a/b", b"bytes")
    assert os.listdir(mount.path) == ["a"]
    assert (mount.path / "a" / "b").read_bytes() == b"bytes"
    s3.delete("models", "a/b")
    assert os.listdir(mount.path) == []
