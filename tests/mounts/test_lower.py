"""`lazyfs bake`, and mounts over what it filled: a read-only lower layer, as an image has it."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter, environment, run, wait_until
from tests.mounts.test_cache import DAMAGED, completed, flip, object_files
from tests.mounts.test_manifests import FILES, publish, tree, verified  # noqa: F401 - one is a fixture
from tests.mounts.test_passthrough import kernel_passes
from tests.mounts.test_verification import WRONG, crc_header, sha_header
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault, first

DATA = pages(1, 5 * MIB + 777)
MORE = pages(2, 3 * MIB)
FOR_EVER = "--metadata-ttl=indefinite"


class Bake:
    """The command, and where what it fills can be seen but not written."""

    def __init__(self, s3: FastS3Server, work: Path) -> None:
        self._env = environment(work / "home", s3, LAZYFS_ENDPOINT_URL=s3.url)
        self.layer = work / "layer"
        self.place = work / "read-only"

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run it to its end."""
        return run(["bake", *arguments, "--cache-dir", self.layer, "--min-free-space=0"], self._env)

    def __call__(self, *arguments: str) -> dict[str, Any]:
        """Run it; what it says. It must not fail."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def refused(self, *arguments: str) -> str:
        """The sentence with which it fails."""
        done = self.run(*arguments)
        assert done.returncode in (1, 2), done.stdout
        return done.stderr.splitlines()[-1]

    def show(self) -> Path:
        """The layer on a filesystem that is read-only, for root, too."""
        if not self.place.exists():
            self.place.mkdir()
            subprocess.run(["mount", "--bind", self.layer, self.place], check=True, timeout=60)
            subprocess.run(["mount", "-o", "remount,bind,ro", self.place], check=True, timeout=60)
        return self.place


@pytest.fixture
def bake(s3: FastS3Server, tmp_path: Path) -> Iterator[Bake]:
    """Runs the command. A test asks for it before mounts, so that it goes last."""
    made = Bake(s3, tmp_path)
    yield made
    if made.place.exists():
        subprocess.run(["umount", "-l", made.place], check=False, timeout=60, capture_output=True)


def put(s3: FastS3Server) -> dict[str, bytes]:
    """A few files, and their digests."""
    files = {"a/weights": DATA, "a/config": b"{}", "b/more": MORE, "empty": b""}
    for key, data in files.items():
        s3.put("models", key, data, headers=crc_header(data))
    return files


def over(mounter: Mounter, s3: FastS3Server, layer: Path, *options: str, **more: Any) -> Mount:
    """A mount over the layer."""
    return mounter.mount(s3, more.pop("source", "s3://models"), f"--lower-cache-dir={layer}", *options, **more)


def gets(s3: FastS3Server) -> set[str]:
    """What was asked for since the last time."""
    return {request.key for request in s3.take_log() if request.kind == "GET"}


def own(mount: Mount) -> int:
    """Object files of the mount's own cache."""
    return len(object_files(mount.cache))


@pytest.mark.root
def test_a_mount_over_a_baked_layer_asks_for_nothing(s3: FastS3Server, bake: Bake, mounter: Mounter) -> None:
    """No request at all, two mounts at once, and nothing is copied."""
    files = put(s3)
    baked = bake("s3://models")
    assert (baked["files"], baked["bytes"], baked["without_digest"]) == (4, len(DATA) + len(MORE) + 2, [])
    s3.take_log()
    layer = bake.show()
    mount = over(mounter, s3, layer, FOR_EVER)
    second = over(mounter, s3, layer, FOR_EVER, cache=mounter.cache("cache-2"), at=mounter.place("mnt-2"))
    for one in (mount, second):
        assert tree(one.path) == {"a": None, "b": None} | files
        assert verified(one, "a/weights") == "crc64nvme"
        assert os.getxattr(one.path / "a/weights", "user.lazyfs.cached_bytes") == str(len(DATA)).encode()
        assert os.statvfs(one.path).f_blocks
        assert own(one) == 0
        assert one.stats()["disk"]["lower"] == str(layer)
    assert run(["warm", mount.path], os.environ).returncode == 0
    assert s3.take_log() == []
    assert run(["verify", mount.path], os.environ).returncode == 0
    assert gets(s3) == set()
    assert own(mount) == 0


