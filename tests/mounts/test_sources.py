"""Several sources side by side in one mount: each with its endpoint and credentials, one cache for all."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter, environment, is_mounted, mountinfo, run, wait_until
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server

ONE, TWO = pages(1, 24 * MIB), pages(2, 24 * MIB)
WARM = pages(3, 2 * MIB)
READERS = 24
"""More than there are slots in the least memory, so that all of them could be waited for in vain."""


class Pair:
    """Two servers that take one key each, and the words that mount both."""

    def __init__(self, work: Path) -> None:
        self.one, self.two = (FastS3Server(require_signature=f"AKIA{name}").start() for name in ("ONE", "TWO"))
        self.one.put("models", "llm/big", ONE)
        self.one.put("models", "llm/d/small", b"one")
        self.one.put("models", "other", b"not below the prefix")
        self.two.put("models", "big", TWO)
        self.two.put("models", "warm", WARM)
        self.two.put("models", "/b", b"hidden")
        self.keys = work / "credentials"
        self.keys.write_text("".join(
            f"[{name.lower()}]\naws_access_key_id = AKIA{name}\naws_secret_access_key = canary-{name}\n"
            for name in ("ONE", "TWO")
        ))  # fmt: skip
        self.env = environment(work / "home", None, AWS_SHARED_CREDENTIALS_FILE=str(self.keys))

    def options(self) -> list[str]:
        """Of `lazyfs mount`; the endpoint of the mount is that of the first."""
        return [
            "--source=llm=s3://models/llm",
            "--source=two=s3://models",
            "--source-option=llm:profile=one",
            "--source-option=two:profile=two",
            f"--source-option=two:endpoint-url={self.two.url}",
        ]

    def mount(self, mounter: Mounter, *more: str, expect: tuple[str, ...] = ()) -> Mount:
        """Both, at the usual place."""
        return mounter.mount(self.one, "lazyfs", *self.options(), *more, env=self.env, expect=expect)

    def toml(self, mounter: Mounter) -> Path:
        """The same as a file, with all that a mount needs."""
        log = mounter.watch_log(mounter.work / "daemon.log")
        file = mounter.work / "lazyfs.toml"
        file.write_text(f"""
            region = "us-east-1"
            cache-dir = "{mounter.cache()}"
            log-file = "{log}"
            memory-budget = "128MiB"
            [[source]]
            name = "llm"
            url = "s3://models/llm/"
            endpoint_url = "{self.one.url}"
            profile = "one"
            [[source]]
            name = "two"
            url = "s3://models"
            endpoint-url = "{self.two.url}"
            profile = "two"
            metadata-ttl = "indefinite"
        """)
        return file

    def asked(self) -> tuple[int, int]:
        """Requests to each so far."""
        return self.one.counters.requests, self.two.counters.requests


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.one.stop()
    made.two.stop()


def read_many(path: str) -> list[bytes]:
    """By as many readers at once as there are, a page of each MiB."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(lambda number: os.pread(fd, 4096, number * MIB), range(READERS)))
    finally:
        os.close(fd)


def test_each_is_a_directory(pair: Pair, mounter: Mounter, reader: Reader) -> None:
    """With its own endpoint and credentials; attributes agree whoever asks; status, stats, df, verify and xattrs."""
    mount = pair.mount(mounter)
    path = mount.path
    assert sorted(os.listdir(path)) == ["llm", "two"]
    assert sorted(os.listdir(path / "llm")) == ["big", "d"]
    assert (path / "llm" / "d" / "small").read_bytes() == b"one"
    with os.scandir(path) as entries:
        for entry in entries:
            found = os.stat(path / entry.name)
            assert (entry.inode(), found.st_nlink, found.st_mtime) == (found.st_ino, 1, os.stat(path).st_mtime)
    with pytest.raises(FileNotFoundError):
        os.stat(path / "three")
    with pytest.raises(OSError, match="Read-only"):
        os.mkdir(path / "three")
    assert reader.call("digest", str(path / "two" / "warm"))[0] == len(WARM)
    assert os.getxattr(path / "llm" / "d" / "small", "user.lazyfs.key") == b"llm/d/small"
    fields = mountinfo(path)
    assert fields[fields.index("-") + 1 :][:2] == ["fuse.lazyfs", "lazyfs"]
    space = os.statvfs(path)
    assert space.f_blocks * space.f_frsize >= len(ONE) + len(TWO)
    stats = mount.stats()
    assert [(one["name"], one["url"], one["answers"]) for one in stats["sources"]] == [
        ("llm", "s3://models/llm/", True),
        ("two", "s3://models", True),
    ]
    assert stats["store"]["list_requests"] == sum(one["store"]["list_requests"] for one in stats["sources"])
    (status,) = json.loads(run(["status", path, "--json"], pair.env).stdout)
    assert [one["hidden"] for one in status["sources"]] == [{}, {"empty name between slashes": 1}]
    shown = run(["status", path], pair.env).stdout
    assert f"  two: s3://models at {pair.two.url} answers\n    1 keys hidden: empty name" in shown
    verified = json.loads(run(["verify", "--json", path], pair.env).stdout)
    assert {(Path(one["path"]).name, bool(one["verified"])) for one in verified} == {
        ("big", True), ("small", True), ("warm", True)
    }  # fmt: skip
    for depth in (0, 1):
        used = json.loads(run(["du", "--json", f"--depth={depth}", path], pair.env).stdout)
        assert used[-1]["size"] == len(ONE) + len(TWO) + len(WARM) + len(b"one")
    assert "canary" not in shown + mount.logged() + json.dumps(status)


