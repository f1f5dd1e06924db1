"""What all rows share: the S3 servers and their shape, the files they serve, the scratch directory, mounts, workers.

Its job: that every row starts from the same place: the server's page cache hot, the cache directory new, nothing left
to be written to the disk by the measurement before.

There is one server for each way of serving (plain HTTP, TLS, with slow connections), started when the first shape asks
for it; all have the same files, and `server` is the one of the present shape.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lazyfs.config import Config
from scripts.benchmarks.daemon import Mounted
from scripts.benchmarks.files import make_file, make_model
from scripts.benchmarks.slowserver import SlowFastS3
from tests.servers.records import Request
from tests.servers.remote import RemoteFastS3

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
BUCKET = "models"
FILE = "weights.bin"
MODEL = "llm"
MEMORY_BUDGET = 512 * MIB
CONNECTIONS = Config().max_connections
PART = Config().read_part_size
"""Connections and bytes of a GET are lazyfs's own defaults, for every program that is compared with it."""

WORKER_TIMEOUT = 900.0


class WrongBytes(Exception):
    """What was read is not what the server has. The row failed, however fast it was."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How the server answers: seconds to the first byte, bytes per second of a connection, and which server it is:
    `http`, `tls`, or `slow`, see `slowserver`."""

    name: str
    first_byte_delay: float = 0.0
    connection_rate: float | None = None
    server: str = "http"


PLAIN = Shape("plain")
SHAPED = Shape("shaped", 0.03, 90e6)
"""As S3 is."""
FAR = Shape("50 ms", 0.05, 90e6)
SLOW = Shape("one GET in 32 at 1 MB/s", 0.03, 90e6, "slow")
TLS = Shape("TLS", server="tls")
TLS_SHAPED = Shape("TLS shaped", 0.03, 90e6, "tls")
TLS_FAR = Shape("TLS, 50 ms", 0.05, 90e6, "tls")


@dataclass(frozen=True, slots=True)
class Peak:
    """Memory of one daemon, in bytes; see `daemon.Mounted`."""

    what: str
    peak: int
    sampled: int


