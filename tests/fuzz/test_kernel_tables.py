"""The kernel's tables: lines of mountinfo, in which any user may write the names, and limits of cgroups (P8)."""

import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.objects import GIB, MIB
from lazyfs.service import mounts
from lazyfs.service.machine import memory_limit
from lazyfs.service.mounts import Mount, mount_of
from tests.fuzz.examples import examples

PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20).map("/".__add__)


def mangled(text: str) -> bytes:
    """As the kernel writes a name there (mangle in fs/proc_namespace.c)."""
    return re.sub(rb"[ \t\n\\]", lambda match: b"\\%03o" % match[0][0], os.fsencode(text))


@given(PATHS, PATHS, st.lists(st.sampled_from([b"shared:1", b"master:2", b"unbindable"]), max_size=3))
@examples(300)
def test_any_name_of_a_mountpoint(path: str, source: str, optional: list[bytes]) -> None:
    """Also one with what Python takes for white space or for the end of a line: it is that mount, and no other."""
    words = [b"36", b"35", b"98:0", b"/", mangled(path), b"rw,noatime", *optional, b"-"]
    words += [b"ext4", mangled(source), b"rw"]
    assert mount_of(b" ".join(words)) == Mount(path, "ext4", source, "98:0", "rw,noatime")


@pytest.mark.root
@pytest.mark.parametrize("name", ["a\rb", "a\x1c-\x1cb c", "a\u2028b", "a\x85 b", "\\040", "a\nb\\"])
def test_a_mountpoint_with_an_odd_name(tmp_path: Path, name: str) -> None:
    """Of somebody else's mount: every command of lazyfs reads the whole table, and must find it, and the rest."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    path = tmp_path / name
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "odd", str(path)], check=True, timeout=30)
    try:
        found = mounts.mounted_at(str(path))
        assert found is not None
        assert (found.fstype, found.source) == ("tmpfs", "odd")
        assert mounts.mounted_at("/proc") is not None
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=30)


# ---- memory


def machine(root: Path, cgroup: bytes, limits: dict[str, str]) -> int:
    """What a machine of 8 GiB with these files comes to."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text("MemTotal:        8388608 kB\nMemFree: 1 kB\n")
    (root / "proc" / "self" / "cgroup").write_bytes(cgroup)
    for name, text in limits.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return memory_limit(root)


@pytest.mark.parametrize(
    ("cgroup", "limits", "limit"),
    [
        (b"", {}, 8 * GIB),
        (b"0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "max\n"}, 8 * GIB),
        (b"0::/a/b\n", {"a/b/memory.max": f"{GIB}\n", "a/memory.max": "max\n"}, GIB),
        (b"0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": f"{512 * MIB}\n"}, 512 * MIB),
        (b"0::/a/b\n", {"a/b/memory.max": f"{GIB}\n", "a/memory.max": f"{512 * MIB}\n"}, 512 * MIB),
        (b"0::/a/b\n", {"a/b/memory.max": f"{16 * GIB}\n"}, 8 * GIB),
        (b"0::/\n", {"memory.max": f"{GIB}\n"}, GIB),
        (b"0::/../../x\n", {"memory.max": f"{GIB}\n"}, GIB),
        (b"4:memory:/a/b\n0::/\n", {"memory/a/b/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        (b"4:cpu,memory:/a/b\n", {"memory/a/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        (b"4:memory:/docker/x\n", {"memory/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        (b"4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, 8 * GIB),
        (b"4:cpu:/a\n", {"memory/a/memory.limit_in_bytes": f"{GIB}\n"}, 8 * GIB),
        (b"0::/caf\xe9\n", {}, 8 * GIB),
        (b"0::/a:b/c\n", {"a:b/c/memory.max": f"{GIB}\n"}, GIB),
    ],
)  # fmt: skip
def test_the_least_limit_counts(tmp_path: Path, cgroup: bytes, limits: dict[str, str], limit: int) -> None:
    """Of the machine and of every cgroup above the process, in both versions."""
    assert machine(tmp_path, cgroup, limits) == limit


@pytest.mark.root
def test_a_real_cgroup_counts() -> None:
    """A process in a cgroup of 96 MiB, and in one below it that has no limit of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    tops = {"": "/sys/fs/cgroup", "memory": "/sys/fs/cgroup/memory"}
    groups = [Path(tops[controllers] + path) for _, controllers, path in lines if controllers in tops]
    names = ("memory.max", "memory.limit_in_bytes")
    group = next((group for group in groups for name in names if (group / name).exists()), None)
    if group is None:
        pytest.skip("no cgroup with a limit on memory can be made here")
    outer = group / f"lazyfs-test-{uuid.uuid4().hex[:8]}"
    inner = outer / "inner"
    try:
        inner.mkdir(parents=True)
        limit = next(outer / name for name in names if (outer / name).exists())
        limit.write_text(str(96 * MIB))
    except (OSError, StopIteration):
        for path in (inner, outer):
            if path.exists():
                path.rmdir()
        pytest.skip("no cgroup with a limit on memory can be made here")
    code = "from lazyfs.service import machine; print(machine.memory_limit(), machine.default_memory_budget())"
    try:
        for place in (outer, inner):
            child = subprocess.run(
                ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', place, sys.executable, "-c", code],
                capture_output=True, text=True, check=True, timeout=60,
            )  # fmt: skip
            assert child.stdout.split() == [str(96 * MIB), str(64 * MIB)]
    finally:
        inner.rmdir()
        outer.rmdir()
