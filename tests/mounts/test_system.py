"""mount(8), fstab and systemd know lazyfs; and what it leaves on the disk is its owner's alone (P13)."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import ROOT, Mounter, environment, is_mounted, mountinfo, run
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server


def options_of(mounter: Mounter, s3: FastS3Server, *more: str) -> str:
    """What `-o` needs."""
    log = mounter.watch_log(mounter.work / "daemon.log")
    words = [f"endpoint_url={s3.url}", "region=us-east-1", f"cache_dir={mounter.cache()}", f"log_file={log}"]
    return ",".join([*words, *more])


@pytest.mark.root
def test_mount_8(s3: FastS3Server, mounter: Mounter, helper: Path) -> None:
    s3.put("models", "llm/x", b"x")
    path, env = mounter.place(), environment(mounter.work / "home", s3)
    options = options_of(mounter, s3, "allow_other", "metadata-ttl=1h", "ro", "nodev", "x-gvfs-hide")
    command = ["mount", "-t", "lazyfs", "s3://models/llm/", str(path), "-o", options]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (path / "x").read_bytes() == b"x"
    assert "allow_other" in mountinfo(path)[-1]
    done = subprocess.run(["umount", str(path)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert not is_mounted(path)


@pytest.mark.root
def test_a_line_of_fstab(s3: FastS3Server, mounter: Mounter, helper: Path) -> None:
    s3.put("models", "x", b"x")
    path, env = mounter.place(), environment(mounter.work / "home", s3)
    table = mounter.work / "fstab"
    table.write_text(f"s3://models {path} lazyfs _netdev,nofail,{options_of(mounter, s3)} 0 0\n")
    command = ["mount", "-T", str(table), str(path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (path / "x").read_bytes() == b"x"


@pytest.mark.root
@pytest.mark.parametrize(("word", "said"), [("no_such_option",) * 2, ("file_mode=rw", "is not a file mode")])
def test_mount_8_refuses(s3: FastS3Server, mounter: Mounter, helper: Path, word: str, said: str) -> None:
    path, env = mounter.place(), environment(mounter.work / "home", s3)
    command = ["mount", "-t", "lazyfs", "s3://models", str(path), "-o", options_of(mounter, s3, word)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not is_mounted(path)


@pytest.mark.parametrize("name", ["lazyfs@.service", "srv-models.mount"])
def test_systemd_verifies_the_units(tmp_path: Path, name: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = (ROOT / "systemd" / name).read_text()
    unit = tmp_path / name.replace("@.", "@example.")
    # Where lazyfs is installed here, for a command that is not there is an error; what it is told is in a file.
    unit.write_text(text.replace("/usr/local/bin/lazyfs", str(Path(sys.executable).with_name("lazyfs"))))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = [line for line in done.stderr.splitlines() if str(unit) in line or name.split(".", maxsplit=1)[0] in line]
    assert (done.returncode, said) == (0, []), done.stderr


def test_the_example_of_an_environment_file_is_understood(tmp_path: Path) -> None:
    """Each of its settings, the ones commented out as well, is one that lazyfs has."""
    env = environment(tmp_path / "home", None)
    for line in (ROOT / "systemd" / "example.env").read_text().splitlines():
        name, equals, value = line.removeprefix("#").partition("=")
        if equals and name.replace("_", "").isupper():
            env[name] = value
    env["LAZYFS_MOUNTPOINT"] = str(tmp_path)
    done = run(["mount", "--print-config"], env)
    named = [name for name in env if name.startswith("LAZYFS_") and name not in ("LAZYFS_SOURCE", "LAZYFS_MOUNTPOINT")]
    for name in named:
        flag = name.removeprefix("LAZYFS_").lower().replace("_", "-")
        if flag == "metrics-address" and f"\n{flag}" not in done.stdout:
            continue  # a setting that is still to come
        assert f"{flag} = " in done.stdout, flag
    assert "# environment" in done.stdout


def test_the_cache_is_its_owners_alone(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """P13: directories 0700, files 0600, whatever the umask; and no key, however hostile, becomes a path."""
    keys = ["../../escape", "/etc/passwd", "a//b", "plain-name", "dir/inner-name", "..", "x" * 200]
    for key in keys:
        s3.put("models", key, pages(1, 2 * MIB))
    before = os.umask(0)
    try:
        mount = mounter.mount(s3, "s3://models")
    finally:
        os.umask(before)
    for folder, _, names in os.walk(mount.path):
        for name in names:
            reader.call("digest", os.path.join(folder, name))
    assert mount.settle()["chunks"]["kept"] >= 6
    found = []
    for folder, folders, names in os.walk(mount.cache):
        for name in folders + names:
            path = Path(folder, name)
            status = path.lstat()
            assert status.st_uid == os.geteuid()
            assert stat.S_IMODE(status.st_mode) == (0o700 if stat.S_ISDIR(status.st_mode) else 0o600), path
            found.append(name)
    assert stat.S_IMODE(mount.cache.stat().st_mode) == 0o700
    for word in ("escape", "passwd", "plain-name", "inner-name", "xxx"):
        assert not any(word in name for name in found)
    assert not (mounter.work / "escape").exists()


def test_an_open_cache_directory_is_closed(s3: FastS3Server, mounter: Mounter) -> None:
    s3.put("models", "x", b"x")
    mounter.cache().chmod(0o755)
    mount = mounter.mount(s3, "s3://models")
    assert stat.S_IMODE(mount.cache.stat().st_mode) == 0o700


def test_a_planted_object_file_is_not_followed(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """P13: a link in the place of an object file is not read, and nothing is written through it."""
    data = pages(1, 3 * MIB)
    s3.put("models", "weights", data)
    expect = ["are damaged and will be fetched again", "the disk cache does not work", "cannot clear"]
    first = mounter.mount(s3, "s3://models")
    reader.call("digest", str(first.path / "weights"))
    first.settle()
    assert first.unmount() == 0
    (path,) = [path for path in (first.cache / "objects").rglob("*") if path.is_file()]
    target = mounter.work / "target"
    path.rename(target)
    path.symlink_to(target)
    target.write_bytes(b"\xff" * len(data))
    again = mounter.mount(s3, "s3://models", expect=expect)
    fd = reader.call("open_file", str(again.path / "weights"))
    assert reader.call("pread", fd, len(data), 0) == data
    again.settle()
    assert target.read_bytes() == b"\xff" * len(data)


def test_no_secret_is_told(s3: FastS3Server, mounter: Mounter) -> None:
    """P15: not in the log, the statistics, the process table, --print-config or the cache."""
    s3.put("models", "x", b"x")
    secret = "canary-" + "5ecret" * 4
    env = environment(mounter.work / "home", s3, AWS_SECRET_ACCESS_KEY=secret, AWS_SESSION_TOKEN=secret + "token")
    mount = mounter.mount(s3, "s3://models", "--log-level=debug", env=env)
    assert (mount.path / "x").read_bytes() == b"x"
    shown = run(["mount", "--print-config", "s3://models", mount.path], env).stdout
    assert "canary" not in shown + json.dumps(mount.stats()) + Path(f"/proc/{mount.pid}/cmdline").read_text()
    assert mount.unmount() == 0
    assert "canary" not in mount.logged()
    for path in mount.cache.rglob("*"):
        assert path.is_dir() or b"canary" not in path.read_bytes()