@pytest.mark.root
def test_what_is_not_in_it_is_kept_as_ever(s3: FastS3Server, bake: Bake, mounter: Mounter) -> None:
    """Only that is fetched, once; a new version of what is in it, too."""
    put(s3)
    baked = bake("s3://models", "a", "empty")
    assert (baked["files"], baked["bytes"]) == (3, len(DATA) + 2)
    s3.take_log()
    mount = over(mounter, s3, bake.show())
    completed(mount.path / "b/more")
    assert (mount.path / "b/more").read_bytes() == MORE
    assert (mount.path / "a/weights").read_bytes() == DATA
    assert gets(s3) == {"b/more"}
    assert own(mount) == 1
    assert mount.unmount() == 0
    s3.put("models", "a/weights", MORE, headers=crc_header(MORE))
    mount = over(mounter, s3, bake.show(), "--metadata-ttl=0s")
    assert (mount.path / "a/weights").read_bytes() == MORE
    assert (mount.path / "b/more").read_bytes() == MORE
    assert gets(s3) == {"a/weights"}


@pytest.mark.root
def test_a_file_of_which_both_have_some(s3: FastS3Server, bake: Bake, mounter: Mounter) -> None:
    """What the layer lacks is fetched, all of it is compared, and the next mount asks for nothing."""
    s3.put("models", "weights", DATA, headers=sha_header(DATA))
    bake.layer.mkdir(mode=0o700)
    whole = mounter.mount(s3, "s3://models", cache=bake.layer)
    with (whole.path / "weights").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(file.fileno(), 4096, MIB) == DATA[MIB : MIB + 4096]
    wait_until(lambda: whole.settle()["chunks"]["kept"] > 0, "some of it is kept")
    assert whole.unmount() == 0
    fetched = whole_chunks(bake.layer)
    assert 0 < fetched < 6
    s3.take_log()
    mount = over(mounter, s3, bake.show(), FOR_EVER)
    completed(mount.path / "weights")
    assert (mount.path / "weights").read_bytes() == DATA
    assert verified(mount, "weights") == "sha256"
    assert mount.unmount() == 0
    s3.take_log()
    mount = over(mounter, s3, bake.show(), FOR_EVER)
    assert (mount.path / "weights").read_bytes() == DATA
    assert verified(mount, "weights") == "sha256"
    assert s3.take_log() == []


