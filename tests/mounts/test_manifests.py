"""A mount that finds the manifest of a version: its tree and digests come from there."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lazyfs import ModelCache
from lazyfs.models.names import MANIFEST
from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter, MountFailed, environment, outlive_moment, wait_until
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault

FILES = {
    "model.safetensors": pages(1, 3 * MIB + 7),
    "a/one.txt": b"one",
    "a/b/two.txt": b"two",
    "a/b/three.txt": b"three",
    "empty": b"",
}
FOLDERS = ["a", "a/b"]
Publish = Callable[..., None]


@pytest.fixture
def publish(s3: FastS3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publish]:
    """Publishes files as llm/tiny/v1."""
    for name, value in environment(tmp_path / "home", s3).items():
        monkeypatch.setenv(name, value)
    cache = ModelCache("s3://models/llm/", cache_dir=str(tmp_path / "p"), endpoint_url=s3.url, min_free_space=0)

    def put(files: dict[str, bytes], version: str = "v1") -> None:
        place = tmp_path / f"m{len(list(tmp_path.iterdir()))}"
        for name, data in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        cache.put("tiny", version, place, force=True)

    with cache:
        yield put


def tree(path: Path) -> dict[str, bytes | None]:
    """All files below a path with their bytes, and directories, without what digests are in."""
    found: dict[str, bytes | None] = {}
    for folder, folders, names in os.walk(path):
        at = Path(folder)
        found |= {str((at / name).relative_to(path)): None for name in folders}
        found |= {
            str((at / name).relative_to(path)): (at / name).read_bytes()
            for name in names
            if name not in ("SHA256SUMS", MANIFEST)
        }
    return found


def names_below(path: Path) -> list[str]:
    """All names below a path, without what digests are in; no file is read."""
    return [
        str((Path(folder) / name).relative_to(path))
        for folder, folders, names in os.walk(path)
        for name in (*folders, *names)
        if name not in ("SHA256SUMS", MANIFEST)
    ]


def requests(s3: FastS3Server) -> list[tuple[str, str]]:
    """Kind and key of each since the last time; of a listing its prefix."""
    return [(request.kind, request.key or request.query.get("prefix", "")) for request in s3.take_log()]


def verified(mount: Mount, name: str) -> str:
    """Which digest the file's bytes agreed with, once they were compared."""
    path = mount.path / name

    def compared() -> str:
        found = os.getxattr(path, "user.lazyfs.verified").decode()
        return "" if found == "no" else found

    return wait_until(compared, f"{name} was compared")


def test_a_source_that_is_a_version_is_not_listed(s3: FastS3Server, mounter: Mounter, publish: Publish) -> None:
    """A HEAD and a GET of the manifest, and a HEAD of the largest file to see that it agrees: tree, sizes and digests;
    no LIST, also not after a remount, and a SHA-256 that S3 was not asked for."""
    publish(FILES)
    s3.take_log()
    mount = mounter.mount(s3, "s3://models/llm/tiny/v1/")
    assert tree(mount.path) == FILES | dict.fromkeys(FOLDERS)
    assert sorted(os.listdir(mount.path)) == ["a", "empty", MANIFEST, "model.safetensors"]
    assert verified(mount, "model.safetensors") == "sha256"
    digest = hashlib.sha256(FILES["model.safetensors"]).hexdigest().encode()
    assert os.getxattr(mount.path / "model.safetensors", "user.lazyfs.sha256") == digest
    manifest = f"llm/tiny/v1/{MANIFEST}"
    sent = requests(s3)
    assert [one for one in sent if one[0] != "GET"] == [("HEAD", manifest), ("HEAD", "llm/tiny/v1/model.safetensors")]
    assert sent.count(("GET", manifest)) == 1
    assert mount.unmount() == 0
    mount = mounter.mount(s3, "s3://models/llm/tiny/v1/")
    assert tree(mount.path) == FILES | dict.fromkeys(FOLDERS)
    assert requests(s3) == [], "a warm start"


