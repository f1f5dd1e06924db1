"""Mount propagation, as containers have it: the daemon in one mount namespace, readers in others.

A folder that is shared (`rshared`, Kubernetes' Bidirectional) in the daemon's namespace, and a slave (`rslave`,
HostToContainer) in the reader's. Both namespaces are made here, and gone with their processes.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import COMMAND, END_TIMEOUT, ROOT, Mounter, environment, is_mounted, wait_until
from tests.servers.fast import FastS3Server
from tests.servers.processes import killed_with_parent

pytestmark = pytest.mark.root
DATA = pages(1, 4 * MIB)


class Namespace:
    """A mount namespace that holds a copy of another one's mounts, kept by a shell that runs what it is told."""

    def __init__(self, propagation: str, prepare: str, *, of: int | None = None) -> None:
        entering = [] if of is None else ["nsenter", f"--target={of}", "--mount", "--"]
        keeping = ["unshare", "--mount", f"--propagation={propagation}", "sh", "-ec", f"{prepare}\necho made; cat"]
        self.process = subprocess.Popen(
            [*entering, *keeping], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            preexec_fn=killed_with_parent(),  # noqa: PLW1509 (it only calls libc)
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "made\n"

    def command(self, *words: str | Path) -> list[str]:
        """A command that runs in it."""
        return ["nsenter", f"--target={self.process.pid}", "--mount", f"--wd={ROOT}", "--", *map(str, words)]

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command in it, to its end."""
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=60, check=False)

    def close(self) -> None:
        """It is gone, and what was mounted in it alone."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that both sides share, and in it a place to mount on."""
    (tmp_path / "shared" / "models").mkdir(parents=True)
    return tmp_path / "shared"


@pytest.fixture
def host(folder: Path) -> Iterator[Namespace]:
    """A host, in which the folder is shared, and nothing else comes in or goes out."""
    made = Namespace("private", f"mount --bind {folder} {folder}; mount --make-rshared {folder}")
    yield made
    made.close()


@pytest.fixture
def container(host: Namespace) -> Iterator[Namespace]:
    """The daemon's: what it mounts in the folder goes out (Bidirectional)."""
    made = Namespace("unchanged", ":", of=host.process.pid)
    yield made
    made.close()


@pytest.fixture
def reader(host: Namespace) -> Iterator[Namespace]:
    """The reader's, made before there is a mount: what is mounted elsewhere comes in (HostToContainer)."""
    made = Namespace("slave", ":", of=host.process.pid)
    yield made
    made.close()


class Daemon:
    """`lazyfs mount --foreground` in a namespace, ready."""

    def __init__(self, inside: Namespace, mounter: Mounter, s3: FastS3Server, place: Path, name: str) -> None:
        log = mounter.watch_log(mounter.work / name)
        options = [*mounter.options(s3), f"--cache-dir={mounter.cache()}"]
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                inside.command(*COMMAND, "mount", "--foreground", *options, "s3://models", place),
                env=environment(mounter.work / "home", s3), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                preexec_fn=killed_with_parent(),  # noqa: PLW1509 (it only calls libc)
            )  # fmt: skip
        wait_until(lambda: self.process.poll() is not None or "is mounted at" in log.read_text(), "ready", 60)
        assert self.process.poll() is None, log.read_text()


def test_a_reader_elsewhere_sees_the_mount_and_the_one_after_a_restart(
    s3: FastS3Server, mounter: Mounter, folder: Path, host: Namespace, container: Namespace, reader: Namespace
) -> None:
    """Made, unmounted, made again, killed, and made over what the kill left: the reader's namespace follows each."""
    s3.put("models", "weights", DATA)
    place = folder / "models"
    first = Daemon(container, mounter, s3, place, "first")
    assert not is_mounted(place), "here it is not"
    for inside in (host, reader):
        assert inside.run("cmp", place / "weights", "/dev/null").stderr.startswith("cmp: EOF on /dev/null")
    done = reader.run(*COMMAND, "status", "--json", place)
    assert json.loads(done.stdout)[0]["health"] == "ok", "as a probe asks"
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(END_TIMEOUT) == 0
    assert reader.run("ls", place).stdout == ""
    second = Daemon(container, mounter, s3, place, "second")
    assert reader.run("sha256sum", place / "weights").stdout == host.run("sha256sum", place / "weights").stdout != ""
    second.process.kill()
    second.process.wait(END_TIMEOUT)
    assert "not connected" in reader.run("ls", place).stderr
    third = Daemon(container, mounter, s3, place, "third")
    assert reader.run("ls", place).stdout == "weights\n"
    mounted = reader.run("cat", "/proc/self/mountinfo").stdout.splitlines()
    assert len([line for line in mounted if str(place) in line]) == 1
    third.process.send_signal(signal.SIGTERM)
    assert third.process.wait(END_TIMEOUT) == 0


def test_a_file_held_elsewhere_outlives_a_lazy_unmount(
    s3: FastS3Server, mounter: Mounter, folder: Path, container: Namespace, reader: Namespace
) -> None:
    """As the preStop hook does it: what a reader holds stays good until it closes it, the new mount is seen at once."""
    s3.put("models", "weights", DATA)
    place = folder / "models"
    first = Daemon(container, mounter, s3, place, "first")
    held = subprocess.Popen(
        reader.command("sh", "-c", 'exec 4<"$1"; echo open; read -r _; exec sha256sum <&4', "sh", place / "weights"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=killed_with_parent(),  # noqa: PLW1509 (it only calls libc)
    )  # fmt: skip
    assert held.stdout is not None
    assert held.stdout.readline() == "open\n"
    assert container.run(*COMMAND, "unmount", "--lazy", place).returncode == 0
    second = Daemon(container, mounter, s3, place, "second")
    assert first.process.poll() is None
    fresh = reader.run("sha256sum", place / "weights").stdout.split()[0]
    said, _ = held.communicate("go on\n", timeout=60)
    assert said.split()[0] == fresh
    assert first.process.wait(END_TIMEOUT) == 0, "it ends when the last is closed"
    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(END_TIMEOUT) == 0
    assert os.listdir(place) == []
