"""P1, P9: whatever the way of reading, the bytes are those of the object, and each chunk is fetched once."""

import hashlib
import itertools
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter
from tests.mounts.reader import ADVICE, Reader
from tests.servers.fast import FastS3Server
from tests.servers.records import Request

CHUNK = MIB
SIZES = {
    "empty": 0,
    "one-byte": 1,
    "page+1": 4097,
    "chunk-1": CHUNK - 1,
    "chunk": CHUNK,
    "chunk+1": CHUNK + 1,
    "span-1": 8 * CHUNK - 1,
    "span": 8 * CHUNK,
    "span+1": 8 * CHUNK + 1,
    "long": 64 * CHUNK + 1,
}


@dataclass(frozen=True)
class Library:
    """A mount with a file of each size, and what is in them."""

    server: FastS3Server
    mount: Mount
    data: dict[str, bytes]

    def path(self, name: str) -> str:
        """Of the file in the mount."""
        return str(self.mount.path / name)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    """One mount for all tests that do not count requests."""
    mounter = Mounter(tmp_path_factory.mktemp("reads"))
    data = {name: pages(number, size) for number, (name, size) in enumerate(SIZES.items(), 1)}
    with FastS3Server() as server:
        for name, content in data.items():
            server.put("models", name, content)
        yield Library(server, mounter.mount(server, "s3://models"), data)
        mounter.end()


def fetched(log: list[Request]) -> list[tuple[int, int]]:
    """The ranges of the GETs, in order; none of them may overlap another."""
    ranges = sorted(request.range for request in log if request.kind == "GET" and request.range is not None)
    for (_, stop), (start, _) in itertools.pairwise(ranges):
        assert start >= stop, f"bytes from {start} on were fetched twice"
    return ranges


@pytest.mark.parametrize("name", SIZES)
def test_a_whole_file(library: Library, reader: Reader, name: str) -> None:
    content = library.data[name]
    assert (library.mount.path / name).stat().st_size == len(content)
    assert reader.call("digest", library.path(name)) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("name", ["one-byte", "page+1", "chunk-1", "chunk", "chunk+1", "span+1"])
@pytest.mark.parametrize("offset", [-4096, -1, 0, 1, 4096, 1 << 40])
def test_reads_at_the_end(library: Library, reader: Reader, name: str, offset: int) -> None:
    content = library.data[name]
    start = max(0, len(content) + offset)
    fd = reader.call("open_file", library.path(name))
    assert reader.call("pread", fd, 8192, start) == content[start : start + 8192]


def test_preads_anywhere(library: Library, reader: Reader) -> None:
    content, dice = library.data["long"], random.Random(7)
    fd = reader.call("open_file", library.path("long"))
    for _ in range(300):
        offset = dice.randrange(len(content) + 1000)
        size = int(2 ** dice.uniform(0, 22))
        assert reader.call("pread", fd, size, offset) == content[offset : offset + size], (offset, size)


def test_readv(library: Library, reader: Reader) -> None:
    content, dice = library.data["span+1"], random.Random(8)
    fd = reader.call("open_file", library.path("span+1"))
    for _ in range(50):
        offset, sizes = dice.randrange(len(content)), [dice.randrange(1, 400_000) for _ in range(5)]
        found = b"".join(reader.call("readv", fd, sizes, offset))
        assert found == content[offset : offset + sum(sizes)], (offset, sizes)


@pytest.mark.parametrize("function", ["sendfile", "forked"])
def test_sendfile_and_a_forked_reader(library: Library, reader: Reader, function: str) -> None:
    content = library.data["span-1"]
    fd = reader.call("open_file", library.path("span-1"))
    for offset in (0, 12345, CHUNK - 1, len(content) - 777):
        assert reader.call(function, fd, 2 * CHUNK, offset) == content[offset : offset + 2 * CHUNK]


