"""Models by name beside real mounts: the path in a mount, its verifier and the digests beside, one bound for both."""

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lazyfs import ModelCache
from tests.mounts.mounting import Mounter, environment, run
from tests.rooms.building import allocated, pattern
from tests.servers.fast import FastS3Server

MIB = 1 << 20
FILES = {"model.safetensors": pattern(5 * MIB + 7), "sub/vocab.txt": b"words", "empty": b""}


@pytest.fixture
def cache(s3: FastS3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelCache]:
    """A model cache in the directory of the mounts' cache, with tiny/v1 in the bucket and not here."""
    for name, value in environment(tmp_path / "home", s3).items():
        monkeypatch.setenv(name, value)
    for name, data in FILES.items():
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_bytes(data)
    settings: dict[str, Any] = {"endpoint_url": s3.url, "min_free_space": 0}
    with ModelCache("s3://models/llm/", cache_dir=str(tmp_path / "elsewhere"), **settings) as other:
        other.put("org/tiny", "v1", tmp_path / "m")
    (tmp_path / "cache").mkdir(mode=0o700, exist_ok=True)
    with ModelCache(
        "s3://models/llm/", cache_dir=str(tmp_path / "cache"), max_cache_size="12MiB", **settings
    ) as made:
        yield made


@pytest.mark.parametrize("source", ["s3://models", "s3://models/llm/org/"])
def test_where_there_is_a_mount_its_path_is_given(
    s3: FastS3Server, mounter: Mounter, cache: ModelCache, source: str
) -> None:
    """At once, and nothing is fetched; without it the same call gives plain files."""
    mount = mounter.mount(s3, source)
    path = cache.get("org/tiny", "v1")
    assert path == mount.path / ("llm/org/tiny/v1" if source == "s3://models" else "tiny/v1")
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert (cache.stats().mounted, cache.stats().fetched_bytes) == (1, 0)
    mount.unmount()
    plain = cache.get("org/tiny", "v1")
    assert plain.is_relative_to(mount.cache)
    for name, data in FILES.items():
        assert (plain / name).read_bytes() == data


def test_in_a_mount_of_several_sources_its_path_is_given(
    s3: FastS3Server, mounter: Mounter, cache: ModelCache
) -> None:
    """Below the directory of the source that has it, and of none that has the same keys in another bucket, on another
    server or as of another time."""
    s3.add_bucket("other")
    client = s3.client()
    for info in client.list_objects_v2(Bucket="models")["Contents"]:
        s3.put("other", info["Key"], client.get_object(Bucket="models", Key=info["Key"])["Body"].read())
    with FastS3Server() as elsewhere:
        elsewhere.put("models", "llm/org/tiny/v1/lazyfs-manifest.json", b"{}")
        sources = {"a": "s3://other", "b": "s3://models", "c": "s3://models/nothing", "d": "s3://models/llm/org"}
        mount = mounter.mount(
            s3,
            "lazyfs",
            *(f"--source={name}={url}" for name, url in sources.items()),
            f"--source-option=b:endpoint-url={elsewhere.url}",
            expect=["s3://models/nothing/ has no objects yet"],
        )
        path = cache.get("org/tiny", "v1")
        assert path == mount.path / "d" / "tiny/v1"
        assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
        assert (cache.stats().mounted, cache.stats().fetched_bytes) == (1, 0)
        mount.unmount()


def test_a_mount_of_another_endpoint_is_not_it(s3: FastS3Server, mounter: Mounter, cache: ModelCache) -> None:
    """A bucket of that name, with that model, on another server."""
    with FastS3Server() as other:
        other.put("models", "llm/org/tiny/v1/lazyfs-manifest.json", b"{}")
        mount = mounter.mount(other, "s3://models/llm/")
        assert not cache.get("org/tiny", "v1").is_relative_to(mount.path)


def test_the_verifier_of_a_mount_finds_the_digests(
    s3: FastS3Server, mounter: Mounter, cache: ModelCache, tmp_path: Path
) -> None:
    """Of every file of a version, in whatever directory."""
    mount = mounter.mount(s3, "s3://models/llm/")
    done = run(["verify", mount.path / "org/tiny/v1"], environment(tmp_path / "home", s3))
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "sub/vocab.txt"):
        assert f"{mount.path}/org/tiny/v1/{name}: SHA-256 agrees" in done.stdout


def test_one_bound_holds_for_chunks_and_models(
    s3: FastS3Server, mounter: Mounter, cache: ModelCache, tmp_path: Path
) -> None:
    """What a mount keeps makes room for a model, and what a mount keeps then is what is left."""
    data = pattern(9 * MIB, seed=3)
    s3.put("models", "other/big.bin", data)
    s3.put("models", "other/more.bin", data)
    mount = mounter.mount(s3, "s3://models/other/", "--max-cache-size=12MiB", "--min-free-space=0")
    assert (mount.path / "big.bin").read_bytes() == data
    mount.settle()
    before = mount.stats()["disk"]["used"]
    path = cache.get("org/tiny", "v1")
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert mount.stats()["disk"]["used"] < before or before < 6 * MIB  # a slow disk may not have kept it all
    assert allocated(mount.cache) <= 12 * MIB
    mount.unmount()
    again = mounter.mount(s3, "s3://models/other/", "--max-cache-size=12MiB", "--min-free-space=0")
    assert (again.path / "more.bin").read_bytes() == data
    again.settle()
    assert allocated(mount.cache) <= 12 * MIB
    assert cache.get("org/tiny", "v1") == path
    again.unmount()
    done = run(["fsck", mount.cache], environment(tmp_path / "home", s3))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_program_needs_no_fuse(tmp_path: Path) -> None:
    """`ModelCache` is there where pyfuse3 is not."""
    code = "import sys; sys.modules['pyfuse3'] = None; from lazyfs import ModelCache; import lazyfs.aio; print('here')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "here\n", done.stderr


@pytest.mark.parametrize("shown", [True, False], ids=["--archives", "none"])
def test_an_archive_is_given_unpacked(
    s3: FastS3Server, mounter: Mounter, cache: ModelCache, tmp_path: Path, shown: bool
) -> None:
    """In a mount that shows what is in it, there; beside one that does not, on this disk. Either way it is a directory
    with the model's files."""
    (tmp_path / "a").mkdir()
    with tarfile.open(tmp_path / "a" / "model.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "m", ".")
    other = ModelCache("s3://models/llm/", cache_dir=str(tmp_path / "other"), endpoint_url=s3.url, min_free_space=0)
    with other:
        other.put("org/packed", "v1", tmp_path / "a")
    mount = mounter.mount(s3, "s3://models", *(["--archives"] if shown else []))
    path = cache.get("org/packed", "v1")
    assert path.is_relative_to(mount.path if shown else mount.cache)
    assert {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()} == FILES
