"""`lazyfs export`: plain files out of a mount or a bucket, whole and compared, whatever is there and whoever fails."""

import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lazyfs.models.exporting import COMING
from tests.mounts.contents import MIB, pages
from tests.mounts.disks import Image
from tests.mounts.mounting import Mount, Mounter, environment, run
from tests.mounts.test_cache import DAMAGED, completed, flip, object_files
from tests.mounts.test_manifests import FILES, publish  # noqa: F401 - a fixture
from tests.mounts.test_verification import crc_header
from tests.servers.fast import FastS3Server

DATA = pages(1, 5 * MIB + 777)


def put(s3: FastS3Server) -> dict[str, bytes]:
    """A few files, and their digests."""
    files = {"model/weights": DATA, "model/a/config": b"{}", "model/empty": b"", "other": b"another"}
    for key, data in files.items():
        s3.put("models", key, data, headers=crc_header(data))
    return files


def below(path: Path) -> dict[str, bytes]:
    """All files below a directory, hidden ones too."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


class Export:
    """The command, as who may reach the server."""

    def __init__(self, s3: FastS3Server, home: Path) -> None:
        self._env = environment(home, s3, LAZYFS_ENDPOINT_URL=s3.url)

    def __call__(self, *arguments: str | Path, status: int = 0) -> list[dict[str, Any]]:
        """What it says of each file."""
        done = run(["export", "--json", *arguments], self._env)
        assert done.returncode == status, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    def refused(self, *arguments: str | Path) -> str:
        """The one sentence with which it ends."""
        done = run(["export", *arguments], self._env)
        assert done.returncode in (1, 2), done.stdout
        (line,) = done.stderr.splitlines()
        return line


@pytest.fixture
def export(s3: FastS3Server, tmp_path: Path) -> Export:
    """Runs the command."""
    return Export(s3, tmp_path / "home")


def test_a_directory_and_a_file(s3: FastS3Server, mounter: Mounter, export: Export, tmp_path: Path) -> None:
    """Bytes, times and modes; what is there and is the same stays, others are refused before anything is written."""
    put(s3)
    mount = mounter.mount(s3, "s3://models")
    out = tmp_path / "out" / "deep"
    rows = export(mount.path / "model", out)
    assert below(out) == {"weights": DATA, "a/config": b"{}", "empty": b""}
    assert [(Path(row["path"]).name, row["size"], row["how"]) for row in rows] == [
        ("empty", 0, "copied"),
        ("weights", len(DATA), "copied"),
        ("config", 2, "copied"),
    ]
    assert {row["verified"] for row in rows} == {"crc64nvme", "none"}
    for name in ("weights", "a/config"):
        status, source = (out / name).stat(), (mount.path / "model" / name).stat()
        assert status.st_mtime_ns == source.st_mtime_ns
        assert status.st_mode & 0o7777 == 0o666 & ~os.umask(os.umask(0o022))
    s3.take_log()
    inode = (out / "weights").stat().st_ino
    assert {row["how"] for row in export(mount.path / "model", out)} == {"here"}
    assert (out / "weights").stat().st_ino == inode
    assert [request for request in s3.take_log() if request.kind == "GET"] == []

    for other in (b"[]", b"mine"):
        (out / "a/config").write_bytes(other)
        (out / "weights").unlink(missing_ok=True)
        words = f"{out}/a/config is there already, and is another file; --force replaces it: nothing was written"
        assert words in export.refused(mount.path / "model", out)
        assert below(out) == {"a/config": other, "empty": b""}
    export("--force", mount.path / "model", out)
    assert below(out) == {"weights": DATA, "a/config": b"{}", "empty": b""}

    export(mount.path / "other", out)
    export(mount.path / "other", out / "as")
    assert (out / "other").read_bytes() == (out / "as").read_bytes() == b"another"


def test_what_cannot_be(s3: FastS3Server, mounter: Mounter, export: Export, tmp_path: Path) -> None:
    """One sentence each."""
    put(s3)
    mount = mounter.mount(s3, "s3://models")
    (tmp_path / "file").write_bytes(b"")
    assert "is not in a lazyfs mount" in export.refused(tmp_path / "file", tmp_path / "x")
    assert "No such file" in export.refused(mount.path / "nothing", tmp_path / "x")
    assert "is a file, and" in export.refused(mount.path / "model", tmp_path / "file")
    assert "Read-only file system" in export.refused(mount.path / "model", mount.path / "copy")
    assert "names no version" in export.refused("--source=s3://models", "tiny", tmp_path / "x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert "--force replaces it" in export.refused(mount.path / "other", tmp_path / "link")
    export("--force", mount.path / "other", tmp_path / "link")
    assert (tmp_path / "link").read_bytes() == b"another"
    assert (tmp_path / "file").read_bytes() == b""


def test_what_a_kill_left_is_written_over(s3: FastS3Server, mounter: Mounter, export: Export, tmp_path: Path) -> None:
    """Half of a file under another name; but not while somebody is at it."""
    put(s3)
    mount = mounter.mount(s3, "s3://models")
    coming = tmp_path / (COMING + hashlib.sha256(b"weights").hexdigest()[:32])
    coming.write_bytes(b"half of it" * MIB)
    with coming.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        words = export.refused(mount.path / "model/weights", tmp_path)
        assert f"another process is exporting {tmp_path}/weights" in words
    export(mount.path / "model/weights", tmp_path)
    assert (tmp_path / "weights").read_bytes() == DATA
    assert not coming.exists()


def test_wrong_bytes_do_not_come_out(s3: FastS3Server, mounter: Mounter, export: Export, tmp_path: Path) -> None:
    """Of a file that is not what its digest says there is no copy, and of the others there is."""
    put(s3)
    s3.put("models", "model/weights", DATA, headers=crc_header(DATA[1:]))
    mount = mounter.mount(s3, "s3://models", expect=["WRONG BYTES", "failed with (EIO|ESTALE)"])
    rows = export(mount.path / "model", tmp_path / "out", status=1)
    assert [Path(row["path"]).name for row in rows if "problem" in row] == ["weights"]
    assert below(tmp_path / "out") == {"a/config": b"{}", "empty": b""}


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Image]:
    """A filesystem that shares bytes."""
    made = Image(tmp_path, "xfs")
    yield made
    subprocess.run(["umount", "-l", str(made.path)], check=False, timeout=60, capture_output=True)


def warm(mounter: Mounter, s3: FastS3Server, image: Image, **more: Any) -> Mount:
    """A mount with its cache on the image, and all of weights in it."""
    mount = mounter.mount(s3, "s3://models", "--min-free-space=0", cache=image.cache, **more)
    completed(mount.path / "model/weights")
    mount.settle()
    return mount


def free(path: Path) -> int:
    """Bytes that are free on a filesystem."""
    subprocess.run(["sync", "-f", str(path)], check=True, timeout=60)
    found = os.statvfs(path)
    return found.f_bfree * found.f_frsize


@pytest.mark.root
def test_bytes_are_shared_where_that_can_be(
    xfs: Image, s3: FastS3Server, mounter: Mounter, export: Export, tmp_path: Path
) -> None:
    """No request, no space; and the copy is a file of its own, whatever becomes of the cache. S3 is not needed."""
    put(s3)
    mount = warm(mounter, s3, xfs)
    assert run(["verify", mount.path / "model/weights"], os.environ).returncode == 0
    s3.take_log()
    before = free(xfs.path)
    (row,) = export(mount.path / "model/weights", xfs.path / "copy")
    assert (row["how"], row["verified"]) == ("shared", "crc64nvme")
    assert before - free(xfs.path) < MIB
    assert s3.take_log() == []
    assert run(["evict", mount.path / "model/weights"], os.environ).returncode == 0
    assert object_files(xfs.cache) == []
    assert (xfs.path / "copy").read_bytes() == DATA
    assert (xfs.path / "copy").stat().st_nlink == 1
    assert mount.unmount() == 0


@pytest.mark.root
def test_what_rots_in_the_cache_is_not_shared(
    xfs: Image, s3: FastS3Server, mounter: Mounter, export: Export, tmp_path: Path
) -> None:
    """It is found by the digest of the copy, and the right bytes are copied."""
    put(s3)
    mount = warm(mounter, s3, xfs, expect=DAMAGED)
    (file,) = object_files(xfs.cache)
    flip(file, 2 * MIB)
    (row,) = export(mount.path / "model/weights", xfs.path / "copy")
    assert row["how"] == "copied"
    assert (xfs.path / "copy").read_bytes() == DATA
    assert mount.unmount() == 0


def test_a_published_version(
    s3: FastS3Server,
    mounter: Mounter,
    export: Export,
    tmp_path: Path,
    publish: Callable[..., None],  # noqa: F811
) -> None:
    """Out of the bucket without a mount, out of a mount where there is one; its files and no others."""
    publish(FILES)
    source, out = "--source=s3://models/llm/", tmp_path / "out"
    rows = export(source, "tiny/v1", out)
    assert below(out) == FILES
    assert {row["how"] for row in rows} == {"copied"}
    assert {row["verified"] for row in rows} == {"sha256"}
    (out / "a/one.txt").unlink()
    s3.take_log()
    assert sorted(row["how"] for row in export(source, "tiny/v1", out)) == ["copied"] + ["here"] * 4
    assert [one.key for one in s3.take_log() if one.kind == "GET" and "manifest" not in one.key] == [
        "llm/tiny/v1/a/one.txt"
    ]
    assert below(out) == FILES
    (out / "a/one.txt").write_bytes(b"mine, and longer")
    assert "--force replaces it: nothing was written" in export.refused(source, "tiny/v1", out)
    assert "is not published" in export.refused(source, "tiny/v2", out)

    mount = mounter.mount(s3, "s3://models")
    completed(mount.path / "llm/tiny/v1")
    s3.take_log()
    export(source, "tiny/v1", tmp_path / "again")
    assert below(tmp_path / "again") == FILES
    assert [one for one in s3.take_log() if one.kind == "GET"] == []
