"""Ceph's radosgw with one monitor and one OSD, from packages that are unpacked and not installed. For --full only.

The least that works: no manager, no command `ceph` (the one thing it is needed for is asked of the monitor through
librados), no authentication between the daemons. Everything that it writes is below one directory, and everything
listens on 127.0.0.1. Takes 20 seconds to start, and 1 GB of memory.

    python -m tests.servers.radosgw DIR

prints one line of JSON when it is ready and runs until SIGTERM. The three daemons die with it.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
import uuid
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

TREE = Path(sys.prefix) / "ceph"
"""Where scripts/setup unpacks it."""

READY_TIMEOUT = 100.0

# ms mon client mode: without authentication radosgw waits five minutes for nothing if it is not crc (Ceph 16).
# tcp_nodelay: else every small answer takes 44 ms.
_CONFIG = """\
[global]
fsid = {fsid}
auth cluster required = none
auth service required = none
auth client required = none
mon initial members = a
mon host = v2:127.0.0.1:{mon}
ms bind msgr1 = false
public network = 127.0.0.0/8
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
osd objectstore = bluestore
bluestore block size = 8589934592
mon data = {directory}/mon
osd data = {directory}/osd
run dir = {directory}
log file = {directory}/log/$name.log
admin socket = {directory}/$name.asok
plugin dir = {libraries}/ceph
osd class dir = {libraries}/rados-classes
erasure code dir = {libraries}/ceph/erasure-code
keyring = {directory}/none
[client]
ms mon client mode = crc
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{rgw} tcp_nodelay=1
rgw data = {directory}/rgw
"""


class RadosgwServer(S3Endpoint):
    """One whose data is below `directory`, which dies with this process."""

    def __init__(self, directory: Path) -> None:
        """Start it and wait until it answers. `processes.ServerFailed` with the reason if it cannot."""
        arguments = [str(directory.resolve())]
        self._process = ServerProcess("tests.servers.radosgw", arguments, ready_timeout=READY_TIMEOUT + 15)

    @property
    def url(self) -> str:
        """The endpoint, without a slash at its end."""
        return str(self._process.ready["url"])

    def stop(self) -> None:
        """End all its processes and wait for them."""
        self._process.stop()


class _Cluster:
    """Configuration and processes; used by the launcher process, in its main thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (self._libraries,) = TREE.glob("usr/lib/*-linux-gnu")
        self._mon, self.rgw = free_ports(2)
        self._config = directory / "ceph.conf"
        self._fsid = str(uuid.uuid4())
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._prepare = killed_with_parent()

    def start(self) -> None:
        """The three daemons, one after another, and a user."""
        for name in ("mon", "osd", "log"):
            (self._directory / name).mkdir(parents=True)
        ports = {"mon": self._mon, "rgw": self.rgw}
        text = _CONFIG.format(fsid=self._fsid, directory=self._directory, libraries=self._libraries, **ports)
        self._config.write_text(text)
        monmap = str(self._directory / "monmap")
        self._run("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", f"[v2:127.0.0.1:{self._mon}]", monmap)
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        self._serve("ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        self._run(sys.executable, "-m", "tests.servers.radosgw", "--announce-osd", osd, str(self._config))
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._serve("ceph-osd", "-i", "0")
        keys = [f"--access-key={S3Endpoint.access_key}", f"--secret-key={S3Endpoint.secret_key}"]
        self._run("radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests", *keys)
        self._serve("radosgw", "-n", "client.rgw")
        deadline = time.monotonic() + READY_TIMEOUT
        while not listens(self.rgw):
            self.check()
            if time.monotonic() > deadline:
                raise ServerFailed(f"radosgw does not listen:\n{self._said('radosgw')}")
            time.sleep(0.1)

    def check(self) -> None:
        """ServerFailed if one of them has ended."""
        for name, child in self._children.items():
            if child.poll() is not None:
                raise ServerFailed(f"{name} ended with status {child.returncode}:\n{self._said(name)}")

    def stop(self) -> None:
        """End them, the last first; what they hold is thrown away."""
        for child in reversed(self._children.values()):
            child.kill()
            child.wait()

    def _environment(self) -> dict[str, str]:
        libraries = f"{self._libraries}:{self._libraries}/ceph:{TREE}/lib/{self._libraries.name}"
        path = f"{TREE}/usr/bin:{TREE}/usr/sbin:{os.environ['PATH']}"
        return {**os.environ, "LD_LIBRARY_PATH": libraries, "PATH": path, "CEPH_CONF": str(self._config)}

    def _run(self, program: str, *arguments: str) -> None:
        command = [self._found(program), *arguments]
        done = subprocess.run(
            command, env=self._environment(), capture_output=True, timeout=READY_TIMEOUT, check=False, text=True
        )
        if done.returncode != 0:
            raise ServerFailed(f"{program} failed with status {done.returncode}:\n{done.stderr[-3000:]}")

    def _serve(self, program: str, *arguments: str) -> None:
        with (self._directory / "log" / f"{program}.out").open("wb") as log:
            self._children[program] = subprocess.Popen(
                [self._found(program), "-f", *arguments],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=self._prepare,  # noqa: PLW1509 (the one other thread of a launcher only reads its stdin)
            )

    def _found(self, program: str) -> str:
        return str(next((path for path in TREE.glob(f"usr/*bin/{program}")), program))

    def _said(self, name: str) -> str:
        return (self._directory / "log" / f"{name}.out").read_bytes()[-3000:].decode(errors="replace")


def announce_osd(osd: str, config: str) -> None:
    """Tell the monitor that there is to be an OSD of this UUID: `ceph osd new`, without the command `ceph`."""
    rados = ctypes.CDLL("librados.so.2")
    cluster = ctypes.c_void_p()
    if rados.rados_create2(ctypes.byref(cluster), b"ceph", b"client.admin", ctypes.c_uint64(0)) < 0:
        raise SystemExit("librados does not start")
    if rados.rados_conf_read_file(cluster, config.encode()) < 0 or rados.rados_connect(cluster) < 0:
        raise SystemExit("the monitor does not answer")
    command = (ctypes.c_char_p * 1)(json.dumps({"prefix": "osd new", "uuid": osd}).encode())
    out, status = ctypes.c_void_p(), ctypes.c_char_p()
    sizes = ctypes.c_size_t(), ctypes.c_size_t()
    answers = ctypes.byref(out), ctypes.byref(sizes[0]), ctypes.byref(status), ctypes.byref(sizes[1])
    failed = rados.rados_mon_command(cluster, command, ctypes.c_size_t(1), b"", ctypes.c_size_t(0), *answers)
    rados.rados_shutdown(cluster)
    if failed < 0:
        raise SystemExit(f"the monitor takes no OSD: {failed} {status.value!r}")


def main() -> None:
    """`python -m tests.servers.radosgw`."""
    if sys.argv[1:2] == ["--announce-osd"]:
        announce_osd(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="python -m tests.servers.radosgw", description="Ceph's S3 server.")
    parser.add_argument("directory", type=Path, help="where everything is kept; empty")
    options = child_options(parser)
    exit_on_sigterm()
    cluster = _Cluster(options.directory.resolve())
    try:
        cluster.start()
        announce(url=f"http://127.0.0.1:{cluster.rgw}")
        while True:
            time.sleep(0.5)
            cluster.check()
    except ServerFailed as error:
        raise SystemExit(str(error)) from error
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
