"""Archives as directories of a mount: the same bytes as unpacked, by every way of reading, asked for once."""

import errno
import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages, versions_in
from tests.mounts.mounting import Mount, Mounter, outlive_moment
from tests.mounts.reader import Reader
from tests.mounts.test_upgrade import upgrade
from tests.mounts.test_warming import lazyfs
from tests.rooms.tars import squeezed, tar_of, zipped
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault
from tests.servers.swift import SwiftServer

FILES = {
    "config.json": b"{}",
    "a/one.txt": b"one",
    "model-00001-of-00002.safetensors": pages(1, 5 * MIB + 4099),
    "model-00002-of-00002.safetensors": pages(2, 3 * MIB),
    "a/b/empty": b"",
}
KINDS = {
    "m.tar": tar_of(FILES),
    "m.tar.gz": zipped(tar_of(FILES)),
    "m.tgz": zipped(tar_of(FILES)),
    "m.tar.zst": squeezed(tar_of(FILES), 2 * MIB),
}


def tree(path: Path) -> dict[str, bytes]:
    """All files below a path."""
    return {
        str((Path(folder) / name).relative_to(path)): (Path(folder) / name).read_bytes()
        for folder, _, names in os.walk(path)
        for name in names
    }


def put(s3: FastS3Server, archives: Mapping[str, bytes] = KINDS) -> None:
    for name, data in archives.items():
        s3.put("models", f"llm/{name}", data)
    s3.take_log()


def mounted(s3: FastS3Server, mounter: Mounter, *options: str, expect: tuple[str, ...] = ()) -> Mount:
    return mounter.mount(s3, "s3://models/llm/", "--archives", *options, expect=["has no digest", *expect])


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize("name", ["m.tar", "m.tar.gz", "m.tar.zst"])
def test_members_are_files(s3: FastS3Server, mounter: Mounter, reader: Reader, name: str) -> None:
    """Listed, read, hashed and mapped as what they are unpacked to; the archive itself stays what it is; and after a
    remount none of it is asked for."""
    put(s3, {name: KINDS[name]})
    unkept = False
    for warm in (False, True):
        mount = mounted(s3, mounter)
        assert sorted(os.listdir(mount.path)) == [name, f"{name}.d"]
        unpacked = mount.path / f"{name}.d"
        assert sorted(os.listdir(unpacked)) == sorted({path.split("/")[0] for path in FILES})
        assert tree(unpacked) == FILES
        listed = output("tar", "-tf", mount.path / name).splitlines()
        assert listed == list(FILES)
        assert output("tar", "-xOf", mount.path / name, "a/one.txt") == "one"
        weights = unpacked / "model-00001-of-00002.safetensors"
        digest = hashlib.sha256(FILES[weights.name]).hexdigest()
        assert output("sha256sum", weights).split()[0] == digest
        for advice in ("random", "normal"):
            assert reader.call("mapped_digest", str(weights), advice) == digest
        assert os.getxattr(weights, "user.lazyfs.key").decode() == f"llm/{name}.d/{weights.name}"
        sent = [request.key for request in s3.take_log()]
        assert not warm or unkept or sent == []
        mount.settle()
        unkept = unkept or mount.stats()["chunks"]["unkept"] > 0  # a disk so slow that the cache has not all of it
        assert mount.unmount() == 0


def test_without_the_option_there_is_none(s3: FastS3Server, mounter: Mounter) -> None:
    put(s3)
    mount = mounter.mount(s3, "s3://models/llm/")
    assert sorted(os.listdir(mount.path)) == sorted(KINDS)
    assert not (mount.path / "m.tar.d").exists()


def test_a_plain_tar_is_read_lazily(s3: FastS3Server, mounter: Mounter) -> None:
    """Headers and what is read, not what lies between."""
    big = {f"shard-{number}": pages(number + 1, 24 * MIB) for number in range(3)}
    put(s3, {"big.tar": tar_of(big)})
    mount = mounted(s3, mounter)
    assert sorted(os.listdir(mount.path / "big.tar.d")) == sorted(big)
    with (mount.path / "big.tar.d/shard-1").open("rb") as opened:
        assert os.pread(opened.fileno(), 4096, 20 * MIB) == big["shard-1"][20 * MIB :][:4096]
    mount.settle()
    assert mount.stats()["store"]["bytes_received"] < 16 * MIB, "of 72"


