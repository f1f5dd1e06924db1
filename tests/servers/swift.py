"""OpenStack Swift with its s3api, out of wheels: the real server that our own is held to.

It checks signatures, ranges, preconditions and digests of uploads, takes any key, and has versions. About 13
to 30 ms a request, as S3 itself. Everything it writes is below one directory; no root, no /etc/swift, no
memcached.

    python -m tests.servers.swift DIR [--port N]

prints one line of JSON when it is ready and runs until SIGTERM. Four servers run as its children and die with
it.
"""

import argparse
import http.client
import importlib
import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

from tests.servers.clients import S3Endpoint
from tests.servers.processes import (
    ServerFailed,
    ServerProcess,
    announce,
    child_options,
    exit_on_sigterm,
    free_ports,
    killed_with_parent,
    listens,
)

READY_TIMEOUT = 45.0
"""Seconds; it takes 1.5 to 3 on an idle machine, most of it imports."""

_STORAGE = ("account", "container", "object")
_PACKAGES = {"proxy": "proxy", "account": "account", "container": "container", "object": "obj"}

# versioned_writes with versioning needs symlink in the pipeline (swift 2.38); a large chunk size because the
# default of 64 KiB makes a system call and an eventlet switch of each.
_PROXY = """\
[pipeline:main]
pipeline = catch_errors healthcheck s3api tempauth bulk slo dlo copy versioned_writes symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
object_chunk_size = 1048576
client_chunk_size = 1048576
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:s3api]
use = egg:swift#s3api
location = {region}
[filter:tempauth]
use = egg:swift#tempauth
user_{user} = {secret_key} .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:copy]
use = egg:swift#copy
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
[filter:symlink]
use = egg:swift#symlink
"""

# keep_cache_size: without it Swift drops what it has sent from the page cache.
_STORE = """\
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
disk_chunk_size = 1048576
keep_cache_size = 1099511627776
[{name}-replicator]
[{name}-updater]
[{name}-auditor]
"""


class SwiftServer(S3Endpoint):
    """A Swift that keeps its data below `directory`, which may be used again later, and dies with this
    process.
    """

    def __init__(self, directory: Path, *, port: int = 0) -> None:
        """Start it and wait until it answers.

        `processes.ServerFailed` with the reason from its logs if it cannot.
        """
        arguments = [str(directory.resolve()), f"--port={port}"]
        self._process = ServerProcess("tests.servers.swift", arguments, ready_timeout=READY_TIMEOUT + 15)

    @property
    def url(self) -> str:
        """The endpoint, without a slash at its end."""
        return str(self._process.ready["url"])

    @property
    def pid(self) -> int:
        """The process id of the launcher, whose children are the four servers."""
        return self._process.pid

    def stop(self) -> None:
        """End all its processes and wait for them."""
        self._process.stop()


class _Cluster:
    """Configuration and processes of one Swift; used by the launcher process, in its main thread."""

    def __init__(self, directory: Path, port: int) -> None:
        self._directory = directory
        self._etc = directory / "etc"
        names = ("proxy", *_STORAGE)
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.ports["proxy"] = port or self.ports["proxy"]
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def configure(self) -> None:
        """Write rings and configuration files for the ports of this run."""
        for folder in (self._etc, self._directory / "dev" / "d1", self._directory / "log"):
            folder.mkdir(parents=True, exist_ok=True)
        # By name: swift is an extra, and whoever only reads this module need not have it.
        ring = importlib.import_module("swift.common.ring")
        for name in _STORAGE:
            port = self.ports[name]
            builder = ring.RingBuilder(2, 1, 1)
            builder.add_dev(
                {
                    "id": 0, "region": 1, "zone": 1, "device": "d1", "weight": 1.0, "meta": "",
                    "ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port,
                }
            )  # fmt: skip
            builder.rebalance()
            builder.get_ring().save(str(self._etc / f"{name}.ring.gz"))
        hashing = "[swift-hash]\nswift_hash_path_suffix = tests\n[storage-policy:0]\nname = gold\ndefault = yes\n"
        (self._etc / "swift.conf").write_text(hashing)
        user = S3Endpoint.access_key.replace(":", "_")
        texts = {name: _STORE.format(name=name) for name in _STORAGE}
        texts["proxy"] = _PROXY.format(region=S3Endpoint.region, user=user, secret_key=S3Endpoint.secret_key)
        for name, text in texts.items():
            (self._etc / f"{name}.conf").write_text(self._default_section(name) + text)

    def _default_section(self, name: str) -> str:
        # user: Swift changes to it, which is allowed without root if it is the one it runs as.
        # log_address: a file that is not there, so that nothing goes to /dev/log.
        user = pwd.getpwuid(os.geteuid()).pw_name
        return (
            f"[DEFAULT]\nswift_dir = {self._etc}\ndevices = {self._directory / 'dev'}\nmount_check = false\n"
            f"bind_ip = 127.0.0.1\nbind_port = {self.ports[name]}\nbind_timeout = 1\nworkers = 0\n"
            f"user = {user}\nlog_level = WARNING\nlog_address = {self._etc}/none\n"
        )

    def start(self) -> None:
        """Start the four servers and wait until the proxy answers.

        ServerFailed with the log of one that ended.
        """
        prepare = killed_with_parent()
        for name in self.ports:
            with self._log(name).open("wb") as log:
                # --verbose: log to standard error; without it a wrong configuration ends it without a word.
                conf = str(self._etc / f"{name}.conf")
                self._children[name] = subprocess.Popen(
                    [sys.executable, "-m", f"swift.{_PACKAGES[name]}.server", conf, "--verbose"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=prepare,  # noqa: PLW1509 (the one other thread of a launcher only reads its stdin)
                )
        deadline = time.monotonic() + READY_TIMEOUT
        while not (all(listens(port) for port in self.ports.values()) and self._healthy()):
            self.check()
            if time.monotonic() > deadline:
                raise ServerFailed(f"no answer in {READY_TIMEOUT} s:\n" + "".join(map(self._said, self.ports)))
            time.sleep(0.05)

    def check(self) -> None:
        """ServerFailed if one of the servers has ended."""
        for name, child in self._children.items():
            if child.poll() is not None:
                raise ServerFailed(f"swift's {name} server ended with status {child.returncode}:\n{self._said(name)}")

    def stop(self) -> None:
        """End the servers: SIGTERM, and SIGKILL for what is left after five seconds."""
        for child in self._children.values():
            child.terminate()
        deadline = time.monotonic() + 5
        for child in self._children.values():
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["proxy"], timeout=1)
        try:
            connection.request("GET", "/healthcheck")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _log(self, name: str) -> Path:
        return self._directory / "log" / f"{name}.log"

    def _said(self, name: str) -> str:
        return f"[{name}]\n" + self._log(name).read_bytes()[-3000:].decode(errors="replace")


def main() -> None:
    """`python -m tests.servers.swift`."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.servers.swift", description="OpenStack Swift as an S3 server."
    )
    parser.add_argument("directory", type=Path, help="where everything is kept; on a file system with xattrs")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) is a free one")
    options = child_options(parser)
    exit_on_sigterm()
    cluster = _Cluster(options.directory.resolve(), options.port)
    try:
        cluster.configure()
        cluster.start()
        announce(
            url=f"http://127.0.0.1:{cluster.ports['proxy']}",
            access_key=S3Endpoint.access_key,
            secret_key=S3Endpoint.secret_key,
            region=S3Endpoint.region,
        )
        while True:
            time.sleep(0.5)
            cluster.check()
    except ServerFailed as error:
        raise SystemExit(str(error)) from error
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
