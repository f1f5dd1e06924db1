"""P17, P4: credentials that expire while a mount reads: it goes on without a restart, and what is cached outlives them.

The server takes the key of the moment and answers ExpiredToken to every other. Time plays no part: the test says when a
key expires, by requests counted at the server; and all credentials say that they are good for a minute more, which for
botocore is so short that it asks for new ones at each request.
"""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mounter, environment, outlive_moment, wait_until
from tests.mounts.reader import Reader, ReaderDied
from tests.mounts.test_cache import sum_of
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault
from tests.servers.records import Request

DATA = pages(1, 32 * MIB)
EACH = 6
"""GETs after which a key expires."""

LATE = 3
"""Requests that are refused before there is a new key where credentials come from."""


def expires(seconds: float) -> str:
    """A time as AWS writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


class Rotation:
    """Who gives keys and who takes them: `issued` is in the credentials, `taken` at the server."""

    def __init__(self, server: FastS3Server, file: Path) -> None:
        self._lock = threading.Lock()
        self._file = file
        self.issued = self.taken = 1
        self.rotating = True
        self.gets = self.late = self.refused = 0
        self.keys: set[int] = set()
        self.issue(1)
        server.fault = self._judge

    def issue(self, number: int) -> None:
        """New credentials are there from now on."""
        self.issued = number
        fields = {"Version": 1, "AccessKeyId": f"AKIA{number}", "SecretAccessKey": "canary-secret"}
        fields |= {"SessionToken": f"canary-token-{number}", "Expiration": expires(60)}
        # At once: the process that reads it must not see a half.
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(fields))
        new.rename(self._file)

    def _judge(self, request: Request) -> Fault | None:
        found = re.search(r"Credential=AKIA(\d+)/", request.headers.get("authorization", ""))
        with self._lock:
            if found is None or int(found[1]) != self.taken:
                self.refused += 1
                self.late += 1
                if self.rotating and self.late == LATE:
                    self.issue(self.taken)
                return Fault(status=400, code="ExpiredToken")
            assert request.headers["x-amz-security-token"] == f"canary-token-{self.taken}"
            self.keys.add(self.taken)
            self.gets += request.kind == "GET"
            if self.rotating and request.kind == "GET" and self.gets % EACH == 0:
                self.taken += 1
                self.late = 0
            return None


class Tokens(ThreadingHTTPServer):
    """An STS that gives whoever shows the right web identity the credentials of the moment."""

    def __init__(self, file: Path) -> None:
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
                answers.asked += "WebIdentityToken=who-we-are" in asked
                found = json.loads(file.read_text())
                fields = "".join(f"<{n}>{v}</{n}>" for n, v in found.items() if n != "Version")
                body = (
                    '<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
                    f"<AssumeRoleWithWebIdentityResult><Credentials>{fields}</Credentials>"
                    "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
                ).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Not on the terminal."""

        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = 0
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def rotation(s3: FastS3Server, tmp_path: Path) -> Rotation:
    """Keys that change under a server with one file, which is too long for one key."""
    s3.put("models", "weights", DATA)
    s3.put("models", "other", DATA[: 4 * MIB])
    return Rotation(s3, tmp_path / "credentials.json")


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[Tokens]:
    """The STS."""
    made = Tokens(tmp_path / "credentials.json")
    yield made
    made.shutdown()
    made.server_close()
    made.thread.join()


def by_process(work: Path) -> dict[str, str]:
    """An environment in which a command gives the credentials; `work` has them in a file."""
    config = work / "aws-config"
    config.write_text(f"[default]\ncredential_process = cat {work}/credentials.json\n")
    return environment(work / "home", None, AWS_CONFIG_FILE=str(config))


