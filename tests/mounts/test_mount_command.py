"""The command: a mount comes, says what it is, and goes; what cannot be done is one sentence and leaves nothing."""

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.mounts.mounting import (
    COMMAND,
    END_TIMEOUT,
    ROOT,
    Mounter,
    environment,
    is_mounted,
    mountinfo,
    run,
)
from tests.servers.fast import FastS3Server
from tests.servers.processes import free_ports


@pytest.fixture
def env(s3: FastS3Server, tmp_path: Path) -> dict[str, str]:
    """The environment of a command, with the server's credentials."""
    s3.put("models", "a/b.bin", b"weights")
    return environment(tmp_path / "home", s3)


def start(mounter: Mounter, s3: FastS3Server, env: Mapping[str, str], *more: str) -> Path:
    """A background mount, made by the command as users type it."""
    path = mounter.place()
    log = mounter.watch_log(mounter.work / "daemon.log")
    options = [*mounter.options(s3), f"--cache-dir={mounter.cache()}", f"--log-file={log}", *more]
    done = run(["mount", *options, "s3://models", path], env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return path


def daemon_of(path: Path) -> int:
    """The process id behind a mount."""
    return int(json.loads(os.getxattr(path, "user.lazyfs.stats"))["pid"])


def is_alive(pid: int) -> bool:
    """Whether a process that is not our child is there, and no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_background_mount_is_ready_on_return(mounter: Mounter, s3: FastS3Server, env: dict[str, str]) -> None:
    path = start(mounter, s3, env)
    assert (path / "a" / "b.bin").read_bytes() == b"weights"
    pid = daemon_of(path)
    assert os.getpgid(pid) == pid, "it has a session of its own, so that a closed terminal does not end it"
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    done = run(["unmount", path], env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not is_mounted(path)
    assert not is_alive(pid), "unmount waits for the daemon"


@pytest.mark.parametrize("streams", ["", "<&- >&- 2>&-"])
def test_a_daemon_has_nothing_of_who_started_it(
    mounter: Mounter, s3: FastS3Server, env: dict[str, str], streams: str
) -> None:
    """Its descriptors are its own, and its streams, whichever those of the command were; the log has what it says."""
    path, log = mounter.place(), mounter.work / "daemon.log"
    options = [*mounter.options(s3), f"--cache-dir={mounter.cache()}", f"--log-file={log}", "--log-level=info"]
    command = [*COMMAND, "mount", *options, "s3://models", str(path)]
    reading, writing = os.pipe()
    shell = ["sh", "-c", f'exec "$@" {streams}', "sh", *command]
    done = subprocess.run(shell, cwd=ROOT, env=env, pass_fds=(writing,), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == b"", "nobody has the other end any more"
    own = Path(f"/proc/{daemon_of(path)}/fd")
    assert [os.readlink(own / number) for number in "012"] == ["/dev/null", str(log), str(log)]
    assert (path / "a" / "b.bin").read_bytes() == b"weights"
    assert run(["unmount", path], env).returncode == 0
    assert "s3://models" in log.read_text()


def test_status_and_stats(mounter: Mounter, s3: FastS3Server, env: dict[str, str]) -> None:
    path = start(mounter, s3, env)
    (path / "a" / "b.bin").read_bytes()
    stats = json.loads(run(["stats", path, "--json"], env).stdout)
    assert (stats["source"], stats["mountpoint"], stats["reads"]["bytes"]) == ("s3://models", str(path), 7)
    assert json.loads(run(["stats", path], env).stdout)["pid"] == stats["pid"]
    (status,) = json.loads(run(["status", path, "--json"], env).stdout)
    assert (status["health"], status["pid"], status["source"]) == ("ok", stats["pid"], "s3://models")
    shown = run(["status", path], env)
    assert shown.returncode == 0
    assert f"s3://models at {path}: ok" in shown.stdout
    assert run(["unmount", path], env).returncode == 0
    gone = run(["status", path], env)
    assert gone.returncode == 2
    assert "not a lazyfs mount" in gone.stderr


def test_status_of_a_dead_mount(mounter: Mounter, s3: FastS3Server, env: dict[str, str]) -> None:
    mount = mounter.mount(s3, "s3://models")
    mount.kill(clear=False)
    shown = run(["status", mount.path], env)
    assert shown.returncode == 1
    assert "does not answer" in shown.stdout
    assert "Traceback" not in shown.stderr


def test_unmount_refuses_what_is_in_use(mounter: Mounter, s3: FastS3Server, env: dict[str, str]) -> None:
    mount = mounter.mount(s3, "s3://models")
    with (mount.path / "a" / "b.bin").open("rb") as file:
        refused = run(["unmount", mount.path], env)
        assert refused.returncode == 1
        assert "in use" in refused.stderr
        assert file.read() == b"weights"
        assert run(["unmount", "--lazy", mount.path], env).returncode == 0
        assert not is_mounted(mount.path)
        assert os.pread(file.fileno(), 100, 0) == b"weights"
    assert mount.process.wait(END_TIMEOUT) == 0


def test_mount_options_and_sockets(mounter: Mounter, s3: FastS3Server, env: dict[str, str]) -> None:
    """P14."""
    mount = mounter.mount(s3, "s3://models/a")
    fields = mountinfo(mount.path)
    options, rest = fields[5].split(","), fields[fields.index("-") + 1 :]
    assert {"ro", "nosuid", "nodev"} <= set(options)
    assert rest[:2] == ["fuse.lazyfs", "s3://models/a/"]
    shared = rest[2].split(",")
    assert {"ro", "default_permissions", f"user_id={os.geteuid()}"} <= set(shared)
    assert "allow_other" not in shared
    assert listening(mount.pid) == []


def listening(pid: int) -> list[str]:
    """The listening sockets of a process, TCP and unix, from /proc."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{name}")
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]]
        found += [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]
    rows = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
    return found + [row[-1] for row in rows if row[3] == "00010000" and row[6] in inodes]


