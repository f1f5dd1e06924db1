"""P2, P4, P6, R6: what was read once is there, whatever became of S3 or of the daemon, and never if it is damaged."""

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from tests.mounts.books import check_at_rest, index_is_clean
from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter, run, wait_until
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server
from tests.servers.records import Request

SIZE = 20 * MIB + 777
OUTAGE = ["cannot list .*, going on with the listing of"]
DAMAGED = ["cached bytes of .*, chunk .*, are damaged and will be fetched again"]
ANEW = ["the cache index cannot be used and is started anew"]


def sum_of(data: bytes) -> tuple[int, str]:
    """What `reader.digest` gives for these bytes."""
    return len(data), hashlib.sha256(data).hexdigest()


def kinds(log: list[Request]) -> set[str]:
    """Which kinds of requests there were."""
    return {request.kind for request in log}


def fill(mount: Mount, reader: Reader, contents: dict[str, bytes]) -> None:
    """Read everything and wait until it is on the disk."""
    for name, data in contents.items():
        assert reader.call("digest", str(mount.path / name)) == sum_of(data)
    if mount.settle()["chunks"]["unkept"]:
        for name in contents:
            completed(mount.path / name)
    chunks = sum(-(-len(data) // MIB) for data in contents.values())
    wait_until(lambda: mount.settle()["chunks"]["kept"] >= chunks, "everything is on disk")


def completed(path: Path) -> None:
    """Have all of a file on disk: what a busy disk could not take in time is fetched again."""
    done = run(["warm", path], os.environ)
    assert done.returncode == 0, done.stderr


def object_files(cache: Path) -> list[Path]:
    """The object files, the largest first."""
    found = [path for path in (cache / "objects").rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: path.stat().st_size, reverse=True)


@pytest.fixture
def contents(s3: FastS3Server) -> dict[str, bytes]:
    """Two objects of different sizes, in the bucket."""
    found = {"one": pages(1, SIZE), "two": pages(2, SIZE - 5 * MIB)}
    for name, data in found.items():
        s3.put("models", name, data)
    return found


def test_a_warm_remount_asks_nothing(
    s3: FastS3Server, mounter: Mounter, reader: Reader, contents: dict[str, bytes]
) -> None:
    """R6: no GET and no HEAD, and no LIST within the TTL."""
    first = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    fill(first, reader, contents)
    assert first.unmount() == 0
    s3.take_log()
    again = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    for name, data in contents.items():
        assert reader.call("digest", str(again.path / name)) == sum_of(data)
        assert reader.call("mapped_digest", str(again.path / name), "random") == sum_of(data)[1]
    assert s3.take_log() == []
    assert again.unmount() == 0
    later = mounter.mount(s3, "s3://models", "--metadata-ttl=0s")
    assert reader.call("digest", str(later.path / "one")) == sum_of(contents["one"])
    assert kinds(s3.take_log()) == {"LIST"}, "past its TTL the listing is asked for, and nothing else"


@pytest.mark.parametrize("ttl", ["1h", "0s"])
def test_what_is_cached_outlives_s3(
    s3: FastS3Server, mounter: Mounter, reader: Reader, contents: dict[str, bytes], ttl: str
) -> None:
    """P4, in the mount that read it and in the next one, within the listing's TTL and past it."""
    first = mounter.mount(s3, "s3://models", f"--metadata-ttl={ttl}", "--retry-budget=2s", expect=OUTAGE)
    fill(first, reader, contents)
    s3.stop()
    fd = reader.call("open_file", str(first.path / "one"))
    assert reader.call("pread", fd, 100_000, 7 * MIB) == contents["one"][7 * MIB : 7 * MIB + 100_000]
    reader.call("close_file", fd)
    assert first.unmount() == 0
    again = mounter.mount(s3, "s3://models", f"--metadata-ttl={ttl}", "--retry-budget=2s", expect=OUTAGE)
    for name, data in contents.items():
        assert reader.call("digest", str(again.path / name)) == sum_of(data)


def test_kill_in_the_middle_of_a_read(
    s3: FastS3Server, mounter: Mounter, reader: Reader, contents: dict[str, bytes]
) -> None:
    """P6: ready in 2 seconds, nothing corrupt, what was warm still is. Five times, each a little further on."""
    big = pages(3, 48 * MIB)
    for gets in range(5):
        s3.put("models", f"big{gets}", big)
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    fill(mount, reader, contents)
    for gets in range(5):
        with Reader() as victim, s3.hold() as gate:
            victim.begin("digest", str(mount.path / f"big{gets}"))
            gate.release(gets)
            gate.wait_for(1)
            mount.kill(clear=False)
        index_is_clean(mount.cache)
        s3.take_log()
        mount = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
        assert mount.ready_after < 2 + import_time(), mount.ready_after
        for name, data in contents.items():
            assert reader.call("digest", str(mount.path / name)) == sum_of(data)
        assert "GET" not in kinds(s3.take_log()), "warm data is still warm"
        assert reader.call("digest", str(mount.path / f"big{gets}")) == sum_of(big)
    assert mount.settle()["chunks"]["corrupt"] == 0


def import_time() -> float:
    """Seconds that Python takes for its imports on this machine as busy as it is; they are no part of getting ready."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import boto3, lmdb, pyfuse3, trio"], check=True, timeout=60)
    return time.monotonic() - started


# ---- P2: damage


def flip_data(cache: Path) -> None:
    """One byte in the middle of the larger object file."""
    flip(object_files(cache)[0], 9 * MIB + 12345)


def flip(path: Path, offset: int) -> None:
    """Invert one byte of a file."""
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]))


def swap_files(cache: Path) -> None:
    """Two object files change their names."""
    one, two = object_files(cache)[:2]
    aside = one.with_name("aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def truncate_file(cache: Path) -> None:
    """An object file loses its second half."""
    path = object_files(cache)[0]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def remove_file(cache: Path) -> None:
    """An object file is not there."""
    object_files(cache)[0].unlink()


def zero_file(cache: Path) -> None:
    """An object file is all zeros, as after a power failure."""
    path = object_files(cache)[0]
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(0)
        file.truncate(size)


@pytest.mark.parametrize("damage", [flip_data, swap_files, truncate_file, remove_file, zero_file])
def test_damaged_data_is_fetched_again(
    s3: FastS3Server, mounter: Mounter, reader: Reader, contents: dict[str, bytes], damage: Callable[[Path], None]
) -> None:
    first = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    fill(first, reader, contents)
    assert first.unmount() == 0
    damage(first.cache)
    s3.take_log()
    again = mounter.mount(s3, "s3://models", "--metadata-ttl=1h", expect=DAMAGED)
    for name, data in contents.items():
        assert reader.call("digest", str(again.path / name)) == sum_of(data)
    stats = again.settle()
    assert stats["chunks"]["corrupt"] >= 1
    assert "GET" in kinds(s3.take_log())
    assert again.unmount() == 0
    mended = mounter.mount(s3, "s3://models", "--metadata-ttl=1h", expect=DAMAGED)
    for name, data in contents.items():
        assert reader.call("digest", str(mended.path / name)) == sum_of(data)
    assert mended.settle()["chunks"]["corrupt"] == 0, "what was fetched again is kept"


@pytest.mark.parametrize("offset", [16, 4096 + 16, None], ids=["header", "second-header", "everywhere"])
def test_a_damaged_index_is_set_aside_or_mended(
    s3: FastS3Server, mounter: Mounter, reader: Reader, contents: dict[str, bytes], offset: int | None
) -> None:
    """A byte of LMDB's two headers, or one in every page after them. No mount fails of it."""
    first = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    fill(first, reader, contents)
    assert first.unmount() == 0
    index = first.cache / "index" / "data.mdb"
    for place in [offset] if offset is not None else range(2 * 4096 + 2000, index.stat().st_size, 4096):
        flip(index, place)
    expect = [*DAMAGED, *ANEW, "^index: ", r"ERROR lazyfs.cache.disk: index: ", "the disk cache does not work"]
    again = mounter.mount(s3, "s3://models", "--metadata-ttl=1h", expect=expect)
    for name, data in contents.items():
        assert reader.call("digest", str(again.path / name)) == sum_of(data)
    assert again.signal(signal.SIGTERM) == 0


def foreign(index: Path) -> None:
    """Something that LMDB did not write."""
    (index / "data.mdb").write_bytes(b"not an index at all" * 4096)


def noise(index: Path) -> None:
    """As long as before, and every byte of it chance."""
    (index / "data.mdb").write_bytes(random.Random(1).randbytes((index / "data.mdb").stat().st_size))


def cut(index: Path) -> None:
    """Half of it is lost."""
    os.truncate(index / "data.mdb", (index / "data.mdb").stat().st_size // 2)


def newer(index: Path) -> None:
    """What a lazyfs to come may write."""
    with lmdb.open(str(index), max_dbs=16) as env, env.begin(write=True) as txn:
        txn.put(b"format", b"lazyfs-index-99", db=env.open_db(b"meta", txn=txn))


def empty(index: Path) -> None:
    """As a full disk may leave it."""
    (index / "data.mdb").write_bytes(b"")


def missing(index: Path) -> None:
    """Deleted, with the object files still there."""
    shutil.rmtree(index)


def directory(index: Path) -> None:
    """A directory where the file should be."""
    (index / "data.mdb").unlink()
    (index / "data.mdb").mkdir()


@pytest.mark.parametrize("damage", [foreign, noise, cut, newer, empty, missing, directory])
def test_an_index_that_is_none_is_set_aside(
    s3: FastS3Server, mounter: Mounter, reader: Reader, contents: dict[str, bytes], damage: Callable[[Path], None]
) -> None:
    """With the object files that it knew, which would else take space that nobody has spoken for."""
    first = mounter.mount(s3, "s3://models")
    fill(first, reader, contents)
    before = set(object_files(first.cache))
    assert first.unmount() == 0
    damage(first.cache / "index")
    again = mounter.mount(s3, "s3://models", expect=ANEW)
    assert re.search(ANEW[0], again.logged())
    fill(again, reader, contents)
    assert not before & set(object_files(again.cache))
    wait_until(lambda: not (again.cache / "damaged").exists(), "what was set aside is deleted")
    check_at_rest(again.cache)
    assert again.unmount() == 0
    index_is_clean(again.cache)


def test_two_mounts_share_one_cache(
    s3: FastS3Server, mounter: Mounter, reader: Reader, contents: dict[str, bytes]
) -> None:
    """P16: what one fetched the other has; the end of one, even by SIGKILL, is nothing to the other."""
    one = mounter.mount(s3, "s3://models", "--metadata-ttl=0s", at=mounter.place("one"))
    two = mounter.mount(s3, "s3://models", "--metadata-ttl=0s", at=mounter.place("two"))
    fill(one, reader, contents)
    s3.take_log()
    for name, data in contents.items():
        assert reader.call("digest", str(two.path / name)) == sum_of(data)
    assert "GET" not in kinds(s3.take_log())
    one.kill()
    more = pages(4, 10 * MIB)
    s3.put("models", "dir/more", more)
    fill(two, reader, {"dir/more": more})
    assert two.unmount() == 0
    index_is_clean(two.cache)
