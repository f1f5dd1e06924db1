"""A mount shows the tree as it was at a time: names, bytes, and what is kept of its listings."""

import os
import time
from pathlib import Path

import pytest

from tests.mounts.mounting import Mounter, environment, is_mounted, run, wait_until
from tests.servers.fast import FastS3Server
from tests.servers.swift import SwiftServer

EPOCH = 1_700_000_000


def at(seconds: int) -> str:
    """So many seconds after the beginning, as one writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(EPOCH + seconds))


def tree(path: Path) -> dict[str, bytes]:
    """All files below a path."""
    return {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()}


def folders(path: Path) -> set[str]:
    """All directories below a path."""
    return {str(one.relative_to(path)) for one in path.rglob("*") if one.is_dir()}


@pytest.fixture
def history(s3: FastS3Server) -> FastS3Server:
    """A bucket with a past: what was there before versions, what changed, was deleted and came again."""
    s3.put("models", "old/before", b"before there were versions", modified=EPOCH)
    s3.objects.versioning = "Enabled"
    s3.put("models", "weights", b"one", modified=EPOCH + 10)
    s3.put("models", "old/config", b"{}", modified=EPOCH + 10)
    s3.put("models", "odd/ä &<+ %41", b"odd", modified=EPOCH + 10)
    s3.put("models", "weights", b"two and more", modified=EPOCH + 20)
    s3.delete("models", "old/config", modified=EPOCH + 20)
    s3.delete("models", "old/before", modified=EPOCH + 20)
    s3.put("models", "new/deep/file", b"new", modified=EPOCH + 30)
    s3.put("models", "old/config", b"{1}", modified=EPOCH + 40)
    s3.delete("models", "weights", modified=EPOCH + 40)
    return s3


ODD = {"odd/ä &<+ %41": b"odd"}
TREES: dict[int, dict[str, bytes]] = {
    0: {"old/before": b"before there were versions"},
    10: {"weights": b"one", "old/config": b"{}", "old/before": b"before there were versions", **ODD},
    20: {"weights": b"two and more", **ODD},
    35: {"weights": b"two and more", "new/deep/file": b"new", **ODD},
    40: {"old/config": b"{1}", "new/deep/file": b"new", **ODD},
}


def test_a_tree_at_each_time(history: FastS3Server, mounter: Mounter) -> None:
    """One after another in one cache, listings kept for ever: none is of another time, nor of the present, and is
    there a second time without a request."""
    expected = {f"?versionAt={at(seconds)}": found for seconds, found in TREES.items()} | {"": TREES[40]}
    again = f"?versionAt={at(10)}"
    for cold, sources in ((True, list(expected)), (False, [again])):
        for source in sources:
            found = expected[source]
            history.take_log()
            mount = mounter.mount(history, f"s3://models{source}", "--metadata-ttl=indefinite")
            assert folders(mount.path) == {str(one) for name in found for one in Path(name).parents} - {"."}
            assert tree(mount.path) == found
            if "weights" in found:
                assert os.getxattr(mount.path / "weights", "user.lazyfs.version_id")
            mount.settle()
            mount.unmount()
            asked = history.take_log()
            assert cold or asked == []
            if source:
                assert all("versionId" in request.query for request in asked if request.kind in ("GET", "HEAD"))


def test_by_option_and_below_a_prefix(history: FastS3Server, mounter: Mounter) -> None:
    """Also in another zone; what is mounted says which time it shows."""
    later = time.strftime("%Y-%m-%dT%H:%M:%S+02:00", time.gmtime(EPOCH + 10 + 7200))
    mount = mounter.mount(history, "s3://models/old/", f"--version-at={later}")
    assert tree(mount.path) == {"config": b"{}", "before": b"before there were versions"}
    assert mount.stats()["source"] == f"s3://models/old/?versionAt={at(10)}"


def test_many_versions(s3: FastS3Server, mounter: Mounter) -> None:
    """More than a page of them, of one key and of many; directories that were not there yet, or no more, are not
    shown, and a walk is over stretches."""
    s3.objects.versioning = "Enabled"
    for number in range(1200):
        s3.put("models", "a", b"%d" % number, modified=EPOCH + number)
    expected = {"a": b"500"}
    for number in range(300):
        s3.put("models", f"then/{number:03}/file", b"x", modified=EPOCH)
        s3.put("models", f"then/{number:03}/later", b"x", modified=EPOCH + 1000)
        expected[f"then/{number:03}/file"] = b"x"
        s3.put("models", f"yet/{number:03}/file", b"x", modified=EPOCH + 1000)
        s3.put("models", f"gone/{number:03}/file", b"x", modified=EPOCH)
        s3.delete("models", f"gone/{number:03}/file", modified=EPOCH + 1)
    mount = mounter.mount(s3, "s3://models", f"--version-at={at(500)}", "--verify-objects=off")
    assert folders(mount.path) == {"then", *(f"then/{number:03}" for number in range(300))}
    assert {str(one.relative_to(mount.path)) for one in mount.path.rglob("*") if one.is_file()} == expected.keys()
    assert (mount.path / "a").read_bytes() == b"500"
    lists = [request for request in s3.log if request.kind == "LIST"]
    assert all("versions" in request.query for request in lists)
    assert len(lists) < 60


def refusal(server: FastS3Server, mounter: Mounter, source: str, *options: str) -> tuple[int, str]:
    """How a mount ends that cannot be: its status and the one sentence."""
    place = mounter.place()
    usual = [*mounter.options(server), f"--cache-dir={mounter.cache()}", f"--log-file={mounter.work / 'daemon.log'}"]
    done = run(["mount", *usual, *options, "--", source, place], environment(mounter.work / "home", server))
    assert done.stderr.count("\n") == 1, done.stderr
    assert not is_mounted(place)
    return done.returncode, done.stderr


def test_words_that_are_no_time(history: FastS3Server, mounter: Mounter) -> None:
    """Each in one sentence, before anything is asked."""
    for source, *options in (
        ("s3://models", "--version-at=yesterday"),
        ("s3://models?versionAt=1700000000.5x",),
        ("s3://models/?versionat=2026-13-01",),
        ("s3://models/a/?versionAt=",),
    ):
        status, said = refusal(history, mounter, source, *options)
        assert status == 2
        assert "is not a time in ISO 8601; write it like 2026-01-31T12:00:00Z" in said
    two = refusal(history, mounter, f"s3://models?versionAt={at(10)}", f"--version-at={at(20)}")
    assert two == (2, f"lazyfs: the source is of {at(10)}, and --version-at of {at(20)}; name one of them\n")
    status, said = refusal(history, mounter, "s3://models", "--version-at=2999-01-01")
    assert status == 1
    assert "2999-01-01T00:00:00Z is still to come" in said
    assert history.take_log() == []


def test_a_bucket_without_versions(s3: FastS3Server, mounter: Mounter) -> None:
    s3.put("models", "weights", b"x", modified=EPOCH)
    status, said = refusal(s3, mounter, "s3://models", f"--version-at={at(5)}")
    assert status == 1
    assert f"it keeps no versions, so what it held at {at(5)} is not known" in said


def test_on_swift(swift: SwiftServer, mounter: Mounter) -> None:
    """A real server, with its own clock and its own order of what happens in one second."""
    client, bucket = swift.client(), "version-at"
    client.create_bucket(Bucket=bucket)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})

    def moment(after: str) -> str:
        """A time when the last change, of this key, was made and the next one was not."""
        listed = client.list_object_versions(Bucket=bucket)
        found = [one for kind in ("Versions", "DeleteMarkers") for one in listed.get(kind, ()) if one["Key"] == after]
        latest = max(one["LastModified"].timestamp() for one in found)
        wait_until(lambda: time.time() > latest + 2, "it is over")
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(latest + 1))

    client.put_object(Bucket=bucket, Key="a/weights ä+", Body=b"one")
    client.put_object(Bucket=bucket, Key="b/gone", Body=b"gone")
    first = moment("b/gone")
    client.put_object(Bucket=bucket, Key="a/weights ä+", Body=b"two")
    client.delete_object(Bucket=bucket, Key="b/gone")
    client.put_object(Bucket=bucket, Key="c/new", Body=b"new")
    mount = mounter.mount(swift, f"s3://{bucket}?versionAt={first}")
    assert tree(mount.path) == {"a/weights ä+": b"one", "b/gone": b"gone"}
    assert folders(mount.path) == {"a", "b"}
    now = mounter.mount(swift, f"s3://{bucket}", at=mounter.place("now"))
    assert tree(now.path) == {"a/weights ä+": b"two", "c/new": b"new"}
