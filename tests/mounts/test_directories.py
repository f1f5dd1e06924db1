"""P11: directories: every name once with stable cookies, and one LIST for each, whatever walks over them."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts.mounting import Mounter
from tests.servers.fast import FastS3Server

FOREVER = "--metadata-ttl=indefinite"
MANY = 2500
"""Entries of a directory: more than two pages of a listing."""

NAMES = [f"shard-{number:05d}-of-{MANY:05d}.safetensors" for number in range(MANY)]
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of `NAMES` in a mount."""
    mounter = Mounter(tmp_path_factory.mktemp("large"))
    with FastS3Server() as server:
        for name in NAMES:
            server.put("models", f"many/{name}", b"x")
        yield mounter.mount(server, "s3://models", FOREVER).path / "many"
        mounter.end()


def test_a_large_directory_has_every_name_once(large: Path) -> None:
    assert sorted(os.listdir(large)) == NAMES
    with os.scandir(large) as entries:
        found = {entry.name: entry.inode() for entry in entries}
    assert len(set(found.values())) == MANY
    assert os.lstat(large / NAMES[1234]).st_ino == found[NAMES[1234]]


class Stream:
    """A directory stream of the C library, for what Python does not have: telldir and seekdir."""

    def __init__(self, path: str) -> None:
        for name, result, arguments in [
            ("opendir", ctypes.c_void_p, [ctypes.c_char_p]),
            ("readdir", ctypes.c_void_p, [ctypes.c_void_p]),
            ("telldir", ctypes.c_long, [ctypes.c_void_p]),
            ("seekdir", None, [ctypes.c_void_p, ctypes.c_long]),
            ("closedir", ctypes.c_int, [ctypes.c_void_p]),
        ]:
            function = getattr(libc, name)
            function.restype, function.argtypes = result, arguments
        self._stream = libc.opendir(os.fsencode(path))
        assert self._stream

    def read(self, count: int = 1 << 30) -> list[str]:
        """The next names, at most so many."""
        found: list[str] = []
        while len(found) < count and (entry := libc.readdir(self._stream)):
            found.append(os.fsdecode(ctypes.string_at(entry + 19)))  # struct dirent, bits/dirent.h
        return found

    def tell(self) -> int:
        """The cookie of the next entry."""
        return int(libc.telldir(self._stream))

    def seek(self, cookie: int) -> None:
        """Go to where `tell` was."""
        libc.seekdir(self._stream, cookie)

    def close(self) -> None:
        """The end."""
        libc.closedir(self._stream)


def test_cookies_are_stable(large: Path) -> None:
    stream = Stream(str(large))
    pieces, cookies = [], []
    while piece := stream.read(173):
        pieces.append(piece)
        cookies.append(stream.tell())
    assert sorted(name for piece in pieces for name in piece) == sorted([".", "..", *NAMES])
    for number in (7, 0, 13, 3):
        stream.seek(cookies[number])
        assert stream.read(173) == pieces[number + 1]
    stream.seek(cookies[-1])
    assert stream.read() == []
    stream.close()


def test_a_stream_is_a_snapshot(mounter: Mounter, s3: FastS3Server) -> None:
    """What comes and goes while a directory is read by one neither shifts nor doubles an entry of it."""
    for name in NAMES[:1000]:
        s3.put("models", f"many/{name}", b"x")
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=0s")
    stream = Stream(str(mount.path / "many"))
    found = stream.read(100)
    for name in NAMES[:500]:
        s3.delete("models", f"many/{name}")
    for name in NAMES[1000:1200]:
        s3.put("models", f"many/0-{name}", b"x")
    assert len(os.listdir(mount.path / "many")) == 700
    found += stream.read()
    stream.close()
    assert sorted(found) == sorted([".", "..", *NAMES[:1000]])


@pytest.mark.parametrize("command", [["find", ".", "-type", "f", "-size", "+0"], ["ls", "-lR"], ["du", "-a"]])
def test_a_walk_sends_no_more_than_a_list_for_each_directory(
    mounter: Mounter, s3: FastS3Server, command: list[str]
) -> None:
    """No HEAD and no GET, and fewer for directories that lie side by side; and the second walk sends nothing."""
    directories = {""} | {f"d{i}/" for i in range(6)} | {f"d{i}/e{j}/" for i in range(6) for j in range(4)}
    for directory in directories:
        for number in range(5):
            s3.put("models", f"{directory}file-{number}", b"bytes")
    mount = mounter.mount(s3, "s3://models", FOREVER)
    for most in (11, 0):
        done = subprocess.run(command, cwd=mount.path, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.count("file-") == 5 * len(directories)
        log = s3.take_log()
        assert {request.kind for request in log} <= {"LIST"}
        assert len(log) <= most
