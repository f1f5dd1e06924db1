"""P1, P19 in a bucket that keeps versions: a handle goes on reading what it was opened on, wherever that is by now."""

import errno
import os
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mounter, outlive_moment
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault
from tests.servers.swift import SwiftServer

STALE = ["read failed with ESTALE", "open failed with ESTALE"]
SIZE = 12 * MIB
NOW = ("--metadata-ttl=0s", "--negative-metadata-ttl=0s")
EVERYTHING = [(0, 100_000), (7 * MIB, 3 * MIB), (SIZE - 4096, 4096)]


@pytest.fixture
def versioned(s3: FastS3Server) -> FastS3Server:
    """The server, with versions."""
    s3.objects.versioning = "Enabled"
    return s3


def version_of(path: Path) -> str:
    """What the mount knows of a file's version."""
    return os.getxattr(path, "user.lazyfs.version_id").decode()


def searches(server: FastS3Server) -> int:
    """Lists of versions so far."""
    return sum("versions" in request.query for request in server.log)


@pytest.mark.parametrize("engine", ["auto", "awscrt", pytest.param("boto3", marks=pytest.mark.slow)])
def test_a_handle_outlives_its_version(
    versioned: FastS3Server, mounter: Mounter, reader: Reader, engine: str
) -> None:
    """The first answer said where the version is; replaced, and then deleted, the rest of it comes from there."""
    old, new = pages(1, SIZE), pages(2, SIZE)
    first = versioned.put("models", "weights", old)
    mount = mounter.mount(versioned, "s3://models", f"--s3-engine={engine}", *NOW)
    path = mount.path / "weights"
    fd = reader.call("open_file", str(path))
    assert reader.call("pread", fd, 4096, 0) == old[:4096]
    assert version_of(path) == first.version_id
    mount.settle()
    second = versioned.put("models", "weights", new)
    outlive_moment()
    for offset, size in EVERYTHING:
        assert reader.call("pread", fd, size, offset) == old[offset : offset + size]
    again = reader.call("open_file", str(path))
    for offset, size in EVERYTHING:
        assert reader.call("pread", again, size, offset) == new[offset : offset + size]
    mount.settle()
    versioned.delete("models", "weights")
    outlive_moment()
    assert not path.exists()
    assert reader.call("pread", fd, SIZE, 0) == old
    assert reader.call("pread", again, SIZE, 0) == new
    by_id = {request.query.get("versionId") for request in versioned.log if request.kind == "GET"}
    assert by_id == {None, first.version_id, second.version_id}
    assert searches(versioned) == 0