def cached(path: Path, size: int, reader: Reader) -> bool:
    """Have all of a file read until the disk has kept it, however slow that is."""
    reader.call("cold_digest", str(path))
    return int(os.getxattr(path, "user.lazyfs.cached_bytes")) == size


def test_one_dies(pair: Pair, mounter: Mounter, reader: Reader) -> None:
    """Its readers wait, more of them than there is memory; what is cached of it goes on, and the other goes on. Then it
    is back, and both are warm after a remount that neither is there for."""
    least = ("--metadata-ttl=indefinite", "--memory-budget=16MiB")
    mount = pair.mount(mounter, *least)
    warm, big, other = mount.path / "two" / "warm", mount.path / "two" / "big", mount.path / "llm" / "big"
    os.stat(big)
    os.statvfs(mount.path)
    wait_until(lambda: cached(warm, len(WARM), reader), "all of it is on disk", 60)
    assert sorted(os.listdir(mount.path / "llm")) == ["big", "d"]
    pair.two.stop()
    with Reader() as waiting:
        waiting.begin("tests.mounts.test_sources:read_many", str(big))
        wait_until(lambda: mount.stats()["sources"][1]["answers"] is False, "it is known to be down")
        wait_until(lambda: mount.stats()["memory"]["lent"] >= 8, "its readers hold all that they may")
        assert mount.stats()["sources"][0]["answers"] is True
        assert reader.call("cold_digest", str(other)) == digest_of(ONE), "the other is as before"
        assert reader.call("cold_digest", str(warm)) == digest_of(WARM), "and what is cached"
        assert os.statvfs(mount.path).f_blocks * 4096 >= len(ONE) + len(TWO)
        assert "two: s3://models" in (said := run(["status", mount.path], pair.env).stdout)
        assert "is in trouble" in said
        pair.two.start()
        assert waiting.result() == [TWO[number * MIB : number * MIB + 4096] for number in range(READERS)]
    wait_until(lambda: cached(other, len(ONE), reader), "all of it is on disk", 60)
    mount.settle()
    assert mount.unmount() == 0
    pair.one.stop()
    pair.two.stop()
    before = pair.asked()
    again = pair.mount(mounter, *least)
    assert [one["answers"] for one in again.stats()["sources"]] == [None, None]
    assert reader.call("cold_digest", str(other)) == digest_of(ONE)
    assert reader.call("cold_digest", str(warm)) == digest_of(WARM)
    assert pair.asked() == before


