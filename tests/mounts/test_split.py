"""The split: root mounts and waits (`mount-fd`), and a user without a single privilege serves `/dev/fd/3`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.errors import SetupError
from lazyfs.service import handed
from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import (
    COMMAND,
    ROOT,
    Mounter,
    environment,
    force_away,
    is_mounted,
    mountinfo,
    run,
    wait_until,
)
from tests.servers.fast import FastS3Server

NOBODY = 65534
DATA = pages(1, 4 * MIB)


FOUND = {"PYTHONPATH": ":".join([str(ROOT), *(path for path in sys.path if path.endswith("-packages"))])}
"""So that a Python beside that of the tests finds what they use: theirs may lie where nobody comes."""


def nobody_runs(python: str) -> bool:
    """Whether nobody can run lazyfs with it."""
    try:
        asked = subprocess.run([python, "-c", "import pyfuse3, lazyfs"], cwd="/", user=NOBODY, group=NOBODY,
                               extra_groups=[], env=FOUND, capture_output=True, timeout=60, check=False)  # fmt: skip
    except OSError:
        return False
    return asked.returncode == 0


def credentials(work: Path, s3: FastS3Server) -> Path:
    """As systemd passes them to a service of root: nobody else may read them."""
    directory = work / "credentials"
    directory.mkdir(mode=0o700)
    text = f"[default]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"
    (directory / "aws").write_text(text)
    return directory


class Split:
    """`lazyfs mount-fd`, and below it `lazyfs mount --foreground` as nobody, ready."""

    def __init__(self, work: Path, s3: FastS3Server, python: str, *options: str) -> None:
        self.path, self.log, cache = work / "mnt", work / "log", work / "cache"
        for directory in (self.path, cache, work / "home"):
            directory.mkdir(exist_ok=True)
            os.chown(directory, NOBODY, NOBODY)
        s3.put("models", "weights", DATA)
        command = [*COMMAND, "mount-fd", "--user=65534", "--source=s3://models/", *options, str(self.path), "--",
                   python, "-m", "lazyfs", "mount", "--foreground", f"--endpoint-url={s3.url}", f"--region={s3.region}",
                   f"--cache-dir={cache}", "--memory-budget=64MiB", "s3://models", "/dev/fd/3"]  # fmt: skip
        with self.log.open("ab") as stream:
            env = environment(work / "home", None, CREDENTIALS_DIRECTORY=str(credentials(work, s3)), **FOUND)
            del env["AWS_SHARED_CREDENTIALS_FILE"]
            self.process = subprocess.Popen(command, cwd=ROOT, env=env,
                                            stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)  # fmt: skip
        wait_until(lambda: self.process.poll() is not None or "is mounted at" in self.log.read_text(), "ready", 60)
        assert self.process.poll() is None, self.log.read_text()
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.daemon = int(children[0])


@pytest.fixture
def work() -> Iterator[Path]:
    """A folder that everybody may enter, unlike those of pytest."""
    made = Path(tempfile.mkdtemp(prefix="lazyfs-split-", dir="/tmp"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        force_away(made / "mnt")
        shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def split(work: Path, s3: FastS3Server) -> Iterator[Split]:
    """One that everybody may read."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    python = next((path for path in (sys.executable, "/usr/bin/python3") if nobody_runs(path)), None)
    if python is None:
        pytest.skip("there is no Python here that nobody may run lazyfs with")
    made = Split(work, s3, python, "--allow-other")
    try:
        yield made
    finally:
        made.process.terminate()
        made.process.wait(30)


