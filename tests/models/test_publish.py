"""Publishing, listing and removing versions by the command, against Swift and moto, with kills and troubles between."""

import base64
import hashlib
import json
import signal
from pathlib import Path

import pytest

from lazyfs.models.names import MANIFEST
from tests.models.library import MIB, PART, Lazyfs, a_model, bucket_on, keys
from tests.mounts.mounting import wait_until
from tests.servers.faults import Fault, first
from tests.servers.moto_server import MotoServer
from tests.servers.proxy import FaultProxy
from tests.servers.records import Request
from tests.servers.swift import SwiftServer


def parts_of(request: Request) -> str:
    """The number of the part that a request uploads; empty for another."""
    return request.query.get("partNumber", "") if request.method == "PUT" else ""


def test_a_version_is_published_listed_and_removed(swift: SwiftServer, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """All files, the digests beside them as sha256sum reads them, and the manifest."""
    bucket = bucket_on(swift)
    files = a_model(tmp_path / "m")
    to = f"--to=s3://{bucket}/llm/"
    done = lazyfs.json(swift, "publish", tmp_path / "m", "org/tiny/v1", to)
    assert done["files"] == len(files)
    assert done["size"] == done["sent_bytes"] - sum(
        size for key, size in keys(swift, bucket).items() if key.endswith(("SHA256SUMS", MANIFEST))
    )
    there = keys(swift, bucket)
    prefix = "llm/org/tiny/v1/"
    extra = {"SHA256SUMS", "tokenizer/SHA256SUMS", MANIFEST}
    assert there.keys() == {prefix + name for name in files.keys() | extra}
    sums = swift.client().get_object(Bucket=bucket, Key=prefix + "SHA256SUMS")["Body"].read().decode()
    digests = dict(reversed(line.split("  ", 1)) for line in sums.splitlines())
    assert digests == {n: hashlib.sha256(d).hexdigest() for n, d in files.items() if "/" not in n}
    source = f"--source=s3://{bucket}/llm/"
    (row,) = lazyfs.json(swift, "ls", source)
    assert (row["model"], row["version"], row["files"]) == ("org/tiny", "v1", len(files))
    listed = lazyfs.json(swift, "ls", "org/tiny/v1", source)
    assert {one["path"]: one["sha256"] for one in listed["files"]} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }
    assert "already" in lazyfs.refused(swift, "publish", tmp_path / "m", "org/tiny/v1", to)
    assert "one in the other" in lazyfs.refused(swift, "publish", tmp_path / "m", "org/tiny/v1/sub", to)
    assert "one in the other" in lazyfs.refused(swift, "publish", tmp_path / "m", "org/tiny", to)
    assert "--yes" in lazyfs.refused(swift, "rm", "org/tiny/v1", source)
    assert lazyfs.json(swift, "rm", "org/tiny/v1", source, "--yes")["objects"] == len(there)
    assert keys(swift, bucket) == {}
    assert "not in" in lazyfs.refused(swift, "rm", "org/tiny/v1", source, "--yes")
    assert "not published" in lazyfs.refused(swift, "ls", "org/tiny/v1", source)