def whole_chunks(cache: Path) -> int:
    """MiB that the largest object file takes, begun ones too."""
    return -(-object_files(cache)[0].stat().st_blocks * 512 // MIB)


@pytest.mark.root
def test_what_rots_in_it_is_fetched(s3: FastS3Server, bake: Bake, mounter: Mounter) -> None:
    """The chunk, and no other; it is kept, so that it is found to be damaged once."""
    put(s3)
    bake("s3://models")
    flip(object_files(bake.layer)[0], 2 * MIB + 5)
    s3.take_log()
    mount = over(mounter, s3, bake.show(), FOR_EVER, expect=DAMAGED)
    assert (mount.path / "a/weights").read_bytes() == DATA
    completed(mount.path / "a/weights")
    assert mount.stats()["chunks"]["corrupt"] == 1
    assert {request.kind for request in s3.take_log()} <= {"GET", "HEAD"}
    assert mount.unmount() == 0
    mount = over(mounter, s3, bake.show(), FOR_EVER)
    assert (mount.path / "a/weights").read_bytes() == DATA
    assert verified(mount, "a/weights") == "crc64nvme"
    assert gets(s3) == set()
    assert mount.stats()["chunks"]["corrupt"] == 0


@pytest.mark.root
def test_what_is_wrong_in_it_is_fetched(s3: FastS3Server, bake: Bake, mounter: Mounter) -> None:
    """An object that was baked as it came, wrong: it is dropped and fetched again, and right from then on."""
    s3.put("models", "weights", DATA, headers=crc_header(DATA))
    s3.fault = first(1, Fault(wrong_bytes=True), lambda request: request.kind == "GET")
    bake("s3://models", "--verify-objects=off")
    mount = over(mounter, s3, bake.show(), FOR_EVER, expect=WRONG)

    def right() -> bool:
        try:
            return (mount.path / "weights").read_bytes() == DATA
        except OSError:
            return False

    wait_until(right, "it was fetched again")
    assert verified(mount, "weights") == "crc64nvme"
    completed(mount.path / "weights")
    assert mount.unmount() == 0
    s3.take_log()
    mount = over(mounter, s3, bake.show(), FOR_EVER)
    assert (mount.path / "weights").read_bytes() == DATA
    assert gets(s3) == set()


@pytest.mark.root
def test_a_published_version_is_baked(
    s3: FastS3Server,
    bake: Bake,
    mounter: Mounter,
    publish: Callable[..., None],  # noqa: F811
) -> None:
    """Its manifest says what there is and what it comes to, in the bake as in the mount."""
    publish(FILES)
    s3.take_log()
    bake("s3://models/llm/tiny/v1/", "--allow-other")
    assert [request.query["prefix"] for request in s3.take_log() if request.kind == "LIST"] == ["llm/tiny/v1/"], (
        "how many bytes all objects have, which statfs tells"
    )
    modes = {path.stat().st_mode & 0o7777 for path in [bake.layer, *bake.layer.rglob("*")]}
    assert modes == {0o755, 0o644}
    mount = over(mounter, s3, bake.show(), FOR_EVER, source="s3://models/llm/tiny/v1/")
    assert tree(mount.path) == FILES | dict.fromkeys(["a", "a/b"])
    assert verified(mount, "model.safetensors") == "sha256"
    assert s3.take_log() == []


@pytest.mark.skipif(not kernel_passes(), reason="needs root and Linux 6.9")
def test_the_kernel_reads_the_layer_itself(s3: FastS3Server, bake: Bake, mounter: Mounter) -> None:
    """With --passthrough, from the read-only filesystem."""
    put(s3)
    bake("s3://models")
    mount = over(mounter, s3, bake.show(), FOR_EVER, "--passthrough")
    assert (mount.path / "a/weights").read_bytes() == DATA
    assert (mount.stats()["passthrough"]["opens"], mount.stats()["reads"]["count"]) == (1, 0)


def test_what_bake_refuses(s3: FastS3Server, bake: Bake) -> None:
    """One sentence each; what came stays."""
    put(s3)
    s3.put("models", "wrong", DATA, headers=crc_header(MORE))
    s3.fault = lambda request: Fault(status=403, code="AccessDenied") if request.query.get("prefix") == "b/" else None
    assert "AccessDenied" in bake.refused("s3://models", "b/more")
    s3.fault = None
    assert "there is no c/d in s3://models" in bake.refused("s3://models", "c/d")
    assert "there is no a/config/x in" in bake.refused("s3://models", "a/config/x")
    assert "there is no bucket" in bake.refused("s3://nothing")
    assert "the CRC64NVME of 'wrong' is" in bake.refused("s3://models")
    assert "the cache has room for" in bake.refused("s3://models", "--max-cache-size=4MiB")
    done = run(["bake", "s3://models"], environment(bake.layer.parent / "home", s3))
    assert (done.returncode, done.stderr.splitlines()) == (2, ["lazyfs: " + NAMED])
    assert bake("s3://models", "a", "b")["fetched"] == 0
    assert run(["fsck", bake.layer], os.environ).returncode == 0


NAMED = "bake fills a directory that you name; say --cache-dir DIR"


def test_a_layer_that_is_none_is_one_warning(s3: FastS3Server, mounter: Mounter, tmp_path: Path) -> None:
    """The mount goes on without; but a cache is no layer of itself."""
    put(s3)
    mount = over(mounter, s3, tmp_path / "nothing", expect=["the lower layer .* is not used: it cannot be read"])
    assert (mount.path / "a/weights").read_bytes() == DATA
    assert mount.logged().count("lower layer") == 1
    assert mount.stats()["disk"]["lower"] == ""
    used = over(
        mounter,
        s3,
        mount.cache,
        cache=mounter.cache("cache-2"),
        at=mounter.place("mnt-2"),
        expect=["is not used: a mount has it open"],
    )
    assert (used.path / "a/config").read_bytes() == b"{}"
    options = [f"--endpoint-url={s3.url}", f"--cache-dir={mount.cache}", f"--lower-cache-dir={mount.cache}/."]
    done = run(["mount", *options, "s3://models", mounter.place("mnt-3")], environment(tmp_path / "home", s3))
    assert done.returncode != 0
    assert "--lower-cache-dir is --cache-dir itself" in done.stderr
