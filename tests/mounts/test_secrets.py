"""P15: canary credentials of every kind, looked for wherever lazyfs writes or answers.

/proc/PID/environ holds what the user put there, and only the user and root may read it; that is the one place where a
secret stands.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts.mounting import COMMAND, ROOT, Mounter, environment, is_mounted, run
from tests.mounts.pages import Pages
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault

CANARY = "canary-5ecret"


def by_environment(work: Path) -> dict[str, str]:
    """A secret and a session token in the environment."""
    more = {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": CANARY, "AWS_SESSION_TOKEN": CANARY + "-token"}
    return environment(work / "home", None, **more)


def by_profile(work: Path) -> dict[str, str]:
    """The same in a profile."""
    file = work / "aws-credentials"
    keys = f"aws_access_key_id = AKIATEST\naws_secret_access_key = {CANARY}\naws_session_token = {CANARY}-token\n"
    file.write_text(f"[models]\n{keys}")
    return environment(work / "home", None, AWS_SHARED_CREDENTIALS_FILE=str(file), AWS_PROFILE="models")


def by_process(work: Path) -> dict[str, str]:
    """What a command prints."""
    file, config = work / "credentials.json", work / "aws-config"
    fields = {"Version": 1, "AccessKeyId": "AKIATEST", "SecretAccessKey": CANARY, "SessionToken": CANARY + "-token"}
    file.write_text(json.dumps(fields))
    config.write_text(f"[default]\ncredential_process = cat {file}\n")
    return environment(work / "home", None, AWS_CONFIG_FILE=str(config))


KINDS = {"environment": by_environment, "profile": by_profile, "process": by_process}


def everything_told(mounter: Mounter, path: Path, pid: int, env: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """Every byte that lazyfs writes or answers, with where it stands: commands, attributes, /proc, cache and logs."""
    config = ["mount", "--print-config", "s3://b", str(path)]
    for arguments in (["status", str(path)], ["status", "--json"], ["stats", str(path)], config):
        done = run(arguments, env)
        yield f"lazyfs {arguments[0]}", (done.stdout + done.stderr).encode()
    for place in [path, *path.rglob("*")]:
        for name in os.listxattr(place) or ["user.lazyfs.stats"] * (place == path):
            yield f"{name} of {place}", os.getxattr(place, name)
    yield "what top shows", os.getxattr(path, "user.lazyfs.activity")
    served = json.loads(os.getxattr(path, "user.lazyfs.stats"))["metrics"]
    for page in ("/metrics", "/cache/metrics", "/cache/stats", "/healthz", "/") if served else ():
        yield page, Pages(served).get(page)[2]
    yield "the process table", Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/comm").read_bytes()
    yield "the mount table", Path("/proc/self/mountinfo").read_bytes()
    for place in mounter.work.rglob("*"):
        inside = path in place.parents or place.name in ("aws-credentials", "credentials.json")
        if place.is_file() and not inside:
            yield str(place), place.read_bytes()


@pytest.mark.parametrize(("kind", "format_"), [("environment", "text"), ("profile", "json"), ("process", "text")])
def test_no_secret_is_told(
    s3: FastS3Server, mounter: Mounter, reader: Reader, kind: str, format_: str
) -> None:
    """By a background mount that logs everything, reads, fails, and ends."""
    s3.put("models", "weights", b"w" * 100_000)
    s3.put("models", "denied", b"w" * 100_000)
    s3.put("models", "expired", b"w" * 100_000)
    env, path = KINDS[kind](mounter.work), mounter.place()
    log = mounter.work / "daemon.log"
    options = [*mounter.options(s3), f"--cache-dir={mounter.cache()}", f"--log-file={log}", "--log-level=debug"]
    options += [f"--log-format={format_}", "--retry-budget=500ms", "--metrics-address=127.0.0.1:0"]
    options += [f"--access-log={mounter.work / 'access'}"]
    done = run(["mount", *options, "s3://models", path], env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pid = json.loads(os.getxattr(path, "user.lazyfs.stats"))["pid"]
    faults = {"denied": Fault(status=403, code="AccessDenied"), "expired": Fault(status=400, code="ExpiredToken")}
    s3.fault = lambda request: faults.get(request.key)
    assert reader.call("digest", str(path / "weights"))[0] == 100_000
    for name in faults:
        with pytest.raises(OSError, match=r"Permission denied|Input/output error"):
            reader.call("digest", str(path / name))
    signed = [request.headers["authorization"] for request in s3.log]
    assert all("AKIATEST" in header for header in signed), "these credentials are the ones that are used"
    told = dict(everything_told(mounter, path, pid, env))
    assert len(told) >= 15
    assert b"lazyfs_" in told["/metrics"]
    assert [where for where, text in told.items() if CANARY.encode() in text] == []
    signatures = [header.rpartition("Signature=")[2].encode() for header in signed]
    assert [where for where, text in told.items() if any(one in text for one in signatures)] == []
    assert b"Access Denied" in log.read_bytes()
    assert run(["unmount", path], env).returncode == 0
    assert CANARY not in log.read_text()


BROKEN = {
    "no JSON": "echo '{{\"Version\": 1, \"SecretAccessKey\": \"{canary}'",
    "a version of the future": "echo '{{\"Version\": 2, \"AccessKeyId\": \"a\", \"SecretAccessKey\": \"{canary}\"}}'",
    "half of it": "echo '{{\"Version\": 1, \"SecretAccessKey\": \"{canary}\"}}'",
    "a failure": "echo {canary}; echo no network >&2; exit 3",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_command_for_credentials_that_is_broken(s3: FastS3Server, mounter: Mounter, name: str) -> None:
    """One sentence, and nothing of what the command printed on its standard output."""
    script = mounter.work / "provide"
    script.write_text("#!/bin/sh\n" + BROKEN[name].format(canary=CANARY) + "\n")
    script.chmod(0o700)
    config = mounter.work / "aws-config"
    config.write_text(f"[default]\ncredential_process = {script}\n")
    env = environment(mounter.work / "home", None, AWS_CONFIG_FILE=str(config))
    refused(mounter, s3, env, 1, "--retry-budget=500ms")


def refused(mounter: Mounter, s3: FastS3Server, env: dict[str, str], status: int, *options: str) -> str:
    """The one sentence with which a mount fails; no canary in it, nor in the log."""
    path, log = mounter.place(), mounter.work / "daemon.log"
    usual = [*mounter.options(s3), f"--cache-dir={mounter.cache()}", f"--log-file={log}", "--log-level=debug"]
    done = run(["mount", *usual, *options, "s3://models", path], env)
    assert done.returncode == status
    assert done.stderr.count("\n") == 1, done.stderr
    assert not is_mounted(path)
    assert "canary" not in done.stderr + done.stdout + (log.read_text() if log.exists() else "")
    assert "Traceback" not in done.stderr
    return done.stderr


ENDPOINTS = {
    "denied": Fault(status=403, code="AccessDenied"),
    "expired": Fault(status=400, code="ExpiredToken"),
    "wrong": Fault(status=403, code="SignatureDoesNotMatch"),
    "broken": Fault(hang_up=True),
}


@pytest.mark.parametrize("name", ENDPOINTS)
def test_a_start_that_fails(s3: FastS3Server, mounter: Mounter, name: str) -> None:
    """Each way in which a server can refuse the credentials."""
    s3.fault = lambda _: ENDPOINTS[name]
    assert "s3://models" in refused(mounter, s3, by_environment(mounter.work), 1, "--retry-budget=300ms")


@pytest.mark.parametrize("layer", ["flag", "environment", "aws"])
def test_a_password_in_the_endpoint(s3: FastS3Server, mounter: Mounter, layer: str) -> None:
    """Refused before anything is done with it; from AWS's own variable, which boto3 reads, it is used, fails, and is
    not told."""
    url = "http://user:canary-password@127.0.0.1:1"
    env = by_environment(mounter.work)
    if layer == "flag":
        said = refused(mounter, s3, env, 2, f"--endpoint-url={url}")
    elif layer == "environment":
        said = run(["mount", "s3://models", mounter.place()], env | {"LAZYFS_ENDPOINT_URL": url}).stderr
    else:
        log = mounter.work / "daemon.log"
        options = [f"--cache-dir={mounter.cache()}", f"--log-file={log}", "--retry-budget=300ms", "--log-level=debug"]
        done = run(["mount", *options, "s3://models", mounter.place()], env | {"AWS_ENDPOINT_URL": url}, timeout=60)
        said = done.stderr + log.read_text()
        assert done.returncode == 1
        assert "127.0.0.1:1" in said
    assert "canary" not in said
    assert said.count("must not hold a user or a password") == (layer != "aws")


def test_a_defect_tells_no_secret(mounter: Mounter, s3: FastS3Server) -> None:
    """A traceback has the lines of the code and the words of the error, and not what is in its variables; and a daemon
    that is killed by a signal leaves no core."""
    code = (
        "import lazyfs.service.mounts as m, lazyfs.cli.main as c, sys\n"
        "import lazyfs.service.serving as s\n"
        "async def broken(*a, **k):\n"
        "    secret = 'canary'\n"
        "    raise ZeroDivisionError('http://u:' + secret + '@host')\n"
        "s.serve = broken\n"
        "sys.argv = ['lazyfs', *sys.argv[1:]]\n"
        "c.main()\n"
    )
    env = by_environment(mounter.work)
    options = [*mounter.options(s3), "--foreground", f"--cache-dir={mounter.cache()}"]
    command = [sys.executable, "-c", code, "mount", *options, "s3://models", str(mounter.place())]
    assert COMMAND[0] == sys.executable
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError: http://***@host" in done.stderr
    assert "Traceback" in done.stderr
    assert CANARY not in done.stderr
    assert "u:canary" not in done.stderr
