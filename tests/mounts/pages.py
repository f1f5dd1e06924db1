"""The pages of a mount, asked for as its users ask: over TCP or a unix socket, and read by Prometheus's own parser."""

import http.client
import json
import socket
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.mounts.mounting import Mount

Key = tuple[str, frozenset[tuple[str, str]]]


class Pages:
    """Those of a mount. One connection for each question."""

    def __init__(self, where: str) -> None:
        self.where = where

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, bytes]:
        """Status, content type and body."""
        place = self.where.removeprefix("http://")
        connection = http.client.HTTPConnection("h" if place.startswith("unix:") else place, timeout=30)
        if place.startswith("unix:"):
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(30)
            connection.sock.connect(place.removeprefix("unix:"))
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.headers["content-type"], answer.read()
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        """A page of JSON that is there."""
        status, kind, body = self.get(path)
        assert (status, kind) == (200, "application/json")
        return json.loads(body)

    def samples(self) -> dict[Key, float]:
        """All samples of /metrics, by name and labels."""
        status, _, body = self.get("/metrics")
        assert status == 200
        families = text_string_to_metric_families(body.decode())
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def key(name: str, **labels: str) -> Key:
    """The key of a sample."""
    return name, frozenset(labels.items())


def pages_of(mount: Mount) -> Pages:
    """The pages of a mount that serves some, as `lazyfs stats` says where."""
    return Pages(mount.stats()["metrics"])
