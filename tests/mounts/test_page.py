"""The page for people, of a real mount: what it is told, what it is not told, and in full runs what a browser shows."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.mounts.browser import CHROMIUM, Browser
from tests.mounts.mounting import Mount, Mounter, environment, run, wait_until
from tests.mounts.pages import Pages, pages_of
from tests.mounts.test_teardown import STUCK, stop_the_loop
from tests.servers.fast import FastS3Server
from tests.servers.records import Request

MIB = 1 << 20
SIZE = 24 * MIB
LOOPBACK = "--metrics-address=127.0.0.1:0"
SHARD = "llm/shard-1"
HOSTILE = "<script>document.title=1</script>"
NOBODY = 65534
NAMED = ("llm/secret-name", "secret-name")


def page_of(mount: Mount) -> str:
    """The address with the key, as `lazyfs status` says it to who mounted."""
    done = run(["status", mount.path], environment(mount.log.parent / "home", None))
    (found,) = re.findall(r"^  page: (http://\S+/#\S+)$", done.stdout, re.MULTILINE)
    return str(found)


class Shown:
    """The JSON of a page, asked for with its key."""

    def __init__(self, mount: Mount) -> None:
        self._pages = pages_of(mount)
        self._key = page_of(mount).partition("#")[2]

    def get(self, path: str, key: str | None = None, **headers: str) -> tuple[int, Any]:
        """Status, and what came as JSON or text."""
        authorization = f"Bearer {self._key if key is None else key}"
        status, kind, body = self._pages.get(path, Authorization=authorization, **headers)
        return status, json.loads(body) if kind == "application/json" else body.decode()

    def recent(self) -> Any:
        """What goes on."""
        return self._found("/cache/recent")

    def tree(self, path: str = "") -> Any:
        """A directory, its entries by name."""
        found = self._found(f"/cache/tree?path={quote(path, safe='')}")
        return {one.pop("name"): one for one in found["entries"]}

    def file(self, path: str) -> Any:
        """A file's map."""
        return self._found(f"/cache/file?path={quote(path, safe='')}")

    def _found(self, path: str) -> Any:
        status, found = self.get(path)
        assert status == 200, found
        return found


@contextmanager
def half_read(s3: FastS3Server, mount: Mount) -> Iterator[None]:
    """Inside, half of a file was read, and the rest is held back by the server."""

    def late(request: Request) -> bool:
        return request.kind == "GET" and request.range is not None and request.range[0] >= SIZE // 2

    with s3.hold(late) as gate, open(mount.path / SHARD, "rb", buffering=0) as file:
        # The kernel asks for what is read and no more, and nothing of that is held back.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for place in range(SIZE // 2 // MIB):
            assert len(os.pread(file.fileno(), MIB, place * MIB)) == MIB
        gate.wait_for()
        yield


def test_a_file_that_is_half_read(s3: FastS3Server, mounter: Mounter) -> None:
    """The map of its chunks, the start that it is part of, what goes on; and the tree, when all is there."""
    s3.put("models", SHARD, bytes(SIZE))
    s3.put("models", "llm/other", bytes(MIB))
    s3.put("models", "unseen/file", bytes(MIB))
    mount = mounter.mount(s3, "s3://models", LOOPBACK)
    shown = Shown(mount)
    with half_read(s3, mount):
        found = shown.file(SHARD)
        assert (found["size"], found["chunks"], found["per_cell"]) == (SIZE, 24, 1)
        here = [max(cell) for cell in zip(found["disk"], found["memory"], strict=True)]
        assert here[:12] <= [1] * 12
        assert here[12:] == [0] * 12
        assert found["coming"][:12] == [0] * 12
        assert sum(found["coming"][12:]) >= 1
        assert found["verified"] == "no"
        recent = shown.recent()
        assert [one["path"] for one in recent["activity"]["files"]] == [SHARD]
        (load,) = recent["loads"]["files"]
        assert load["path"] == SHARD
        assert 0 < recent["loads"]["ready"] <= load["opened"] <= load["first"] <= recent["loads"]["now"]
        assert (load["whole"], load["closed"], load["here"]) == (None, None, 0)
        sample = dict(zip(recent["fields"], recent["samples"][-1], strict=True))
        assert sample["to_readers"] == SIZE // 2
        assert sample["under_way"] >= 1
        assert sum(sample["reads"]) >= 12
    assert (mount.path / SHARD).read_bytes() == bytes(SIZE)
    if mount.settle()["chunks"]["unkept"] == 0:  # a disk that is slow keeps less
        wait_until(lambda: shown.file(SHARD)["disk"] == [1] * 24, "it is kept")
        wait_until(lambda: shown.recent()["loads"]["files"][0]["whole"], "it is all here")
        (load,) = shown.recent()["loads"]["files"]
        assert load["opens"] == 2
        assert load["first"] <= load["whole"] <= shown.recent()["loads"]["now"]
        assert shown.tree()["llm"] == {
            "kind": "directory", "files": 2, "size": SIZE + MIB, "cached": SIZE, "whole": True
        }  # fmt: skip
        assert shown.tree("llm")["shard-1"] == {"kind": "file", "size": SIZE, "cached": SIZE}
    assert shown.tree("llm")["other"]["cached"] == 0
    assert shown.tree()["unseen"]["whole"] is False, "nobody has listed it"
    assert shown.tree("unseen")["file"]["size"] == MIB, "who opens it in the page has it listed"
    assert wait_until(lambda: shown.recent()["loads"]["files"][0]["closed"], "closed")
    before = len(s3.log)
    for _ in range(3):
        for look in (shown.recent, shown.tree, lambda: shown.tree("llm"), lambda: shown.file(SHARD)):
            look()
    assert len(s3.log) == before, "to look sends no request"