def test_below_a_version_nothing_is_listed(s3: FastS3Server, mounter: Mounter, publish: Publish) -> None:
    """In a larger tree the version's own directory is listed, as any; what is below it is in the manifest."""
    publish(FILES)
    s3.put("models", "llm/plain/x/y", b"plain")
    s3.take_log()
    mount = mounter.mount(s3, "s3://models")
    assert (mount.path / "llm/tiny/v1/a/b/two.txt").read_bytes() == b"two"
    assert (mount.path / "llm/plain/x/y").read_bytes() == b"plain"
    listed = {key for kind, key in requests(s3) if kind == "LIST"}
    assert "llm/plain/x/" in listed
    assert not [key for key in listed if key.startswith("llm/tiny/v1/a")], listed
    assert tree(mount.path / "llm/tiny/v1") == FILES | dict.fromkeys(FOLDERS)


def test_another_manifest_is_another_tree(s3: FastS3Server, mounter: Mounter, publish: Publish) -> None:
    """Past the TTL it is asked for again: what was published anew is there, what was removed is not; and a version that
    is removed is gone."""
    publish(FILES)
    for source, below in (("s3://models/llm/tiny/v1", "."), ("s3://models", "llm/tiny/v1")):
        publish(FILES)
        mount = mounter.mount(s3, source, "--metadata-ttl=0s")
        assert tree(mount.path / below) == FILES | dict.fromkeys(FOLDERS)
        publish({"a/new.txt": b"new", "empty": b"not any more"})
        outlive_moment()
        assert tree(mount.path / below) == {"a": None, "a/new.txt": b"new", "empty": b"not any more"}
        for key in [entry["Key"] for entry in s3.client().list_objects_v2(Bucket="models")["Contents"]]:
            if key.startswith("llm/tiny/v1/"):
                s3.delete("models", key)
        s3.put("models", "llm/tiny/v1/only", b"1")
        outlive_moment()
        assert tree(mount.path / below) == {"only": b"1"}
        assert mount.unmount() == 0
        s3.delete("models", "llm/tiny/v1/only")


def test_what_is_replaced_behind_it_is_seen(s3: FastS3Server, mounter: Mounter, publish: Publish) -> None:
    """A file that is no longer what the manifest says: whoever has it open gets ESTALE or its bytes, never others; then
    its directory is listed, and the new one is there."""
    publish(FILES)
    mount = mounter.mount(
        s3, "s3://models/llm/tiny/v1/", expect=["does not say what is there now", "ESTALE", "another version"]
    )
    assert (mount.path / "a/one.txt").stat().st_size == 3
    s3.put("models", "llm/tiny/v1/a/one.txt", b"another one")
    s3.delete("models", "llm/tiny/v1/a/SHA256SUMS")

    def new() -> bool:
        try:
            found = (mount.path / "a/one.txt").read_bytes()
        except OSError:
            return False
        assert found == b"another one"
        return True

    wait_until(new, "what is there now is read")
    assert (mount.path / "a/b/two.txt").read_bytes() == b"two"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"format": "lazyfs-manifest-9", "files": []}', b"\xff" * 100])
def test_one_that_is_none_is_listed(s3: FastS3Server, mounter: Mounter, raw: bytes) -> None:
    """A warning, and the directory as it is in the bucket."""
    s3.put("models", f"llm/tiny/v1/{MANIFEST}", raw)
    s3.put("models", "llm/tiny/v1/a/one.txt", b"one")
    for source, below in (("s3://models/llm/tiny/v1", "."), ("s3://models", "llm/tiny/v1")):
        cache = mounter.cache(f"cache-{below.count('/')}")
        mount = mounter.mount(s3, source, cache=cache, expect=["the manifest of llm/tiny/v1"])
        assert tree(mount.path / below) == {"a": None, "a/one.txt": b"one"}
        assert (mount.path / below / MANIFEST).read_bytes() == raw
        assert mount.logged().count("the manifest of llm/tiny/v1") == 1
        assert mount.unmount() == 0


