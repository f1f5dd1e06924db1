"""What a directory gives to be published, and what is refused; names and manifests, whatever is in them."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import Corrupt, UsageError
from lazyfs.models.gathering import digests, gather
from lazyfs.models.manifest import Manifest, ManifestFile, pack, unpack
from lazyfs.models.names import MANIFEST, ModelVersion, flaw, parse

OF = ModelVersion("org/tiny", "v1")


def names(path: Path) -> list[str]:
    return [file.name for file in gather(path)]


def test_a_snapshot_of_a_hub_is_links_to_blobs(tmp_path: Path) -> None:
    """As huggingface lays it out; the names are those of the links, the bytes those of the blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    (snapshot / "sub").mkdir(parents=True)
    (blobs / "1f").write_bytes(b"weights")
    (blobs / "2f").write_bytes(b"")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1f")
    (snapshot / "sub" / "empty").symlink_to("../../../blobs/2f")
    (snapshot / "again").symlink_to("sub")
    (tmp_path / "link").symlink_to(snapshot)
    for path in (snapshot, tmp_path / "link"):
        assert names(path) == ["again/empty", "model.safetensors", "sub/empty"]
    assert gather(snapshot)[1].size == 7
    assert names(snapshot / "model.safetensors") == ["model.safetensors"]


def test_a_copy_of_a_version_gets_a_manifest_of_its_own(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{}")
    (tmp_path / "a").write_text("")
    assert names(tmp_path) == ["a"]


def test_what_cannot_be_published_is_said(tmp_path: Path) -> None:
    """Each by one sentence that says what it is and what to do."""

    def said(name: str) -> str:
        with pytest.raises(UsageError) as refused:
            gather(tmp_path / name)
        return str(refused.value)

    for name in ("dangling", "loop", "outside", "cycle", "pipe", "control", "bytes", "deep", "nothing", "inner"):
        (tmp_path / name).mkdir()
    (tmp_path / "dangling" / "x").symlink_to("nowhere")
    (tmp_path / "loop" / "x").symlink_to("x")
    (tmp_path / "outside" / "x").symlink_to("/etc")
    (tmp_path / "cycle" / "x").symlink_to(".")
    os.mkfifo(tmp_path / "pipe" / "x")
    (tmp_path / "control" / "a\nb").write_text("")
    (tmp_path / "bytes" / os.fsdecode(b"\xff")).write_text("")
    (tmp_path / "deep" / "/".join("d" * 80)).mkdir(parents=True)
    (tmp_path / "inner" / "sub").mkdir()
    (tmp_path / "inner" / "sub" / MANIFEST).write_text("")
    assert "leads nowhere" in said("dangling")
    assert "leads nowhere" in said("loop")
    assert "link to the directory /etc" in said("outside")
    assert "a directory that it is in" in said("cycle")
    assert "neither a file nor a directory" in said("pipe")
    assert "control character" in said("control")
    assert "not UTF-8" in said("bytes")
    assert "64 directories deep" in said("deep")
    assert "no files" in said("nothing")
    assert MANIFEST in said("inner")


def test_digests_are_those_of_the_bytes(tmp_path: Path) -> None:
    data = os.urandom(9 << 20)
    (tmp_path / "x").write_bytes(data)
    assert digests(str(tmp_path / "x")).sha256 == hashlib.sha256(data).hexdigest()


def test_two_models_have_two_folders() -> None:
    models = ["a/b", "a--b", "a-b", "a/b/c", "a--b/c", "a/b--c", "x" * 255, "x" * 254 + "/y"]
    assert len({ModelVersion(model, "1").folder for model in models}) == len(models)
    assert ModelVersion("org/name", "1").folder == "org--name"


@given(st.text(max_size=40))
def test_a_name_is_taken_or_refused(text: str) -> None:
    """And what is taken can be a path on a disk, below where it is put."""
    try:
        of = parse(text)
    except UsageError:
        return
    assert "/" not in of.folder
    assert of.folder not in ("", ".", "..")
    assert len(of.folder.encode()) <= 255
    assert Path("/r", of.folder, of.version).parts[0:2] == ("/", "r")


FILES = st.builds(
    ManifestFile,
    path=st.text(max_size=20).filter(lambda text: not flaw(text)),
    size=st.integers(0, 1 << 40),
    sha256=st.just("ab" * 32),
    crc64nvme=st.integers(0, (1 << 64) - 1),
    etag=st.just('"x"'),
    modified=st.integers(-(10**9), 10**10),
)


@given(st.lists(FILES, min_size=1, max_size=5, unique_by=lambda file: file.path.split("/")[0]))
def test_a_manifest_is_read_as_it_was_written(files: list[ManifestFile]) -> None:
    manifest = Manifest(OF, files, "2026-01-01T00:00:00Z")
    assert unpack(pack(manifest), OF) == manifest


def test_a_manifest_that_is_none_is_said_to_be() -> None:
    """What would lead out of the version's directory, above all."""
    right = json.loads(pack(Manifest(OF, [ManifestFile("a", 1, "ab" * 32, 1)], "")))
    (file,) = right["files"]
    for wrong in (
        b"",
        b"[]",
        b"[" * 100_000,
        json.dumps({**right, "format": "other"}).encode(),
        json.dumps({**right, "files": []}).encode(),
        json.dumps({**right, "files": [file, file]}).encode(),
        json.dumps({**right, "files": [file, {**file, "path": "a/b"}]}).encode(),
        *(
            json.dumps({**right, "files": [{**file, **change}]}).encode()
            for change in (
                {"path": "../a"},
                {"path": "/etc/passwd"},
                {"path": "a\u0000"},
                {"path": 5},
                {"size": -1},
                {"size": 1 << 70},
                {"size": "1"},
                {"sha256": "x"},
                {"crc64nvme": "1"},
            )
        ),
    ):
        with pytest.raises(Corrupt):
            unpack(wrong, OF)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_corrupt(raw: bytes) -> None:
    with pytest.raises(Corrupt):
        unpack(raw, OF)
