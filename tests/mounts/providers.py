"""Where credentials come from, on loopback: STS, a container's endpoint, an instance's metadata.

Its job: answer as AWS does, with the credentials of the moment, which stand in a file; and count who asked rightly.
Must not know S3, nor when credentials change.
"""

import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

CONTAINER_TOKEN = "of-this-task"
SESSION = "of-this-hop"
ROLE = "models"
BASE_KEY = "AKIABASE"
"""The key that may assume the role."""


class Providers(ThreadingHTTPServer):
    """All of them at one address. `file` has the credentials of the moment as credential_process(1) would print them,
    `token` the web identity of the moment; one that was good once stays so, for it may be on its way."""

    def __init__(self, file: Path, token: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.file = file
        self.token = token
        self.asked: Counter[str] = Counter()
        self.identities: set[str] = set()
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def known(self, identity: str) -> bool:
        """Whether it is the web identity of now, or was one."""
        now = self.token.read_text()
        good = identity == now or identity in self.identities
        if good:
            self.identities.add(identity)
        return good

    def close(self) -> None:
        """Answer no more."""
        self.shutdown()
        self.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Providers

    def do_POST(self) -> None:
        """STS."""
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        action = asked["Action"][0]
        if action == "AssumeRoleWithWebIdentity":
            good = self.server.known(asked["WebIdentityToken"][0])
        else:
            good = action == "AssumeRole" and f"Credential={BASE_KEY}/" in self.headers.get("Authorization", "")
        if not good:
            self._say(403, "<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>")
            return
        self.server.asked[action] += 1
        found = self._credentials()
        fields = "".join(f"<{name}>{value}</{name}>" for name, value in found.items() if name != "Version")
        assumed = "<AssumedRoleUser><AssumedRoleId>A:b</AssumedRoleId><Arn>arn:aws:sts::1:x</Arn></AssumedRoleUser>"
        self._say(
            200,
            f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result>'
            f"<Credentials>{fields}</Credentials>{assumed}</{action}Result></{action}Response>",
        )

    def do_PUT(self) -> None:
        """IMDSv2: a session first."""
        if self.path == "/latest/api/token" and self.headers.get("x-aws-ec2-metadata-token-ttl-seconds"):
            self.server.asked["session"] += 1
            self._say(200, SESSION)
        else:
            self._say(403, "")

    def do_GET(self) -> None:
        """A container's endpoint, and an instance's by version 2, which without a session says nothing."""
        found = self._credentials()
        mapped = {"AccessKeyId": found["AccessKeyId"], "SecretAccessKey": found["SecretAccessKey"]}
        mapped |= {"Token": found["SessionToken"], "Expiration": found["Expiration"]}
        if self.path == "/container" and self.headers.get("Authorization") == CONTAINER_TOKEN:
            self.server.asked["container"] += 1
            self._say(200, json.dumps(mapped))
            return
        match = re.fullmatch(r"/latest/meta-data/iam/security-credentials/(\w*)", self.path)
        if match is None or self.headers.get("x-aws-ec2-metadata-token") != SESSION:
            self._say(401, "")
        elif not match[1]:
            self._say(200, ROLE)
        else:
            self.server.asked["instance"] += match[1] == ROLE
            self._say(200, json.dumps({"Code": "Success", "Type": "AWS-HMAC", **mapped}))

    def _credentials(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.server.file.read_text())
        return found

    def _say(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not on the terminal."""