@pytest.mark.parametrize("advice", ADVICE)
def test_mapped(s3: FastS3Server, mounter: Mounter, reader: Reader, advice: str) -> None:
    """Cold, so that every page comes through a fault."""
    content = pages(3, 24 * CHUNK + 5)
    s3.put("models", "weights", content)
    mount = mounter.mount(s3, "s3://models")
    assert reader.call("mapped_digest", str(mount.path / "weights"), advice) == hashlib.sha256(content).hexdigest()


def test_fio_verifies_through_the_mount(s3: FastS3Server, mounter: Mounter, tmp_path: Path) -> None:
    """Each 64 KiB block has a checksum of itself and its offset in its header."""
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed")
    (tmp_path / "local").mkdir()
    common = ["fio", "--name=verify", "--size=48m", "--bs=64k", "--verify=crc32c", "--minimal"]
    write = [*common, "--rw=write", "--do_verify=0", "--ioengine=psync", f"--filename={tmp_path}/local/verify"]
    subprocess.run(write, check=True, capture_output=True, timeout=60, cwd=tmp_path)
    s3.add_file("models", "verify", tmp_path / "local" / "verify")
    mount = mounter.mount(s3, "s3://models")
    for engine in ("mmap", "psync"):
        read = [*common, "--rw=randread", "--readonly", f"--ioengine={engine}", f"--filename={mount.path}/verify"]
        done = subprocess.run(read, check=False, capture_output=True, text=True, timeout=90, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split(";")[4] == "0", done.stdout


def test_eight_processes_fetch_each_chunk_once(s3: FastS3Server, mounter: Mounter) -> None:
    """P9. The first GET is held until all eight are inside a read, so that they do meet."""
    content = pages(5, 40 * CHUNK)
    s3.put("models", "weights", content)
    mount = mounter.mount(s3, "s3://models")
    readers = [Reader() for _ in range(8)]
    try:
        with s3.hold() as gate:
            for one in readers:
                one.begin("digest", str(mount.path / "weights"))
            gate.wait_for(1)
        expected = (len(content), hashlib.sha256(content).hexdigest())
        assert [one.result() for one in readers] == [expected] * 8
    finally:
        for one in readers:
            one.close()
    mount.settle()
    ranges = fetched(s3.take_log())
    assert sum(stop - start for start, stop in ranges) == len(content)


def test_a_cold_sequential_read_fetches_each_byte_once(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    content = pages(6, 192 * CHUNK + 1)
    s3.put("models", "weights", content)
    mount = mounter.mount(s3, "s3://models")
    reader.call("digest", str(mount.path / "weights"))
    mount.settle()
    log = s3.take_log()
    ranges = fetched(log)
    assert sum(stop - start for start, stop in ranges) == len(content)
    assert sum(request.bytes_sent for request in log if request.kind == "GET") == len(content)
    assert max(stop - start for start, stop in ranges) == 8 * CHUNK, "a GET brings up to 8 MiB once a run is under way"
    assert len(ranges) <= len(content) // CHUNK * 2 // 3, f"{len(ranges)} GETs, as if every window was a new one"


def test_a_header_costs_a_few_mebibytes(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """What a loader does first: 8 bytes of length, then the header."""
    content = pages(7, 64 * CHUNK)
    s3.put("models", "model.safetensors", content)
    mount = mounter.mount(s3, "s3://models")
    fd = reader.call("open_file", str(mount.path / "model.safetensors"))
    assert reader.call("pread", fd, 8, 0) == content[:8]
    assert reader.call("pread", fd, 200_000, 8) == content[8:200_008]
    mount.settle()
    assert sum(stop - start for start, stop in fetched(s3.take_log())) <= 6 * CHUNK


def test_32_mapped_readers_of_one_file(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """Each waits for its own faults, and none for another's for ever, memory being short for all of them."""
    content = pages(8, 128 * CHUNK)
    s3.first_byte_delay = 0.02
    s3.put("models", "weights", content)
    mount = mounter.mount(s3, "s3://models", "--memory-budget=64MiB")
    found = reader.call("mapped_parts", str(mount.path / "weights"), 32, timeout=90)
    part = 4 * CHUNK
    assert found == [hashlib.sha256(content[n * part : (n + 1) * part]).hexdigest() for n in range(32)]
