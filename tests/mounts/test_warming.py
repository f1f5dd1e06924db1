"""`lazyfs warm` on real mounts: what it brought is there, whatever became of who asked or of the daemon."""

import json
import os
import pty
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.mounts.books import check_at_rest
from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import COMMAND, ROOT, Mount, Mounter, environment, run, wait_until
from tests.mounts.reader import Reader
from tests.mounts.test_cache import sum_of
from tests.servers.fast import FastS3Server
from tests.servers.records import Request

CONTENTS = {
    "a/config.json": b"{}",
    "a/one": pages(1, 9 * MIB + 5),
    "a/deep/two": pages(2, 3 * MIB),
    "b/three": pages(3, 5 * MIB - 1),
    "empty": b"",
}


@pytest.fixture
def models(s3: FastS3Server) -> FastS3Server:
    """The bucket, with two directories of models."""
    for name, data in CONTENTS.items():
        s3.put("models", name, data)
    return s3


def lazyfs(mounter: Mounter, *words: object, status: int = 0, **more: Any) -> Any:
    """What a command says, as JSON if it was asked for that."""
    done = run([str(word) for word in words], environment(mounter.work / "home", None), **more)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout) if "--json" in words else done.stdout + done.stderr


def gets(log: list[Request]) -> list[str]:
    """The keys of all GETs."""
    return [request.key for request in log if request.kind == "GET"]


def cached(mount: Mount, name: str) -> int:
    """What the extended attribute says."""
    return int(os.getxattr(mount.path / name, "user.lazyfs.cached_bytes"))


def reload_sends_nothing(s3: FastS3Server, mounter: Mounter, reader: Reader, contents: Mapping[str, bytes]) -> None:
    """A new mount reads all of these and asks for no byte of them."""
    s3.take_log()
    again = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    for name, data in contents.items():
        assert reader.call("digest", str(again.path / name)) == sum_of(data)
    assert gets(s3.take_log()) == []
    assert again.unmount() == 0


def test_a_reload_after_a_warm_sends_no_get(models: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """Of a whole mount, each byte once."""
    mount = mounter.mount(models, "s3://models", "--metadata-ttl=1h")
    (job,) = lazyfs(mounter, "warm", mount.path, "--json")
    size = sum(map(len, CONTENTS.values()))
    assert (job["outcome"], job["files"], job["files_here"]) == ("warm", 5, 5)
    assert job["bytes"] == job["bytes_here"] == job["fetched"] == size
    assert sum(r.bytes_sent for r in models.take_log() if r.kind == "GET") == size
    (again,) = lazyfs(mounter, "warm", mount.path / "a", mount.path / "a/one", "--json")
    assert (again["files"], again["fetched"]) == (3, 0), "each file once, and none again"
    mount.settle()
    check_at_rest(mount.cache)
    assert mount.unmount() == 0
    reload_sends_nothing(models, mounter, reader, CONTENTS)


def test_paths_patterns_and_lists(models: FastS3Server, mounter: Mounter, tmp_path: Path) -> None:
    """A pattern that no shell expanded, a list with blank lines and comments, one on stdin."""
    mount = mounter.mount(models, "s3://models", "--metadata-ttl=1h")
    assert "all of 1 files" in lazyfs(mounter, "warm", f"{mount.path}/*/config.json")
    assert cached(mount, "a/config.json") == 2
    listed = tmp_path / "list"
    listed.write_text(f"# models\n\n{mount.path}/a/deep\n  # more\n{mount.path}/b/thr*\r\n")
    (job,) = lazyfs(mounter, "warm", "--from-file", listed, "--json")
    assert (job["files"], job["bytes"]) == (2, 8 * MIB - 1)
    assert cached(mount, "a/one") == 0
    done = subprocess.run(
        [*COMMAND, "warm", "--from-file=-", "--rate=1GiB/s"],
        input=f"{mount.path}/a/one\n".encode(), cwd=ROOT, env=environment(mounter.work / "home", None),
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert b"all of 1 files, 9.0 MiB, on disk" in done.stdout
    assert done.stderr == b"", "nobody watches"


def test_wrong_calls_are_one_sentence(models: FastS3Server, mounter: Mounter, tmp_path: Path) -> None:
    """2 for what is no call, 1 for what is not there."""
    mount = mounter.mount(models, "s3://models")
    for status, words in (
        (2, ["warm"]),
        (2, ["warm", tmp_path]),
        (2, ["warm", f"{mount.path}/*.nothing"]),
        (2, ["warm", mount.path, "--rate=quick"]),
        (2, ["warm", mount.path, "--rate=0"]),
        (2, ["warm", "--from-file", tmp_path / "none"]),
        (2, ["warm", "--cancel", mount.path, mount.path]),
        (1, ["warm", mount.path / "missing"]),
        (1, ["pin", mount.path / "missing"]),
        (2, ["evict", tmp_path]),
        (2, ["du", tmp_path]),
    ):
        assert "lazyfs: " in lazyfs(mounter, *words, status=status), words


def test_what_cannot_fit_is_said_before_anything_is_fetched(
    models: FastS3Server, mounter: Mounter, reader: Reader
) -> None:
    """Also beside what is pinned; a part that fits is brought, and what is pinned stays."""
    mount = mounter.mount(models, "s3://models", "--metadata-ttl=1h", "--max-cache-size=16MiB")
    models.take_log()
    (job,) = lazyfs(mounter, "warm", mount.path, "--json", status=1)
    assert "nothing was fetched" in job["words"]
    assert gets(models.take_log()) == []
    lazyfs(mounter, "pin", "--warm", mount.path / "a/one")
    assert "beside" in lazyfs(mounter, "warm", mount.path / "b", mount.path / "a/deep", status=1)
    lazyfs(mounter, "warm", mount.path / "a/deep")
    assert cached(mount, "a/one") == len(CONTENTS["a/one"])
    mount.settle()
    check_at_rest(mount.cache)


class Waiting:
    """`lazyfs warm --wait` in a terminal of its own, while the server holds its GETs."""

    def __init__(self, mounter: Mounter, *words: object) -> None:
        self.terminal, far = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, "warm", *map(str, words)], cwd=ROOT, env=environment(mounter.work / "home", None),
            stdin=far, stdout=far, stderr=far, start_new_session=True,
        )  # fmt: skip
        os.close(far)

    def said(self) -> str:
        """All that it printed until it ended."""
        text = b""
        try:
            while more := os.read(self.terminal, 65536):
                text += more
        except OSError:  # EIO: nobody has it open any more
            pass
        os.close(self.terminal)
        return text.decode()


