"""`lazyfs top`: what a mount says of itself in the middle of a read, and the page that is drawn of it."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts.mounting import COMMAND, ROOT, Mount, Mounter, environment, run, wait_until
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault
from tests.servers.records import Request

MIB = 1 << 20
SIZE = 24 * MIB
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]")


@pytest.fixture
def reading(s3: FastS3Server, mounter: Mounter) -> Iterator[tuple[Mount, int]]:
    """A mount in the middle of a read: half of a file is here, the rest is held back by the server. Gives the mount,
    and a descriptor of the file."""
    s3.put("models", "llm/shard-1", bytes(SIZE))
    mount = mounter.mount(s3, "s3://models", expect=["Access Denied"])
    with s3.hold(late) as gate, open(mount.path / "llm" / "shard-1", "rb", buffering=0) as file:
        # The kernel asks for what is read and no more, and nothing of that is held back.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for place in range(SIZE // 2 // MIB):
            assert len(os.pread(file.fileno(), MIB, place * MIB)) == MIB
        gate.wait_for()
        yield mount, file.fileno()


def late(request: Request) -> bool:
    """Whether it asks for bytes of the second half."""
    return request.kind == "GET" and request.range is not None and request.range[0] >= SIZE // 2


def asked(mounter: Mounter, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`lazyfs top ARGUMENTS`, to its end."""
    return run(["top", *arguments], environment(mounter.work / "home", None, NO_COLOR="1", COLUMNS="80", LINES="24"))


