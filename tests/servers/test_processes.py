"""Servers as processes: what they say when they cannot start, and that none outlives who started it."""

import http.client
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.servers.processes import ServerFailed, ServerProcess
from tests.servers.remote import RemoteFastS3
from tests.servers.swift import SwiftServer

DATA = bytes(range(256)) * 4096


def body(server: RemoteFastS3, target: str, **headers: str) -> bytes:
    """The body of a GET."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", target, headers=headers)
        return connection.getresponse().read()
    finally:
        connection.close()


def test_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "models" / "a").mkdir(parents=True)
    (tmp_path / "models" / "a" / "w.bin").write_bytes(DATA)
    with RemoteFastS3(tmp_path, first_byte_delay=0.01) as remote:
        assert body(remote, "/models/a/w.bin", Range="bytes=1-2") == DATA[1:3]
        remote.shape()
        remote.add_file("more", "é//x", tmp_path / "models" / "a" / "w.bin")
        remote.put("more", "small", b"123")
        remote.take_log()
        assert body(remote, "/more/small") == b"123"
        assert body(remote, "/more/%C3%A9//x") == DATA
        # Of two connections, each written down by its own thread when all was sent: in either order.
        assert sorted((entry.key, entry.range, entry.status) for entry in remote.take_log()) == [
            ("small", None, 200),
            ("é//x", None, 200),
        ]
        assert remote.take_log() == []
        assert remote.counters.gets == 3
        pid = remote.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_that_speaks_tls(tmp_path: Path) -> None:
    with RemoteFastS3(tls=tmp_path / "certificates") as remote:
        assert remote.url.startswith("https://")
        remote.put("models", "k", DATA)
        s3 = remote.client(verify=remote.ca_bundle)
        assert s3.get_object(Bucket="models", Key="k", Range="bytes=7-70000")["Body"].read() == DATA[7:70001]
        s3.close()
        assert [(entry.key, entry.range) for entry in remote.take_log() if entry.method == "GET"] == [("k", (7, 70001))]


def test_a_server_that_cannot_start_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerFailed, match="Address already in use"):
            ServerProcess("tests.servers.fast", [f"--port={port}"])


def test_children_end_with_their_parent() -> None:
    process = ServerProcess("tests.servers.fast", [])
    port = int(process.ready["url"].rpartition(":")[2])
    child = process._process
    assert child.stdin is not None
    child.stdin.close()  # as the kernel does when the parent is gone
    assert child.wait(10) in (0, -signal.SIGTERM)
    process.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_swift_dies_with_its_launcher(tmp_path: Path) -> None:
    pytest.importorskip("swift")
    swift = SwiftServer(tmp_path)
    children = Path(f"/proc/{swift.pid}/task/{swift.pid}/children").read_text().split()
    assert len(children) == 4
    os.kill(swift.pid, signal.SIGKILL)
    swift.stop()
    deadline = time.monotonic() + 10
    while any(
        Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes() for child in children
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_swift_that_cannot_start_says_why(tmp_path: Path) -> None:
    pytest.importorskip("swift")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServerFailed, match="Could not bind"):
        SwiftServer(tmp_path, port=taken.getsockname()[1])
