"""moto's S3 in a child process: for checksums and GetObjectAttributes, with small objects.

It keeps objects in memory and reads all of one for every range (6 ms for 1 MiB, 0.7 s for 1 GiB), checks no
signature, and does not verify checksums on PUT.

    python -m tests.servers.moto_server [--port N]
"""

import argparse
import importlib
import logging
import threading
import time

from tests.servers.clients import S3Endpoint
from tests.servers.processes import (
    ServerProcess,
    announce,
    child_options,
    free_ports,
    listens,
)


class MotoServer(S3Endpoint):
    """A moto server that dies with this process."""

    def __init__(self, *, port: int = 0) -> None:
        """Start it; takes about a second. `processes.ServerFailed` with its last words if it cannot."""
        self._process = ServerProcess("tests.servers.moto_server", [f"--port={port}"])

    @property
    def url(self) -> str:
        """The endpoint, without a slash at its end."""
        return str(self._process.ready["url"])

    def stop(self) -> None:
        """End the process and wait for it."""
        self._process.stop()


def main() -> None:
    """`python -m tests.servers.moto_server`."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers.moto_server", description="moto's S3 server.")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) is a free one")
    options = child_options(parser)
    port = options.port or free_ports(1)[0]
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    # By name: moto is an extra, and whoever only reads this module need not have it.
    moto = importlib.import_module("moto.server")

    def tell() -> None:
        while not listens(port):
            time.sleep(0.02)
        announce(
            url=f"http://127.0.0.1:{port}",
            access_key=S3Endpoint.access_key,
            secret_key=S3Endpoint.secret_key,
            region=S3Endpoint.region,
        )

    threading.Thread(target=tell, daemon=True).start()
    moto.main(["-H", "127.0.0.1", "-p", str(port)])


if __name__ == "__main__":
    main()