def test_names_are_for_who_mounted(s3: FastS3Server, mounter: Mounter) -> None:
    """Without the key, or with another: numbers, and no name; neither over other pages."""
    for name in NAMED:
        s3.put("models", name, bytes(MIB))
    s3.put("models", "secret-name-denied", b"x")
    mount = mounter.mount(s3, "s3://models", LOOPBACK)
    shown = Shown(mount)
    for name in NAMED:
        (mount.path / name).read_bytes()
    assert "secret-name" in json.dumps(shown.recent())
    assert shown.recent()["names"] is True
    for key in ("", "x" * 22, "\xff"):
        status, found = shown.get("/cache/recent", key)
        assert (status, found["names"], len(found["loads"]["files"])) == (200, False, 2)
        assert "secret-name" not in json.dumps(found)
        for route in ("tree?path=", "file?path=secret-name"):
            status, words = shown.get(f"/cache/{route}", key)
            assert (status, words.count("\n")) == (403, 1)
            assert "lazyfs status" in words
    for route in ("/", "/metrics", "/cache/stats", "/cache/metrics", "/healthz"):
        assert b"secret-name" not in pages_of(mount).get(route)[2]
    assert "#" not in json.dumps(mount.stats()["metrics"])
    assert page_of(mount).partition("#")[2] not in mount.logged()


@pytest.mark.root
def test_the_key_is_not_for_other_users(s3: FastS3Server, mounter: Mounter) -> None:
    """Though they may read the mount."""
    s3.put("models", "k", b"k")
    mount = mounter.mount(s3, "s3://models", LOOPBACK, "--allow-other")
    code = f"import os; os.setuid({NOBODY}); os.getxattr({str(mount.path)!r}, 'user.lazyfs.page')"
    mounter.work.chmod(0o711)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert "PermissionError" in done.stderr


def test_a_unix_socket_is_for_its_owner(s3: FastS3Server, mounter: Mounter) -> None:
    """Which is why what comes through it may see names; and a browser behind a tunnel is not led there by a name."""
    s3.put("models", "k", b"k")
    # Not below the folder of the test, whose name may be longer than that of a socket can be.
    path = Path(tempfile.mkdtemp(dir="/tmp")) / "socket"
    mount = mounter.mount(s3, "s3://models", f"--metrics-address=unix:{path}")
    shown = Pages(f"unix:{path}")
    assert shown.get("/cache/tree?path=", Host="localhost:8000")[0] == 200
    assert shown.get("/cache/tree?path=", Host="evil.example")[0] == 421
    assert shown.get("/healthz", Host="evil.example")[0] == 200
    mount.unmount()
    path.parent.rmdir()


def test_what_is_asked_to_do_harm(s3: FastS3Server, mounter: Mounter) -> None:
    """Names of somebody else's in Host, paths that lead elsewhere, queries that are none."""
    s3.put("models", "folder/k", b"k")
    mount = mounter.mount(s3, "s3://models", LOOPBACK)
    shown = Shown(mount)
    for route in ("/", "/cache/recent", "/cache/tree", "/cache/file", "/metrics", "/cache/stats", "/healthz"):
        status, words = shown.get(route, Host="evil.example")
        assert (status, words.count("\n")) == (421, 1), route
        assert shown.get(route, Host="localhost:1")[0] in (200, 404), route
    paths = ("..", "folder/../folder", "folder//k", "%00", "a" * 5000, "missing", "k/k/k", "%FF%FE", "folder")
    for path in paths:
        status, words = shown.get(f"/cache/file?path={path}")
        assert (status, words.count("\n")) == (404, 1), path
    for path in paths[:-1]:
        assert shown.get(f"/cache/tree?path={path}")[0] == 404, path
    for query in ("since=nan", "since=-1", "since=1e999", "%%%", "&" * 1000, "since=" + "9" * 400):
        assert shown.get(f"/cache/recent?{query}")[0] == 200
    assert mount.stats()["failures"] == 0