def test_what_is_no_archive_stays_a_file(s3: FastS3Server, mounter: Mounter) -> None:
    """A text, a gzip of one, one that is cut off: an empty directory, a word in the log, and the file as it is."""
    wrong = {"text.tar": b"no archive\n" * 100, "text.tgz": zipped(b"text"), "cut.tar": KINDS["m.tar"][: 2 * MIB]}
    put(s3, {**wrong, "cut.tar.gz": KINDS["m.tar.gz"][:9000], "empty.tar": b""})
    mount = mounted(s3, mounter, expect=("shows nothing",))
    for name, data in wrong.items():
        assert os.listdir(mount.path / f"{name}.d") == []
        assert (mount.path / name).read_bytes() == data
    assert os.listdir(mount.path / "cut.tar.gz.d") == os.listdir(mount.path / "empty.tar.d") == []
    assert mount.logged().count("shows nothing") == len(wrong) + 2


@pytest.mark.parametrize("name", ["m.tar", "m.tar.gz"])
def test_an_archive_that_is_replaced(s3: FastS3Server, mounter: Mounter, name: str) -> None:
    """Who has a member open gets its bytes or ESTALE, never others; who opens it anew gets the new ones."""
    put(s3, {name: KINDS[name]})
    mount = mounted(s3, mounter, "--metadata-ttl=0s", expect=("ESTALE", "another version", "no longer", "is gone"))
    path = mount.path / f"{name}.d/model-00001-of-00002.safetensors"
    with path.open("rb") as opened:
        assert versions_in(os.pread(opened.fileno(), 64, 0), 0) == {1}
        new = {**FILES, path.name: pages(9, 6 * MIB)}
        s3.put("models", f"llm/{name}", tar_of(new) if name == "m.tar" else zipped(tar_of(new)))
        outlive_moment()
        for offset in range(0, 5 * MIB, MIB):
            try:
                found = os.pread(opened.fileno(), 4096, offset)
            except OSError as error:
                assert error.errno == errno.ESTALE  # noqa: PT017
            else:
                assert versions_in(found, offset) == {1}
    assert path.read_bytes() == new[path.name]
    assert tree(mount.path / f"{name}.d") == new


@pytest.mark.parametrize("name", ["m.tar", "m.tar.gz"])
def test_many_readers_in_little_memory(s3: FastS3Server, mounter: Mounter, name: str) -> None:
    """Members are brought by flights that hold memory; what these read in turn must not wait for any."""
    files = {f"shard-{number}": pages(number + 1, 6 * MIB + 13) for number in range(8)}
    data = tar_of(files)
    put(s3, {name: data if name == "m.tar" else zipped(data)})
    mount = mounted(s3, mounter, "--memory-budget=16MiB", "--max-cache-size=12MiB")
    readers = [
        subprocess.Popen(["sha256sum", mount.path / f"{name}.d" / member], stdout=subprocess.PIPE, text=True)
        for member in files
    ]
    try:
        for reader, content in zip(readers, files.values(), strict=True):
            assert reader.communicate(timeout=100)[0].split()[0] == hashlib.sha256(content).hexdigest()
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()


def test_what_was_evicted_is_unpacked_again(s3: FastS3Server, mounter: Mounter) -> None:
    """Members, the archive's own chunks, and the list of members: all of it can go."""
    put(s3, {"m.tar.gz": KINDS["m.tar.gz"]})
    mount = mounted(s3, mounter)
    path = mount.path / "m.tar.gz.d"
    with (path / "model-00002-of-00002.safetensors").open("rb") as opened:
        assert opened.read(10) == FILES["model-00002-of-00002.safetensors"][:10]
        mount.settle()
        lazyfs(mounter, "evict", mount.path)
        assert os.pread(opened.fileno(), MIB, 2 * MIB) == FILES["model-00002-of-00002.safetensors"][2 * MIB :]
    assert tree(path) == FILES
    mount.kill()
    mount = mounted(s3, mounter)
    assert tree(mount.path / "m.tar.gz.d") == FILES


def test_from_a_real_server(swift: SwiftServer, mounter: Mounter) -> None:
    client = swift.client()
    client.create_bucket(Bucket="archives")
    for name, data in KINDS.items():
        client.put_object(Bucket="archives", Key=name, Body=data)
    mount = mounter.mount(swift, "s3://archives", "--archives", expect=["has no digest"])
    for name in KINDS:
        assert tree(mount.path / f"{name}.d") == FILES


