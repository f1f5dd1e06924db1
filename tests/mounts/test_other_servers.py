"""A mount of each server that has ways of its own: the whole tree with its odd names, and right bytes.

The mount is told whose S3 it is only where `quirks.PROVIDERS` says that it must be."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mounter
from tests.servers.clients import S3Endpoint
from tests.servers.quirks import PROVIDERS, QUIRKS, TOGETHER, QuirkyServer, together
from tests.servers.radosgw import TREE, RadosgwServer
from tests.servers.rclone import RcloneServer

WEIGHTS = pages(1, 3 * MIB + 4097)
FILES = {
    "config.json": b"{}",
    "a/b/weights.bin": WEIGHTS,
    "a/b c+d%20e/ümlaut 日本.txt": b"odd",
    "a/marked/": b"",
    "a/marked/x": b"in a directory with a marker",
    "empty": b"",
}
MANY = [f"{number:04}" for number in range(1100)]
"""More than a page, which are listed and not read."""


def tree(root: Path) -> dict[str, bytes]:
    """Every file below `root` but those of `many`, read to its end."""
    found = {}
    for parent, folders, names in os.walk(root):
        if "many" in folders:
            folders.remove("many")
        for name in names:
            path = Path(parent, name)
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


def test_each_way_is_mounted() -> None:
    """None is left out."""
    assert {name for names in TOGETHER.values() for name in names} == set(QUIRKS)


@pytest.mark.parametrize("server", TOGETHER)
def test_all_of_it_is_there_and_right(mounter: Mounter, server: str) -> None:
    """Found by name, listed and read, more than a page of names too."""
    names = TOGETHER[server]
    with QuirkyServer(together(names)) as s3:
        for key, data in [*FILES.items(), *((f"many/{name}", b"") for name in MANY)]:
            s3.put("models", key, data)
        options = [f"--s3-provider={PROVIDERS[name]}" for name in names if name in PROVIDERS]
        mount = mounter.mount(s3, "s3://models", *options)
        assert tree(mount.path) == {key: data for key, data in FILES.items() if not key.endswith("/")}
        assert sorted(os.listdir(mount.path / "many")) == MANY
        assert not (mount.path / "never").exists()
        assert mount.settle()["failures"] == 0
        assert mount.stats()["store"]["retries"] == 0


@pytest.fixture(params=["rclone", "radosgw"])
def real(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[S3Endpoint]:
    """A server that others wrote."""
    if request.param == "radosgw" and not TREE.exists():
        pytest.skip("radosgw is not here; scripts/test --full unpacks it where there are Debian packages")
    (place := tmp_path / "server").mkdir()
    with RcloneServer(place) if request.param == "rclone" else RadosgwServer(place) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "boto3", "awscrt"])
def test_real_ones(mounter: Mounter, real: S3Endpoint, engine: str) -> None:
    """The same, with an upload in parts as well, by every engine."""
    client = real.client(request_checksum_calculation="when_required")
    client.create_bucket(Bucket="models")
    files = {key: data for key, data in FILES.items() if not key.endswith("/")}
    for key, data in files.items():
        client.put_object(Bucket="models", Key=key, Body=data)
    files["parts.bin"] = pages(2, 11 * MIB + 5)
    upload = client.create_multipart_upload(Bucket="models", Key="parts.bin")["UploadId"]
    of = {"Bucket": "models", "Key": "parts.bin", "UploadId": upload}
    parts = []
    for number in (1, 2, 3):
        body = files["parts.bin"][(number - 1) * 5 * MIB : number * 5 * MIB]
        etag = client.upload_part(**of, PartNumber=number, Body=body)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
    client.complete_multipart_upload(**of, MultipartUpload={"Parts": parts})
    client.close()
    mount = mounter.mount(real, "s3://models", f"--s3-engine={engine}")
    assert tree(mount.path) == files
    assert mount.settle()["failures"] == 0
    assert mount.stats()["store"]["retries"] == 0