def test_wrong_bytes_are_found(s3: FastS3Server, mounter: Mounter, publish: Publish) -> None:
    """A manifest whose digest is another: its file is refused, and it is said who says so."""
    publish(FILES)
    key = f"llm/tiny/v1/{MANIFEST}"
    manifest = json.loads(s3.client().get_object(Bucket="models", Key=key)["Body"].read())
    for file in manifest["files"]:
        if file["path"] == "a/one.txt":
            file["sha256"] = "0" * 64
    s3.put("models", key, json.dumps(manifest).encode())
    mount = mounter.mount(s3, "s3://models/llm/tiny/v1/", expect=["WRONG BYTES", "failed with"])
    with contextlib.suppress(OSError):
        (mount.path / "a/one.txt").read_bytes()
    assert verified(mount, "a/one.txt") == "wrong"
    assert f"{key} " in mount.logged()
    with pytest.raises(OSError, match="Input/output"):
        (mount.path / "a/one.txt").read_bytes()


def test_who_may_not_list_mounts_a_version(s3: FastS3Server, mounter: Mounter, publish: Publish) -> None:
    """Credentials for objects only: a version can be mounted and read; what is none cannot, and it is said why."""
    publish(FILES)
    s3.fault = lambda request: Fault(status=403, code="AccessDenied") if request.kind == "LIST" else None
    mount = mounter.mount(s3, "s3://models/llm/tiny/v1/", expect=["statfs knows only"])
    assert tree(mount.path) == FILES | dict.fromkeys(FOLDERS)
    with pytest.raises(MountFailed, match=r"cannot list s3://models/llm/tiny/v2/"):
        mounter.mount(s3, "s3://models/llm/tiny/v2/", at=mounter.place("other"))


@pytest.mark.parametrize("below", ["llm/tiny/v1", ""])
def test_in_a_bucket_that_was_copied_it_is_listed(
    s3: FastS3Server, mounter: Mounter, publish: Publish, below: str
) -> None:
    """The same bytes with other ETags, as after a copy in parts of another size: no read fails of it, not the first."""
    publish(FILES)
    client = s3.client()
    s3.add_bucket("copy")
    for entry in client.list_objects_v2(Bucket="models")["Contents"]:
        data = client.get_object(Bucket="models", Key=entry["Key"])["Body"].read()
        s3.put("copy", entry["Key"], data, etag=None if entry["Key"].endswith(MANIFEST) else '"0123456789abcdef-2"')
    mount = mounter.mount(s3, f"s3://copy/{below}")
    path = mount.path if below else mount.path / "llm/tiny/v1"
    assert tree(path) == FILES | dict.fromkeys(FOLDERS)
    assert mount.stats()["failures"] == 0
    two = (path / "a/b/two.txt").relative_to(mount.path)
    assert verified(mount, str(two)) == "sha256", "by the SHA256SUMS beside it"


@pytest.mark.slow  # 18 s of patience; `rooms/test_trees.py` counts who asks
def test_an_outage_takes_no_file_of_a_version_away(s3: FastS3Server, mounter: Mounter, publish: Publish) -> None:
    """Past the time of its listings, and after a remount, all of a version that was read is there."""
    publish(FILES)
    words = ["going on with the listing", "statfs"]
    mount = mounter.mount(s3, "s3://models/llm/tiny/v1/", "--metadata-ttl=0s", expect=words)
    assert tree(mount.path) == FILES | dict.fromkeys(FOLDERS)
    mount.settle()
    assert mount.unmount() == 0
    s3.stop()
    again = mounter.mount(s3, "s3://models/llm/tiny/v1/", "--metadata-ttl=0s", expect=words)
    assert sorted(names_below(again.path)) == sorted([*FILES, *FOLDERS])
    s3.start()
