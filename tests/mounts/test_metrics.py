"""Metrics and health of a real mount: numbers that are the server's own, and pages that neither hold it up nor wait for
it."""

import os
import signal
import socket
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mounter, environment, is_mounted, run, wait_until
from tests.mounts.pages import Pages, key, pages_of
from tests.mounts.reader import Reader
from tests.mounts.test_mount_command import listening
from tests.mounts.test_teardown import STUCK, stop_the_loop
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault

LOOPBACK = "--metrics-address=127.0.0.1:0"


def test_the_numbers_are_those_of_server_and_readers(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """Reads, a missing name, and a key that is refused."""
    s3.put("models", "weights", pages(1, 3 * MIB))
    s3.put("models", "denied", pages(2, MIB))
    s3.fault = lambda request: Fault(status=403, code="AccessDenied") if request.key == "denied" else None
    mount = mounter.mount(s3, "s3://models", LOOPBACK, "--verify-objects=off", expect=["read failed with EACCES"])
    shown = pages_of(mount)
    assert reader.call("digest", str(mount.path / "weights"))[0] == 3 * MIB
    with pytest.raises(PermissionError):
        reader.call("digest", str(mount.path / "denied"))
    assert not (mount.path / "missing").exists()
    mount.settle()
    log = s3.take_log()
    refused = sum(request.key == "denied" for request in log)

    def of(name: str, **labels: str) -> float:
        return shown.samples()[key(name, **labels)]

    # What the loop answered is good for a moment, and so may be a moment old.
    wait_until(lambda: of("lazyfs_fuse_errors_total", operation="read", error="EACCES") >= 1, "the refusal is counted")
    found = shown.samples()
    kinds = {"GetObject": "GET", "ListObjectsV2": "LIST", "HeadObject": "HEAD"}
    for operation, kind in kinds.items():
        counted = {labels: v for (name, labels), v in found.items() if name == "lazyfs_s3_requests_total"}
        total = sum(value for labels, value in counted.items() if ("operation", operation) in labels)
        assert total == sum(request.kind == kind for request in log), operation
    assert found[key("lazyfs_s3_errors_total", operation="GetObject", status="403")] == refused
    received = [found[key("lazyfs_s3_received_bytes_total", purpose=one)] for one in ("demand", "read_ahead")]
    assert sum(received) == found[key("lazyfs_read_bytes_total")] == 3 * MIB
    assert found[key("lazyfs_s3_first_byte_seconds_count", operation="GetObject")] == sum(r.kind == "GET" for r in log)
    assert found[key("lazyfs_cache_hits_total", tier="s3")] == 3
    looked = [found[key(f"lazyfs_cache_{one}_total", tier="memory")] for one in ("hits", "misses")]
    assert sum(looked) >= 3
    for queue in ("gate", "connection"):
        assert found[key("lazyfs_queue_wait_seconds_count", queue=queue)] >= 1
    assert found[key("lazyfs_memory_bound_bytes")] == 128 * MIB
    assert 0 < found[key("lazyfs_disk_used_bytes")] < found[key("lazyfs_disk_bound_bytes")]
    assert (found[key("lazyfs_up")], found[key("lazyfs_sources")]) == (1, 1)
    assert found[key("lazyfs_fuse_request_duration_seconds_bucket", operation="read", le="+Inf")] >= 4
    assert "read failed with EACCES" in mount.logged()
    assert "('denied', bytes 0-" in mount.logged()


def test_pages_and_formats(s3: FastS3Server, mounter: Mounter) -> None:
    """The same numbers to each who asks in its own words; few labels, and of names only those that were chosen."""
    s3.put("models", "a secret name", pages(1, MIB))
    mount = mounter.mount(s3, "s3://models", LOOPBACK)
    (mount.path / "a secret name").read_bytes()
    shown = pages_of(mount)
    assert shown.get("/healthz") == (200, "text/plain; charset=utf-8", b"ok\n")
    status, kind, body = shown.get("/metrics", Accept="application/openmetrics-text; version=1.0.0,text/plain;q=0.5")
    assert (status, kind.partition(";")[0]) == (200, "application/openmetrics-text")
    read: Any = text_string_to_metric_families  # which is not annotated
    families = {family.name: family for family in read(body.decode())}
    assert body.endswith(b"# EOF\n")
    assert families.keys() == {one["name"] for one in shown.json("/cache/metrics")}
    assert {s.name.partition("_bucket")[0] for s in families["lazyfs_queue_wait_seconds"].samples} >= {
        "lazyfs_queue_wait_seconds"
    }
    assert shown.get("/metrics", Accept="nonsense; version=x.y, */*")[0] == 200
    assert shown.json("/cache/stats").keys() == mount.stats().keys()
    assert shown.get("/")[:2] == (200, "text/html; charset=utf-8")
    assert shown.get("/elsewhere")[0] == 404
    assert shown.get("/metrics", "POST")[0] == 405
    for path in ("/metrics", "/cache/metrics"):
        _, _, text = shown.get(path)
        assert all(word not in text for word in (b"secret", os.fsencode(mount.path), b"s3://"))
        assert len(text) < 200_000
    promised = [family for family in families.values() if family.name.startswith("lazyfs_")]
    assert all(family.documentation.endswith(".") for family in promised)


def test_a_loop_that_stands_still_is_told_of(s3: FastS3Server, mounter: Mounter) -> None:
    """By pages that do not wait for it; what it said last is still there."""
    mount = mounter.mount(s3, "s3://models", LOOPBACK, expect=[*STUCK, "has no objects yet"])
    mount.killed = True
    shown = pages_of(mount)
    assert shown.samples()[key("lazyfs_up")] == 1
    stop_the_loop(mount.pid)
    wait_until(lambda: shown.get("/healthz")[0] == 503, "unhealthy")
    assert b"has not answered for" in shown.get("/healthz")[2]
    found = shown.samples()
    assert found[key("lazyfs_up")] == 0
    assert found[key("lazyfs_loop_lag_seconds")] > 1
    assert found[key("lazyfs_sources")] == 1
    assert shown.get("/cache/stats")[0] == 503
    mount.kill()


def test_it_listens_where_it_was_told_and_nowhere_else(s3: FastS3Server, mounter: Mounter) -> None:
    """P14; that nothing listens unless asked is in `test_mount_command`."""
    s3.put("models", "k", b"k")
    mount = mounter.mount(s3, "s3://models", LOOPBACK, at=mounter.place("tcp"))
    (found,) = listening(mount.pid)
    port = int(pages_of(mount).where.rpartition(":")[2])
    assert found == f"0100007F:{port:04X}"
    done = run(["status", mount.path], environment(mounter.work / "home", s3))
    assert f"  metrics: http://127.0.0.1:{port}\n" in done.stdout
    # Not below the folder of the test, whose name may be longer than that of a socket can be.
    path = Path(tempfile.mkdtemp(dir="/tmp")) / "socket"
    mount = mounter.mount(s3, "s3://models", f"--metrics-address=unix:{path}", at=mounter.place("unix"))
    assert listening(mount.pid) == [str(path)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Pages(f"unix:{path}").get("/healthz")[0] == 200
    assert mount.signal(signal.SIGTERM) == 0
    assert not path.exists()
    path.parent.rmdir()


def test_an_address_that_cannot_be_had(s3: FastS3Server, mounter: Mounter) -> None:
    """One sentence, and nothing is mounted."""
    s3.put("models", "k", b"k")
    path, env = mounter.place(), environment(mounter.work / "home", s3)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        usual = [*mounter.options(s3), f"--cache-dir={mounter.cache()}"]
        done = run(["mount", *usual, f"--metrics-address=127.0.0.1:{port}", "s3://models", path], env)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"cannot listen at http://127.0.0.1:{port}: Address already in use" in done.stderr
    done = run(["mount", *usual, "--metrics-address=:9567", "s3://models", path], env)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not is_mounted(path)


def test_hostile_clients_hold_up_no_reader(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """Silent connections, more than there may be, and one that asks as fast as it can."""
    data = pages(1, 8 * MIB)
    s3.put("models", "weights", data)
    mount = mounter.mount(s3, "s3://models", LOOPBACK)
    shown = pages_of(mount)
    host, _, port = shown.where.removeprefix("http://").rpartition(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(60)]
    over, served = threading.Event(), []

    def flood() -> None:
        while not over.is_set():
            served.append(shown.get("/metrics")[0])

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for _ in range(2):
            fd = reader.call("open_file", str(mount.path / "weights"))
            assert reader.call("pread", fd, len(data), 0) == data
            reader.call("forget_pages", fd)
            reader.call("close_file", fd)
        wait_until(lambda: len(served) >= 3, "the flood is served")
    finally:
        over.set()
        thread.join(30)
        for one in silent:
            one.close()
    assert set(served) == {200}
    assert mount.stats()["failures"] == 0