def by_web_identity(work: Path, tokens: Tokens) -> dict[str, str]:
    """An environment in which STS gives them, to who shows the token in a file."""
    (work / "token").write_text("who-we-are")
    more = {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/models", "AWS_ROLE_SESSION_NAME": "lazyfs"}
    more |= {"AWS_WEB_IDENTITY_TOKEN_FILE": str(work / "token"), "AWS_ENDPOINT_URL_STS": tokens.url}
    return environment(work / "home", None, **more)


OPTIONS = ("--read-part-size=1MiB", "--max-connections=4", "--log-level=debug")


@pytest.mark.parametrize("provider", ["process", "web-identity"])
def test_keys_expire_under_a_mapped_reader(
    s3: FastS3Server, mounter: Mounter, reader: Reader, rotation: Rotation, tokens: Tokens, provider: str
) -> None:
    """Five keys and more for one file: it is read to its end, by the daemon that began it, and nothing failed."""
    env = by_process(mounter.work) if provider == "process" else by_web_identity(mounter.work, tokens)
    mount = mounter.mount(s3, "s3://models", *OPTIONS, env=env)
    assert reader.call("mapped_digest", str(mount.path / "weights"), "sequential") == sum_of(DATA)[1]
    assert len(rotation.keys) >= 5
    assert rotation.refused >= LATE * (len(rotation.keys) - 1)
    stats = mount.settle()
    assert (stats["failures"], stats["pid"], stats["chunks"]["corrupt"]) == (0, mount.pid, 0)
    assert stats["store"]["retries"] >= rotation.refused - 1
    assert stats["store"]["bytes_received"] == len(DATA), "nothing was fetched twice"
    assert (provider == "process") == (tokens.asked == 0)
    assert mount.unmount() == 0
    assert "canary" not in mount.logged()


def test_what_is_cached_outlives_the_credentials(
    s3: FastS3Server, mounter: Mounter, reader: Reader, rotation: Rotation
) -> None:
    """The command that gives them is broken, and S3 refuses the last: what was read is read again, by name, mapped and
    with a listing that is too old; what was not read fails after the retry budget, as EIO and not as a changed file;
    and all of it works again when there are credentials again."""
    expect = ["cannot list '', going on with", "read failed with EIO: .*weights", "Refreshing temporary credentials"]
    expect += [r"^(Traceback|  |\w+(\.\w+)*(Error|Exception)|During handling|The above exception|$)"]
    rotation.rotating = False
    options = (*OPTIONS, "--metadata-ttl=0s", "--retry-budget=1s")
    mount = mounter.mount(s3, "s3://models", *options, env=by_process(mounter.work), expect=expect)
    assert reader.call("digest", str(mount.path / "other")) == sum_of(DATA[: 4 * MIB])
    fd = reader.call("open_file", str(mount.path / "weights"))
    assert reader.call("pread", fd, 4096, 0) == DATA[:4096]
    mount.settle()
    credentials = mounter.work / "credentials.json"
    credentials.unlink()
    rotation.taken = 2
    outlive_moment()
    assert reader.call("digest", str(mount.path / "other")) == sum_of(DATA[: 4 * MIB])
    assert reader.call("mapped_digest", str(mount.path / "other"), "random") == sum_of(DATA[: 4 * MIB])[1]
    with pytest.raises(OSError, match="Input/output error"):
        reader.call("pread", fd, 4096, 30 * MIB)
    rotation.issue(2)
    assert reader.call("pread", fd, 4096, 30 * MIB) == DATA[30 * MIB : 30 * MIB + 4096]
    assert reader.call("digest", str(mount.path / "weights")) == sum_of(DATA)
    assert mount.stats()["pid"] == mount.pid
    assert "canary" not in mount.logged()


def test_a_warm_start_needs_no_credentials(
    s3: FastS3Server, mounter: Mounter, reader: Reader, rotation: Rotation
) -> None:
    """P4: the command that gives them is broken when the mount starts. What is cached is read, what is not fails after
    the retry budget, and both go on when there are credentials."""
    expect = ["there are no credentials yet", "cannot list '', going on with", "read failed with EIO: .*weights"]
    rotation.rotating = False
    options = (*OPTIONS, "--metadata-ttl=0s", "--retry-budget=1s")
    mount = mounter.mount(s3, "s3://models", *options, env=by_process(mounter.work))
    assert reader.call("digest", str(mount.path / "other")) == sum_of(DATA[: 4 * MIB])
    mount.settle()
    wait_until(lambda: mount.stats()["verified"]["under_way"] == 0, "it is verified")
    assert mount.unmount() == 0
    (mounter.work / "credentials.json").unlink()
    again = mounter.mount(s3, "s3://models", *options, env=by_process(mounter.work), expect=expect)
    assert reader.call("digest", str(again.path / "other")) == sum_of(DATA[: 4 * MIB])
    with pytest.raises(OSError, match="Input/output error"):
        reader.call("digest", str(again.path / "weights"))
    rotation.issue(rotation.taken)
    assert reader.call("digest", str(again.path / "weights")) == sum_of(DATA)
    assert again.unmount() == 0


def test_credentials_that_are_expired_when_they_come(
    s3: FastS3Server, mounter: Mounter, reader: Reader, rotation: Rotation
) -> None:
    """As from a clock that goes wrong: asked again, like every trouble that passes, and no defect of ours."""
    expect = ["Credentials were refreshed, but"]
    rotation.rotating = False
    mount = mounter.mount(s3, "s3://models", *OPTIONS, env=by_process(mounter.work), expect=expect)
    credentials = mounter.work / "credentials.json"
    good = credentials.read_text()
    fields = json.loads(good) | {"Expiration": expires(-60)}
    new = credentials.with_suffix(".new")
    new.write_text(json.dumps(fields))
    new.rename(credentials)
    refused = threading.Event()

    def renew() -> None:
        while not refused.wait(0.01):
            if "refreshed credentials are still expired" in mount.logged():
                credentials.write_text(good)
                return

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        assert reader.call("digest", str(mount.path / "weights")) == sum_of(DATA)
    except ReaderDied:
        pytest.fail("the reader died of it")
    finally:
        refused.set()
        renewing.join()
    assert mount.stats()["failures"] == 0
    assert mount.stats()["store"]["retries"] >= 1
