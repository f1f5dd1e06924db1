"""`ModelCache`: where a version comes from, what is fetched how often, and what becomes of it under a bound."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import lazyfs.aio
from lazyfs import DirectoryOrigin, HubOrigin, ModelCache
from lazyfs.errors import Corrupt, LazyfsError, NoRoom, NotFound, SetupError, UsageError
from lazyfs.models.download import SPAN
from lazyfs.models.names import MANIFEST
from tests.models.library import MIB, Lazyfs, a_model, keys
from tests.mounts.mounting import ROOT, environment, wait_until
from tests.rooms.building import allocated
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault, first
from tests.servers.objects import Object
from tests.servers.records import Request

LARGE = 2 * SPAN - 1000
"""Bytes of the one file that is fetched in two ranges."""

Caches = Callable[..., ModelCache]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, Object]]:
    """The files of tiny/v1, and the objects that it is: published once, and put into the bucket of each test."""
    work = tmp_path_factory.mktemp("published")
    files = a_model(work / "m", large=LARGE)
    with FastS3Server() as server:
        server.add_bucket("models")
        Lazyfs(work).ok(server, "publish", work / "m", "tiny/v1", "--to=s3://models/llm/")
        found = {key: server.objects.get("models", key) for key in keys(server, "models")}
    return files, {key: entry for key, entry in found.items() if entry is not None}


@pytest.fixture
def model(_aws: None, s3: FastS3Server, published: tuple[dict[str, bytes], dict[str, Object]]) -> dict[str, bytes]:
    """tiny/v1 in the bucket, and nothing of it in the cache: its files."""
    files, objects = published
    for key, entry in objects.items():
        s3.objects.put("models", key, entry)
    return files


@pytest.fixture
def getters(s3: FastS3Server, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes that get tiny/v1; all are ended."""
    made: list[subprocess.Popen[str]] = []

    def start(*more: str, version: str = "v1") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.models.getter", s3.url, str(tmp_path / "cache"), "tiny", version, *more]
        env = environment(tmp_path / "home", s3)
        pipe = subprocess.PIPE
        made.append(subprocess.Popen(command, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate(timeout=30)


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a getter says when it has the model."""
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return dict(json.loads(line))


def holds(path: Path, files: dict[str, bytes]) -> bool:
    """Whether a directory has exactly these files."""
    found = {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()}
    return found == files


def gets(server: FastS3Server) -> list[Request]:
    """GETs of the model's files since the last look."""
    return [r for r in server.take_log() if r.kind == "GET" and r.key and not r.key.endswith(MANIFEST)]


def test_a_version_is_fetched_once_and_then_here(caches: Caches, s3: FastS3Server, model: dict[str, bytes]) -> None:
    """Also by another object, later, and while the server is away."""
    cache = caches()
    s3.take_log()
    path = cache.get("tiny", "v1")
    assert holds(path, model)
    assert all(one.stat().st_mode & 0o777 == 0o400 for one in path.rglob("*") if one.is_file())
    fetched = [request.range for request in gets(s3)]
    assert sum(stop - start for start, stop in filter(None, fetched)) == sum(map(len, model.values()))
    assert cache.get("tiny", "v1") == path
    s3.stop()
    other = caches()
    assert other.get("tiny", "v1") == path
    assert (other.stats().hits, other.stats().misses) == (1, 0)
    assert (cache.stats().hits, cache.stats().misses) == (1, 1)
    assert cache.stats().fetched_bytes == sum(map(len, model.values()))
    assert "lazyfs_models_misses_total 1.0\n" in cache.metrics()


def test_what_is_not_there_is_said(caches: Caches, model: dict[str, bytes]) -> None:
    cache = caches()
    with pytest.raises(NotFound, match="tiny/v2 is in no place that was looked at: this disk, the bucket"):
        cache.get("tiny", "v2")
    with pytest.raises(UsageError, match=r"'\.\.'"):
        cache.get("../tiny", "v1")
    with pytest.raises(UsageError, match="no setting 'colour'"):
        caches(colour="red")
    with pytest.raises(UsageError, match="max_cache_size: 'lots' is not a size"):
        caches(max_cache_size="lots")


def test_half_a_version_is_none(caches: Caches, s3: FastS3Server, model: dict[str, bytes]) -> None:
    """Its manifest is not there yet, or is of files that are not."""
    s3.delete("models", "llm/tiny/v1/config.json")
    with pytest.raises(Corrupt, match=r"config\.json.*publish the version again"):
        caches().get("tiny", "v1")
    s3.delete("models", f"llm/tiny/v1/{MANIFEST}")
    with pytest.raises(NotFound):
        caches().get("tiny", "v1")


def test_threads_and_processes_fetch_once(
    caches: Caches, s3: FastS3Server, model: dict[str, bytes], getters: Callable[..., subprocess.Popen[str]]
) -> None:
    """Two processes and three threads, one of them with an object of its own: each byte crosses the network once."""
    gate = s3.hold(lambda request: request.kind == "GET" and "00002" in request.key)
    s3.take_log()
    processes = [getters(), getters()]
    gate.wait_for(1, 60)
    cache, other = caches(), caches()
    found: list[Path] = []
    threads = [threading.Thread(target=lambda c=c: found.append(c.get("tiny", "v1"))) for c in (cache, cache, other)]
    for thread in threads:
        thread.start()
    gate.release(1 << 30)
    answers = [said(process) for process in processes]
    for thread in threads:
        thread.join(60)
    assert {str(path) for path in found} == {answer["path"] for answer in answers}
    assert len(found) == 3
    assert sum(request.bytes_sent for request in gets(s3)) == sum(map(len, model.values()))
    assert holds(found[0], model)


def test_a_killed_download_goes_on(
    caches: Caches,
    s3: FastS3Server,
    model: dict[str, bytes],
    getters: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    """SIGKILL with one range on its way: the next get fetches that one, and nobody saw half a version."""
    gate = s3.hold(lambda request: request.kind == "GET" and request.range == (SPAN, LARGE))
    s3.take_log()
    process = getters()
    gate.wait_for(1, 60)

    def first_is_logged() -> bool:
        logs = (tmp_path / "cache" / "models").glob("coming/*/logs/*")
        return any(log.read_text().count("\n") == 2 for log in logs)

    wait_until(first_is_logged, "the first range on disk", 60)
    process.kill()
    process.wait(30)
    gate.release(1 << 30)
    wait_until(lambda: any(request.range == (SPAN, LARGE) for request in gets(s3)), "the end of what was held", 60)
    cache = caches()
    assert cache.list()[0].path is None
    path = cache.get("tiny", "v1")
    assert holds(path, model)
    assert [request.range for request in gets(s3) if "00002-of" in request.key] == [(SPAN, LARGE)]
    assert cache.stats().resumed_bytes == SPAN


def test_wrong_bytes_are_fetched_again_and_never_served(
    caches: Caches, s3: FastS3Server, model: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong once: mended. Wrong for good: an error that names the file and both digests, and nothing is here."""

    def weights(request: Request) -> bool:
        return request.kind == "GET" and "00001" in request.key

    s3.fault = first(1, Fault(wrong_bytes=True), weights)
    cache = caches()
    with caplog.at_level(logging.ERROR):
        assert holds(cache.get("tiny", "v1"), model)
    assert "WRONG BYTES" in caplog.text
    assert cache.stats().wrong == 1
    cache.evict("tiny", "v1")
    s3.fault = lambda request: Fault(wrong_bytes=True) if weights(request) else None
    with pytest.raises(Corrupt, match=r"00001-of.* is [0-9a-f]{16}, its manifest says [0-9a-f]{16}, also when fetched"):
        cache.get("tiny", "v1")
    assert [one.path for one in cache.list()] == [None]
    s3.fault = None
    assert holds(cache.get("tiny", "v1"), model)


def test_damage_on_the_disk_is_found_by_verify_or_by_size(caches: Caches, model: dict[str, bytes]) -> None:
    cache = caches()
    path = cache.get("tiny", "v1")
    cache.verify("tiny", "v1")
    victim = path / "model-00001-of-00002.safetensors"
    victim.chmod(0o600)
    with victim.open("r+b") as file:
        file.write(b"X")
    with pytest.raises(Corrupt, match="get it again"):
        cache.verify("tiny", "v1")
    assert holds(cache.get("tiny", "v1"), model)
    (path / "config.json").unlink()
    assert holds(cache.get("tiny", "v1"), model)


def test_a_bound_holds_and_what_is_used_stays(caches: Caches, s3: FastS3Server, tmp_path: Path) -> None:
    """The least recently used version makes room, before a byte is fetched; none that is in use; and what cannot fit
    is said with nothing evicted."""
    a_model(tmp_path / "m", large=2 * MIB)
    maker = caches(cache_dir=str(tmp_path / "elsewhere"))
    for version in ("v1", "v2", "v3"):
        maker.put("tiny", version, tmp_path / "m")
    a_model(tmp_path / "huge", large=15 * MIB)
    maker.put("huge", "v1", tmp_path / "huge")
    cache = caches(max_cache_size="14MiB")
    cache.get("tiny", "v1")
    cache.get("tiny", "v2")
    with pytest.raises(NoRoom, match=r"tiny/v3 needs 6 MiB.*raise the size"):
        cache.get("tiny", "v3")
    with pytest.raises(NoRoom, match="huge/v1 needs 19 MiB"):
        cache.get("huge", "v1")
    assert {one.version for one in cache.list() if one.path} == {"v1", "v2"}
    cache.get("tiny", "v1")
    for version in ("v1", "v2"):
        cache.release("tiny", version)
    cache.get("tiny", "v3")
    assert {one.version for one in cache.list() if one.path} == {"v1", "v3"}
    assert allocated(tmp_path / "cache") <= 14 * MIB
    assert cache.stats().evicted_bytes > 5 * MIB


def test_a_file_that_is_open_outlives_an_eviction(caches: Caches, model: dict[str, bytes]) -> None:
    cache = caches()
    other = caches()
    path = cache.get("tiny", "v1")
    other.get("tiny", "v1")
    with pytest.raises(UsageError, match="in use"):
        cache.evict("tiny", "v1")
    with (path / "model-00001-of-00002.safetensors").open("rb") as file:
        other.close()
        assert cache.evict("tiny", "v1") > 0
        assert not path.exists()
        assert file.read() == model["model-00001-of-00002.safetensors"]
    assert [(one.path, one.published) for one in cache.list()] == [(None, True)]
    cache.evict("tiny", "v1", from_bucket=True)
    assert cache.list() == []


def test_an_origin_is_asked_last_and_once(caches: Caches, s3: FastS3Server, tmp_path: Path) -> None:
    """What it has is published, so that the next machine finds it in the bucket; a bucket that takes nothing is no
    reason to fail."""
    files = a_model(tmp_path / "origin" / "org" / "tiny" / "v1")
    cache = caches(origin=DirectoryOrigin(tmp_path / "origin"))
    assert holds(cache.get("org/tiny", "v1"), files)
    assert cache.stats().from_origin == 1
    assert holds(caches(cache_dir=str(tmp_path / "second")).get("org/tiny", "v1"), files)
    with pytest.raises(NotFound, match="this disk, the bucket and the origin"):
        cache.get("org/tiny", "v2")
    s3.fault = lambda request: Fault(status=403, code="AccessDenied") if request.method == "PUT" else None
    a_model(tmp_path / "origin" / "org" / "tiny" / "v2")
    assert holds(cache.get("org/tiny", "v2"), files)


def test_an_origin_that_brings_files_or_fails(caches: Caches, tmp_path: Path) -> None:
    """A callable of the user's: what it writes into the directory it is given is taken, not copied."""

    class Made:
        def fetch(self, model: str, version: str, into: Path) -> Path | None:
            if version == "v9":
                raise RuntimeError("no licence")
            a_model(into)
            (into / "link").symlink_to("config.json")
            (into / "again").symlink_to("tokenizer")
            return into

    cache = caches(source=None, origin=Made())
    files = a_model(tmp_path / "m")
    linked = {"link": files["config.json"], "again/vocab a+b.txt": files["tokenizer/vocab a+b.txt"]}
    path = cache.get("tiny", "v1")
    assert holds(path, files | linked)
    assert not any(one.is_symlink() for one in path.rglob("*"))
    assert not list((tmp_path / "cache" / "models" / "coming").iterdir())
    with pytest.raises(SetupError, match="the origin failed at tiny/v9: RuntimeError: no licence"):
        cache.get("tiny", "v9")
    with pytest.raises(UsageError, match="no bucket"):
        cache.evict("tiny", "v1", from_bucket=True)


def test_the_hub_needs_its_library(caches: Caches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="pip install huggingface_hub"):
        caches(source=None, origin=HubOrigin()).get("org/tiny", "main")


def test_names_of_other_caches_are_known(
    s3: FastS3Server, model: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_CACHE_DIR", str(tmp_path / "named"))
    monkeypatch.setenv("MODEL_CACHE_S3_BUCKET", "models")
    monkeypatch.setenv("MODEL_CACHE_S3_PREFIX", "llm")
    monkeypatch.setenv("MODEL_CACHE_MAX_BYTES", str(1 << 30))
    monkeypatch.setenv("LAZYFS_ENDPOINT_URL", s3.url)
    with ModelCache(min_free_space=0) as cache:
        assert cache.get("tiny", "v1").is_relative_to(tmp_path / "named")
    monkeypatch.setenv("MODEL_CACHE_MAX_BYTES", str(8 * MIB))
    with ModelCache(min_free_space=0, cache_dir=str(tmp_path / "small")) as cache, pytest.raises(NoRoom):
        cache.get("tiny", "v1")


async def test_the_same_in_trio(s3: FastS3Server, model: dict[str, bytes], tmp_path: Path) -> None:
    """Two tasks that get it at once fetch it once."""
    settings: dict[str, Any] = {"endpoint_url": s3.url, "cache_dir": str(tmp_path / "cache"), "min_free_space": 0}
    async with lazyfs.aio.ModelCache("s3://models/llm/", **settings) as cache:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(cache.get, "tiny", "v1")
        assert cache.stats().fetched_bytes == sum(map(len, model.values()))
        assert holds(await cache.get("tiny", "v1"), model)
        assert [one.published for one in await cache.list()] == [True]


def test_loops_of_others_are_no_trouble(caches: Caches, model: dict[str, bytes]) -> None:
    """A notebook runs asyncio in its thread; within trio a call that blocks is refused."""
    cache = caches()

    async def cell() -> Path:
        return cache.get("tiny", "v1")

    assert holds(asyncio.run(cell()), model)
    cache.evict("tiny", "v1")
    with pytest.raises(UsageError, match=r"lazyfs\.aio"):
        trio.run(cell)


def test_a_damaged_cache_directory_is_refused(caches: Caches, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(LazyfsError, match="choose"):
        caches(cache_dir=str(tmp_path / "other"))
    caches().close()
    os.rename(tmp_path / "cache" / "models", tmp_path / "moved")
    (tmp_path / "cache" / "models").symlink_to(tmp_path / "moved")
    with pytest.raises(SetupError, match="not a directory of yours"):
        caches()


def test_cold_starts_wait_for_their_turn(
    caches: Caches, s3: FastS3Server, model: dict[str, bytes], tmp_path: Path
) -> None:
    """With room for one, nothing of a second version is asked for before the first one is here, whoever wants it."""
    for key in keys(s3, "models"):
        entry = s3.objects.get("models", key)
        assert entry is not None
        s3.objects.put("models", key.replace("/v1/", "/v2/"), entry)
    one, two = caches(cold_starts=1), caches(cold_starts=1)
    locks = set((tmp_path / "cache").rglob("*.lock"))
    s3.take_log()
    paths: list[Path] = []
    with s3.hold(lambda request: request.kind == "GET" and request.key == "llm/tiny/v1/config.json") as gate:
        first_one = threading.Thread(target=lambda: paths.append(one.get("tiny", "v1")))
        first_one.start()
        gate.wait_for(1)
        held = set((tmp_path / "cache").rglob("*.lock")) - locks
        second = threading.Thread(target=lambda: paths.append(two.get("tiny", "v2")))
        second.start()
        wait_until(lambda: set((tmp_path / "cache").rglob("*.lock")) - locks > held, "the second one is there")
        gate.release()
        for thread in (first_one, second):
            thread.join(60)
    names = [request.key.split("/")[2] for request in s3.take_log() if request.key]
    assert names == sorted(names), "all of v1, then all of v2"
    assert [path.name for path in paths] == ["v1", "v2"]
    assert all(holds(path, model) for path in paths)
    with pytest.raises(UsageError, match="at least 1"):
        caches(cold_starts=0)
