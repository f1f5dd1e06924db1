"""What all rows share: the S3 server and its shape, the files it serves, the scratch directory, mounts, workers.

Its job: that every row starts from the same place: the server's page cache hot, the cache directory new, nothing left
to be written to the disk by the measurement before.
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
    """How the server answers: seconds to the first byte, bytes per second of a connection."""

    name: str
    first_byte_delay: float = 0.0
    connection_rate: float | None = None


PLAIN = Shape("plain")
SHAPED = Shape("shaped", 0.03, 90e6)
"""As S3 is."""


@dataclass(frozen=True, slots=True)
class Peak:
    """Memory of one daemon, in bytes; see `daemon.Mounted`."""

    what: str
    peak: int
    sampled: int


class Stage:
    """A server and a scratch directory. `size` is that of the file; the model has half of it. `idle` in seconds."""

    def __init__(self, scratch: Path, *, size: int, repeat: int, idle: float) -> None:
        self.scratch = scratch
        self.size = size
        self.repeat = repeat
        self.idle = idle
        self.row = ""
        self.peaks: list[Peak] = []
        self.notes: list[str] = []
        self._mounts: list[Mounted] = []
        for name in ("served", "mnt", "home"):
            (scratch / name).mkdir()
        self.server = RemoteFastS3()
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
        self.server.stop()

    @property
    def endpoint(self) -> dict[str, str]:
        """How a worker reaches the server."""
        server = self.server
        return {
            "url": server.url,
            "access_key": server.access_key,
            "secret_key": server.secret_key,
            "region": server.region,
        }

    # ---- files

    def prepare_file(self) -> None:
        """The file is on the server, and in the server's page cache."""
        if not self.file.exists():
            make_file(self.file, self.size)
            self.server.add_file(BUCKET, FILE, self.file)
        self.work("read", path=str(self.file))

    def prepare_model(self) -> list[str]:
        """The model is on the server and in the server's page cache; its keys."""
        if not self.model.exists():
            for path in make_model(self.model, self.size // 2):
                self.server.add_file(BUCKET, f"{MODEL}/{path.name}", path)
        names = sorted(path.name for path in self.model.iterdir())
        for name in names:
            self.work("read", path=str(self.model / name))
        return [f"{MODEL}/{name}" for name in names]

    # ---- mounts

    @contextlib.contextmanager
    def mounted(self, cache: Path, *, prefix: str = "") -> Iterator[Mounted]:
        """A mount of the bucket, or of a prefix of it, with this cache directory."""
        server = self.server
        options = [
            f"--endpoint-url={server.url}",
            f"--region={server.region}",
            f"--cache-dir={cache}",
            f"--memory-budget={MEMORY_BUDGET // MIB}MiB",
            f"--log-file={self.scratch / 'log'}",
        ]
        env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LAZYFS_"))}
        env |= {"HOME": str(self.scratch / "home"), "XDG_STATE_HOME": str(self.scratch / "home")}
        env |= {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
        env |= {"AWS_EC2_METADATA_DISABLED": "true"}
        mount = Mounted(f"s3://{BUCKET}/{prefix}", self.scratch / "mnt", options, env)
        self._mounts.append(mount)
        try:
            yield mount
        finally:
            mount.unmount()
            self._mounts.remove(mount)
            self.peaks.append(Peak(self.row, mount.peak, mount.sampled))

    @contextlib.contextmanager
    def new_cache(self) -> Iterator[Path]:
        """An empty cache directory for a while; nothing of it is left, nor waits to be written, afterwards."""
        cache = self.scratch / "cache"
        cache.mkdir(mode=0o700)
        os.sync()
        try:
            yield cache
        finally:
            shutil.rmtree(cache)
            os.sync()

    @contextlib.contextmanager
    def fresh(self, shape: Shape, *, prefix: str = "") -> Iterator[Mounted]:
        """A mount that has nothing, of a server of this shape with an empty log."""
        with self.new_cache() as cache:
            self.shape(shape)
            with self.mounted(cache, prefix=prefix) as mount:
                self.requests()
                yield mount

    def shape(self, shape: Shape) -> None:
        """From now on the server answers like this."""
        self.server.shape(first_byte_delay=shape.first_byte_delay, connection_rate=shape.connection_rate)

    def requests(self) -> list[Request]:
        """What the server was asked since the last time."""
        return self.server.take_log()

    def fetched(self) -> int:
        """Bytes of objects that the server sent since the last time it was asked."""
        return sum(request.bytes_sent for request in self.requests() if request.kind == "GET")

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
                said, _ = process.communicate(timeout=WORKER_TIMEOUT)
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
        for folder in ("served", "cache"):
            for path in (self.scratch / folder).rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
