"""P7, P12: a mount ends in time whatever is open, mapped or on its way, and every reader can be killed."""

import ast
import ctypes
import functools
import os
import platform
import signal
import time
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import ROOT, Mounter, is_mounted, run, wait_until
from tests.mounts.reader import Reader, ReaderDied
from tests.servers.fast import FastS3Server

GRACE = 15.0


def is_gone(pid: int) -> bool:
    """Whether a process is dead, be it a zombie."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "unmount --lazy"])
def test_with_files_open_and_mapped(s3: FastS3Server, mounter: Mounter, how: str) -> None:
    s3.put("models", "weights", pages(1, 12 * MIB))
    mount = mounter.mount(s3, "s3://models")
    path = str(mount.path / "weights")
    with Reader() as one, Reader() as two:
        fd = one.call("open_file", path)
        one.call("pread", fd, 4096, 0)
        mapped = two.call("open_file", path)
        two.call("map_file", mapped)
        two.call("peek", mapped, 4096, 0)
        two.call("close_file", mapped)
        started = time.monotonic()
        if how.startswith("SIG"):
            assert mount.signal(signal.Signals[how]) == 0
            assert time.monotonic() - started < GRACE
            with pytest.raises(OSError, match=r"[Nn]ot connected|abort"):
                one.call("pread", fd, 4096, 8 * MIB)
            with pytest.raises(ReaderDied, match="SIGBUS"):
                two.call("peek", mapped, 4096, 8 * MIB)
        else:
            assert run(["unmount", "--lazy", mount.path], {"PATH": "/usr/bin:/bin"}).returncode == 0
            assert not is_mounted(mount.path)
            assert two.call("peek", mapped, 4096, 8 * MIB) == pages(1, 12 * MIB)[8 * MIB : 8 * MIB + 4096]
            two.call("unmap", mapped)
            one.call("close_file", fd)
            assert mount.process.wait(GRACE) == 0, "it ends when the last of them is closed"
    assert not is_mounted(mount.path)


@pytest.mark.parametrize("mapped", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_with_a_get_on_its_way(s3: FastS3Server, mounter: Mounter, mapped: bool, number: signal.Signals) -> None:
    """The GET is held at the server until all is over: nobody waits for it, and the reader gets an error."""
    s3.put("models", "weights", pages(1, 12 * MIB))
    mount = mounter.mount(s3, "s3://models")
    mount.killed = number == signal.SIGKILL
    with Reader() as reader, s3.hold() as gate:
        fd = reader.call("open_file", str(mount.path / "weights"))
        if mapped:
            reader.call("map_file", fd, "random")
        reader.begin("peek" if mapped else "pread", fd, 4096, 5 * MIB)
        gate.wait_for(1)
        started = time.monotonic()
        mount.signal(number)
        assert time.monotonic() - started < GRACE
        with pytest.raises(ReaderDied if mapped else OSError):
            reader.result(timeout=GRACE)
        reader.close()
        assert is_gone(reader.pid)


PTRACE_CONT, PTRACE_SEIZE, PTRACE_INTERRUPT = 7, 0x4206, 0x4207
"""linux/ptrace.h."""
EPOLL = {"x86_64": ("232", "281"), "aarch64": ("22",)}
"""Numbers of epoll_wait(2) and epoll_pwait(2), as /proc/PID/syscall has them."""
ALL_THREADS = 0x40000000
"""__WALL of waitpid(2): also threads that are no children."""


def stop_the_loop(pid: int) -> None:
    """Stop the thread that runs the loop, and no other, as a disk that hangs does; until the process is gone. Where it
    waits for something to do, for else it may hold Python's lock, without which no other thread goes on either."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def ask(request: int) -> None:
        assert libc.ptrace(request, pid, None, None) == 0, os.strerror(ctypes.get_errno())

    def waits() -> bool:
        ask(PTRACE_INTERRUPT)
        os.waitpid(pid, ALL_THREADS)
        if Path(f"/proc/{pid}/task/{pid}/syscall").read_text().split()[0] in EPOLL[platform.machine()]:
            return True
        ask(PTRACE_CONT)
        return False

    ask(PTRACE_SEIZE)
    wait_until(waits, "the loop waits")
    assert "State:\tt" in Path(f"/proc/{pid}/task/{pid}/status").read_text()


STUCK = ["CRITICAL lazyfs.service.watchdog: the mount", "^(Current )?[Tt]hread 0x", "^  File ", "^$"]


@pytest.mark.parametrize(
    "asked", [pytest.param(True, id="SIGTERM"), pytest.param(False, id="unasked", marks=pytest.mark.slow)]
)
def test_a_loop_that_stands_still_is_ended_from_outside(s3: FastS3Server, mounter: Mounter, asked: bool) -> None:
    """Within the grace period of a signal; without one, when it has not moved for a minute. Readers get an error."""
    s3.put("models", "weights", pages(1, 12 * MIB))
    mount = mounter.mount(s3, "s3://models", expect=STUCK)
    mount.killed = True
    with Reader() as reader, Reader() as mapped:
        descriptor = reader.call("open_file", str(mount.path / "weights"))
        other = mapped.call("open_file", str(mount.path / "weights"))
        mapped.call("map_file", other, "random")
        stop_the_loop(mount.pid)
        reader.begin("pread", descriptor, 4096, 5 * MIB)
        mapped.begin("peek", other, 4096, 9 * MIB)
        if asked:
            os.kill(mount.pid, signal.SIGTERM)
        with pytest.raises(OSError, match=r"[Nn]ot connected|abort"):
            reader.result(timeout=90)
        with pytest.raises(ReaderDied, match="SIGBUS"):
            mapped.result(timeout=GRACE)
    wait_until(lambda: is_gone(mount.pid), "the daemon has ended", GRACE)
    assert mount.process.wait(GRACE) == 1
    assert "Where its threads are" in mount.logged()
    # What it left is cleared by the next.
    again = mounter.mount(s3, "s3://models")
    assert again.unmount() == 0


def test_a_reader_in_a_held_read_can_be_killed(s3: FastS3Server, mounter: Mounter) -> None:
    """And the mount goes on for others."""
    data = pages(1, 12 * MIB)
    s3.put("models", "weights", data)
    mount = mounter.mount(s3, "s3://models")
    with Reader() as other, s3.hold() as gate:
        for function in ("digest", "mapped_digest"):
            with Reader() as victim:
                more = ["random"] if function == "mapped_digest" else []
                victim.begin(function, str(mount.path / "weights"), *more)
                gate.wait_for(1)
                victim.close()
                wait_until(functools.partial(is_gone, victim.pid), "the reader is gone")
        gate.release()
        fd = other.call("open_file", str(mount.path / "weights"))
        assert other.call("pread", fd, len(data), 0) == data


def test_nothing_notifies_the_kernel() -> None:
    """P12: none of pyfuse3's functions that invalidate or notify is named anywhere in lazyfs."""
    found = []
    for path in sorted((ROOT / "lazyfs").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if name.startswith(("invalidate", "notify_store")):
                found.append(f"{path.name}:{getattr(node, 'lineno', 0)}: {name}")
    assert found == []
