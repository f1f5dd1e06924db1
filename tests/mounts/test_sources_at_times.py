"""Sources of one bucket side by side, of the present and of the past: what each shows, and what they share."""

import json
import os
from functools import partial
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter, environment, is_mounted, run, wait_until
from tests.mounts.reader import Reader
from tests.mounts.test_version_at import EPOCH, at, folders, tree
from tests.servers.fast import FastS3Server

OLD, NEW, SAME = pages(1, 4 * MIB), pages(2, 4 * MIB), pages(3, 2 * MIB)
PAST = {"weights": OLD, "same": SAME, "gone/config": b"{}"}
PRESENT = {"weights": NEW, "same": SAME, "new/config": b"{1}"}
SOURCES = ("--source=now=s3://models", f"--source=then=s3://models?versionAt={at(10)}")


@pytest.fixture
def bucket(s3: FastS3Server) -> FastS3Server:
    """One that keeps versions: some changed, went or came after the time that is mounted, one did not."""
    s3.objects.versioning = "Enabled"
    for key, data in PAST.items():
        s3.put("models", key, data, modified=EPOCH)
    s3.delete("models", "gone/config", modified=EPOCH + 20)
    s3.put("models", "weights", NEW, modified=EPOCH + 20)
    s3.put("models", "new/config", b"{1}", modified=EPOCH + 20)
    return s3


def cached(path: Path, reader: Reader) -> bool:
    """Have all of a file read, pages of the kernel dropped; whether the disk has kept it."""
    size, _ = reader.call("cold_digest", str(path))
    return bool(int(os.getxattr(path, "user.lazyfs.cached_bytes")) == size)


def keep(mount: Mount, reader: Reader, *names: str) -> None:
    """Have all of these on disk, however slow that is."""
    for name in names:
        wait_until(partial(cached, mount.path / name, reader), f"all of {name} is on disk", 60)


def shows(mount: Mount) -> None:
    """What each must: names, bytes, and by which version."""
    for name, expected in (("now", PRESENT), ("then", PAST)):
        path = mount.path / name
        assert folders(path) == {key.partition("/")[0] for key in expected if "/" in key}
        assert tree(path) == expected
    urls = {one["name"]: one["url"] for one in mount.stats()["sources"]}
    assert urls == {"now": "s3://models", "then": f"s3://models?versionAt={at(10)}"}


def test_each_shows_its_time_cold_and_after_a_remount(
    bucket: FastS3Server, mounter: Mounter, reader: Reader
) -> None:
    """With listings that are kept for ever: none is taken for one of another time, and nothing is asked for again.
    What did not change is brought once."""
    ever = "--metadata-ttl=indefinite"
    mount = mounter.mount(bucket, "lazyfs", *SOURCES, ever)
    keep(mount, reader, "now/same")
    shows(mount)
    ids = [os.getxattr(mount.path / name / "weights", "user.lazyfs.version_id") for name in ("now", "then")]
    assert ids[0] != ids[1]
    used = json.loads(run(["du", "--json", mount.path], environment(mounter.work / "home", bucket)).stdout)
    assert used[-1]["size"] == sum(len(data) for shown in (PAST, PRESENT) for data in shown.values())
    mount.settle()
    asked = [request for request in bucket.take_log() if request.key == "same" and request.kind == "GET"]
    assert not any("versionId" in request.query for request in asked), "none for the past"
    keep(mount, reader, *(f"now/{key}" for key in PRESENT), *(f"then/{key}" for key in PAST))
    mount.settle()
    assert mount.unmount() == 0
    bucket.take_log()
    again = mounter.mount(bucket, "lazyfs", *reversed(SOURCES), ever)
    assert sorted(os.listdir(again.path)) == ["now", "then"]
    shows(again)
    again.settle()
    assert bucket.take_log() == []


def test_one_that_is_replaced_is_so_where_the_present_is_shown(
    bucket: FastS3Server, mounter: Mounter, reader: Reader
) -> None:
    """A handle goes on; names of the present are looked up anew, in each source that shares the store; the past is
    what it was, and its listing is not asked for again."""
    mount = mounter.mount(
        bucket, "lazyfs", *SOURCES, "--source=twin=s3://models", "--metadata-ttl=indefinite",
        expect=["open failed with ESTALE"],
    )  # fmt: skip
    paths = {name: str(mount.path / name / "same") for name in ("now", "twin", "then")}
    opened = {name: reader.call("open_file", path) for name, path in paths.items()}
    newest = pages(4, len(SAME))
    bucket.put("models", "same", newest, modified=EPOCH + 30)
    mount.settle()
    bucket.take_log()

    def reads(fd: int) -> str:
        found = reader.call("pread", fd, len(SAME), 0)
        return {SAME: "as it was", newest: "as it is"}.get(found, "neither")

    assert reads(opened["now"]) == "as it was"
    assert {name: reads(reader.call("open_file", path)) for name, path in paths.items()} == {
        "now": "as it is", "twin": "as it is", "then": "as it was"
    }  # fmt: skip
    assert {reads(fd) for fd in opened.values()} == {"as it was"}
    lists = [request for request in bucket.take_log() if request.kind == "LIST" and "versions" in request.query]
    assert [request.query["prefix"] for request in lists] == ["same"], "one search, of the key that was replaced"


def test_one_that_cannot_be_is_named(bucket: FastS3Server, mounter: Mounter) -> None:
    """A time to come, a word that is none, a key file that has no key."""
    home, place = environment(mounter.work / "home", bucket), mounter.place()
    wrong = mounter.work / "wrong.key"
    wrong.write_bytes(b"short")
    usual = [*mounter.options(bucket), f"--cache-dir={mounter.cache()}", f"--log-file={mounter.work / 'daemon.log'}"]
    for option, said in (
        ("--source=bad=s3://models?versionAt=2999-01-01", "source 'bad': 2999-01-01T00:00:00Z is still to come"),
        ("--source=bad=s3://models?versionAt=never", "source 'bad': 'never' is not a time in ISO 8601"),
        ("--source-option=now:version-at=never", "source 'now': version-at: 'never' is not a time"),
        (f"--source-option=then:sse-customer-key-file={wrong}", "'then': --sse-customer-key-file"),
    ):
        done = run(["mount", *usual, *SOURCES, option, place], home)
        assert done.returncode in (1, 2)
        assert len(done.stderr.splitlines()) == 1
        assert said in done.stderr
        assert not is_mounted(place)