@pytest.mark.parametrize("end", ["interrupted", "hung up"])
def test_it_outlives_who_asked(models: FastS3Server, mounter: Mounter, reader: Reader, end: str) -> None:
    """Ctrl-C says how to stop it; either way the daemon goes on."""
    mount = mounter.mount(models, "s3://models", "--metadata-ttl=1h")
    with models.hold(lambda request: request.kind == "GET") as gate:
        waiting = Waiting(mounter, mount.path)
        gate.wait_for(1)
        wait_until(lambda: [job for job in mount.stats()["jobs"] if job["step"] == "fetching"], "it is under way")
        assert "warming: " in lazyfs(mounter, "status", mount.path)
        if end == "interrupted":
            waiting.process.send_signal(signal.SIGINT)
            assert waiting.process.wait(20) == 1
            assert f"lazyfs warm --cancel {mount.path}" in waiting.said()
        else:
            os.close(waiting.terminal)
            waiting.process.send_signal(signal.SIGHUP)
            waiting.process.wait(20)
    wait_until(lambda: not mount.stats()["jobs"], "the daemon has done it")
    for name, data in CONTENTS.items():
        assert cached(mount, name) == len(data)
    assert mount.unmount() == 0
    reload_sends_nothing(models, mounter, reader, CONTENTS)


def test_it_is_cancelled(models: FastS3Server, mounter: Mounter) -> None:
    """Who waits for it is told, and the mount goes on."""
    mount = mounter.mount(models, "s3://models", "--metadata-ttl=1h")
    with models.hold(lambda request: request.kind == "GET") as gate:
        assert "in the background" in lazyfs(mounter, "warm", "--no-wait", mount.path)
        waiting = Waiting(mounter, mount.path / "a")
        gate.wait_for(1)
        wait_until(lambda: len(mount.stats()["jobs"]) == 2 or None, "both run")
        wait_until(lambda: all(job["step"] == "fetching" for job in mount.stats()["jobs"]), "both fetch")
        assert lazyfs(mounter, "warm", "--cancel", mount.path, "--json") == {"cancelled": 2}
        assert "NOT WARM: it was cancelled" in waiting.said()
        assert waiting.process.wait(20) == 1
    assert mount.stats()["jobs"] == []


def test_a_kill_in_the_middle(models: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """What was on disk stays; the next warm fetches the rest."""
    mount = mounter.mount(models, "s3://models", "--metadata-ttl=1h")
    lazyfs(mounter, "warm", mount.path / "b")
    with models.hold(lambda request: request.key == "a/one") as gate:
        waiting = Waiting(mounter, mount.path)
        gate.wait_for(1)
        wait_until(lambda: cached(mount, "a/deep/two") == 3 * MIB, "the other file is here")
        mount.kill()
        assert "the mount" in waiting.said()
        assert waiting.process.wait(20) == 1
    models.take_log()
    again = mounter.mount(models, "s3://models", "--metadata-ttl=1h")
    lazyfs(mounter, "warm", again.path)
    assert set(gets(models.take_log())) <= {"a/one", "a/config.json"}
    again.settle()
    check_at_rest(again.cache)
    assert again.unmount() == 0
    reload_sends_nothing(models, mounter, reader, CONTENTS)


def test_a_file_that_changed_is_warmed_as_it_is_now(models: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """The listing is a lie by then; the warm finds out, and has it anew."""
    mount = mounter.mount(models, "s3://models", "--metadata-ttl=1h")
    assert sorted(os.listdir(mount.path / "b")) == ["three"]
    new = pages(9, 4 * MIB + 1)
    models.put("models", "b/three", new)
    (job,) = lazyfs(mounter, "warm", mount.path / "b", "--json")
    assert (job["outcome"], job["bytes_here"]) == ("warm", len(new))
    assert mount.unmount() == 0
    reload_sends_nothing(models, mounter, reader, {"b/three": new})
