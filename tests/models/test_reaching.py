"""Where the models are and how they are reached: by what is said, as of a time, under a customer's key."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs import ModelCache
from lazyfs.cli.main import cli
from lazyfs.config import Config
from lazyfs.errors import NotFound, UsageError
from lazyfs.models.names import MANIFEST
from lazyfs.models.places import source_said
from lazyfs.objects import Source
from tests.models.library import PART, Lazyfs, a_model, bucket_on, keys
from tests.servers.fast import FastS3Server
from tests.servers.moto_server import MotoServer
from tests.servers.proxy import FaultProxy

EPOCH = 1_700_000_000
OLD = Source("old", "e/")


def at(seconds: int) -> str:
    """So many seconds after the beginning, as one writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(EPOCH + seconds))


@pytest.mark.parametrize("command", ["publish", "ls", "rm"])
def test_the_options_are_those_that_a_source_may_have(command: str) -> None:
    """All of them, and no other setting of a mount."""
    options = {parameter.name for parameter in cli.commands[command].params}
    settings = {field.name: field.metadata["per_source"] for field in dataclasses.fields(Config)}
    assert {name for name in settings if name in options} == {name for name, own in settings.items() if own}


@pytest.mark.parametrize(
    ("text", "environment", "found"),
    [
        ("s3://one/b", {"LAZYFS_SOURCE": "s3://two"}, Source("one", "b/")),
        (None, {"LAZYFS_SOURCE": "s3://two", "MODEL_CACHE_S3_BUCKET": "old"}, Source("two")),
        (None, {"LAZYFS_SOURCE": "none", "MODEL_CACHE_S3_BUCKET": "old", "MODEL_CACHE_S3_PREFIX": "e"}, OLD),
        (None, {"MODEL_CACHE_S3_BUCKET": "s3://old/e"}, OLD),
        (f"s3://one?versionAt={at(5)}", {}, Source("one", moment=at(5))),
        (None, {"LAZYFS_SOURCE": "lazyfs"}, None),
        (None, {}, None),
    ],
)
def test_who_says_where_the_models_are(text: str | None, environment: dict[str, str], found: Source | None) -> None:
    """Whoever calls, then the environment that a mount shares, then that of other model caches."""
    assert source_said(text, environment, Config()) == found


def test_the_environment_of_a_mount_of_several_says_not_which(s3: FastS3Server, lazyfs: Lazyfs) -> None:
    several = "one=s3://models two=s3://other"
    with pytest.raises(UsageError, match="say which"):
        source_said(None, {"LAZYFS_SOURCE": several}, Config())
    assert "say which" in lazyfs.refused(s3, "ls", LAZYFS_SOURCE=several)
    assert lazyfs.json(s3, "ls", "--source=s3://models", LAZYFS_SOURCE=several) == []


def test_models_as_of_a_time(
    s3: FastS3Server, lazyfs: Lazyfs, caches: Callable[..., ModelCache], tmp_path: Path
) -> None:
    """Of a bucket that keeps versions: what was replaced or removed since is listed and had, beside what is there now
    and apart from it; and nothing is changed."""
    for number in (1, 2):
        s3.add_bucket(f"drafts-{number}")
        a_model(tmp_path / f"m{number}")
        (tmp_path / f"m{number}" / "config.json").write_text(f'{{"number": {number}}}')
        lazyfs.ok(s3, "publish", tmp_path / f"m{number}", "tiny/v1", f"--to=s3://drafts-{number}/llm/")
    s3.objects.versioning = "Enabled"
    client = s3.client()
    for number in (1, 2):
        for key in keys(s3, f"drafts-{number}"):
            data = client.get_object(Bucket=f"drafts-{number}", Key=key)["Body"].read()
            s3.put("models", key, data, modified=EPOCH + 10 * number)
    s3.delete("models", f"llm/tiny/v1/{MANIFEST}", modified=EPOCH + 30)
    source = "--source=s3://models/llm/"
    assert lazyfs.json(s3, "ls", source, f"--version-at={at(5)}") == []
    for number, then in ((1, at(15)), (2, at(25))):
        (row,) = lazyfs.json(s3, "ls", source, f"--version-at={then}")
        assert (row["model"], row["version"], row["files"]) == ("tiny", "v1", 5)
        path = caches(version_at=then).get("tiny", "v1")
        assert (path / "config.json").read_text() == f'{{"number": {number}}}'
        assert caches(source=f"s3://models/llm/?versionAt={then}").get("tiny", "v1") == path
    with pytest.raises(NotFound):
        caches().get("tiny", "v1")
    with pytest.raises(UsageError, match="cannot be changed"):
        caches(version_at=at(25)).put("tiny", "v2", tmp_path / "m1")
    past = f"s3://models/llm/?versionAt={at(25)}"
    s3.take_log()
    assert "cannot be changed" in lazyfs.refused(s3, "publish", tmp_path / "m1", "tiny/v2", f"--to={past}")
    assert "cannot be changed" in lazyfs.refused(s3, "rm", "tiny/v1", f"--source={past}", "--yes")
    assert s3.take_log() == []


def test_models_under_a_customers_key(
    s3: FastS3Server, lazyfs: Lazyfs, caches: Callable[..., ModelCache], tmp_path: Path
) -> None:
    """Every object of the version is put and read with it, and is nobody's without."""
    files = a_model(tmp_path / "m")
    (tmp_path / "key").write_bytes(bytes(range(32)))
    key = str(tmp_path / "key")
    said = f"--sse-customer-key-file={key}"
    lazyfs.ok(s3, "publish", tmp_path / "m", "tiny/v1", "--to=s3://models/llm/", said)
    puts = [request for request in s3.take_log() if request.kind == "PUT"]
    assert len(puts) == len(files) + 3
    name = "x-amz-server-side-encryption-customer-algorithm"
    assert all(request.headers.get(name) == "AES256" for request in puts)
    (row,) = lazyfs.json(s3, "ls", "--source=s3://models/llm/", said)
    assert row["files"] == len(files)
    path = caches(sse_customer_key_file=key).get("tiny", "v1")
    assert {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()} == files
    assert "--sse-customer-key-file" in lazyfs.refused(s3, "ls", "tiny/v1", "--source=s3://models/llm/")


@pytest.mark.slow
def test_parts_are_under_a_customers_key(moto: MotoServer, lazyfs: Lazyfs, tmp_path: Path) -> None:
    """What begins an upload and each part say the key, and what ends it does not, which S3 would refuse."""
    bucket = bucket_on(moto)
    a_model(tmp_path / "m", large=PART + 5)
    (tmp_path / "key").write_bytes(bytes(range(32)))
    with FaultProxy(moto) as proxy:
        said = f"--sse-customer-key-file={tmp_path / 'key'}"
        lazyfs.ok(proxy, "publish", tmp_path / "m", "tiny/v1", f"--to=s3://{bucket}", said)
        log = proxy.take_log()
    name = "x-amz-server-side-encryption-customer-key-md5"
    of_bytes = [r for r in log if r.method in ("PUT", "HEAD") or ("uploads" in r.query and r.method == "POST")]
    assert all(name in request.headers for request in of_bytes)
    assert {"1", "2"} <= {request.query.get("partNumber") for request in of_bytes}
    ends = [request for request in log if request.method == "POST" and "uploadId" in request.query]
    assert len(ends) == 1
    assert name not in ends[0].headers