def test_json_in_the_middle_of_a_read(reading: tuple[Mount, int], mounter: Mounter) -> None:
    """The file that is read, how much of it was, the requests that wait, and the counts behind the rates."""
    mount, _ = reading
    done = asked(mounter, str(mount.path), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["source"], found["mountpoint"]) == ("s3://models", str(mount.path))
    assert found["open_files"] == 1
    (file,) = found["files"]
    assert (file["path"], file["size"], file["handles"]) == ("llm/shard-1", SIZE, 1)
    assert file["read"] == found["totals"]["to_readers"] == SIZE // 2
    assert 0 <= file["here"] <= SIZE
    assert file["streams"] == found["streams"] == 1
    assert file["ahead"] == found["ahead"] > 0
    assert found["totals"]["from_store"] >= SIZE // 2
    assert found["totals"]["from_disk"] == 0
    assert found["requests_under_way"] >= 1
    waiting = [one for one in found["requests"] if one["under_way"]]
    assert {(one["what"], one["key"]) for one in waiting} == {("GET", "llm/shard-1")}
    assert all(one["start"] + one["size"] > SIZE // 2 for one in waiting)
    assert waiting[0]["seconds"] >= found["seconds"] > 0
    assert found["hits"]["ever"]["disk"] == 0
    assert found["rates"]["to_readers"] == 0, "nobody read while it looked"


def test_a_page_in_the_middle_of_a_read(reading: tuple[Mount, int], mounter: Mounter) -> None:
    """On 80 columns and 24 lines; without a mountpoint where there is one, and without an escape sequence."""
    mount, _ = reading
    done = asked(mounter, "--once", str(mount.path))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.stdout
    text = done.stdout
    assert re.match(r"pid \d+, up \d+ s  s3://models at /", lines[0])
    for words in ("from S3", "from disk", "to readers", "hits, now (ever)", "file (1 open)", "slowest requests"):
        assert words in text
    (row,) = (line for line in lines if line.startswith("llm/shard-1"))
    assert re.search(r"B/s +1 +24\.0 MiB +[#.]{16} +\d+ %", row), row
    assert re.search(r"\d s  GET llm/shard-1 .*under way", text)
    assert "warnings and errors: none" in text


def test_errors_and_closed_files(s3: FastS3Server, mounter: Mounter) -> None:
    """What went wrong is told in the words of the log, and a file that was closed is still there, as closed."""
    s3.put("models", "weights", bytes(MIB))
    s3.put("models", "denied\x1b[31m", bytes(MIB))
    s3.fault = lambda request: Fault(status=403, code="AccessDenied") if request.key.startswith("denied") else None
    mount = mounter.mount(s3, "s3://models", expect=["Access Denied"])
    assert len((mount.path / "weights").read_bytes()) == MIB
    with pytest.raises(PermissionError):
        (mount.path / "denied\x1b[31m").read_bytes()
    found = json.loads(asked(mounter, str(mount.path), "--json").stdout)
    assert {file["path"]: file["handles"] for file in found["files"]} == {"weights": 0, "denied\x1b[31m": 0}
    assert ("error", True) in {(one["level"], "Access Denied" in one["words"]) for one in found["words"]}
    assert any((one["what"], one["under_way"]) == ("LIST", False) for one in found["requests"])
    assert found["failures"] >= 1
    assert {one["failure"] for one in found["requests"] if one["key"].startswith("denied")} == {"AccessDenied"}
    page = asked(mounter, "--once", str(mount.path)).stdout
    assert "Access Denied" in page
    assert "closed" in page
    assert "\x1b" not in page, "a name with an escape sequence is no order to the terminal"


def test_bytes_from_disk(s3: FastS3Server, mounter: Mounter) -> None:
    """After a remount they come from there, and are counted as that."""
    s3.put("models", "weights", bytes(4 * MIB))
    first = mounter.mount(s3, "s3://models")
    assert len((first.path / "weights").read_bytes()) == 4 * MIB
    wait_until(lambda: os.getxattr(first.path / "weights", "user.lazyfs.cached_bytes") == b"%d" % (4 * MIB), "kept")
    first.unmount()
    second = mounter.mount(s3, "s3://models")
    assert len((second.path / "weights").read_bytes()) == 4 * MIB
    found = json.loads(asked(mounter, str(second.path), "--json").stdout)
    assert found["totals"] == {"from_store": 0, "from_disk": 4 * MIB, "to_readers": 4 * MIB}
    assert found["hits"]["ever"]["disk"] > 0
    assert [file["here"] for file in found["files"]] == [4 * MIB]


def test_more_than_fits_is_told_in_part(s3: FastS3Server, mounter: Mounter) -> None:
    """Many files with long names: an attribute holds 64 KiB, and the last ones read are told of."""
    name = "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 80
    for number in range(40):
        s3.put("models", f"{name}/{name}/{name}/{name}/{number}", bytes(1000))
    mount = mounter.mount(s3, "s3://models")
    with contextlib.ExitStack() as stack:
        for number in range(40):
            stack.enter_context(open(mount.path.joinpath(name, name, name, name, str(number)), "rb")).read(1)
        raw = os.getxattr(mount.path, "user.lazyfs.activity")
    found = json.loads(raw)
    assert len(raw) <= 60_000
    assert found["open_files"] == 40
    paths = [file["path"] for file in found["files"]]
    assert len(paths) >= 8
    assert paths[0].endswith("/39")
    assert paths[0].startswith("...")


def test_wrong_calls(s3: FastS3Server, mounter: Mounter) -> None:
    """One sentence that says what to do."""
    s3.put("models", "weights", bytes(MIB))
    done = asked(mounter, "--once", str(mounter.work))
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not a lazyfs mount; `lazyfs status` lists them" in done.stderr
    one = mounter.mount(s3, "s3://models")
    two = mounter.mount(s3, "s3://models", at=mounter.place("second"), cache=mounter.cache("other"))
    done = asked(mounter, "--once")
    assert done.returncode == 2
    assert done.stderr.startswith("lazyfs: several are mounted, say which one: ")
    assert str(one.path) in done.stderr
    assert str(two.path) in done.stderr
    assert done.stderr.count("\n") == 1


class Terminal:
    """`lazyfs top` on a terminal of 80 columns and 24 lines. `screen` is all that was written to it, without orders."""

    def __init__(self, path: Path, env: dict[str, str]) -> None:
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            os.execve(COMMAND[0], [*COMMAND, "top", str(path)], env)
        self.raw = b""

    @property
    def screen(self) -> str:
        """So far, with one blank for all white space, for where lines end depends on names."""
        return " ".join(ESCAPES.sub("", self.raw.decode(errors="replace")).split())

    def _more(self) -> bool:
        """Take what is written; False when there will be no more."""
        if select.select([self._descriptor], [], [], 0.05)[0]:
            try:
                found = os.read(self._descriptor, 65536)
            except OSError:  # EIO: who wrote is gone
                return False
            self.raw += found
            return bool(found)
        return True

    def wait_for(self, pattern: str) -> None:
        """Until it is on the screen."""
        deadline = time.monotonic() + 60
        while not re.search(pattern, self.screen):
            assert self._more(), self.screen
            assert time.monotonic() < deadline, self.screen

    def clear(self) -> None:
        """Forget what was written."""
        self.raw = b""

    def press(self, keys: bytes) -> None:
        """As somebody in front of it."""
        os.write(self._descriptor, keys)

    def end(self) -> int:
        """Its exit status, once it has left by itself."""
        deadline = time.monotonic() + 60
        while self._more():
            assert time.monotonic() < deadline, self.screen
        os.close(self._descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        """If it is still there."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)


@pytest.fixture
def terminal(reading: tuple[Mount, int], mounter: Mounter) -> Iterator[Terminal]:
    """One that looks at the mount."""
    made = Terminal(reading[0].path, environment(mounter.work / "home", None, TERM="xterm-256color"))
    yield made
    made.kill()


ALTERNATE, USUAL = b"\x1b[?1049h", b"\x1b[?1049l"


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "Ctrl-C"])
def test_the_live_page_draws_and_leaves(reading: tuple[Mount, int], terminal: Terminal, key: bytes) -> None:
    """It draws again as the mount goes on, and the terminal is as it was when it has left."""
    _, file = reading
    terminal.wait_for(r"llm/shard-1.*MiB +[#.]{16}")
    assert ALTERNATE in terminal.raw
    assert "q leaves" in terminal.screen
    terminal.clear()
    os.pread(file, MIB, 0)
    terminal.wait_for("file \\(1 open\\)")
    terminal.press(key)
    assert terminal.end() == 0
    assert USUAL in terminal.raw


def test_a_mount_that_goes_away(s3: FastS3Server, mounter: Mounter) -> None:
    """Is said, and waited for: the next one at the same place is drawn."""
    s3.put("models", "weights", bytes(MIB))
    first = mounter.mount(s3, "s3://models")
    terminal = Terminal(first.path, environment(mounter.work / "home", None, TERM="xterm-256color"))
    try:
        terminal.wait_for(r"s3://models at ")
        first.unmount()
        terminal.wait_for("nothing is mounted at")
        terminal.clear()
        mounter.mount(s3, "s3://models")
        terminal.wait_for(r"s3://models at ")
        terminal.press(b"q")
        assert terminal.end() == 0
    finally:
        terminal.kill()


def test_nobody_who_looks_costs_nothing(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """P18: to look sends no request, and what is remembered is bounded."""
    s3.put("models", "weights", bytes(MIB))
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=indefinite")
    reader.call("digest", str(mount.path / "weights"))
    # The digest that S3 may have of it is asked for once, when all of it is here.
    wait_until(lambda: json.loads(os.getxattr(mount.path, "user.lazyfs.stats"))["verified"]["without"], "looked at")
    before = len(s3.log)
    for _ in range(300):
        os.getxattr(mount.path, "user.lazyfs.activity")
    assert len(s3.log) == before
    assert os.listxattr(mount.path) == ["user.lazyfs.stats"], "who lists attributes does not have it worked out"