@pytest.mark.root
def test_allow_other_when_asked(mounter: Mounter, s3: FastS3Server, env: dict[str, str]) -> None:
    mount = mounter.mount(s3, "s3://models", "--allow-other")
    fields = mountinfo(mount.path)
    assert "allow_other" in fields[fields.index("-") + 3].split(",")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts(mounter: Mounter, s3: FastS3Server, env: dict[str, str], number: signal.Signals) -> None:
    mount = mounter.mount(s3, "s3://models")
    assert mount.signal(number) == 0
    assert not is_mounted(mount.path)
    assert "is unmounted" in mount.logged()


def test_a_dead_mount_is_cleared_by_the_next(mounter: Mounter, s3: FastS3Server, env: dict[str, str]) -> None:
    """P7. Also two of them, one above the other."""
    dead = mounter.mount(s3, "s3://models")
    dead.kill(clear=False)
    with pytest.raises(OSError, match="not connected"):
        os.listdir(dead.path)
    again = mounter.mount(s3, "s3://models")
    assert (again.path / "a" / "b.bin").read_bytes() == b"weights"
    assert again.unmount() == 0
    assert not is_mounted(again.path), "nothing is left below it"


def test_the_service_manager_is_told(mounter: Mounter, s3: FastS3Server, env: dict[str, str], tmp_path: Path) -> None:
    """READY=1 when the mount answers, STOPPING=1 when it ends; on a socket with a path, as systemd has it."""
    name = Path(f"/tmp/lazyfs-notify-{os.getpid()}")  # below the 108 bytes that a socket's name may have
    log = mounter.watch_log(tmp_path / "daemon.log")
    path = mounter.place()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, log.open("wb") as stderr:
        channel.bind(str(name))
        try:
            channel.settimeout(60)
            options = [*mounter.options(s3), "--foreground", f"--cache-dir={mounter.cache()}"]
            daemon = subprocess.Popen(
                [*COMMAND, "mount", *options, "s3://models", str(path)],
                env={**env, "NOTIFY_SOCKET": str(name)}, cwd=ROOT, stderr=stderr,
            )  # fmt: skip
            try:
                assert channel.recv(1000) == b"STATUS=asking S3 for s3://models"
                assert channel.recv(1000).startswith(b"READY=1\nSTATUS=")
                assert (path / "a" / "b.bin").read_bytes() == b"weights"
                daemon.terminate()
                while (told := channel.recv(1000)).startswith(b"STATUS="):
                    pass  # on a slow machine: what was read meanwhile
                assert told.startswith(b"STOPPING=1\nSTATUS=")
                assert daemon.wait(END_TIMEOUT) == 0
            finally:
                daemon.kill()
                daemon.wait()
        finally:
            name.unlink()


