"""`lazyfs upgrade`: the mount goes on in another process, and no reader notices."""

import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import (
    COMMAND,
    ROOT,
    Mount,
    Mounter,
    environment,
    is_mounted,
    outlive_moment,
    run,
    wait_until,
)
from tests.mounts.reader import Reader
from tests.mounts.test_cache import sum_of
from tests.mounts.test_passthrough import bring, kernel_passes, put
from tests.servers.fast import FastS3Server

SIZE = 24 * MIB + 777
DATA = pages(1, SIZE)
PLAIN = {"PATH": "/usr/bin:/bin"}


def upgrade(mount: Mount) -> int:
    """Have it served by another process; which."""
    before = mount.stats()["pid"]
    done = run(["upgrade", mount.path, "--json"], PLAIN)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pid"] == mount.stats()["pid"] != before
    return int(found["pid"])


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_readers_do_not_notice(s3: FastS3Server, mounter: Mounter) -> None:
    """Three times while four read, open and map a cold file: every byte is right and nothing fails; each process ends,
    and the last one is unmounted as the first would have been."""
    s3.put("models", "llm/weights", DATA)
    mount = mounter.mount(s3, "s3://models")
    path, stop = str(mount.path / "llm" / "weights"), threading.Event()
    failures: list[object] = []
    turns = [0] * 4

    def keep_reading(which: int) -> None:
        with Reader() as reader:
            held = reader.call("open_file", path)
            reader.call("map_file", held, "random")
            at = which * 5 * MIB
            while not stop.is_set():
                try:
                    fd = reader.call("open_file", path)
                    found = reader.call("pread", fd, 9000, at), reader.call("peek", held, 9000, at)
                    reader.call("close_file", fd)
                    expected = DATA[at : at + 9000]
                    failures.extend(one for one in [found] if one != (expected, expected))
                    reader.call("forget_pages", held)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure
                    failures.append(error)
                turns[which] += 1
                at = (at + 1_234_567) % (SIZE - 9000)

    def all_read() -> None:
        seen = list(turns)
        wait_until(lambda: all(now > then for now, then in zip(turns, seen, strict=True)), "all of them read on")

    threads = [threading.Thread(target=keep_reading, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    pids = [mount.pid]
    try:
        for _ in range(3):
            all_read()
            pids.append(upgrade(mount))
        all_read()
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert failures == []
    assert mount.process.wait(20) == 0
    wait_until(lambda: all(map(ended, pids[:-1])), "those before have ended")
    assert run(["unmount", mount.path], PLAIN).returncode == 0
    assert not is_mounted(mount.path)
    assert ended(pids[-1])


def test_a_read_under_way_is_answered_by_who_began_it(
    s3: FastS3Server, mounter: Mounter, reader: Reader
) -> None:
    """S3 does not answer: the other process serves meanwhile, the first one stays until its reader has his bytes."""
    s3.put("models", "slow", DATA)
    s3.put("models", "quick", pages(2, MIB))
    mount = mounter.mount(s3, "s3://models")
    with s3.hold(lambda request: request.kind == "GET" and request.key == "slow") as gate:
        fd = reader.call("open_file", str(mount.path / "slow"))
        reader.begin("pread", fd, MIB, 5 * MIB)
        gate.wait_for(1)
        upgrade(mount)
        assert (mount.path / "quick").read_bytes() == pages(2, MIB)
        assert mount.process.poll() is None
        gate.release()
        assert reader.result() == DATA[5 * MIB : 6 * MIB]
    assert mount.process.wait(20) == 0
    assert sum_of(reader.call("pread", fd, SIZE, 0)) == sum_of(DATA)


def test_what_the_kernel_counts_on(s3: FastS3Server, mounter: Mounter) -> None:
    """Handles of files and directories, numbers of inodes, a file that was replaced meanwhile; and the kernel's
    forgetting comes out even."""
    for number in range(3000):
        s3.put("models", f"many/{number:05}-{'x' * 40}", b"%d" % number)
    s3.put("models", "llm/weights", DATA)
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=0s", expect=["ESTALE"])
    inodes = {path.name: path.stat().st_ino for path in (mount.path / "llm", mount.path / "llm" / "weights")}
    held = os.open(mount.path / "llm" / "weights", os.O_RDONLY)
    assert os.pread(held, SIZE, 0) == DATA
    mount.settle()
    listing = os.scandir(mount.path / "many")
    names = [next(listing).name for _ in range(10)]
    upgrade(mount)
    names += [entry.name for entry in listing]
    assert sorted(names) == [f"{number:05}-{'x' * 40}" for number in range(3000)]
    assert {path.name: path.stat().st_ino for path in (mount.path / "llm", mount.path / "llm" / "weights")} == inodes
    s3.put("models", "llm/weights", pages(9, MIB))
    outlive_moment()
    assert (mount.path / "llm" / "weights").read_bytes() == pages(9, MIB)
    upgrade(mount)
    os.posix_fadvise(held, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(held, 3 * MIB, MIB) == DATA[MIB : 4 * MIB], "of the version that was opened, from the cache"
    assert (mount.path / "llm" / "weights").read_bytes() == pages(9, MIB)
    with pytest.raises(FileNotFoundError):
        os.stat(mount.path / "llm" / "nothing")
    os.close(held)
    assert mount.stats()["inodes"] > 3000
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("2")
        wait_until(lambda: mount.stats()["inodes"] < 10, "the kernel has forgotten them, and so have we")
    assert mount.stats()["failures"] == 0


@pytest.mark.skipif(not kernel_passes(), reason="needs root and Linux 6.9")
def test_what_the_kernel_reads_itself(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """A file that is passed through stays so, for who has it open and for who opens it beside him."""
    put(s3, data=DATA)
    first = mounter.mount(s3, "s3://models")
    bring(first, data=DATA)
    assert first.unmount() == 0
    mount = mounter.mount(s3, "s3://models", "--passthrough")
    path = str(mount.path / "weights")
    fd = reader.call("open_file", path)
    reader.call("map_file", fd)
    upgrade(mount)
    assert mount.stats()["passthrough"]["files"] == 1
    other = reader.call("open_file", path)
    assert sum_of(reader.call("pread", other, SIZE, 0)) == sum_of(DATA)
    assert sum_of(reader.call("peek", fd, SIZE, 0)) == sum_of(DATA)
    reader.call("unmap", fd)
    reader.call("close_file", fd)
    reader.call("close_file", other)
    wait_until(lambda: mount.stats()["passthrough"]["files"] == 0, "the kernel has let it go")
    assert sum_of(Path(path).read_bytes()) == sum_of(DATA)
    assert mount.stats()["reads"]["count"] == 0


LATE = """#!{python}
import json, socket, sys
channel = socket.socket(fileno=int(next(word for word in sys.argv if "successor-fd" in word).split("=")[1]))
words = channel.makefile("rwb")
words.readline()
words.write(b'{{"message": "prepared"}}\\n')
words.flush()
assert json.loads(words.readline())["state"]["format"] == 1
{then}
"""
THEN = {
    "ends": "sys.exit(1)",
    "refuses": """words.write(b'{"message": "failed", "words": "not today"}\\n'); words.flush(); words.readline()""",
}


@pytest.mark.parametrize("how", ["no program", "ends at once", *THEN])
def test_one_that_fails_changes_nothing(s3: FastS3Server, mounter: Mounter, tmp_path: Path, how: str) -> None:
    """Whatever the other process does before it serves: the mount goes on, says why, and can be upgraded later."""
    s3.put("models", "weights", DATA)
    mount = mounter.mount(s3, "s3://models", expect=["is not handed over, and goes on"])
    program = Path("/bin/false")
    if how in THEN:
        program = tmp_path / "p"
        program.write_text(LATE.format(python=sys.executable, then=THEN[how]))
        program.chmod(0o755)
    if how == "no program":
        program = tmp_path / "n"
    held = os.open(mount.path / "weights", os.O_RDONLY)
    pid = mount.stats()["pid"]
    for attempt in range(2):
        os.getxattr(mount.path, f"user.lazyfs.upgrade:once={attempt},python={os.fsencode(program).hex()}")

        def settled() -> str:
            found = json.loads(os.getxattr(mount.path, "user.lazyfs.upgrading"))
            return str(found["trouble"]) if not found["step"] else ""

        assert wait_until(settled, "it was given up")
        os.posix_fadvise(held, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(held, MIB, attempt * 4 * MIB) == DATA[attempt * 4 * MIB : (attempt * 4 + 1) * MIB]
    assert mount.stats()["pid"] == pid
    assert upgrade(mount) != pid
    assert sum_of(os.pread(held, SIZE, 0)) == sum_of(DATA)
    os.close(held)
    assert run(["unmount", mount.path], PLAIN).returncode == 0
    assert mount.process.wait(20) == 0


def test_after_one_that_failed_it_ends_as_always(s3: FastS3Server, mounter: Mounter, tmp_path: Path) -> None:
    """The session that took up again is unmounted by a signal, too."""
    s3.put("models", "weights", DATA)
    mount = mounter.mount(s3, "s3://models", expect=["is not handed over, and goes on"])
    program = tmp_path / "p"
    program.write_text(LATE.format(python=sys.executable, then=THEN["ends"]))
    program.chmod(0o755)
    os.getxattr(mount.path, f"user.lazyfs.upgrade:once=1,python={os.fsencode(program).hex()}")
    wait_until(lambda: not json.loads(os.getxattr(mount.path, "user.lazyfs.upgrading"))["step"], "it was given up")
    assert mount.signal(signal.SIGTERM) == 0
    assert not is_mounted(mount.path)


def test_systemd_and_whoever_asks_for_numbers(s3: FastS3Server, mounter: Mounter, tmp_path: Path) -> None:
    """systemd is told whose process the service is now, and the new one that it is ready; metrics are served at the
    same place; the end is as always."""
    s3.put("models", "weights", DATA)
    address = tmp_path / "metrics"
    mount = mounter.mount(s3, "s3://models", f"--metrics-address=unix:{address}")

    def identity() -> tuple[int, int]:
        found = address.stat()
        return found.st_ino, found.st_ctime_ns  # the number of an inode alone is soon another's

    before = identity()
    pid = upgrade(mount)
    assert mount.process.wait(20) == 0
    wait_until(lambda: address.exists() and identity() != before, "it listens again")
    assert stat.S_ISSOCK(address.stat().st_mode)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(address))
        client.sendall(b"GET /cache/stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b"200" in client.makefile("rb").readline()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_mounted(mount.path), "it is unmounted")
    wait_until(lambda: ended(pid), "it has ended")
    assert not address.exists()


def test_who_may_not(s3: FastS3Server, mounter: Mounter) -> None:
    """A place that is no mount, an interpreter that is none, and a mount in somebody's foreground: a sentence each."""
    done = run(["upgrade", mounter.work], PLAIN)
    assert (done.returncode, "not a lazyfs mount" in done.stderr) == (2, True), done.stderr
    s3.put("models", "weights", DATA)
    place, log = mounter.place(), mounter.watch_log(mounter.work / "log")
    env = environment(mounter.work / "home", s3)
    options = ["-f", *mounter.options(s3), f"--cache-dir={mounter.cache()}"]
    command = [*COMMAND, "mount", *options, "s3://models", str(place)]
    with log.open("ab") as stream, subprocess.Popen(command, cwd=ROOT, env=env, stdout=stream, stderr=stream) as daemon:
        wait_until(lambda: "is mounted at" in log.read_text(), "it is mounted")
        done = run(["upgrade", place], PLAIN)
        assert (done.returncode, "somebody's foreground" in done.stderr) == (1, True), done.stderr
        daemon.terminate()
    mount = mounter.mount(s3, "s3://models")
    answer = json.loads(os.getxattr(mount.path, "user.lazyfs.upgrade:once=1,python=xyz"))
    assert "no path in hexadecimal" in answer["error"]


def test_what_was_compared_is_not_compared_again(s3: FastS3Server, mounter: Mounter) -> None:
    """With digests beside it: the next process asks S3 nothing, and knows which digest held."""
    s3.put("models", "llm/weights", DATA)
    s3.put("models", "llm/bare", pages(2, MIB))
    s3.put("models", "llm/bare.sha256", hashlib.sha256(pages(2, MIB)).hexdigest().encode())
    s3.put("models", "llm/SHA256SUMS", f"{hashlib.sha256(DATA).hexdigest()}  weights\n".encode())
    mount = mounter.mount(s3, "s3://models")
    paths = [mount.path / "llm" / name for name in ("weights", "bare")]
    with paths[0].open("rb") as one, paths[1].open("rb") as two:
        assert (sum_of(one.read()), sum_of(two.read())) == (sum_of(DATA), sum_of(pages(2, MIB)))

        def compared() -> bool:
            return all(os.getxattr(path, "user.lazyfs.verified") == b"sha256" for path in paths)

        wait_until(compared, "both were compared")
        mount.settle()
        s3.take_log()
        upgrade(mount)
        assert compared()
        assert (mount.stats()["verified"]["without"], mount.stats()["verified"]["under_way"]) == (0, 0)
    assert all(path.read_bytes() for path in paths)
    assert compared()
    assert s3.take_log() == []
