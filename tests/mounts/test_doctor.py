"""`lazyfs doctor` on this machine and against our own servers; every failure that can be is provoked, and its line is
there to mend it."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tests.mounts.disks import Image
from tests.mounts.mounting import Mounter, environment, run
from tests.mounts.test_secrets import CANARY, KINDS
from tests.servers.certificates import Certificates
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault
from tests.servers.records import Request

MIB = 1 << 20
Findings = dict[str, dict[str, str]]


@pytest.fixture
def models(s3: FastS3Server) -> FastS3Server:
    """A server with something to look at."""
    s3.put("models", "llm/weights", bytes(4 * MIB))
    return s3


def examined(mounter: Mounter, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, Findings]:
    """`lazyfs doctor ARGUMENTS --json`: its status, and the findings by check."""
    usual = [] if any(one.startswith("--cache-dir") for one in arguments) else [f"--cache-dir={mounter.cache()}"]
    done = run(["doctor", *usual, *arguments, "--json"], env or environment(mounter.work / "home", FastS3Server()))
    assert done.stderr == ""
    assert "Traceback" not in done.stdout
    found = {one["check"]: one for one in json.loads(done.stdout)}
    assert all("a defect" not in one["words"] for one in found.values())
    assert done.returncode == bool(failed(found))
    # Mounts of somebody else on this machine are none of a test's business.
    if str(mounter.work) not in found["existing mounts"]["words"]:
        del found["existing mounts"]
    return int(bool(failed(found))), found


OTHERS = {"existing mounts"}
"""What fails by what somebody else left on this machine."""


def failed(found: Findings) -> set[str]:
    """The checks that failed."""
    return {name for name, one in found.items() if one["status"] == "fail"}


def at(server: FastS3Server) -> list[str]:
    """The source of most tests."""
    return ["s3://models/llm/", f"--endpoint-url={server.url}"]


def test_all_is_well(models: FastS3Server, mounter: Mounter) -> None:
    """Every check says so, or warns of this machine, and what was tried left nothing behind."""
    status, found = examined(mounter, *at(models), "--region=us-east-1")
    assert (status, failed(found)) == (0, set())
    assert len(found) >= 30
    assert {one["status"] for one in found.values()} <= {"ok", "warn"}
    for name in ("/dev/fuse", "fusermount3", "cache directory", "sparse files", "file locks", "credentials", "list"):
        assert found[name]["status"] == "ok", name
    assert "provider env" in found["credentials"]["words"]
    assert "MB/s, 4 MiB in" in found["network"]["words"]
    assert list(mounter.cache().iterdir()) == []
    kinds = {request.kind for request in models.log}
    assert kinds <= {"LIST", "GET", "HEAD", "OTHER"}, "nothing is written to the bucket"


def test_in_words(models: FastS3Server, mounter: Mounter) -> None:
    """One line for each check, one below it that mends, no colour where nobody sees it; only the machine if that is
    all."""
    env = environment(mounter.work / "home", models)
    missing = mounter.work / "missing"
    done = run(["doctor", f"--cache-dir={missing}"], env)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    place = lines.index(f"fail  cache directory: {missing} does not exist")
    assert lines[place + 1] == f"        mkdir -m 700 -p {missing}"
    assert "skip  sparse files: not tried: see cache directory" in lines
    assert lines[-1].endswith("checks failed")
    assert "\x1b" not in done.stdout
    assert "credentials" not in done.stdout
    assert not missing.exists()


def test_credentials(mounter: Mounter) -> None:
    """None, half of them, those of somebody else, and none that are needed."""
    with FastS3Server(require_signature="AKIASOMEBODY") as server:
        server.add_bucket("models")
        status, found = examined(mounter, *at(server), env=environment(mounter.work / "home", None))
        assert (status, failed(found)) == (1, {"credentials"})
        assert "aws configure" in found["credentials"]["mend"]
        assert found["list"]["status"] == found["network"]["status"] == "skip"
        status, found = examined(mounter, *at(server))
        assert (status, failed(found)) == (1, {"list"})
        assert "the access key is not known here (403 InvalidAccessKeyId" in found["list"]["words"]
    gone = examined(mounter, *at(server), "--profile=nobody")
    assert "nobody" in gone[1]["credentials"]["words"]


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "ExpiredToken", "AccessDenied"])
def test_refusals(models: FastS3Server, mounter: Mounter, code: str) -> None:
    """Each with a line of its own."""
    models.fault = lambda _: Fault(status=403, code=code)
    status, found = examined(mounter, *at(models))
    assert (status, failed(found)) == (1, {"list"})
    assert code in found["list"]["words"]
    assert found["list"]["mend"]
    assert found["clock"]["status"] == "ok", "a refusal tells the time as well"


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_clock_that_is_wrong(models: FastS3Server, mounter: Mounter, seconds: int) -> None:
    """By the Date of the server."""
    models.fault = lambda _: Fault(headers={"Date": formatdate(time.time() + seconds, usegmt=True)})
    status, found = examined(mounter, *at(models))
    assert (status, failed(found)) == (1, {"clock"})
    assert ("behind" if seconds > 0 else "ahead of") in found["clock"]["words"]
    assert "RequestTimeTooSkewed" in found["clock"]["words"]
    assert "timedatectl" in found["clock"]["mend"]


def test_a_bucket_that_is_not_there(s3: FastS3Server, mounter: Mounter) -> None:
    status, found = examined(mounter, "s3://missing", f"--endpoint-url={s3.url}")
    assert (status, failed(found)) == (1, {"list"})
    assert "there is no such bucket" in found["list"]["words"]


def test_one_right_without_another(models: FastS3Server, mounter: Mounter) -> None:
    """To list, and not to read."""
    models.fault = lambda request: Fault(status=403, code="AccessDenied") if request.kind == "GET" else None
    status, found = examined(mounter, *at(models))
    assert (status, failed(found)) == (1, {"read"})
    assert "s3:GetObject" in found["read"]["mend"]
    assert found["time to first byte"]["status"] == "skip"


def test_endpoints_that_are_not_there(mounter: Mounter) -> None:
    """Nobody listens; no name; somebody listens and says nothing. None of them takes long, and none is asked twice."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        status, found = examined(mounter, "s3://models", f"--endpoint-url=http://127.0.0.1:{port}")
        assert (status, failed(found)) == (1, {"answer"})
        assert "no answer within" in found["answer"]["words"]
    status, found = examined(mounter, "s3://models", f"--endpoint-url=http://127.0.0.1:{port}")
    assert (status, failed(found)) == (1, {"endpoint"})
    assert "refused" in found["endpoint"]["words"]
    status, found = examined(mounter, "s3://models", "--endpoint-url=http://nowhere.invalid")
    assert (status, failed(found)) == (1, {"name of the endpoint"})
    assert "nowhere.invalid has no address" in found["name of the endpoint"]["words"]
    assert {found[name]["status"] for name in ("answer", "clock", "list", "region", "network")} == {"skip"}


