"""The fast server as a process of its own, and its parent's handle on it: both ends of `/_control/`.

For benchmarks, where server and client must not share an interpreter lock. What needs code in the server
(gates, faults, delays by request) stays in process: see `fast`.

    GET  /_control/log        the requests that ended since the last time, as JSON; they are forgotten
    GET  /_control/counters   `records.Counters` as JSON
    POST /_control/shape      {"first_byte_delay": seconds, "connection_rate": bytes per second or null}
    POST /_control/file       {"bucket", "key", "path"}: serve this file
    POST /_control/fill       {"bucket", "keys", "data"}: the same text under each key
"""

import argparse
import dataclasses
import http.client
import json
import signal
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.servers.answers import Answer, failure
from tests.servers.clients import S3Endpoint
from tests.servers.fast import FastS3Server
from tests.servers.processes import ServerProcess, announce, child_options, exit_on_sigterm
from tests.servers.records import Counters, Request


class RemoteFastS3(S3Endpoint):
    """A fast server in a child process, which dies with this one.

    Buckets: the folders of `directory`, and more later.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int = 0,
        first_byte_delay: float = 0.0,
        connection_rate: float | None = None,
        tls: Path | None = None,
    ) -> None:
        """Start it; takes about a tenth of a second.

        `tls`: speak https, with the certificates of this directory, where they are made if there are none.
        `processes.ServerFailed` with its last words if it cannot.
        """
        arguments = [f"--port={port}", f"--first-byte-delay={first_byte_delay}"]
        if directory is not None:
            arguments.append(f"--dir={directory.resolve()}")
        if connection_rate is not None:
            arguments.append(f"--connection-rate={connection_rate}")
        if tls is not None:
            arguments.append(f"--tls={tls.resolve()}")
        self._process = ServerProcess("tests.servers.fast", arguments)

    @property
    def url(self) -> str:
        """The endpoint, without a slash at its end."""
        return str(self._process.ready["url"])

    @property
    def ca_bundle(self) -> str | None:
        """Path of what a client has to trust; None without TLS."""
        found = self._process.ready["ca_bundle"]
        return None if found is None else str(found)

    @property
    def pid(self) -> int:
        """Its process id, for measuring what it costs."""
        return self._process.pid

    def take_log(self) -> list[Request]:
        """As `FastS3Server.take_log`. `started` and `ended` are on this process's monotonic clock, too."""
        entries = json.loads(self._call("GET", "/_control/log"))
        return [Request(**{**entry, "range": entry["range"] and tuple(entry["range"])}) for entry in entries]

    @property
    def counters(self) -> Counters:
        """As `FastS3Server.counters`."""
        return Counters(**json.loads(self._call("GET", "/_control/counters")))

    def shape(self, *, first_byte_delay: float = 0.0, connection_rate: float | None = None) -> None:
        """Set both, for requests from now on: seconds before an answer, bytes per second of a connection."""
        shape = {"first_byte_delay": first_byte_delay, "connection_rate": connection_rate}
        self._call("POST", "/_control/shape", shape)

    def add_file(self, bucket: str, key: str, path: Path) -> None:
        """Serve a file from where it is, which must not change.

        The bucket is made. OSError if it cannot be read.
        """
        path.open("rb").close()
        self._call("POST", "/_control/file", {"bucket": bucket, "key": key, "path": str(path.resolve())})

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Store bytes in the server's memory. The bucket is made."""
        self._call("PUT", f"/{bucket}")
        self._call("PUT", f"/{bucket}/{quote(key)}", data)

    def fill(self, bucket: str, keys: Sequence[str], data: str) -> None:
        """Store the same text under each key, in one request. The bucket is made."""
        self._call("POST", "/_control/fill", {"bucket": bucket, "keys": keys, "data": data})

    def stop(self) -> None:
        """End the process and wait for it."""
        self._process.stop()

    def _call(self, method: str, target: str, body: object = None) -> bytes:
        scheme, _, host = self.url.partition("://")
        if scheme == "https":
            trusted = ssl.create_default_context(cafile=self.ca_bundle)
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(host, timeout=60, context=trusted)
        else:
            connection = http.client.HTTPConnection(host, timeout=60)
        try:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, target, data if method != "GET" else None)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{method} {target}: {answer.status} {text.decode(errors='replace')}")
            return text
        finally:
            connection.close()


def control(server: FastS3Server, method: str, name: str, body: bytes) -> Answer:
    """What the server answers to `/_control/<name>`."""
    asked: dict[str, Any] = json.loads(body or b"null") or {}
    told: object = {}
    match method, name:
        case "GET", "log":
            told = [dataclasses.asdict(request) for request in server.take_log()]
        case "GET", "counters":
            told = dataclasses.asdict(server.counters)
        case "POST", "shape":
            server.first_byte_delay = float(asked["first_byte_delay"])
            server.connection_rate = asked["connection_rate"]
        case "POST", "file":
            server.add_file(asked["bucket"], asked["key"], Path(asked["path"]))
        case "POST", "fill":
            for key in asked["keys"]:
                server.put(asked["bucket"], key, asked["data"].encode())
        case _:
            return failure(501, "NotImplemented", name)
    data = json.dumps(told).encode()
    return Answer(200, {"Content-Type": "application/json"}, data, 0, len(data))


def main() -> None:
    """`python -m tests.servers.fast`."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers.fast", description="A fast S3 server for tests.")
    parser.add_argument("--dir", type=Path, help="each folder right below it is a bucket")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) is a free one")
    parser.add_argument("--first-byte-delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--connection-rate", type=float, help="bytes per second of each connection")
    parser.add_argument("--tls", type=Path, help="speak https, with certificates of this directory; made if missing")
    parser.add_argument("--log", type=Path, help="at the end, write the requests here, one JSON object a line")
    options = child_options(parser)
    exit_on_sigterm()
    # Not at the top: plain HTTP has no use for a library of cryptography.
    certificates = None
    if options.tls:
        from tests.servers.certificates import Certificates  # noqa: PLC0415

        certificates = Certificates.at(options.tls)
    server = FastS3Server(
        port=options.port,
        first_byte_delay=options.first_byte_delay,
        connection_rate=options.connection_rate,
        ssl_context=None if certificates is None else certificates.context(),
    )
    server.control = lambda method, name, body: control(server, method, name, body)
    for folder in sorted(options.dir.iterdir()) if options.dir else ():
        if folder.is_dir():
            server.objects.add_folder(folder.name, folder)
    with server:
        try:
            announce(url=server.url, ca_bundle=certificates and str(certificates.ca))
            while True:
                signal.pause()
        finally:
            if options.log:
                lines = (json.dumps(dataclasses.asdict(request)) + "\n" for request in server.take_log())
                options.log.write_text("".join(lines))