def test_a_handle_that_had_read_nothing(versioned: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """No answer said where the version is: one list of the versions of its key does, of keys that begin alike too."""
    old = pages(1, SIZE)
    first = versioned.put("models", "weights", old)
    versioned.put("models", "weights.index", b"{}")
    mount = mounter.mount(versioned, "s3://models", *NOW)
    fd = reader.call("open_file", str(mount.path / "weights"))
    versioned.put("models", "weights", pages(2, SIZE))
    versioned.put("models", "weights", pages(3, SIZE + 1))
    versioned.delete("models", "weights")
    for offset, size in EVERYTHING:
        assert reader.call("pread", fd, size, offset) == old[offset : offset + size]
    assert searches(versioned) == 1
    gets = [request for request in versioned.log if request.kind == "GET" and request.status == 206]
    assert {request.query.get("versionId") for request in gets} == {first.version_id}


def test_a_mapping_outlives_its_version(versioned: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """Where there are no versions this is SIGBUS."""
    old = pages(1, SIZE)
    versioned.put("models", "weights", old)
    mount = mounter.mount(versioned, "s3://models", *NOW)
    fd = reader.call("open_file", str(mount.path / "weights"))
    reader.call("map_file", fd)
    assert reader.call("peek", fd, 10_000, 0) == old[:10_000]
    versioned.put("models", "weights", pages(2, SIZE))
    assert reader.call("peek", fd, 10_000, SIZE - 10_000) == old[SIZE - 10_000 :]
    assert any(request.query.get("versionId") for request in versioned.log)


def test_what_a_read_finds_out_is_believed(versioned: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """The listing is trusted for an hour, but a GET says that the key holds another: the next open gets that one."""
    old, new = pages(1, SIZE), pages(2, SIZE)
    versioned.put("models", "weights", old)
    mount = mounter.mount(versioned, "s3://models", "--metadata-ttl=1h", expect=STALE)
    path = str(mount.path / "weights")
    fd = reader.call("open_file", path)
    versioned.put("models", "weights", new)
    assert reader.call("pread", fd, 4096, 5 * MIB) == old[5 * MIB : 5 * MIB + 4096]
    again = reader.call("open_file", path)
    assert reader.call("pread", again, SIZE, 0) == new


def test_a_version_that_is_deleted_for_good(versioned: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """Nobody has its bytes: ESTALE. The same bytes put there again are another version, and are read."""
    old = pages(1, SIZE)
    first = versioned.put("models", "weights", old)
    mount = mounter.mount(versioned, "s3://models", *NOW, expect=STALE)
    path = str(mount.path / "weights")
    fd = reader.call("open_file", path)
    assert reader.call("pread", fd, 4096, 0) == old[:4096]
    mount.settle()
    versioned.put("models", "weights", pages(2, SIZE))
    assert reader.call("pread", fd, 4096, 9 * MIB) == old[9 * MIB : 9 * MIB + 4096]
    mount.settle()
    versioned.objects.delete("models", "weights", first.version_id)
    with pytest.raises(OSError, match="Stale") as raised:
        reader.call("pread", fd, 4096, SIZE - 4096)
    assert raised.value.errno == errno.ESTALE
    versioned.put("models", "weights", old)
    outlive_moment()
    again = reader.call("open_file", path)
    assert reader.call("pread", again, SIZE, 0) == old


def test_who_may_not_read_versions_reads_the_present(
    versioned: FastS3Server, mounter: Mounter, reader: Reader
) -> None:
    """s3:GetObjectVersion is a right of its own: without it all is as without versions, ESTALE and not EACCES."""
    old, new = pages(1, SIZE), pages(2, SIZE)
    versioned.put("models", "weights", old)
    mount = mounter.mount(versioned, "s3://models", *NOW, expect=STALE)
    denied = Fault(status=403, code="AccessDenied")
    versioned.fault = lambda request: denied if {"versionId", "versions"} & request.query.keys() else None
    path = str(mount.path / "weights")
    fd = reader.call("open_file", path)
    assert reader.call("pread", fd, 4096, 0) == old[:4096]
    mount.settle()
    versioned.put("models", "weights", new)
    outlive_moment()
    with pytest.raises(OSError, match="Stale"):
        reader.call("pread", fd, 4096, SIZE - 4096)
    again = reader.call("open_file", path)
    assert reader.call("pread", again, SIZE, 0) == new


def test_a_suspended_bucket_keeps_no_version_for_us(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """What is put there is `null`, and so is what replaces it."""
    s3.objects.versioning = "Suspended"
    old = pages(1, SIZE)
    s3.put("models", "weights", old)
    mount = mounter.mount(s3, "s3://models", *NOW, expect=STALE)
    fd = reader.call("open_file", str(mount.path / "weights"))
    assert reader.call("pread", fd, 4096, 0) == old[:4096]
    assert version_of(mount.path / "weights") == "null"
    mount.settle()
    s3.put("models", "weights", pages(2, SIZE))
    with pytest.raises(OSError, match="Stale"):
        reader.call("pread", fd, 4096, SIZE - 4096)


def test_a_warm_start_asks_nothing(versioned: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """What was cached before anybody knew its version is the same bytes after that, and after a remount."""
    old = pages(1, SIZE)
    versioned.put("models", "weights", old)
    for gets in (True, False):
        versioned.take_log()
        mount = mounter.mount(versioned, "s3://models", "--metadata-ttl=1h")
        assert reader.call("digest", str(mount.path / "weights"))[0] == SIZE
        mount.settle()
        mount.unmount()
        assert bool(versioned.take_log()) == gets


def test_on_swift(swift: SwiftServer, mounter: Mounter, reader: Reader) -> None:
    """A real server with versions, which names them in answers to GETs as S3 does."""
    client = swift.client()
    client.create_bucket(Bucket="object-versions")
    client.put_bucket_versioning(Bucket="object-versions", VersioningConfiguration={"Status": "Enabled"})
    size = 5 * MIB
    old, new = pages(1, size), pages(2, size)
    client.put_object(Bucket="object-versions", Key="weights", Body=old)
    client.put_object(Bucket="object-versions", Key="unread", Body=old)
    mount = mounter.mount(swift, "s3://object-versions", *NOW)
    fds = {name: reader.call("open_file", str(mount.path / name)) for name in ("weights", "unread")}
    assert reader.call("pread", fds["weights"], 4096, 0) == old[:4096]
    mount.settle()
    for name in fds:
        client.put_object(Bucket="object-versions", Key=name, Body=new)
    outlive_moment()
    for fd in fds.values():
        assert reader.call("pread", fd, size, 0) == old
    client.delete_object(Bucket="object-versions", Key="weights")
    outlive_moment()
    assert os.listdir(mount.path) == ["unread"]
    assert reader.call("pread", fds["weights"], 4096, size - 4096) == old[-4096:]
    assert reader.call("pread", reader.call("open_file", str(mount.path / "unread")), size, 0) == new