def test_tls(mounter: Mounter) -> None:
    """A certificate that nobody vouches for, and the bundle that does. It is good for a day, which is a warning."""
    certificates = Certificates.at(mounter.work / "tls")
    with FastS3Server(ssl_context=certificates.context()) as server:
        server.add_bucket("models")
        server.put("models", "llm/weights", bytes(MIB))
        status, found = examined(mounter, *at(server))
        assert (status, failed(found)) == (1, {"endpoint"})
        assert "is not trusted" in found["endpoint"]["words"]
        assert "--ca-bundle" in found["endpoint"]["mend"]
        status, found = examined(mounter, *at(server), f"--ca-bundle={certificates.ca}")
        assert (status, failed(found)) == (0, set())
        assert "TLSv1" in found["endpoint"]["words"]
        assert found["endpoint"]["status"] == "warn"


@pytest.fixture
def metadata() -> Iterator[str]:
    """A machine of EC2's in eu-west-1, as its metadata service says."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._say(b"token")

        def do_GET(self) -> None:
            right = self.headers["X-aws-ec2-metadata-token"] == "token" and self.path.endswith("/placement/region")
            self._say(b"eu-west-1" if right else b"")

        def _say(self, words: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(words)))
            self.end_headers()
            self.wfile.write(words)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_regions(models: FastS3Server, mounter: Mounter, metadata: str) -> None:
    """Requests signed for another region, and a machine in another one."""
    models.fault = lambda _: Fault(headers={"x-amz-bucket-region": "us-east-1"})
    _, found = examined(mounter, *at(models), "--region=us-west-2")
    assert (found["region"]["status"], found["region"]["mend"]) == ("warn", "--region=us-east-1")
    away = {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata}
    env = environment(mounter.work / "home", models) | away
    _, found = examined(mounter, *at(models), "--region=us-east-1", env=env)
    assert found["region"]["status"] == "warn"
    assert "this machine in eu-west-1" in found["region"]["words"]


def test_a_proxy(models: FastS3Server, mounter: Mounter) -> None:
    """What the environment puts between is named, without its password, and is what is connected to."""
    env = environment(mounter.work / "home", models) | {
        "HTTP_PROXY": f"http://user:{CANARY}@127.0.0.1:9",
        "NO_PROXY": "",
    }
    done = run(["doctor", *at(models), f"--cache-dir={mounter.cache()}", "--json"], env)
    found = {one["check"]: one for one in json.loads(done.stdout)}
    assert CANARY not in done.stdout + done.stderr
    assert "http://***@127.0.0.1:9" in found["proxy"]["words"]
    assert failed(found) - OTHERS == {"endpoint"}
    assert "127.0.0.1:9" in found["endpoint"]["words"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_secret_is_told(models: FastS3Server, mounter: Mounter, kind: str) -> None:
    """P15: neither when all is well nor when the server refuses, and repeats what it was sent."""

    def repeated(request: Request) -> Fault | None:
        return Fault(status=403, code="AccessDenied") if request.kind == "GET" else None

    env = KINDS[kind](mounter.work)
    for fault in (None, repeated):
        models.fault = fault
        for more in ([], ["--json"]):
            done = run(["doctor", *at(models), f"--cache-dir={mounter.cache()}", *more], env)
            assert CANARY not in done.stdout + done.stderr
            assert "Signature=" not in done.stdout + done.stderr
            assert "credentials" in done.stdout
            if fault is None and more:
                assert not failed({one["check"]: one for one in json.loads(done.stdout)}) - OTHERS
    assert any("AKIATEST" in request.headers.get("authorization", "") for request in models.log)


@pytest.mark.root
def test_places_for_a_cache(mounter: Mounter) -> None:
    """In memory; on what is read-only; too full; of somebody else."""
    image = Image(mounter.work, "tmpfs")
    try:
        _, found = examined(mounter, f"--cache-dir={image.cache}", "--min-free-space=1MiB")
        assert found["cache filesystem"]["status"] == "warn"
        assert "takes memory" in found["cache filesystem"]["words"]
        assert found["disk speed"]["status"] == "skip", "64 MiB would fill it"
        status, found = examined(mounter, f"--cache-dir={image.cache}", "--min-free-space=1GiB")
        assert (status, failed(found)) == (1, {"free space"})
        _, found = examined(mounter, f"--cache-dir={image.cache}", "--max-cache-size=1GiB", "--min-free-space=1MiB")
        assert "--max-cache-size of 1.0 GiB cannot be reached" in found["free space"]["words"]
        subprocess.run(["mount", "-o", "remount,ro", str(image.path)], check=True, timeout=60)
        status, found = examined(mounter, f"--cache-dir={image.cache}", "--min-free-space=1MiB")
        assert (status, failed(found)) == (1, {"cache directory"})
        assert f"mount -o remount,rw {image.path}" in found["cache directory"]["mend"]
    finally:
        image.unmount()
    theirs = mounter.work / "theirs"
    theirs.mkdir(mode=0o700)
    subprocess.run(["chown", "65534", str(theirs)], check=True, timeout=60)
    status, found = examined(mounter, f"--cache-dir={theirs}")
    assert (status, failed(found)) == (1, {"cache directory"})
    assert "belongs to user 65534" in found["cache directory"]["words"]


def test_mounts_dead_and_alive(models: FastS3Server, mounter: Mounter) -> None:
    """A daemon that uses the same cache is counted and not disturbed; one that was killed is named, and the line that
    is told clears it."""
    mount = mounter.mount(models, "s3://models")
    status, found = examined(mounter, f"--cache-dir={mount.cache}")
    assert (status, failed(found)) == (0, set())
    assert found["cache users"]["words"] == "1 mounts use it now, and share it"
    assert (mount.path / "llm" / "weights").read_bytes() == bytes(4 * MIB)
    mount.kill(clear=False)
    status, found = examined(mounter, f"--cache-dir={mount.cache}")
    assert (status, failed(found)) == (1, {"existing mounts"})
    assert str(mount.path) in found["existing mounts"]["words"]
    assert found["cache users"]["words"] == "no mount uses it now"
    # Of several dead mounts of this machine only the one that is this test's.
    (line,) = [one for one in found["existing mounts"]["mend"].split("; ") if one.endswith(str(mount.path))]
    subprocess.run(line.split(), check=True, timeout=60)
    status, found = examined(mounter, f"--cache-dir={mount.cache}")
    assert (status, failed(found)) == (0, set())


def test_wrong_calls(mounter: Mounter) -> None:
    """One sentence, and status 2."""
    for arguments in (["models"], ["s3://models", "--memory-budget=lots"]):
        done = run(["doctor", *arguments], environment(mounter.work / "home", None))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
