"""P13: keys that mean harm, through a real listing and a real mount: each where the written rule of names.py says, or
hidden and counted; and nothing on the disk is named by one."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.mounts.mounting import Mounter, environment, run
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault

LONG = "n" * 255
HIDDEN = {
    "name is . or ..": ["../../escape", "a/../b", "..", ".", "./x", "../.."],
    "empty name between slashes": ["/etc/passwd", "a//b", "//", "///x", "a///"],
    "name holds a NUL byte": ["a\0b", "nul\0/inner", "\0"],
    "name is longer than 255 bytes": ["m" * 256, "\u00e9" * 128, "a/" + "o" * 300, "p" * 1024, "q" * 256 + "/inner"],
    "directory marker": ["marker/", "a/"],
    "a directory has the same name": ["both", "twice/both"],
}
SHOWN = [
    "%2e%2e/escape", "%2e%2e%2fescape", "%00", "new\nline", "\r\n", "tab\tbell\x07escape\x1b[31m", "-rf ~", "$(id)",
    "lazyfs-cache.json", "open", "room", "index/data.mdb", "index/lock.mdb", "daemons/0000000000000001", "damaged/x",
    f"objects/ab/{'ab' * 16}.00000000", "\ufffd", "\u202egnp.exe", "a/inner", "both/inner", "twice/both/inner",
    "/".join([LONG] * 4), "....", ".../...", " ", "~", "con", ".lazyfs", "user.lazyfs.stats",
]  # fmt: skip
"""Odd, and names like any other. The long one has 1,023 bytes, and S3 takes no more than 1,024."""


def test_every_hostile_key(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """What is shown is read, what is hidden is counted for its reason, and the disk has none of their names."""
    for number, key in enumerate(SHOWN):
        s3.put("models", key, f"shown {number}".encode())
    for keys in HIDDEN.values():
        for key in keys:
            s3.put("models", key, b"hidden")
    before = {path for path in mounter.work.rglob("*") if mounter.place() not in path.parents}
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=indefinite", "--log-level=debug")
    found = {
        os.path.relpath(os.path.join(top, name), mount.path) for top, _, names in os.walk(mount.path) for name in names
    }
    assert found == set(SHOWN)
    for number, key in enumerate(SHOWN):
        fd = reader.call("open_file", f"{mount.path}/{key}")
        assert reader.call("pread", fd, 100, 0) == f"shown {number}".encode()
        reader.call("close_file", fd)
        assert os.fsdecode(os.getxattr(f"{mount.path}/{key}", "user.lazyfs.key")) == key
    shown = run(["status", mount.path, "--json"], environment(mounter.work / "home", s3))
    (status,) = json.loads(shown.stdout)
    assert set(status["hidden"]) == set(HIDDEN)
    mount.settle()
    made = {path for path in mounter.work.rglob("*") if mount.path not in path.parents} - before
    inside = {str(path.relative_to(mount.cache)) for path in made if mount.cache in path.parents}
    objects = {path for path in inside if re.fullmatch(r"objects/[0-9a-f]{2}(/[0-9a-f]{32}\.[0-9a-f]{8})?", path)}
    assert len([path for path in objects if "." in path]) == len(SHOWN)
    assert inside - objects <= {
        "lazyfs-cache.json", "open", "room", "index", "index/data.mdb", "index/lock.mdb", "objects", "daemons",
        *(path for path in inside if re.fullmatch("daemons/[0-9a-f]{16}", path)),
    }  # fmt: skip
    outside = {path.name for path in made if mount.cache not in path.parents}
    assert outside <= {"cache", mount.log.name, "home", "mnt"}


@pytest.mark.parametrize("key", ["../../escape", "/etc/passwd", "nul\0/inner"])
def test_a_hidden_key_is_not_found_by_its_name(s3: FastS3Server, mounter: Mounter, key: str) -> None:
    """Nor by any spelling of it that the kernel lets through; and a walk upwards leaves the mount, as everywhere."""
    s3.put("models", key, b"hidden")
    s3.put("models", "a/seen", b"seen")
    mount = mounter.mount(s3, "s3://models")
    for spelling in (key, key.replace("\0", ""), key.replace("..", "%2e%2e"), key.replace("/", "%2f")):
        try:
            data = Path(f"{mount.path}/{spelling}").read_bytes()
        except (OSError, ValueError):
            continue
        assert data != b"hidden"
    assert sorted(os.listdir(mount.path)) == ["a"]


def test_a_line_break_makes_no_line_in_the_log(s3: FastS3Server, mounter: Mounter) -> None:
    """In a key, and in what a server says when it refuses it: one line, with the break spelled out."""
    forged = "x\n2026-01-01 00:00:00,000 ERROR lazyfs: forged"
    s3.put("models", forged, b"x" * 10)
    s3.fault = lambda request: Fault(status=403, code=forged) if request.kind == "GET" else None
    mount = mounter.mount(s3, "s3://models", expect=["read failed with EACCES"])
    with pytest.raises(PermissionError):
        Path(mount.path, forged).read_bytes()
    assert r"EACCES: x\n2026-01-01 00:00:00,000 ERROR" in mount.logged()
    assert not [line for line in mount.logged().splitlines() if line.startswith("2026-01-01 00:00:00,000")]
    shown = run(["status", mount.path], environment(mounter.work / "home", s3))
    assert not [line for line in shown.stdout.splitlines() if line.startswith("2026-01-01 00:00:00,000")]


ODD_PREFIXES = ["a,allow_other,b\\,allow_other,c", "oct\\101al \u00fc\u6a21 tab\tline\n"]


@pytest.mark.parametrize("prefix", ODD_PREFIXES)
def test_an_odd_prefix_is_the_source_of_its_mount(s3: FastS3Server, mounter: Mounter, prefix: str) -> None:
    """In the kernel's table as the user wrote it, and no part of it is an option."""
    s3.put("models", f"{prefix}/x", b"x")
    mount = mounter.mount(s3, f"s3://models/{prefix}/")
    assert (mount.path / "x").read_bytes() == b"x"
    shown = run(["status", mount.path, "--json"], environment(mounter.work / "home", s3))
    (status,) = json.loads(shown.stdout)
    assert status["source"] == f"s3://models/{prefix}/"
    (line,) = [one for one in Path("/proc/self/mountinfo").read_text().splitlines() if f" {mount.path} " in one]
    assert "allow_other" not in line.rpartition(" ")[2].split(",")