def test_a_service_manager_that_is_gone_is_no_failure(
    mounter: Mounter, s3: FastS3Server, env: dict[str, str]
) -> None:
    """The socket that every mount of these tests is given is closed once the mount is ready; the end is clean."""
    mount = mounter.mount(s3, "s3://models")
    assert mount.signal(signal.SIGTERM) == 0
    assert stat.S_IMODE((mount.cache / "lazyfs-cache.json").stat().st_mode) == 0o600
    assert not (mount.cache / "open").exists(), "the index was closed"


def test_settings_by_environment_and_file(mounter: Mounter, s3: FastS3Server, env: dict[str, str]) -> None:
    """What --print-config shows is what a mount uses: here the sources of it, and a mount made with them alone."""
    file = mounter.work / "lazyfs.toml"
    file.write_text(f'region = "us-east-1"\nendpoint-url = "{s3.url}"\nfile-mode = "0440"\n')
    log = mounter.watch_log(mounter.work / "daemon.log")
    env |= {"LAZYFS_CONFIG": str(file), "LAZYFS_FILE_MODE": "0400", "LAZYFS_LOG_FILE": str(log)}
    env |= {"LAZYFS_CACHE_DIR": str(mounter.cache()), "LAZYFS_METADATA_TTL": "indefinite"}
    path = mounter.place()
    shown = run(["mount", "--print-config", "--dir-mode=0500", "s3://models", path], env).stdout.splitlines()
    assert 'file-mode = "0400"  # environment' in shown
    assert 'dir-mode = "0500"  # flag' in shown
    assert 'region = "us-east-1"  # file' in shown
    assert not is_mounted(path)
    assert run(["mount", "--dir-mode=0500", "s3://models", path], env).returncode == 0
    assert stat.S_IMODE((path / "a").stat().st_mode) == 0o500
    assert stat.S_IMODE((path / "a" / "b.bin").stat().st_mode) == 0o400
    assert run(["unmount", path], env).returncode == 0


def test_an_empty_bucket_mounts_with_a_warning(mounter: Mounter, s3: FastS3Server) -> None:
    s3.add_bucket("nothing")
    mount = mounter.mount(s3, "s3://nothing", expect=["s3://nothing has no objects yet"])
    assert os.listdir(mount.path) == []
    assert "has no objects yet" in mount.logged()



@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_start_leaves_nothing(
    mounter: Mounter, s3: FastS3Server, env: dict[str, str], number: signal.Signals
) -> None:
    """While the first listing is on its way."""
    path = mounter.place()
    options = [*mounter.options(s3), "--foreground", f"--cache-dir={mounter.cache()}"]
    with s3.hold(lambda request: request.kind == "LIST") as gate:
        command = [*COMMAND, "mount", *options, "s3://models", str(path)]
        daemon = subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            gate.wait_for(1, timeout=60)
            daemon.send_signal(number)
            _, said = daemon.communicate(timeout=END_TIMEOUT)
        finally:
            daemon.kill()
            daemon.communicate()
    assert not is_mounted(path)
    assert "Traceback" not in said
    if number != signal.SIGKILL:
        assert daemon.returncode == 1
        assert said.splitlines()[-1] == "lazyfs: stopped before the mount was ready"


def test_an_unreachable_endpoint(mounter: Mounter, s3: FastS3Server, env: dict[str, str]) -> None:
    """Given up after 10 seconds of asking."""
    (port,) = free_ports(1)
    path = mounter.place()
    log = mounter.work / "daemon.log"
    options = [f"--endpoint-url=http://127.0.0.1:{port}", f"--cache-dir={mounter.cache()}", f"--log-file={log}"]
    done = run(["mount", *options, "s3://models", path], env, timeout=40)
    assert done.returncode == 1
    assert "cannot reach s3://models" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not is_mounted(path)
