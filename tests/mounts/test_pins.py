"""`lazyfs pin`, `unpin`, `evict`, `du` on real mounts: what is kept, what goes, and that the books say so."""

import json
import os
import subprocess
import sys

import pytest

from tests.mounts.books import allocated, books, check_at_rest
from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter, wait_until
from tests.mounts.reader import Reader
from tests.mounts.test_cache import sum_of
from tests.mounts.test_warming import cached, gets, lazyfs
from tests.servers.fast import FastS3Server

SIZE = 4 * MIB
NAMES = ("keep/one", "keep/two", "go/one", "go/two", "go/three")
CONTENTS = {name: pages(number + 1, SIZE) for number, name in enumerate(NAMES)}
FULL = ["the cache is full of what is pinned"]


@pytest.fixture
def models(s3: FastS3Server) -> FastS3Server:
    """The bucket, with two directories."""
    for name, data in CONTENTS.items():
        s3.put("models", name, data)
    return s3


def read(mount: Mount, reader: Reader, *names: str) -> None:
    """Read files to their ends, and wait until the disk has had its chance."""
    for name in names:
        assert reader.call("digest", str(mount.path / name)) == sum_of(CONTENTS[name])
    mount.settle()


def test_two_daemons_keep_to_each_others_pins(models: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """One pins, the other evicts; also after both were started anew; until it is unpinned."""
    options = ("--metadata-ttl=1h", "--max-cache-size=14MiB")
    one = mounter.mount(models, "s3://models", *options)
    two = mounter.mount(models, "s3://models", *options, at=mounter.place("two"))
    lazyfs(mounter, "pin", "--warm", one.path / "keep")
    for _ in range(2):
        for name in ("go/one", "go/two", "go/three"):
            lazyfs(mounter, "warm", two.path / name)  # each fits, and takes the place of the one before
        assert cached(one, "keep/one") == cached(one, "keep/two") == SIZE
        assert one.unmount() == 0
        assert two.unmount() == 0
        one = mounter.mount(models, "s3://models", *options)
        two = mounter.mount(models, "s3://models", *options, at=mounter.place("two"))
    assert two.stats()["disk"]["evicted_bytes"] == 0
    assert lazyfs(mounter, "pin", "--list", one.path, "--json") == [{"mountpoint": str(one.path), "pins": ["keep/"]}]
    assert "pinned: 8.0 MiB" in lazyfs(mounter, "status", one.path)
    assert lazyfs(mounter, "unpin", one.path / "keep/one", "--json", status=1)["kept"][0]["pin"] == "keep/"
    assert lazyfs(mounter, "unpin", one.path, "--json") == {"unpinned": 1, "kept": []}
    for name in ("go/one", "go/two", "go/three", "go/one"):
        lazyfs(mounter, "warm", two.path / name)
    assert cached(one, "keep/one") + cached(one, "keep/two") < 2 * SIZE
    check_at_rest(one.cache, daemons=2)


def test_a_cache_full_of_pins_serves_reads_and_keeps_none(
    models: FastS3Server, mounter: Mounter, reader: Reader
) -> None:
    """One line in the log, whatever is read; a pin is of the path, so a new version is kept as well."""
    mount = mounter.mount(models, "s3://models", "--metadata-ttl=0s", "--max-cache-size=10MiB", expect=FULL)
    lazyfs(mounter, "pin", "--warm", mount.path / "keep")
    for name in ("go/one", "go/two", "go/three"):
        read(mount, reader, name)
    wait_until(lambda: mount.stats()["chunks"]["unkept"] > 0, "some were not kept")
    assert cached(mount, "keep/one") == cached(mount, "keep/two") == SIZE
    assert mount.logged().count(FULL[0]) == 1
    models.put("models", "keep/one", pages(9, MIB))
    lazyfs(mounter, "evict", mount.path / "keep", "--pinned")
    lazyfs(mounter, "warm", mount.path / "keep/one")
    assert lazyfs(mounter, "du", mount.path, "--depth=0", "--json")[0]["pinned"] == MIB


def test_evict_gives_the_disk_back_and_readers_go_on(models: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """Not what is pinned, unless asked; an open file is read on, mapped and not, and comes again."""
    mount = mounter.mount(models, "s3://models", "--metadata-ttl=1h")
    lazyfs(mounter, "warm", mount.path)
    lazyfs(mounter, "pin", mount.path / "keep/one")
    before = allocated(mount.cache / "objects")
    fd = reader.call("open_file", str(mount.path / "go/one"))
    reader.call("map_file", fd)
    assert reader.call("peek", fd, 4096, 0) == CONTENTS["go/one"][:4096]
    found = lazyfs(mounter, "evict", mount.path, "--json")
    assert found == {"freed": 4 * SIZE, "files": 4, "pinned": 1, "busy": 0}
    assert allocated(mount.cache / "objects") <= before - 4 * SIZE
    (row,) = lazyfs(mounter, "du", mount.path / "keep", "--depth=0", "--json")
    assert (row["cached"], row["size"], row["pinned"], row["files"]) == (SIZE, 2 * SIZE, SIZE, 2)
    check_at_rest(mount.cache)
    models.take_log()
    reader.call("forget_pages", fd)
    assert reader.call("peek", fd, 4096, SIZE - 4096) == CONTENTS["go/one"][-4096:]
    assert reader.call("pread", fd, 4096, MIB) == CONTENTS["go/one"][MIB : MIB + 4096]
    assert set(gets(models.take_log())) == {"go/one"}
    mount.settle()
    assert lazyfs(mounter, "evict", mount.path / "keep", "--pinned", "--json")["freed"] == SIZE
    assert books(mount.cache).used == sum(books(mount.cache).files.values())


def test_du_of_a_mount_and_of_its_cache(models: FastS3Server, mounter: Mounter) -> None:
    """They agree, with the mount and without; parents are the sums of what is below."""
    mount = mounter.mount(models, "s3://models", "--metadata-ttl=1h")
    lazyfs(mounter, "warm", mount.path / "keep", mount.path / "go/one")
    lazyfs(mounter, "pin", mount.path / "keep")
    rows = {row["path"]: row for row in lazyfs(mounter, "du", mount.path, "--json")}
    assert list(rows) == [f"{mount.path}/go", f"{mount.path}/keep", str(mount.path)]
    assert rows[str(mount.path)] == {
        "path": str(mount.path), "files": 5, "size": 5 * SIZE, "cached": 3 * SIZE, "pinned": 2 * SIZE,
    }  # fmt: skip
    for _ in range(2):
        of_cache = lazyfs(mounter, "du", mount.cache, "--json")
        assert [(row["cached"], row["files"]) for row in of_cache] == [(3 * SIZE, 3), (SIZE, 1), (2 * SIZE, 2)]
        assert of_cache[0]["path"] == f"{models.url}/models/"
        if mount.process.poll() is None:
            assert mount.unmount() == 0
    assert "keep/" in lazyfs(mounter, "du", mount.cache)


@pytest.mark.root
def test_only_the_owner_and_root_start_anything(models: FastS3Server, mounter: Mounter) -> None:
    """Another user who may read the mount may ask how it is, and no more."""
    mount = mounter.mount(models, "s3://models", "--allow-other")
    for parent in mount.path.parents:
        if parent.stat().st_uid == os.geteuid() and str(parent).startswith(str(mounter.work.parent.parent)):
            parent.chmod(0o755)
    # A process of this Python that has become nobody after it has opened the way there.
    program = (
        "import errno, json, os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "def ask(name, path='.'):\n"
        "    try:\n"
        "        return os.getxattr(path, 'user.lazyfs.' + name).decode()\n"
        "    except OSError as error:\n"
        "        return errno.errorcode[error.errno]\n"
        "names = ['pin', 'unpin', 'evict', 'warm:job=12345678', 'warm-start:job=12345678', 'warm-cancel']\n"
        "found = {name: ask(name) for name in names} | {'verify': ask('verify', 'go/one')}\n"
        "print(json.dumps([found, ask('du'), ask('pins')]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(mount.path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    refused, usage, pins = json.loads(done.stdout)
    assert set(refused.values()) == {"EPERM"}
    assert json.loads(usage)["files"] == 5
    assert json.loads(pins) == {"pins": [], "more": False}
