"""`rclone serve s3` over a folder: a server that others wrote, with most of the ways in `quirks`. For --full only.

A bucket is a folder, an object a file: it takes no key with `..` or `//`, and none that is also a folder.
"""

import subprocess
import sys
import time
from pathlib import Path

from tests.servers.clients import S3Endpoint
from tests.servers.processes import ServerFailed, free_ports, killed_with_parent, listens

READY_TIMEOUT = 30.0


class RcloneServer(S3Endpoint):
    """One over `directory`, which dies with this process; made in the main thread."""

    # Three letters and eight are the least that it takes.
    access_key = "AKIDTEST"
    secret_key = "SECRETTEST"

    def __init__(self, directory: Path) -> None:
        """Start it and wait until it listens. `ServerFailed` with its last words, or if scripts/setup has not brought
        it."""
        program = Path(sys.executable).with_name("rclone")
        if not program.exists():
            raise ServerFailed("rclone is not here: scripts/test --full brings it")
        self._port = free_ports(1)[0]
        (directory / "data").mkdir()
        self._log = directory / "log"
        command = [str(program), "serve", "s3", f"--addr=127.0.0.1:{self._port}", "--config=", "-q"]
        prepare = killed_with_parent()
        command += [f"--auth-key={self.access_key},{self.secret_key}", str(directory / "data")]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=prepare  # noqa: PLW1509 (it only calls libc)
            )
        deadline = time.monotonic() + READY_TIMEOUT
        while not listens(self._port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ServerFailed(f"rclone does not serve:\n{self._log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)

    @property
    def url(self) -> str:
        """The endpoint, without a slash at its end."""
        return f"http://127.0.0.1:{self._port}"

    def stop(self) -> None:
        """End it and wait for it."""
        self._process.kill()
        self._process.wait()