def test_another_process_serves_it_and_then_nobody_is_asked(s3: FastS3Server, mounter: Mounter) -> None:
    """A member is open over an upgrade; its directory is warmed, and the server may go."""
    put(s3, {"m.tar.gz": KINDS["m.tar.gz"]})
    mount = mounted(s3, mounter)
    path = mount.path / "m.tar.gz.d"
    with (path / "model-00001-of-00002.safetensors").open("rb") as opened:
        assert versions_in(os.pread(opened.fileno(), 4096, 0), 0) == {1}
        upgrade(mount)
        found = os.pread(opened.fileno(), 2 * MIB, 3 * MIB)
        assert found == FILES["model-00001-of-00002.safetensors"][3 * MIB : 5 * MIB]
    lazyfs(mounter, "warm", path)
    s3.stop()
    assert tree(path) == FILES


def test_one_large_frame_of_zstd_is_unpacked_once(s3: FastS3Server, mounter: Mounter) -> None:
    """What `tar --zstd` writes: on disk when its directory is listed, and then read from anywhere."""
    files = {f"shard-{number}": pages(number + 1, 24 * MIB) for number in range(3)}
    put(s3, {"m.tar.zst": squeezed(tar_of(files))})
    mount = mounted(s3, mounter)
    path = mount.path / "m.tar.zst.d"
    assert sorted(os.listdir(path)) == sorted(files)
    mount.settle()
    cached = [int(os.getxattr(path / name, "user.lazyfs.cached_bytes")) for name in files]
    assert mount.stats()["chunks"]["unkept"] or cached == [24 * MIB] * 3
    assert (path / "shard-0").read_bytes() == files["shard-0"]
    assert (path / "shard-2").read_bytes() == files["shard-2"]


@pytest.mark.parametrize("name", ["m.tar", "m.tar.gz", "m.tar.zst"])
def test_what_one_machine_found_others_need_not(s3: FastS3Server, mounter: Mounter, name: str) -> None:
    """Left in the bucket: with a cache of its own, another mount lists a directory for its index and no more than the
    first bytes of the archive; and what it reads is right."""
    put(s3, {name: KINDS[name]})
    sharing = "--share-archive-indexes"
    first = mounted(s3, mounter, sharing)
    assert tree(first.path / f"{name}.d") == FILES
    assert s3.objects.get("models", f"llm/{name}.lazyfs-index") is not None
    s3.take_log()
    second = mounter.mount(
        s3, "s3://models/llm/", "--archives", sharing, cache=mounter.cache("other"), at=mounter.place("two")
    )
    assert sorted(os.listdir(second.path / f"{name}.d/a")) == ["b", "one.txt"]
    sent = [request for request in s3.take_log() if request.kind == "GET"]
    assert {request.key for request in sent} <= {f"llm/{name}", f"llm/{name}.lazyfs-index"}
    assert sum(request.bytes_sent for request in sent if request.key == f"llm/{name}") <= MIB
    assert tree(second.path / f"{name}.d") == FILES


@pytest.mark.parametrize("how", ["damaged", "of another archive", "no index", "no right to write"])
def test_what_was_left_is_not_believed_as_such(s3: FastS3Server, mounter: Mounter, how: str) -> None:
    """Whatever is there: the members are right, and it is replaced where that is possible."""
    put(s3, {"m.tar.gz": KINDS["m.tar.gz"]})
    words = ("is made anew", "cannot be left", "it is listed here")
    first = mounted(s3, mounter, "--share-archive-indexes")
    assert tree(first.path / "m.tar.gz.d") == FILES
    key = "llm/m.tar.gz.lazyfs-index"
    entry = s3.client().get_object(Bucket="models", Key=key)["Body"].read()
    wrong = {
        "damaged": entry[:-100] + bytes(100),
        "of another archive": entry.replace(b'"size": ', b'"size": 1'),
        "no index": b"no index at all",
        "no right to write": b"",
    }[how]
    s3.put("models", key, wrong)
    if how == "no right to write":
        s3.fault = lambda request: Fault(status=403, code="AccessDenied") if request.method == "PUT" else None
    second = mounter.mount(
        s3, "s3://models/llm/", "--archives", "--share-archive-indexes", cache=mounter.cache("other"),
        at=mounter.place("two"), expect=words,
    )  # fmt: skip
    assert tree(second.path / "m.tar.gz.d") == FILES
    found = s3.client().get_object(Bucket="models", Key=key)["Body"].read()
    assert (found == entry) == (how != "no right to write")