@pytest.mark.root
def test_the_daemon_has_no_privilege(split: Split) -> None:
    """Another user, no capability, none to be gained, no descriptor of the mount left with root; and it serves."""
    found = dict(line.split(":\t", 1) for line in Path(f"/proc/{split.daemon}/status").read_text().splitlines())
    assert found["Uid"].split() == [str(NOBODY)] * 4
    assert found["Groups"].split() == []
    assert found["NoNewPrivs"] == "1"
    assert {int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    links = [os.readlink(path) for path in Path(f"/proc/{split.process.pid}/fd").iterdir()]
    assert "/dev/fuse" not in links
    assert (split.path / "weights").read_bytes() == DATA
    fields = mountinfo(split.path)
    assert {"ro", "nosuid", "nodev", "noatime"} <= set(fields[5].split(","))
    assert fields[fields.index("-") + 1 : fields.index("-") + 3] == ["fuse.lazyfs", "s3://models/"]
    (report,) = json.loads(run(["status", "--json", split.path], {"PATH": "/usr/bin:/bin"}).stdout)
    assert report["health"] == "ok"
    assert report["pid"] == split.daemon
    assert report["mountpoint"] == str(split.path), "found through the descriptor"


@pytest.mark.root
@pytest.mark.parametrize("how", ["SIGTERM", "daemon killed", "unmount"])
def test_who_mounted_unmounts(split: Split, how: str) -> None:
    """However it ends, both are gone, and so is the mount."""
    if how == "SIGTERM":
        split.process.send_signal(signal.SIGTERM)
    elif how == "unmount":
        assert run(["unmount", split.path], {"PATH": "/usr/bin:/bin"}).returncode == 0
    else:
        os.kill(split.daemon, signal.SIGKILL)
    assert split.process.wait(30) == (128 + signal.SIGKILL if how == "daemon killed" else 0)
    assert not is_mounted(split.path)
    assert not Path(f"/proc/{split.daemon}").exists()


@pytest.mark.root
def test_the_daemon_does_not_outlive_who_can_unmount(split: Split) -> None:
    split.process.kill()
    split.process.wait(30)
    wait_until(lambda: not Path(f"/proc/{split.daemon}").exists(), "the daemon has ended")


def test_what_cannot_be_served_is_refused() -> None:
    """By one sentence each, before S3 is asked."""
    with pytest.raises(SetupError, match="is not open"):
        handed.place_of(987654)
    with open(os.devnull, "rb") as other, pytest.raises(SetupError, match="is not an open /dev/fuse"):
        handed.place_of(other.fileno())
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    try:
        with pytest.raises(SetupError, match="is not mounted"):
            handed.place_of(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.root
def test_a_background_mount_takes_a_descriptor(s3: FastS3Server, mounter: Mounter) -> None:
    """By the same root here; what it inherits is what matters."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    s3.put("models", "weights", DATA)
    path = mounter.place()
    log = mounter.watch_log(mounter.work / "daemon.log")
    fd = handed.mount_descriptor("s3://models/", str(path), uid=0, gid=0, allow_other=False, noexec=True)
    command = [*COMMAND, "mount", *mounter.options(s3), f"--cache-dir={mounter.cache()}", f"--log-file={log}",
               "s3://models", f"/dev/fd/{fd}"]  # fmt: skip
    subprocess.run(command, cwd=ROOT, env=environment(mounter.work / "home", s3), pass_fds=(fd,), check=True,
                   timeout=60)  # fmt: skip
    os.close(fd)
    assert (path / "weights").read_bytes() == DATA
    assert "noexec" in mountinfo(path)[5].split(",")
    assert run(["unmount", path], {"PATH": "/usr/bin:/bin"}).returncode == 0


@pytest.mark.root
def test_it_is_not_handed_over(split: Split) -> None:
    """The end of the daemon is that of the mount here; who asks for an upgrade is told so, and nothing happens."""
    done = run(["upgrade", split.path], {"PATH": "/usr/bin:/bin"})
    assert (done.returncode, "mount-fd" in done.stderr) == (1, True), done.stderr
    assert (split.path / "weights").read_bytes() == DATA


@pytest.mark.root
def test_an_ordinary_user_upgrades(work: Path, s3: FastS3Server) -> None:
    """Of a mount that fusermount3 made, and that the last process takes away by it."""
    if not nobody_runs("/usr/bin/python3"):
        pytest.skip("there is no Python here that nobody may run lazyfs with")
    if os.stat("/dev/fuse").st_mode & 0o006 != 0o006:
        pytest.skip("nobody may not open /dev/fuse here")
    s3.put("models", "weights", DATA)
    place = work / "mnt"
    for directory in (place, work / "cache", work / "home"):
        directory.mkdir(mode=0o700)
        os.chown(directory, NOBODY, NOBODY)
    env = environment(work / "home", s3, **FOUND)

    def lazyfs(*arguments: str) -> str:
        command = ["/usr/bin/python3", "-m", "lazyfs", *arguments]
        done = subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", env=env,
                              capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    lazyfs("mount", f"--endpoint-url={s3.url}", f"--region={s3.region}", f"--cache-dir={work / 'cache'}",
           "--memory-budget=64MiB", "s3://models", str(place))  # fmt: skip
    before = json.loads(lazyfs("stats", str(place), "--json"))["pid"]
    assert json.loads(lazyfs("upgrade", str(place), "--json"))["pid"] != before
    assert json.loads(lazyfs("stats", str(place), "--json"))["failures"] == 0
    lazyfs("unmount", str(place))
    assert not is_mounted(place)
    lazyfs("mount", f"--endpoint-url={s3.url}", f"--region={s3.region}", f"--cache-dir={work / 'cache'}",
           "--memory-budget=64MiB", "s3://models", str(place))  # fmt: skip
    pid = json.loads(lazyfs("upgrade", str(place), "--json"))["pid"]
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_mounted(place), "who took it over takes it away")