def test_s3_keeps_the_checksum_of_the_whole(moto: MotoServer, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """Of a file in one piece and of one in parts; they are what the manifest says."""
    bucket = bucket_on(moto)
    a_model(tmp_path / "m", large=PART + 5)
    lazyfs.ok(moto, "publish", tmp_path / "m", "tiny/v1", f"--to=s3://{bucket}")
    client = moto.client()
    manifest = json.loads(client.get_object(Bucket=bucket, Key=f"tiny/v1/{MANIFEST}")["Body"].read())
    for file in manifest["files"]:
        head = client.head_object(Bucket=bucket, Key=f"tiny/v1/{file['path']}", ChecksumMode="ENABLED")
        assert head["ETag"] == file["etag"]
        if file["size"] > PART:
            assert base64.b64decode(head["ChecksumCRC64NVME"]).hex() == file["crc64nvme"]
            assert head["ChecksumType"] == "FULL_OBJECT"


def test_force_replaces_and_removes_what_is_gone(swift: SwiftServer, lazyfs: Lazyfs, tmp_path: Path) -> None:
    bucket = bucket_on(swift)
    a_model(tmp_path / "m")
    to = f"--to=s3://{bucket}"
    lazyfs.ok(swift, "publish", tmp_path / "m", "tiny/v1", to)
    (tmp_path / "m" / "config.json").unlink()
    (tmp_path / "m" / "added.json").write_text("{}")
    done = lazyfs.json(swift, "publish", tmp_path / "m", "tiny/v1", to, "--force")
    assert done["sent_bytes"] < MIB, "what is the same is not sent again"
    there = keys(swift, bucket)
    assert "tiny/v1/config.json" not in there
    assert there["tiny/v1/added.json"] == 2
    assert {one["path"] for one in lazyfs.json(swift, "ls", "tiny/v1", f"--source=s3://{bucket}")["files"]} == {
        key.removeprefix("tiny/v1/") for key in there if not key.endswith(("SHA256SUMS", MANIFEST))
    }


def test_strange_objects_are_not_removed_unasked(swift: SwiftServer, lazyfs: Lazyfs, tmp_path: Path) -> None:
    bucket = bucket_on(swift)
    a_model(tmp_path / "m")
    swift.client().put_object(Bucket=bucket, Key="tiny/v1/notes.txt", Body=b"mine")
    said = lazyfs.refused(swift, "publish", tmp_path / "m", "tiny/v1", f"--to=s3://{bucket}")
    assert "notes.txt" in said
    assert keys(swift, bucket) == {"tiny/v1/notes.txt": 4}


def test_a_killed_publication_goes_on(swift: SwiftServer, proxy: FaultProxy, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """SIGKILL with one part on its way: no reader sees a version; run again, only what is missing is sent."""
    bucket = bucket_on(swift)
    a_model(tmp_path / "m", large=4 * PART + 5)
    arguments = ("publish", tmp_path / "m", "tiny/v1", f"--to=s3://{bucket}")
    gate = proxy.hold(lambda request: parts_of(request) == "3")
    seen: list[Request] = []

    def others_are_there() -> bool:
        seen.extend(proxy.take_log(settle=0.0))
        done = {parts_of(request) or request.key for request in seen if request.method == "PUT"}
        return {"1", "2", "4", "5"} <= done and sum(1 for one in done if one.startswith("tiny")) == 4

    process = lazyfs.start(proxy, *arguments)
    try:
        wait_until(others_are_there, "all but part 3", 60)
    finally:
        process.kill()
        process.communicate(timeout=30)
    assert gate.held
    gate.release()
    assert lazyfs.json(swift, "ls", f"--source=s3://{bucket}") == []
    assert f"tiny/v1/{MANIFEST}" not in keys(swift, bucket)
    proxy.take_log()
    done = lazyfs.json(proxy, *arguments)
    sent = [request for request in proxy.take_log() if request.method == "PUT"]
    # Whether the part that was held came to be there depends on how far the kill let it come.
    assert {parts_of(request) for request in sent if parts_of(request)} <= {"3"}
    assert {request.key for request in sent if not parts_of(request)} == {
        f"tiny/v1/{name}" for name in ("SHA256SUMS", "tokenizer/SHA256SUMS", MANIFEST)
    }
    assert done["sent_bytes"] < PART + MIB
    data = swift.client().get_object(Bucket=bucket, Key="tiny/v1/model-00002-of-00002.safetensors")["Body"].read()
    assert data == (tmp_path / "m" / "model-00002-of-00002.safetensors").read_bytes()


def test_an_interrupted_publication_says_so(
    swift: SwiftServer, proxy: FaultProxy, lazyfs: Lazyfs, tmp_path: Path
) -> None:
    """Ctrl-C: one sentence, and no traceback."""
    bucket = bucket_on(swift)
    a_model(tmp_path / "m")
    gate = proxy.hold(lambda request: request.method == "PUT")
    process = lazyfs.start(proxy, "publish", tmp_path / "m", "tiny/v1", f"--to=s3://{bucket}")
    gate.wait_for(1, 60)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    gate.release()
    assert process.returncode == 1
    assert errors == "lazyfs: interrupted; run it again, and it goes on where it was\n"


@pytest.mark.slow
def test_parts_of_other_bytes_are_not_taken(
    swift: SwiftServer, proxy: FaultProxy, lazyfs: Lazyfs, tmp_path: Path
) -> None:
    """The file was replaced between two attempts: nothing of the first is in the second."""
    bucket = bucket_on(swift)
    file = tmp_path / "w.bin"
    file.write_bytes(b"a" * (2 * PART))
    key = "tiny/v1/w.bin"
    client = swift.client()
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"b" * PART)
    lazyfs.ok(proxy, "publish", file, "tiny/v1", f"--to=s3://{bucket}")
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"a" * (2 * PART)
    lazyfs.ok(swift, "rm", "tiny/v1", f"--source=s3://{bucket}", "--yes")
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")


@pytest.mark.slow
def test_a_server_that_knows_no_such_checksum(
    swift: SwiftServer, proxy: FaultProxy, lazyfs: Lazyfs, tmp_path: Path
) -> None:
    """501, as servers of 2021 answer: from then on it gets an MD5, and everything arrives."""
    bucket = bucket_on(swift)
    files = a_model(tmp_path / "m", large=PART + 5)
    proxy.fault = lambda request: (
        Fault(status=501, code="NotImplemented")
        if any(name.startswith(("x-amz-checksum", "x-amz-trailer")) for name in request.headers)
        else None
    )
    lazyfs.ok(proxy, "publish", tmp_path / "m", "tiny/v1", f"--to=s3://{bucket}")
    assert all(
        "content-md5" in request.headers
        for request in proxy.take_log()
        if request.method == "PUT" and request.status == 200
    )
    for name, data in files.items():
        assert swift.client().get_object(Bucket=bucket, Key=f"tiny/v1/{name}")["Body"].read() == data


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(status=503, code="SlowDown"), id="slow down", marks=pytest.mark.slow),
        pytest.param(Fault(hang_up=True, reset=True), id="reset", marks=pytest.mark.slow),
        pytest.param(Fault(close_after=0), id="answer lost"),
    ],
)
def test_trouble_is_invisible(
    swift: SwiftServer, proxy: FaultProxy, lazyfs: Lazyfs, tmp_path: Path, fault: Fault
) -> None:
    """Of three requests that write, and of the one that ends an upload."""
    bucket = bucket_on(swift)
    files = a_model(tmp_path / "m", large=PART + 5)
    ending = first(1, fault, lambda request: request.method == "POST" and "uploadId" in request.query)
    writing = first(3, fault, lambda request: request.method == "PUT")
    proxy.fault = lambda request: ending(request) or writing(request)
    lazyfs.ok(proxy, "publish", tmp_path / "m", "tiny/v1", f"--to=s3://{bucket}")
    for name, data in files.items():
        assert swift.client().get_object(Bucket=bucket, Key=f"tiny/v1/{name}")["Body"].read() == data


