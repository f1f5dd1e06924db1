"""What cannot be mounted: one sentence that says what to do, an exit status, no traceback, nothing left mounted."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounts.mounting import Mounter, environment, is_mounted, run
from tests.servers.fast import FastS3Server
from tests.servers.swift import SwiftServer

IS_ROOT = os.geteuid() == 0


@dataclass
class Call:
    """A `lazyfs mount` that would work, for a case to spoil."""

    mounter: Mounter
    source: str
    path: Path
    options: list[str]
    env: dict[str, str]
    cache: Path

    def without(self, name: str) -> None:
        """Take an option out."""
        self.options = [option for option in self.options if not option.startswith(f"--{name}")]

    def refused(self, status: int, words: str) -> None:
        """Run it: it must end with this status and one sentence that holds these words."""
        done = run(["mount", *self.options, "--", self.source, self.path], self.env)
        lines = done.stderr.strip().splitlines()
        assert (done.returncode, len(lines), done.stdout) == (status, 1, ""), done.stderr
        assert lines[0].startswith("lazyfs: ")
        assert words in lines[0], lines[0]
        assert not is_mounted(self.path)
        log = self.mounter.work / "daemon.log"
        assert "Traceback" not in (log.read_text() if log.exists() else "")


@pytest.fixture
def call(s3: FastS3Server, mounter: Mounter) -> Call:
    """Against the fast server, with everything right."""
    s3.put("models", "x", b"x")
    cache = mounter.cache()
    log = f"--log-file={mounter.work / 'daemon.log'}"
    options = [*mounter.options(s3), f"--cache-dir={cache}", log]
    return Call(mounter, "s3://models", mounter.place(), options, environment(mounter.work / "home", s3), cache)


def _missing_mountpoint(call: Call) -> None:
    call.path = call.path / "none"


def _file_as_mountpoint(call: Call) -> None:
    call.path = call.mounter.work / "file"
    call.path.write_text("x")


def _full_mountpoint(call: Call) -> None:
    (call.path / "x").write_text("x")


def _missing_cache(call: Call) -> None:
    call.cache.rmdir()


def _file_as_cache(call: Call) -> None:
    call.cache.rmdir()
    call.cache.write_text("x")


def _foreign_cache(call: Call) -> None:
    (call.cache / "thesis.tex").write_text("x")


def _newer_cache(call: Call) -> None:
    (call.cache / "lazyfs-cache.json").write_text('{"layout": 99}')


def _linked(name: str) -> Callable[[Call], None]:
    """P13: somebody planted a link where the cache has a directory."""

    def plant(call: Call) -> None:
        (call.mounter.work / "elsewhere").mkdir()
        (call.cache / "lazyfs-cache.json").write_text('{"layout": 1}')
        (call.cache / name).symlink_to(call.mounter.work / "elsewhere")

    return plant


def _linked_cache(call: Call) -> None:
    call.cache.rename(call.mounter.work / "real")
    call.cache.symlink_to(call.mounter.work / "real")


def _option(*options: str) -> Callable[[Call], None]:
    return lambda call: call.options.extend(options)


def _source(text: str) -> Callable[[Call], None]:
    return lambda call: setattr(call, "source", text)


def _no_credentials(call: Call) -> None:
    del call.env["AWS_ACCESS_KEY_ID"], call.env["AWS_SECRET_ACCESS_KEY"]


def _bad_config(call: Call) -> None:
    (call.mounter.work / "bad.toml").write_text("metadata-ttl = [1]\n")
    call.options.append(f"--config={call.mounter.work / 'bad.toml'}")


CASES: dict[str, tuple[Callable[[Call], None], int, str]] = {
    "mountpoint is missing": (_missing_mountpoint, 1, "does not exist; create it with: mkdir -p"),
    "mountpoint is a file": (_file_as_mountpoint, 1, "is not a directory"),
    "mountpoint is not empty": (_full_mountpoint, 1, "is not empty"),
    "source is no url": (_source("models"), 2, "'models' is not a source"),
    "source is of another kind": (_source("gs://models"), 2, "is not a source"),
    "bucket is missing": (_source("s3://nobody"), 1, "there is no bucket 'nobody'"),
    "size is none": (_option("--max-cache-size=much"), 2, "'much' is not a size"),
    "size is too small": (_option("--max-cache-size=1MiB"), 2, "at least 4MiB"),
    "time is none": (_option("--metadata-ttl=soon"), 2, "'soon' is not a time"),
    "mode is none": (_option("--file-mode=rw"), 2, "'rw' is not a file mode"),
    "choice is none": (_option("--log-level=loud"), 2, "is not one of"),
    "endpoint is no url": (_option("--endpoint-url=localhost:9000"), 2, "must start with http"),
    "two that exclude each other": (_option("--allow-other", "--allow-root"), 2, "exclude each other"),
    "profile is missing": (_option("--profile=nobody"), 1, "nobody"),
    "no credentials": (_no_credentials, 1, "no AWS credentials were found"),
    "configuration is wrong": (_bad_config, 2, "must be a single value"),
    "configuration is missing": (_option("--config=/nowhere/lazyfs.toml"), 2, "cannot read the configuration"),
    "cache is missing": (_missing_cache, 1, "does not exist; create it with: mkdir -m 700 -p"),
    "cache is a file": (_file_as_cache, 1, "is not a directory"),
    "cache is foreign": (_foreign_cache, 1, "holds files that are not lazyfs's"),
    "cache is newer": (_newer_cache, 1, "has a layout that this lazyfs does not know"),
    "cache is a link": (_linked_cache, 1, "is not a directory"),
    "index is a link": (_linked("index"), 1, "is not a directory of yours"),
    "objects is a link": (_linked("objects"), 1, "is not a directory of yours"),
    "daemons is a link": (_linked("daemons"), 1, "is not a directory of yours"),
    "log cannot be written": (_option("--log-file=/proc/lazyfs.log"), 1, "cannot write the log"),
}


@pytest.mark.parametrize("name", CASES)
def test_is_refused_in_one_sentence(call: Call, name: str) -> None:
    spoil, status, words = CASES[name]
    spoil(call)
    call.refused(status, words)
    elsewhere = call.mounter.work / "elsewhere"
    assert not elsewhere.exists() or os.listdir(elsewhere) == [], "no link is followed"


@pytest.mark.parametrize("option", ["--no-such-option", "--metadata-ttl"])
def test_a_call_that_is_wrong_names_the_option(call: Call, option: str) -> None:
    done = run(["mount", *call.options, "s3://models", call.path, option], call.env)
    assert done.returncode == 2
    assert option in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not is_mounted(call.path)


def test_a_mountpoint_that_is_taken(call: Call, s3: FastS3Server, mounter: Mounter) -> None:
    mount = mounter.mount(s3, "s3://models")
    done = run(["mount", *call.options, "--", "s3://models", mount.path], call.env)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"is already a mount of s3://models (fuse.lazyfs); unmount it first with: lazyfs unmount {mount.path}" in (
        done.stderr
    )
    assert (mount.path / "x").read_bytes() == b"x"


@pytest.mark.skipif(IS_ROOT, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written(call: Call) -> None:
    call.cache.chmod(0o500)
    call.refused(1, "is not writable")


def test_a_cache_that_the_mount_would_hide(call: Call) -> None:
    call.without("cache-dir")
    call.options.append(f"--cache-dir={call.path}")
    call.refused(1, "is in the mountpoint")


@pytest.mark.skipif(IS_ROOT, reason="root owns what it wants to")
def test_a_cache_of_somebody_else(call: Call) -> None:
    call.without("cache-dir")
    call.options.append("--cache-dir=/root")
    call.refused(1, "cache directory /root")


@pytest.mark.root
def test_a_cache_of_an_ordinary_user_is_not_roots(call: Call) -> None:
    os.chown(call.cache, 12345, 12345)
    call.refused(1, "belongs to user 12345, not to you")


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials(mounter: Mounter, swift: SwiftServer, name: str) -> None:
    """The real server computes signatures; the answer names its reason, and the secret stands nowhere (P15)."""
    bucket = "refusals-" + name.lower().replace("_", "-")
    swift.client().create_bucket(Bucket=bucket)
    env = environment(mounter.work / "home", swift, **{name: "test:canary-wrong"})
    log = mounter.work / "daemon.log"
    options = [*mounter.options(swift), f"--cache-dir={mounter.cache()}", f"--log-file={log}"]
    call = Call(mounter, f"s3://{bucket}", mounter.place(), options, env, mounter.cache())
    call.refused(1, f"cannot list s3://{bucket}")
    if name == "AWS_SECRET_ACCESS_KEY":
        assert "canary" not in log.read_text()
