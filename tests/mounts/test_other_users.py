"""P13, P14: what somebody else on the machine can do with a mount, its cache and its daemon: nothing, unless asked.

As `nobody`, from a process of its own, in a folder that everybody may enter.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter, mountinfo
from tests.mounts.reader import Reader
from tests.mounts.test_mount_command import listening
from tests.servers.fast import FastS3Server

pytestmark = pytest.mark.root
NOBODY = 65534
DATA = pages(1, 2 * MIB)


@pytest.fixture
def open_mounter() -> Iterator[Mounter]:
    """A mounter in a folder that everybody may enter, unlike those of pytest: what is closed, lazyfs has closed."""
    work = Path(tempfile.mkdtemp(prefix="lazyfs-others-", dir="/tmp"))
    work.chmod(0o755)
    before = os.umask(0)  # and not the umask of whoever runs the tests
    try:
        made = Mounter(work)
        yield made
        made.end()
    finally:
        os.umask(before)
        shutil.rmtree(work, ignore_errors=True)


def as_nobody(code: str, *arguments: object) -> str:
    """What a program of nobody's prints; an OSError of it as its name."""
    lines = "\n    ".join(code.splitlines())
    failing = "except OSError as error:\n    print(errno.errorcode[error.errno])"
    program = f"import errno, os, sys\ntry:\n    {lines}\n{failing}"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", program, *map(str, arguments)],
        user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", env={},
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def mounted(mounter: Mounter, s3: FastS3Server, reader: Reader, *options: str) -> Mount:
    """A mount of one file, which is in the cache."""
    s3.put("models", "weights", DATA)
    mount = mounter.mount(s3, "s3://models", *options)
    reader.call("digest", str(mount.path / "weights"))
    mount.settle()
    return mount


READ = "print(len(open(sys.argv[1], 'rb').read()))"
LIST = "print(len(os.listdir(sys.argv[1])))"


@pytest.fixture(autouse=True)
def _there_is_nobody() -> None:
    """These tests need a Python that nobody may run."""
    if os.geteuid() == 0 and not os.access("/usr/bin/python3", os.X_OK):
        pytest.skip("/usr/bin/python3 is not here, and the Python that runs this may be closed to others")


def test_nobody_sees_nothing(open_mounter: Mounter, s3: FastS3Server, reader: Reader) -> None:
    """Not the mount, which the kernel keeps for its owner; not one file or folder of the cache; not the daemon."""
    mount = mounted(open_mounter, s3, reader)
    assert as_nobody(LIST, open_mounter.work) != "EACCES", "the way there is open"
    for code in (LIST, "print(os.stat(sys.argv[1]).st_mode)", "print(os.getxattr(sys.argv[1], 'user.lazyfs.stats'))"):
        assert as_nobody(code, mount.path) == "EACCES"
    assert as_nobody(READ, mount.path / "weights") == "EACCES"
    assert as_nobody(LIST, mount.cache) == "EACCES"
    paths = list(mount.cache.rglob("*"))
    assert len(paths) >= 8
    for path in paths:
        assert as_nobody(LIST if path.is_dir() else READ, path) == "EACCES", path
    for name in ("environ", "mem", "maps", "fd"):
        assert as_nobody(LIST if name == "fd" else READ, f"/proc/{mount.pid}/{name}") in ("EACCES", "EPERM"), name
    assert as_nobody("os.kill(int(sys.argv[1]), 15)", mount.pid) == "EPERM"


def test_with_allow_other_everybody_reads_the_mount_and_nothing_else(
    open_mounter: Mounter, s3: FastS3Server, reader: Reader
) -> None:
    """By the modes of its files, which the kernel checks; the cache stays closed."""
    mount = mounted(open_mounter, s3, reader, "--allow-other")
    assert as_nobody(LIST, mount.path) == "1"
    assert as_nobody(READ, mount.path / "weights") == str(len(DATA))
    assert as_nobody("os.open(sys.argv[1], os.O_WRONLY)", mount.path / "weights") in ("EACCES", "EROFS")
    assert as_nobody(LIST, mount.cache) == "EACCES"
    assert mount.unmount() == 0
    closed = mounted(open_mounter, s3, reader, "--allow-other", "--file-mode=0400", "--dir-mode=0555")
    assert as_nobody(LIST, closed.path) == "1"
    assert as_nobody(READ, closed.path / "weights") == "EACCES"


def test_the_log_is_its_owners(open_mounter: Mounter, s3: FastS3Server) -> None:
    """That of a background mount, in a folder made for it."""
    s3.put("models", "weights", DATA)
    work = open_mounter.work
    log = open_mounter.watch_log(work / "logs" / "daemon.log")
    path = open_mounter.place()
    options = [*open_mounter.options(s3), f"--cache-dir={open_mounter.cache()}", f"--log-file={log}"]
    env = {**os.environ, "AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    command = [sys.executable, "-m", "lazyfs", "mount", *options, "s3://models", str(path)]
    subprocess.run(command, env=env, check=True, timeout=60)
    assert as_nobody(READ, log) == "EACCES"
    assert as_nobody(LIST, log.parent) == "EACCES"
    assert log.stat().st_mode & 0o777 == 0o600


def test_there_is_nothing_to_connect_to(open_mounter: Mounter, s3: FastS3Server, reader: Reader) -> None:
    """P14: no socket listens, whatever its kind, and the mount has the options that make it harmless."""
    mount = mounted(open_mounter, s3, reader)
    assert listening(mount.pid) == []
    for name in os.listdir(f"/proc/{mount.pid}/fd"):
        target = os.readlink(f"/proc/{mount.pid}/fd/{name}")
        if target.startswith("socket:"):
            rows = Path(f"/proc/{mount.pid}/net/unix").read_text() + Path(f"/proc/{mount.pid}/net/udp").read_text()
            assert target[8:-1] not in rows.split() or "/" not in rows, target
    fields = mountinfo(mount.path)
    assert {"ro", "nosuid", "nodev", "noatime"} <= set(fields[5].split(","))
    shared = set(fields[fields.index("-") + 3].split(","))
    assert {"ro", "default_permissions"} <= shared
    assert "allow_other" not in shared


def test_no_core_is_dumped(open_mounter: Mounter, s3: FastS3Server, reader: Reader) -> None:
    """P15: it would hold credentials. Of what started the daemon, the limit is what it was."""
    mount = mounted(open_mounter, s3, reader)
    (line,) = [one for one in Path(f"/proc/{mount.pid}/limits").read_text().splitlines() if "core file size" in one]
    assert line.split()[4:6] == ["0", "0"]


def test_who_may_see_what_is_read(open_mounter: Mounter, s3: FastS3Server, reader: Reader) -> None:
    """Somebody else may read a mount that is open to others, and see its counters, but not which files others read;
    root may, who did not mount it."""
    mount = mounted(open_mounter, s3, reader, "--allow-other")
    look = "print(os.getxattr(sys.argv[1], 'user.lazyfs.' + sys.argv[2]))"
    assert "weights" in str(os.getxattr(mount.path, "user.lazyfs.activity"))
    assert '"uptime"' in as_nobody(look, mount.path, "stats")
    assert as_nobody(look, mount.path, "activity") == "EPERM"
    assert as_nobody(look, mount.path, "log-level:level=debug") == "EPERM"
    assert mount.stats()["log_level"] == "info"