def test_what_is_refused_is_one_sentence(swift: SwiftServer, lazyfs: Lazyfs, tmp_path: Path) -> None:
    bucket = bucket_on(swift)
    a_model(tmp_path / "m")
    to = f"--to=s3://{bucket}"
    model = tmp_path / "m"
    assert "--max-size" in lazyfs.refused(swift, "publish", model, "tiny/v1", to, "--max-size=1MiB")
    assert "--to" in lazyfs.refused(swift, "publish", model, "tiny/v1")
    assert "model/version" in lazyfs.refused(swift, "publish", model, "tiny", to)
    assert "'..'" in lazyfs.refused(swift, "publish", model, "tiny/..", to)
    assert "No such file" in lazyfs.refused(swift, "publish", tmp_path / "none", "tiny/v1", to)
    (tmp_path / "m" / "config.json.sha256").write_text("0" * 64 + "  config.json\n")
    assert "digest beside it" in lazyfs.refused(swift, "publish", model, "tiny/v1", to)
    assert "NoSuchBucket" in lazyfs.refused(swift, "ls", "--source=s3://there-is-no-such-bucket")
    assert not any(key.endswith(MANIFEST) for key in keys(swift, bucket))


@pytest.mark.slow
def test_names_of_other_caches_are_known(swift: SwiftServer, lazyfs: Lazyfs, tmp_path: Path) -> None:
    bucket = bucket_on(swift)
    a_model(tmp_path / "m")
    familiar = {"MODEL_CACHE_S3_BUCKET": bucket, "MODEL_CACHE_S3_PREFIX": "llm"}
    lazyfs.ok(swift, "publish", tmp_path / "m", "tiny/v1", **familiar)
    assert f"llm/tiny/v1/{MANIFEST}" in keys(swift, bucket)
    assert lazyfs.ok(swift, "ls", **familiar).startswith("tiny/v1: 4.0 MiB in 5 files")
