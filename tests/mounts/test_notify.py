"""What systemd is told by a real mount, on a socket as systemd's: readiness, status, watchdog, reload, the end."""

import os
import secrets
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import COMMAND, ROOT, Mounter, environment, force_away
from tests.mounts.reader import Reader
from tests.mounts.test_teardown import stop_the_loop
from tests.servers.fast import FastS3Server


class Manager:
    """A service manager's end of the socket, and the service that tells it things."""

    def __init__(self, arguments: list[str], env: dict[str, str], log: Path) -> None:
        name = f"lazyfs-manager-{secrets.token_hex(8)}"
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name)
        env = {**env, "NOTIFY_SOCKET": "@" + name}
        with log.open("ab") as stream:
            self.process = subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, env=env, stdin=subprocess.DEVNULL,
                                            stdout=stream, stderr=stream)  # fmt: skip

    def wait_for(self, word: str, timeout: float = 60.0) -> str:
        """The next line that holds `word`; what comes before it is heard and passed over. `timeout`: of silence."""
        while select.select([self._socket], [], [], timeout)[0]:
            lines = self._socket.recv(4096).decode().split("\n")
            self.heard += lines
            for line in lines:
                if word in line:
                    return line
        raise AssertionError(f"{word} never came, but {self.heard[-5:]}")

    def drain(self) -> list[str]:
        """Everything that has come and was not heard yet."""
        found: list[str] = []
        while select.select([self._socket], [], [], 0)[0]:
            found += self._socket.recv(4096).decode().split("\n")
        return found

    def close(self) -> None:
        """The service is gone."""
        self.process.kill()
        self.process.wait(20)
        self._socket.close()


@pytest.fixture
def manager(s3: FastS3Server, mounter: Mounter, tmp_path: Path) -> Iterator[Manager]:
    """A mount of 8 MiB, whose configuration is a file, under a manager that wants a sign of life every 6 s."""
    s3.put("models", "weights", pages(1, 8 * MIB))
    (tmp_path / "lazyfs.toml").write_text('log_level = "info"\n')
    options = [*mounter.options(s3), f"--cache-dir={mounter.cache()}", f"--config={tmp_path / 'lazyfs.toml'}"]
    env = environment(mounter.work / "home", s3, WATCHDOG_USEC="6000000")
    made = Manager(["mount", "--foreground", *options, "s3://models", str(mounter.place())], env, tmp_path / "log")
    try:
        yield made
    finally:
        made.close()
        force_away(mounter.place())


def test_from_start_to_end(manager: Manager, mounter: Mounter, reader: Reader) -> None:
    """In this order, with a status that follows what is read, and that is not told again while nothing happens."""
    assert manager.wait_for("STATUS=") == "STATUS=asking S3 for s3://models"
    manager.wait_for("READY=1")
    manager.wait_for("WATCHDOG=1")
    fd = reader.call("open_file", str(mounter.place() / "weights"))
    reader.call("pread", fd, MIB, 0)
    assert "1 files open" in manager.wait_for("1 files open")
    manager.wait_for("WATCHDOG=1")
    manager.wait_for("WATCHDOG=1")
    told = [line for line in manager.heard if line.startswith("STATUS=")]
    assert len(told) == len(set(told)), "each status once"
    reader.call("close_file", fd)
    manager.process.send_signal(signal.SIGTERM)
    manager.wait_for("STOPPING=1")
    assert manager.process.wait(20) == 0
    assert "WATCHDOG=1" not in manager.drain()


def test_no_sign_of_life_from_a_loop_that_stands_still(manager: Manager) -> None:
    """The thread that gives them lives on; what it asks is not answered."""
    manager.wait_for("READY=1")
    manager.wait_for("WATCHDOG=1")
    stop_the_loop(manager.process.pid)
    manager.heard.clear()
    with pytest.raises(AssertionError, match="a fourth never came"):
        manager.wait_for("a fourth", 6.0)  # what systemd would wait for; three signs of life are due in it
    assert manager.heard.count("WATCHDOG=1") <= 1, "the one that was on its way"
    assert manager.process.poll() is None


def test_reload_reads_the_configuration_again(manager: Manager, tmp_path: Path) -> None:
    """RELOADING, then READY; a wrong file changes nothing, and is said."""
    manager.wait_for("READY=1")
    for text, said in [
        ('log_level = "debug"\n', "the log level is debug"),
        ("log_level = 7\n", "nothing is changed"),
        ("no TOML\n", "nothing is changed"),
        ("", "the log level is info"),
    ]:
        (tmp_path / "lazyfs.toml").write_text(text)
        manager.process.send_signal(signal.SIGHUP)
        manager.wait_for("RELOADING=1")
        assert any(line.startswith("MONOTONIC_USEC=") for line in manager.heard)
        manager.wait_for("READY=1")
        log = (tmp_path / "log").read_text()
        assert said in log.splitlines()[-1] or said in log, log
    assert manager.process.poll() is None


def test_credentials_that_systemd_passes(s3: FastS3Server, mounter: Mounter, tmp_path: Path) -> None:
    """By LoadCredential=aws:FILE: in a file, and neither in the environment nor on the command line."""
    s3.put("models", "weights", pages(1, MIB))
    passed = tmp_path / "credentials"
    passed.mkdir()
    (passed / "aws").write_text(
        f"[default]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"
    )
    env = environment(mounter.work / "home", None, CREDENTIALS_DIRECTORY=str(passed))
    del env["AWS_SHARED_CREDENTIALS_FILE"]
    mount = mounter.mount(s3, "s3://models", env=env)
    assert os.listdir(mount.path) == ["weights"]
    assert s3.secret_key not in Path(f"/proc/{mount.pid}/environ").read_text()