class Stage:
    """Servers and a scratch directory. `size` is that of the file, `model_size` of the model. `idle` in seconds;
    `patience` is how long a worker may take."""

    def __init__(self, scratch: Path, *, size: int, model_size: int, repeat: int, idle: float) -> None:
        self.scratch = scratch
        self.size = size
        self.model_size = model_size
        self.repeat = repeat
        self.idle = idle
        self.patience = WORKER_TIMEOUT
        self.row = ""
        self.peaks: list[Peak] = []
        self._mounts: list[Mounted] = []
        for name in ("served", "mnt", "home"):
            (scratch / name).mkdir()
        self._served: dict[str, Path] = {}
        self._servers: dict[str, RemoteFastS3] = {}
        self.shape(PLAIN)
        self.file = scratch / "served" / FILE
        self.model = scratch / "served" / MODEL

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mount in self._mounts:
            with contextlib.suppress(Exception):
                mount.unmount()
        for server in self._servers.values():
            server.stop()

    # ---- the server

    def shape(self, shape: Shape) -> None:
        """From now on `server` is the one of this shape, answers like this, and its log is empty."""
        if shape.server not in self._servers:
            server = self._servers[shape.server] = self._start(shape.server)
            for key, path in self._served.items():
                server.add_file(BUCKET, key, path)
        self.server = self._servers[shape.server]
        self.server.shape(first_byte_delay=shape.first_byte_delay, connection_rate=shape.connection_rate)
        self.requests()

    def _start(self, kind: str) -> RemoteFastS3:
        match kind:
            case "tls":
                return RemoteFastS3(tls=self.scratch / "certificates")
            case "slow":
                return SlowFastS3()
            case _:
                return RemoteFastS3()

    def serve(self, key: str, path: Path) -> None:
        """Every server has this file, from where it is."""
        self._served[key] = path
        for server in self._servers.values():
            server.add_file(BUCKET, key, path)

    @property
    def endpoint(self) -> dict[str, str | None]:
        """How a worker reaches the server."""
        server = self.server
        return {
            "url": server.url,
            "access_key": server.access_key,
            "secret_key": server.secret_key,
            "region": server.region,
            "ca_bundle": server.ca_bundle,
        }

    def requests(self) -> list[Request]:
        """What the server was asked since the last time."""
        return self.server.take_log()

    def fetched(self) -> int:
        """Bytes of objects that the server sent since the last time it was asked."""
        return sum(request.bytes_sent for request in self.requests() if request.kind == "GET")

    # ---- files

    def prepare_file(self) -> None:
        """The file is on the server, and in the server's page cache."""
        if not self.file.exists():
            make_file(self.file, self.size)
            self.serve(FILE, self.file)
        self.work("read", path=str(self.file))

    def prepare_model(self) -> list[str]:
        """The model is on the server and in the server's page cache; its keys."""
        if not self.model.exists():
            for path in make_model(self.model, self.model_size):
                self.serve(f"{MODEL}/{path.name}", path)
        names = sorted(path.name for path in self.model.iterdir())
        for name in names:
            self.work("read", path=str(self.model / name))
        return [f"{MODEL}/{name}" for name in names]

    # ---- mounts

    @property
    def mountpoint(self) -> Path:
        """Where everything is mounted, one at a time."""
        return self.scratch / "mnt"

    def environment(self) -> dict[str, str]:
        """For a program that mounts: nobody's settings, credentials or certificates."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LAZYFS_", "RCLONE_"))}
        home = str(self.scratch / "home")
        return env | {"HOME": home, "XDG_STATE_HOME": home, "AWS_EC2_METADATA_DISABLED": "true"}

    @contextlib.contextmanager
    def mounted(self, cache: Path, *more: str) -> Iterator[Mounted]:
        """A mount of the bucket with this cache directory, and more options."""
        server = self.server
        options = [
            f"--endpoint-url={server.url}",
            f"--region={server.region}",
            f"--cache-dir={cache}",
            f"--memory-budget={MEMORY_BUDGET // MIB}MiB",
            f"--log-file={self.scratch / 'log'}",
            *more,
        ]
        if server.ca_bundle:
            options.append(f"--ca-bundle={server.ca_bundle}")
        env = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
        mount = Mounted(f"s3://{BUCKET}/", self.mountpoint, options, self.environment() | env)
        self._mounts.append(mount)
        try:
            yield mount
        finally:
            mount.unmount()
            self._mounts.remove(mount)
            self.peaks.append(Peak(self.row, mount.peak, mount.sampled))

    @contextlib.contextmanager
    def new_cache(self, name: str = "cache") -> Iterator[Path]:
        """An empty cache directory for a while; nothing of it is left, nor waits to be written, afterwards."""
        cache = self.scratch / name
        cache.mkdir(mode=0o700)
        os.sync()
        try:
            yield cache
        finally:
            shutil.rmtree(cache)
            os.sync()

    @contextlib.contextmanager
    def fresh(self, shape: Shape) -> Iterator[Mounted]:
        """A mount that has nothing, of a server of this shape with an empty log."""
        with self.new_cache() as cache:
            self.shape(shape)
            with self.mounted(cache) as mount:
                self.requests()
                yield mount

    # ---- processes

    def work(self, program: str, /, **arguments: Any) -> dict[str, Any]:
        """Run a program of `worker` in a process of its own, and say what it measured."""
        return self.work_together(1, program, **arguments)[0]

    def work_together(self, count: int, program: str, /, **arguments: Any) -> list[dict[str, Any]]:
        """The same in several processes at once."""
        command = [sys.executable, "-m", "scripts.benchmarks.worker", program, json.dumps(arguments)]
        processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        found = []
        try:
            for process in processes:
                try:
                    said, _ = process.communicate(timeout=self.patience)
                except subprocess.TimeoutExpired:
                    raise RuntimeError(f"{program} was not done after {self.patience:.0f} s") from None
                if process.returncode != 0:
                    raise RuntimeError(f"{program} ended with status {process.returncode}")
                found.append(json.loads(said))
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
        return found

    def verify(self, path: Path, original: Path) -> None:
        """`WrongBytes` unless both have the same bytes. What is in the page cache is compared, so that it is what a
        timed read was given."""
        differs = self.work("compare", path=str(path), original=str(original))["differs"]
        if differs >= 0:
            raise WrongBytes(f"{path.name}: wrong bytes in MiB {differs}")

    def drop_caches(self) -> None:
        """Nothing is in the kernel's page cache. Without root, only the files here are let go of."""
        os.sync()
        if os.geteuid() == 0:
            Path("/proc/sys/vm/drop_caches").write_text("3")
            return
        for path in (*(self.scratch / "served").rglob("*"), *self.scratch.glob("cache*/**/*")):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
