"""A small imitation of the Hugging Face hub's HTTP API, as far as its own library asks for it to download a snapshot.

Its job: one repository, listed, whose files are where the hub's are: behind a redirect to somebody else's address, here
the S3 server that is measured. Knows nothing of Xet, the hub's own way of moving large files, which needs its servers.
"""

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The hub: `repository` has `files`, each with its size and the address that gives its bytes."""

    def __init__(self, repository: str, files: Mapping[str, tuple[int, str]]) -> None:
        """Nothing is bound before it is entered."""
        self.repository = repository
        self.files = dict(files)

    @property
    def url(self) -> str:
        """What the library takes for the hub (`HF_ENDPOINT`)."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, headers, body = hub.answer(unquote(urlsplit(self.path).path))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 - the name is http.server's

            def log_message(self, *_: Any) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        about = f"/api/models/{self.repository}"
        resolve = f"/{self.repository}/resolve/{COMMIT}/"
        name = path.removeprefix(resolve)
        if path.startswith(f"{about}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": size, "oid": COMMIT} for name, (size, _) in self.files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        if path == about or path.startswith(f"{about}/revision/"):
            siblings = [{"rfilename": name} for name in self.files]
            found = {"id": self.repository, "modelId": self.repository, "sha": COMMIT, "siblings": siblings}
            return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()
        if path.startswith(resolve) and name in self.files:
            size, where = self.files[name]
            headers = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{_digest(name)}"', "X-Linked-Size": str(size)}
            return 302, {**headers, "Location": where}, b""
        return 404, {"X-Error-Code": "RepoNotFound" if path.startswith("/api/models/") else "EntryNotFound"}, b""


def _digest(text: str) -> str:
    """The library names files by ETags, so that one is a name."""
    return hashlib.sha256(text.encode()).hexdigest()