def test_several_sources(s3: FastS3Server, mounter: Mounter) -> None:
    """Each is a directory."""
    s3.add_bucket("tools")
    s3.put("models", "llm/weights", bytes(MIB))
    s3.put("tools", "tool", b"t")
    place = mounter.place()
    env = environment(mounter.work / "home", s3, LAZYFS_SOURCE="llm=s3://models/ tools=s3://tools")
    log = mounter.watch_log(mounter.work / "log-several")
    options = [*mounter.options(s3), LOOPBACK, f"--cache-dir={mounter.cache()}", f"--log-file={log}"]
    done = run(["mount", *options, place], env)
    assert done.returncode == 0, done.stderr
    assert (place / "llm" / "llm" / "weights").read_bytes() == bytes(MIB)
    key = json.loads(os.getxattr(place, "user.lazyfs.page"))["url"].partition("#")[2]
    shown = Pages(json.loads(os.getxattr(place, "user.lazyfs.stats"))["metrics"])

    def tree(path: str) -> Any:
        return json.loads(shown.get(f"/cache/tree?path={path}", Authorization=f"Bearer {key}")[2])["entries"]

    assert [(one["name"], one["size"]) for one in tree("")] == [("llm", MIB), ("tools", 1)]
    assert [one["name"] for one in tree("llm")] == ["llm"]
    assert [one["name"] for one in tree("llm/llm")] == ["weights"]
    run(["unmount", place], env)


@pytest.mark.root
def test_a_loop_that_stands_still(s3: FastS3Server, mounter: Mounter) -> None:
    """The page says so."""
    s3.put("models", "k", b"k")
    mount = mounter.mount(s3, "s3://models", LOOPBACK, expect=STUCK)
    mount.killed = True
    shown = Shown(mount)
    assert shown.recent()["health"] == {"ok": True, "words": ""}
    stop_the_loop(mount.pid)
    found = wait_until(lambda: (told := shown.recent())["health"]["words"] and told, "trouble")
    assert "has not answered" in found["health"]["words"]
    assert found["mount"]["source"] == "s3://models"
    assert shown.get("/cache/tree?path=")[0] == 503
    mount.kill()


# ---- in a browser


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium; the default run looks at what it would be sent")
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False)])
def test_in_a_browser(s3: FastS3Server, mounter: Mounter, width: int, dark: bool) -> None:
    """Everything is drawn from what the mount says, hostile names are text, nobody else is asked, and the browser has
    nothing to complain of."""
    s3.put("models", SHARD, bytes(SIZE))
    s3.put("models", f"{HOSTILE}/<img src=x onerror=document.title=2>", b"x")
    s3.put("models", "left\u202eright", b"x")
    mount = mounter.mount(s3, "s3://models", LOOPBACK)
    url = page_of(mount)
    with half_read(s3, mount), Browser(mounter.work, width=width, dark=dark) as browser:
        browser.go(url)
        shown = "document.body.innerText"
        for words in ("s3://models", "healthy", "answers", SHARD, "12.0 MiB in all", "first byte", "\\\\u{202e}"):
            browser.wait_for(f"{shown}.includes('{words}')", words)
        browser.wait_for("document.querySelector('#map').width > 100", "the map is drawn")
        browser.wait_for("+document.querySelector('#map-coming').textContent > 0", "and its legend is counted")
        assert browser.evaluate("location.hash") == "", "the key is not in what is copied from the address bar"
        # Into the hostile directories, and the hostile file, by the buttons that are theirs.
        for piece in ("<script>", "script>/", "<img"):
            every = "[...document.querySelectorAll('#tree button')]"
            button = f"{every}.find((one) => one.textContent.includes('{piece}'))"
            browser.wait_for(f"!!{button}", piece)
            browser.evaluate(f"{button}.click()")
        browser.wait_for("document.querySelector('#map-name').textContent.includes('<img')", "chosen")
        assert browser.evaluate("document.title").endswith("lazyfs")
        assert browser.evaluate("document.querySelectorAll('img, script').length") == 1
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off"
        nodes = browser.accessible()
        unnamed = [one for one in nodes if one["role"] in ("button", "img", "checkbox", "combobox") and not one["name"]]
        assert unnamed == []
        headings = {one["name"].split("  ")[0] for one in nodes if one["role"] == "heading"}
        assert {"Sources", "Jobs", "What is cached", "Warnings and errors"} <= headings
        browser.picture(mounter.work / "page.png")
        origin = url.partition("/#")[0]
        # The browser's own pages, such as that of a new tab, are none of ours.
        asked = {one for one in browser.requests if not one.startswith(("data:", "chrome:", "about:"))}
        assert asked
        assert all(one.startswith(f"{origin}/") and url.partition("#")[2] not in one for one in asked)
        assert browser.complaints == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium; the default run looks at what it would be sent")
def test_in_a_browser_without_the_key_and_without_the_mount(s3: FastS3Server, mounter: Mounter) -> None:
    """It says why there are no names, and later that nobody answers."""
    s3.put("models", SHARD, bytes(MIB))
    mount = mounter.mount(s3, "s3://models", LOOPBACK)
    (mount.path / SHARD).read_bytes()
    with Browser(mounter.work) as browser:
        browser.go(f"{pages_of(mount).where}/")
        browser.wait_for("document.body.innerText.includes('Names of files are hidden')", "hidden")
        browser.wait_for("document.body.innerText.includes('file 1')", "its load without a name")
        assert SHARD not in browser.evaluate("document.documentElement.outerHTML")
        mount.unmount()
        browser.wait_for("document.body.innerText.includes('does not answer')", "it has ended")
