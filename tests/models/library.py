"""Models to publish, and the command that does it, for the tests here."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import CliRunner

from lazyfs.cli.main import cli
from tests.mounts.mounting import ROOT, environment
from tests.servers.clients import S3Endpoint

MIB = 1 << 20
PART = 16 * MIB

_buckets = iter(range(1, 1 << 30))


def bucket_on(server: S3Endpoint) -> str:
    """A new bucket."""
    name = f"models-{os.getpid()}-{next(_buckets)}"
    server.client().create_bucket(Bucket=name)
    return name


def a_model(folder: Path, *, large: int = 0) -> dict[str, bytes]:
    """A model's files, written below `folder`: by path, their bytes."""
    files = {
        "config.json": b'{"hidden": 4096}',
        "empty.txt": b"",
        "tokenizer/vocab a+b.txt": "ein Wörterbuch".encode() * 100,
        "model-00001-of-00002.safetensors": random.Random(1).randbytes(3 * MIB + 17),
        "model-00002-of-00002.safetensors": random.Random(2).randbytes(large or MIB),
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return files


class Done(NamedTuple):
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


class Lazyfs:
    """The command, with nothing of the machine's own settings."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def env(self, server: S3Endpoint, **more: str) -> dict[str, str]:
        """The environment it is run in."""
        return environment(self.work / "home", server, LAZYFS_ENDPOINT_URL=server.url, **more)

    def run(self, server: S3Endpoint, *arguments: str | Path, **more: str) -> Done:
        """Run it to its end, in this process: each of its own would take a second to import boto3."""
        kept = self.env(server, **more)
        gone = {name: None for name in os.environ if name.startswith(("AWS_", "LAZYFS_", "MODEL_CACHE_"))}
        found = CliRunner().invoke(cli, [*map(str, arguments)], env={**gone, **kept})
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        return Done(found.exit_code, found.stdout, found.stderr)

    def ok(self, server: S3Endpoint, *arguments: str | Path, **more: str) -> str:
        """Run it; what it said. It must not fail."""
        done = self.run(server, *arguments, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, server: S3Endpoint, *arguments: str | Path, **more: str) -> Any:
        """Run it with --json; what it said."""
        return json.loads(self.ok(server, *arguments, "--json", **more))

    def refused(self, server: S3Endpoint, *arguments: str | Path, **more: str) -> str:
        """Run it; the one sentence with which it failed."""
        done = self.run(server, *arguments, **more)
        assert done.returncode in (1, 2), done.stdout
        lines = [line for line in done.stderr.splitlines() if line]
        assert len(lines) == 1, done.stderr
        assert "Traceback" not in done.stderr
        return lines[0]

    def start(self, server: S3Endpoint, *arguments: str | Path, **more: str) -> subprocess.Popen[str]:
        """Start it."""
        return started([*map(str, arguments)], self.env(server, **more))


def started(arguments: list[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    """`lazyfs ARGUMENTS` as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "lazyfs", *arguments],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def keys(server: S3Endpoint, bucket: str) -> dict[str, int]:
    """All objects of a bucket, and their sizes."""
    found = server.client().list_objects_v2(Bucket=bucket).get("Contents", [])
    return {one["Key"]: one["Size"] for one in found}
