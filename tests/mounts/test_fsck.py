"""`lazyfs fsck` of caches that real mounts have made and that somebody has damaged; and shell completion."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from lazyfs.cache.records import HEAD
from tests.mounts.books import check_at_rest
from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import ROOT, Mounter, environment
from tests.mounts.reader import Reader
from tests.mounts.test_cache import flip, object_files, sum_of
from tests.mounts.test_warming import lazyfs
from tests.servers.fast import FastS3Server

CONTENTS = {"a/one": pages(1, 5 * MIB + 77), "a/two": pages(2, 3 * MIB)}


@pytest.fixture
def cache(s3: FastS3Server, mounter: Mounter) -> Path:
    """A cache with two files in it that no mount uses."""
    for name, data in CONTENTS.items():
        s3.put("models", name, data)
    mount = mounter.mount(s3, "s3://models")
    assert "in use" in lazyfs(mounter, "fsck", mount.cache, status=8)
    lazyfs(mounter, "warm", mount.path)
    assert mount.unmount() == 0
    return mount.cache


def change(cache: Path, table: str, how: Callable[[bytes, bytes], bytes | None]) -> None:
    """Change the first record of a table of the index; None deletes it."""
    with lmdb.open(str(cache / "index"), max_dbs=16) as env:
        db = env.open_db(table.encode(), create=False)
        with env.begin(write=True, db=db) as txn, txn.cursor() as cursor:
            assert cursor.first()
            key, value = bytes(cursor.key()), bytes(cursor.value())
            changed = how(key, value)
            if changed is None:
                txn.delete(key)
            else:
                txn.put(key, changed)


def flipped_data(cache: Path) -> None:
    """A bit of a chunk."""
    flip(object_files(cache)[0], 2 * MIB + 5)


def missing_file(cache: Path) -> None:
    """An object file is gone."""
    object_files(cache)[0].unlink()


def cut_file(cache: Path) -> None:
    """An object file is cut."""
    os.truncate(object_files(cache)[0], MIB + 1)


def stray(cache: Path) -> None:
    """An object file that no record knows."""
    (cache / "objects" / "ab").mkdir(exist_ok=True)
    (cache / "objects" / "ab" / f"ab{'0' * 30}.00000001").write_bytes(bytes(MIB))


def used(cache: Path) -> None:
    """The sum is wrong."""
    change(cache, "meta", lambda key, value: value)
    with lmdb.open(str(cache / "index"), max_dbs=16) as env:
        db = env.open_db(b"meta", create=False)
        with env.begin(write=True, db=db) as txn:
            txn.put(b"used", (1 << 40).to_bytes(8, "little"))


def torn_record(cache: Path) -> None:
    """A record of chunks is damaged."""
    change(cache, "segments", lambda key, value: value[: HEAD.size] + b"\1" + value[HEAD.size + 1 :])


def no_use(cache: Path) -> None:
    """Chunks that eviction would never meet."""
    change(cache, "lru", lambda key, value: None)


def no_object(cache: Path) -> None:
    """Chunks without their object."""
    change(cache, "objects", lambda key, value: None)


def no_index(cache: Path) -> None:
    """The index is not one."""
    (cache / "index" / "data.mdb").write_bytes(b"nonsense" * 10_000)


RARE = [pytest.param(damage, marks=pytest.mark.slow) for damage in (cut_file, no_use, no_object)]
DAMAGES = [flipped_data, missing_file, stray, used, torn_record, no_index, *RARE]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: str(damage.__name__))
def test_damage_is_found_and_mended(
    damage: Callable[[Path], None], cache: Path, s3: FastS3Server, mounter: Mounter, reader: Reader
) -> None:
    """0 before, 4 when looked at, which changes nothing, 1 when mended, 0 after; and the next mount reads all."""
    before = lazyfs(mounter, "fsck", cache, "--json")
    assert (before["status"], before["objects"], before["chunks"]) == ("clean", 2, 9)
    damage(cache)
    found = lazyfs(mounter, "fsck", cache, "--json", status=4)
    assert found["status"] == "damaged"
    assert found["problems"]
    assert lazyfs(mounter, "fsck", cache, "--json", status=4) == found
    mended = lazyfs(mounter, "fsck", cache, "--json", "--repair", status=1)
    assert all(problem["mended"] for problem in mended["problems"])
    assert "clean" in lazyfs(mounter, "fsck", cache)
    mount = mounter.mount(s3, "s3://models")
    for name, data in CONTENTS.items():
        assert reader.call("digest", str(mount.path / name)) == sum_of(data)
    lazyfs(mounter, "warm", mount.path)
    mount.settle()
    check_at_rest(mount.cache)


def test_quick_reads_no_bytes(cache: Path, mounter: Mounter) -> None:
    """And so does not see what only a checksum sees."""
    flipped_data(cache)
    lazyfs(mounter, "fsck", "--quick", cache)


def test_what_is_not_ours_is_left(cache: Path, mounter: Mounter, tmp_path: Path) -> None:
    """A file of somebody's is named and stays; what is no cache is refused."""
    (cache / "notes.txt").write_text("mine")
    assert "notes.txt" in lazyfs(mounter, "fsck", "--repair", cache, status=4)
    assert (cache / "notes.txt").read_text() == "mine"
    assert "not a cache directory" in lazyfs(mounter, "fsck", tmp_path, status=16)
    assert "Missing argument" in lazyfs(mounter, "fsck", status=16)


def test_after_a_kill_nothing_is_wrong(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """What a killed daemon leaves is no damage, and is cleared when asked."""
    s3.put("models", "one", CONTENTS["a/one"])
    mount = mounter.mount(s3, "s3://models")
    reader.call("digest", str(mount.path / "one"))
    mount.kill()
    lazyfs(mounter, "fsck", mount.cache)
    lazyfs(mounter, "fsck", mount.cache, "--repair")
    check_at_rest(mount.cache, daemons=0)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, mounter: Mounter) -> None:
    """What the shell is given is such a script; bash itself completes a command with it."""
    script = lazyfs(mounter, "completion", shell)
    assert f"_LAZYFS_COMPLETE={shell}_complete" in script
    if shell == "bash":
        env = environment(mounter.work / "home", None)
        program = f'{script}\nCOMP_WORDS=(lazyfs wa); COMP_CWORD=1; _lazyfs_completion "$@"; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(
            ["bash", "-c", program, "bash", str(Path(sys.executable).parent / "lazyfs")],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stdout.split() == ["warm"], done.stderr
