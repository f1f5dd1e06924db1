"""P20: when all of an object is here, its bytes are what its digest says, or they are not served."""

import base64
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from awscrt.checksums import crc64nvme

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter, environment, outlive_moment, run, wait_until
from tests.mounts.reader import Reader, ReaderDied
from tests.mounts.test_cache import DAMAGED, fill, flip, kinds, object_files, sum_of
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault, first
from tests.servers.moto_server import MotoServer
from tests.servers.records import Request

SIZE = 5 * MIB + 777
DATA = pages(1, SIZE)
SHA256 = hashlib.sha256(DATA).hexdigest()
WRONG = ["WRONG BYTES", "was fetched again, and its bytes are right now", "failed with (EIO|ESTALE)"]


def crc_header(data: bytes) -> dict[str, str]:
    """What S3 keeps of an object that was uploaded with a CRC64NVME, whole or in parts."""
    raw = crc64nvme(data).to_bytes(8, "big")
    return {"x-amz-checksum-crc64nvme": base64.b64encode(raw).decode(), "x-amz-checksum-type": "FULL_OBJECT"}


def sha_header(data: bytes) -> dict[str, str]:
    """What S3 keeps of an object that was uploaded whole with a SHA-256."""
    return {"x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(data).digest()).decode()}


def put_crc(s3: FastS3Server, of: bytes) -> None:
    """CRC64NVME, kept by S3."""
    s3.put("models", "weights", DATA, headers=crc_header(of))


def put_sha(s3: FastS3Server, of: bytes) -> None:
    """SHA-256, kept by S3."""
    s3.put("models", "weights", DATA, headers=sha_header(of))


def put_both(s3: FastS3Server, of: bytes) -> None:
    """Both, kept by S3; the SHA-256 is of the bytes that are there."""
    s3.put("models", "weights", DATA, headers=crc_header(of) | sha_header(DATA))


def put_bare(s3: FastS3Server, of: bytes) -> None:
    """64 digits in a file beside it."""
    s3.put("models", "weights", DATA)
    s3.put("models", "weights.sha256", hashlib.sha256(of).hexdigest().upper().encode() + b"\n")


def put_line(s3: FastS3Server, of: bytes) -> None:
    """A line of sha256sum's in a file beside it."""
    s3.put("models", "weights", DATA)
    s3.put("models", "weights.sha256", f"{hashlib.sha256(of).hexdigest()} *weights\n".encode())


def put_list(s3: FastS3Server, of: bytes) -> None:
    """A list of all files of the directory."""
    lines = [f"{hashlib.sha256(b'').hexdigest()}  other", f"{hashlib.sha256(of).hexdigest()}  ./weights"]
    s3.put("models", "weights", DATA)
    s3.put("models", "SHA256SUMS", "\n".join(lines).encode())


Put = Callable[[FastS3Server, bytes], None]
PUTS: dict[Put, str] = {put_crc: "crc64nvme"}
PUTS |= dict.fromkeys((put_sha, put_both, put_bare, put_line, put_list), "sha256")
every_kind = pytest.mark.parametrize("put", PUTS, ids=lambda put: str(put.__name__).removeprefix("put_"))


def verified(mount: Mount, name: str = "weights") -> str:
    """What the extended attribute says."""
    return os.getxattr(mount.path / name, "user.lazyfs.verified").decode()


def judged(mount: Mount, **counts: int) -> dict[str, int]:
    """Wait until these are the verifier's counters, and nothing is under way; all of them."""

    def reached() -> dict[str, int] | None:
        found: dict[str, int] = mount.stats()["verified"]
        return found if found | counts | {"under_way": 0} == found else None

    return wait_until(reached, f"verified as {counts}")


def digest(reader: Reader, mount: Mount, name: str = "weights") -> tuple[int, str]:
    """Size and SHA-256 of a file as a reader finds it."""
    found: tuple[int, str] = reader.call("digest", str(mount.path / name))
    return found


def unjudged(s3: FastS3Server) -> AbstractContextManager[object]:
    """Until the end of it nobody says what the bytes should be, however soon all of them are here: read-ahead has them
    before the reader does, now and then."""
    return s3.hold(lambda request: request.kind == "HEAD")


def fetched(log: list[Request], key: str = "weights") -> int:
    """Bytes of an object that were sent."""
    return sum(request.bytes_sent for request in log if request.kind == "GET" and request.key == key)


@every_kind
def test_right_bytes_are_verified_once(put: Put, s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """No byte is fetched again for it, and the next mount asks nobody."""
    put(s3, DATA)
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    assert verified(mount) == "no"
    assert digest(reader, mount) == sum_of(DATA)
    judged(mount, verified=1, without=0, wrong=0)
    assert verified(mount) == PUTS[put]
    if PUTS[put] == "sha256":
        assert os.getxattr(mount.path / "weights", "user.lazyfs.sha256").decode() == SHA256
    log = s3.take_log()
    assert fetched(log) == SIZE
    assert sum(request.kind == "HEAD" for request in log) == 1
    assert mount.unmount() == 0
    again = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    assert digest(reader, again) == sum_of(DATA)
    assert verified(again) == PUTS[put]
    assert again.unmount() == 0
    assert s3.take_log() == []


@pytest.mark.parametrize("put", [put_crc, put_sha, put_line], ids=["crc", "sha", "line"])
def test_bytes_that_came_wrong_are_fetched_again(put: Put, s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """Who has them open gets EIO and no more of them; who opens the file then gets the right ones, of a new inode."""
    put(s3, DATA)
    s3.fault = first(1, Fault(wrong_bytes=True), lambda request: request.kind == "GET" and request.key == "weights")
    mount = mounter.mount(s3, "s3://models", expect=WRONG)
    inode = os.stat(mount.path / "weights").st_ino
    held = reader.call("open_file", str(mount.path / "weights"))
    with unjudged(s3):
        assert reader.call("pread", held, SIZE, 0) != DATA, "they were served before all of them were here"
    judged(mount, verified=1, wrong=1, mended=1, refused=0)
    # The pages that the kernel has of the old inode are left to it; whatever it asks for fails.
    reader.call("forget_pages", held)
    with pytest.raises(OSError, match="Input/output error"):
        reader.call("pread", held, MIB, 0)
    assert digest(reader, mount) == sum_of(DATA)
    assert os.stat(mount.path / "weights").st_ino != inode
    assert verified(mount) == PUTS[put]
    assert fetched(s3.take_log()) == 2 * SIZE
    reader.call("close_file", held)


def test_a_mapped_reader_of_wrong_bytes_ends(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """SIGBUS, and not weights that are wrong."""
    put_crc(s3, DATA)
    s3.fault = first(1, Fault(wrong_bytes=True), lambda request: request.kind == "GET")
    mount = mounter.mount(s3, "s3://models", expect=WRONG)
    with Reader() as victim:
        descriptor = victim.call("open_file", str(mount.path / "weights"))
        victim.call("map_file", descriptor, "normal")
        with unjudged(s3):
            for offset in range(0, SIZE, MIB):
                victim.call("peek", descriptor, 16, offset)
        judged(mount, mended=1)
        victim.call("forget_pages", descriptor)
        with pytest.raises(ReaderDied, match="SIGBUS"):
            victim.call("peek", descriptor, 16, 0)
    assert digest(reader, mount) == sum_of(DATA)


@every_kind
def test_bytes_that_stay_wrong_are_never_served(put: Put, s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """EIO, also after a remount and without asking for them again, until the object is replaced."""
    put(s3, DATA + b"!")
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=0s", expect=WRONG)
    with unjudged(s3):
        assert digest(reader, mount) == sum_of(DATA), "the first reader has them before all of them are here"
    judged(mount, verified=0, wrong=1, mended=0, refused=1)
    assert fetched(s3.take_log()) == 2 * SIZE
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            digest(reader, mount)
        assert verified(mount) == "wrong"
        assert mount.settle()["disk"]["used"] < SIZE
        assert mount.unmount() == 0
        mount = mounter.mount(s3, "s3://models", "--metadata-ttl=0s", expect=WRONG)
    assert fetched(s3.take_log()) == 0
    put(s3, DATA)
    s3.put("models", "weights", DATA, etag='"another"', headers=crc_header(DATA))
    outlive_moment()
    assert digest(reader, mount) == sum_of(DATA)
    judged(mount, verified=1)
    assert mount.log.read_text().count("CRITICAL") == 0
    assert mounter.mounts[0].logged().count("CRITICAL") == 1


def test_a_digest_that_is_replaced_opens_the_question_again(
    s3: FastS3Server, mounter: Mounter, reader: Reader
) -> None:
    put_line(s3, b"something else")
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=0s", expect=WRONG)
    with unjudged(s3):
        digest(reader, mount)
    judged(mount, refused=1)
    with pytest.raises(OSError, match="Input/output error"):
        digest(reader, mount)
    s3.put("models", "weights.sha256", SHA256.encode())
    outlive_moment()
    assert digest(reader, mount) == sum_of(DATA)
    judged(mount, verified=1)
    assert verified(mount) == "sha256"


def test_readers_wait_while_wrong_bytes_are_fetched_again(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    put_crc(s3, DATA)
    s3.fault = first(1, Fault(wrong_bytes=True), lambda request: request.kind == "GET")
    mount = mounter.mount(s3, "s3://models", expect=WRONG)
    with s3.hold(lambda request: request.kind == "HEAD") as heads:
        digest(reader, mount)
        heads.wait_for(1)
        with s3.hold() as gate:
            heads.release()
            gate.wait_for(1)
            reader.begin("digest", str(mount.path / "weights"))
            wait_until(lambda: mount.stats()["open_files"], "the second reader has it open")
            assert mount.stats()["verified"]["mended"] == 0
    assert reader.result() == sum_of(DATA)
    judged(mount, mended=1, refused=0)


def test_without_a_digest_one_warning_is_given(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """The read goes on, it is counted, and the next mount does not ask again. A checksum of checksums is none."""
    composite = {"x-amz-checksum-sha256": sha_header(DATA)["x-amz-checksum-sha256"] + "-2"}
    s3.put("models", "one", DATA, headers=composite | {"x-amz-checksum-type": "COMPOSITE"})
    s3.put("models", "two", DATA[:MIB])
    s3.put("models", "two.sha256", b"this is not a digest")
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    assert digest(reader, mount, "one") == sum_of(DATA)
    assert digest(reader, mount, "two") == sum_of(DATA[:MIB])
    judged(mount, verified=0, without=2, wrong=0)
    assert mount.logged().count("has no digest to be compared with") == 1
    assert verified(mount, "one") == verified(mount, "two") == "none"
    assert mount.unmount() == 0
    s3.take_log()
    again = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    assert digest(reader, again, "one") == sum_of(DATA)
    assert again.unmount() == 0
    assert s3.take_log() == []


def test_a_bad_day_of_s3_puts_it_off(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """What cannot be asked now is asked when the file is opened next; the reads are none of its business."""
    put_crc(s3, DATA)
    s3.fault = lambda request: Fault(status=500) if request.kind == "HEAD" else None
    mount = mounter.mount(s3, "s3://models", "--retry-budget=1s")
    assert digest(reader, mount) == sum_of(DATA)
    wait_until(lambda: "is not verified for now" in mount.logged(), "given up for now")
    assert verified(mount) == "no"
    s3.fault = None
    assert digest(reader, mount) == sum_of(DATA)
    judged(mount, verified=1)


def test_an_object_that_changed_meanwhile_is_not_judged(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    put_crc(s3, DATA)
    mount = mounter.mount(s3, "s3://models", expect=WRONG)
    with s3.hold(lambda request: request.kind == "HEAD") as gate:
        assert digest(reader, mount) == sum_of(DATA)
        gate.wait_for(1)
        s3.put("models", "weights", DATA[::-1], headers=crc_header(DATA[::-1]))
    wait_until(lambda: mount.stats()["verified"]["under_way"] == 0, "it is over")
    assert judged(mount)["wrong"] == 0


def test_it_can_be_switched_off(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    put_crc(s3, b"wrong")
    mount = mounter.mount(s3, "s3://models", "--verify-objects=off")
    for _ in range(2):
        assert digest(reader, mount) == sum_of(DATA)
    mount.settle()
    assert "HEAD" not in kinds(s3.take_log())
    assert judged(mount)["verified"] == 0


@pytest.mark.parametrize("algorithm", ["SHA256", "CRC64NVME"])
def test_a_server_that_keeps_checksums(algorithm: str, mounter: Mounter, reader: Reader) -> None:
    """As uploaded by boto3, by a server that verifies them itself."""
    with MotoServer() as server:
        client = server.client()
        client.create_bucket(Bucket="models")
        client.put_object(Bucket="models", Key="weights", Body=DATA, ChecksumAlgorithm=algorithm)
        mount = mounter.mount(server, "s3://models")
        assert digest(reader, mount) == sum_of(DATA)
        judged(mount, verified=1, without=0)
        assert verified(mount) == algorithm.lower()
        assert mount.unmount() == 0


# ---- lazyfs verify


class Command:
    """`lazyfs verify` of paths below a mount."""

    def __init__(self, tmp_path: Path) -> None:
        self._env = environment(tmp_path / "home", None)

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """To its end."""
        return run(["verify", *arguments], self._env)

    def json(self, *arguments: str | Path) -> dict[str, dict[str, Any]]:
        """What it says of each file, by name."""
        found = json.loads(self("--json", *arguments).stdout)
        return {Path(one["path"]).name: one for one in found}


@pytest.fixture
def verify(tmp_path: Path) -> Command:
    """The command."""
    return Command(tmp_path)


def test_verify_looks_at_everything(s3: FastS3Server, mounter: Mounter, verify: Command) -> None:
    """Files of which nothing is here yet, in directories, right, wrong, without a digest, and empty."""
    for number in range(3):
        s3.put("models", f"a/{number}", DATA, headers=crc_header(DATA))
    s3.put("models", "a/b/wrong", DATA, headers=crc_header(b"other"))
    s3.put("models", "a/b/none", DATA)
    s3.put("models", "a/empty", b"", headers=crc_header(b""))
    mount = mounter.mount(s3, "s3://models", "--memory-budget=16MiB", expect=WRONG)
    done = verify(mount.path / "a")
    assert done.returncode == 1
    lines = dict(line.removeprefix(f"{mount.path}/a/").split(": ", 1) for line in done.stdout.splitlines())
    assert lines.pop("b/wrong").startswith("NOT VERIFIED: the CRC64NVME of 'a/b/wrong' is ")
    assert lines.pop("b/none") == "whole, and no digest to compare with"
    assert lines == dict.fromkeys(("0", "1", "2", "empty"), "CRC64NVME agrees")
    assert verify(mount.path / "a" / "0", mount.path / "a" / "1").returncode == 0
    found = verify.json(mount.path / "a" / "b")
    assert (found["none"]["verified"], found["wrong"]["verified"]) == ("none", "")
    assert found["none"]["size"] == SIZE


def test_verify_finds_and_mends_what_the_disk_lost(
    s3: FastS3Server, mounter: Mounter, reader: Reader, verify: Command
) -> None:
    put_crc(s3, DATA)
    mount = mounter.mount(s3, "s3://models", expect=DAMAGED)
    fill(mount, reader, {"weights": DATA})
    judged(mount, verified=1)
    assert mount.unmount() == 0
    mount = mounter.mount(s3, "s3://models", expect=DAMAGED)
    flip(object_files(mount.cache)[0], 3 * MIB + 5)
    s3.take_log()
    assert verify(mount.path / "weights").returncode == 0
    assert MIB <= fetched(s3.take_log()) <= 3 * MIB
    assert mount.stats()["chunks"]["corrupt"] == 1
    assert object_files(mount.cache)[0].read_bytes() == DATA


def test_verify_says_what_it_cannot_do(
    s3: FastS3Server, mounter: Mounter, verify: Command, tmp_path: Path
) -> None:
    """In one sentence each. That the cache is too small for an object is none."""
    large = pages(1, 12 * MIB)
    s3.put("models", "weights", large, headers=sha_header(large))
    s3.put("models", "combined", large, headers=crc_header(large))
    mount = mounter.mount(s3, "s3://models", "--max-cache-size=8MiB", "--memory-budget=16MiB")
    assert verify(mount.path / "combined").stdout.endswith(": CRC64NVME agrees\n")
    assert verify(mount.path / "weights").stdout.endswith(": SHA-256 agrees\n")
    for path, status, words in (
        (tmp_path / "elsewhere", 2, "is not in a lazyfs mount"),
        (mount.path / "missing", 1, "No such file or directory"),
    ):
        done = verify(path)
        assert done.returncode == status
        assert words in done.stderr
        assert "Traceback" not in done.stderr