def read_spread(path: str) -> list[bytes]:
    """By more readers than the kernel had requests under way at once before: a page of each 128 KiB."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(len(ONE) // 2**17) as pool:
            return list(pool.map(lambda number: os.pread(fd, 4096, number * 2**17), range(len(ONE) // 2**17)))
    finally:
        os.close(fd)


def test_two_buckets_of_one_endpoint(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """One bound on connections holds for both, and one of them that gives no answer has a part of those: while 192 of
    its readers wait, the other is read, cold and warm."""
    for bucket, data in (("one", ONE), ("two", TWO)):
        s3.put(bucket, "big", data)
    mount = mounter.mount(s3, "lazyfs", "--source=one=s3://one", "--source=two=s3://two", "--max-connections=4")
    os.listdir(mount.path / "two")
    with s3.hold(lambda request: request.kind == "GET" and request.bucket == "one") as gate, Reader() as waiting:
        waiting.begin("tests.mounts.test_sources:read_spread", str(mount.path / "one" / "big"))
        gate.wait_for(3)
        for _ in range(2):
            assert reader.call("cold_digest", str(mount.path / "two" / "big")) == digest_of(TWO)
        assert len(gate.wait_for(3)) == 3, "the fourth is the other's"
        gate.release()
        assert waiting.result() == [ONE[at : at + 4096] for at in range(0, len(ONE), 2**17)]


def digest_of(data: bytes) -> tuple[int, str]:
    """As `reader.digest` gives it."""
    return len(data), hashlib.sha256(data).hexdigest()


def test_two_names_for_one_bucket_share_its_bytes(pair: Pair, mounter: Mounter, reader: Reader) -> None:
    options = ["--source=all=s3://models", "--source=below=s3://models/llm", "--profile=one"]
    mount = mounter.mount(pair.one, "lazyfs", *options, env=pair.env)
    all_of_it, below = mount.path / "all" / "llm" / "big", mount.path / "below" / "big"
    wait_until(lambda: cached(all_of_it, len(ONE), reader), "all of it is on disk", 60)
    gets = pair.one.counters.gets
    assert reader.call("cold_digest", str(below)) == digest_of(ONE)
    assert pair.one.counters.gets == gets
    assert os.stat(below).st_ino != os.stat(all_of_it).st_ino


def test_commands_on_all_of_them(pair: Pair, mounter: Mounter) -> None:
    """Warm, pin and evict of the top mean every source."""
    mount = pair.mount(mounter)
    assert run(["warm", mount.path], pair.env).returncode == 0
    assert run(["pin", mount.path], pair.env).returncode == 0
    (listed,) = json.loads(run(["pin", "--list", "--json", mount.path], pair.env).stdout)
    assert sorted(listed["pins"]) == ["llm: llm/", "two: (all of the bucket)"]
    assert json.loads(run(["evict", "--json", mount.path], pair.env).stdout)["freed"] == 0
    assert json.loads(run(["unpin", "--json", mount.path], pair.env).stdout)["unpinned"] == 2
    assert json.loads(run(["evict", "--json", mount.path / "llm"], pair.env).stdout)["files"] == 2
    assert json.loads(run(["evict", "--json", mount.path], pair.env).stdout)["files"] == 2


def test_a_file_names_them(pair: Pair, mounter: Mounter) -> None:
    """A background mount by tables [[source]] alone, which the daemon gets as flags."""
    file, path = pair.toml(mounter), mounter.place()
    shown = run(["mount", "--print-config", "--config", file, path], pair.env).stdout
    assert 'metadata-ttl = "indefinite"  # file' in shown
    done = run(["mount", "--config", file.name, path], pair.env | {"LAZYFS_SOURCE": "none"})
    assert done.returncode == 2, "it is somewhere else"
    done = run(["mount", "--config", file, path], pair.env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (path / "llm" / "d" / "small").read_bytes() == b"one"
    assert (path / "two" / "warm").stat().st_size == len(WARM)
    assert run(["unmount", path], pair.env).returncode == 0


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        ("--source=bad=s3://no-such-bucket", "source 'bad': there is no bucket 'no-such-bucket'"),
        ("--source-option=two:profile=one", "source 'two': cannot list s3://models at"),
        ("--source-option=two:profile=nobody", "nobody"),
        ("--source=llm=s3://models", "two sources have the name 'llm'"),
        ("--source=..=s3://models", "'..' cannot name a source"),
    ],
)
def test_one_that_cannot_be_mounted_refuses_all(pair: Pair, mounter: Mounter, spoilt: str, said: str) -> None:
    """One sentence that names it."""
    path = mounter.place()
    log = mounter.work / "daemon.log"
    options = [*mounter.options(pair.one), *pair.options(), f"--cache-dir={mounter.cache()}", f"--log-file={log}"]
    done = run(["mount", *options, "--profile=one", spoilt, path], pair.env)
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert not is_mounted(path)


@pytest.mark.root
@pytest.mark.parametrize("by", ["options", "file"])
def test_mount_8_and_fstab(pair: Pair, mounter: Mounter, helper: Path, by: str) -> None:
    """`lazyfs` stands where a source would; a second `mount -a` finds it mounted."""
    path, file = mounter.place(), pair.toml(mounter)
    options = f"config={file}"
    if by == "options":
        file.write_text(file.read_text().partition("[[source]]")[0])
        options = ",".join([options, f"endpoint_url={pair.one.url}", *(word[2:] for word in pair.options())])
    table = mounter.work / "fstab"
    table.write_text(f"lazyfs {path} lazyfs _netdev,nofail,{options} 0 0\n")
    for _ in range(2):
        command = ["mount", "-a", "-T", str(table)]
        done = subprocess.run(command, env=pair.env, cwd="/", capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(os.listdir(path)) == ["llm", "two"]
    assert len([line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {path} " in line]) == 1
    assert (path / "llm" / "d" / "small").read_bytes() == b"one"
