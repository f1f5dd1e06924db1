"""Objects that cannot be read as they are: archived, under a customer's key, paid for, somebody else's, encoded."""

import base64
import errno
import gzip
import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mounter, environment, is_mounted, run, wait_until
from tests.mounts.reader import Reader
from tests.mounts.test_cache import completed
from tests.mounts.test_secrets import everything_told
from tests.servers.certificates import Certificates
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault
from tests.servers.records import Request

SLOW = pytest.mark.slow
ENGINES = ["auto", "awscrt", pytest.param("boto3", marks=SLOW)]
"""boto3 sends the first GET of every engine, so that it is tried with each."""
ONE_ENGINE = ["auto", pytest.param("awscrt", marks=SLOW), pytest.param("boto3", marks=SLOW)]
SIZE = 3 * MIB + 17
DATA = pages(1, SIZE)
RESTORED = 'ongoing-request="false", expiry-date="Fri, 21 Dec 2035 00:00:00 GMT"'

READABLE = {
    "standard": {},
    "instant": {"x-amz-storage-class": "GLACIER_IR"},
    "restored": {"x-amz-storage-class": "GLACIER", "x-amz-restore": RESTORED},
    "deep-restored": {"x-amz-storage-class": "DEEP_ARCHIVE", "x-amz-restore": RESTORED},
    "tiered": {"x-amz-storage-class": "INTELLIGENT_TIERING"},
}
ARCHIVED = {
    "glacier": {"x-amz-storage-class": "GLACIER"},
    "deep": {"x-amz-storage-class": "DEEP_ARCHIVE"},
    "restoring": {"x-amz-storage-class": "GLACIER", "x-amz-restore": 'ongoing-request="true"'},
}
TIERED_AWAY = {"x-amz-storage-class": "INTELLIGENT_TIERING", "x-amz-archive-status": "ARCHIVE_ACCESS"}


def denied(call: Callable[[], object]) -> bool:
    """Whether it is refused with EACCES."""
    with pytest.raises(OSError, match="Permission denied") as raised:
        call()
    return raised.value.errno == errno.EACCES


@pytest.mark.parametrize("engine", ONE_ENGINE)
def test_archives(s3: FastS3Server, mounter: Mounter, reader: Reader, engine: str) -> None:
    """Refused when it is opened, for whoever maps it would die; told once, whatever is tried; read when it is restored.
    Where only a read finds it out, the read is refused."""
    for name, headers in {**READABLE, **ARCHIVED, "tiered-away": TIERED_AWAY}.items():
        s3.put("models", name, DATA, headers=headers)
    expect = ["(open|read) failed with EACCES: '.*' is in an archive and cannot be read; restore it"]
    mount = mounter.mount(s3, "s3://models", f"--s3-engine={engine}", "--verify-objects=off", expect=expect)
    for name, headers in READABLE.items():
        path = mount.path / name
        assert path.read_bytes() == DATA
        kind = headers.get("x-amz-storage-class", "STANDARD")
        assert os.getxattr(path, "user.lazyfs.storage_class").decode() == kind
    for name in ARCHIVED:
        for _ in range(3):
            assert denied(partial(reader.call, "open_file", str(mount.path / name)))
    fd = reader.call("open_file", str(mount.path / "tiered-away"))
    assert denied(lambda: reader.call("pread", fd, 4096, 0))
    told = [line for line in mount.logged().splitlines() if "is in an archive" in line]
    assert [sum(f"'{name}'" in line for line in told) for name in (*ARCHIVED, "tiered-away")] == [1] * 4
    assert mount.stats()["failures"] >= 10
    s3.put("models", "glacier", DATA, headers=READABLE["restored"])
    assert (mount.path / "glacier").read_bytes() == DATA


def test_what_is_cached_of_an_archive_is_read(s3: FastS3Server, mounter: Mounter) -> None:
    """A restored copy has a date on which it goes; the cache has not. Nothing is asked for it."""
    s3.put("models", "weights", DATA, headers=READABLE["restored"])
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    assert (mount.path / "weights").read_bytes() == DATA
    completed(mount.path / "weights")
    wait_until(lambda: os.getxattr(mount.path / "weights", "user.lazyfs.verified") != b"no", "it is compared")
    mount.unmount()
    s3.put("models", "weights", DATA, headers=ARCHIVED["glacier"])
    s3.take_log()
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    assert (mount.path / "weights").read_bytes() == DATA
    assert s3.take_log() == []


KEY = bytes(range(100, 132))
NAME = "x-amz-server-side-encryption-customer"


def encrypted(key: bytes) -> dict[str, str]:
    """The headers of an object that was put with this key."""
    digest = hashlib.md5(key, usedforsecurity=False).digest()
    return {f"{NAME}-algorithm": "AES256", f"{NAME}-key-md5": base64.b64encode(digest).decode()}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FastS3Server, Path]]:
    """A server over TLS with an object under a key of the customer's and one under none; the authority to trust."""
    certificates = Certificates.at(tmp_path_factory.mktemp("certificates"))
    with FastS3Server(ssl_context=certificates.context()) as server:
        server.put("models", "weights", DATA, headers=encrypted(KEY))
        server.put("models", "plain", DATA)
        yield server, certificates.ca


@pytest.mark.parametrize("engine", ENGINES)
def test_a_customers_key(
    served: tuple[FastS3Server, Path], mounter: Mounter, reader: Reader, engine: str
) -> None:
    """With every GET and HEAD, and nowhere else (P15); nobody's file without it, or with another."""
    server, ca = served
    keys = ca.parent
    (keys / "raw").write_bytes(KEY)
    (keys / "base64").write_bytes(base64.b64encode(KEY) + b"\n")
    (keys / "other").write_bytes(KEY[::-1])
    options = [f"--s3-engine={engine}", f"--ca-bundle={ca}"]
    server.take_log()
    mount = mounter.mount(
        server,
        "s3://models",
        *options,
        f"--sse-customer-key-file={keys / 'base64'}",
        "--log-level=debug",
        expect=["EACCES: InvalidRequest: .*mount without --sse-customer-key-file", "has no digest", "digest"],
    )
    assert (mount.path / "weights").read_bytes() == DATA
    assert denied(lambda: reader.call("digest", str(mount.path / "plain")))
    mount.settle()
    (mounter.work / "home").mkdir(exist_ok=True)
    env = environment(mounter.work / "home", server)
    told = dict(everything_told(mounter, mount.path, mount.pid, env))
    mount.unmount()
    sent = {request.kind: request for request in server.take_log()}
    assert sent.keys() >= {"GET", "LIST"}
    for kind, request in sent.items():
        key = request.headers.get(f"{NAME}-key")
        assert key == (None if kind == "LIST" else base64.b64encode(KEY).decode())
    secrets = (KEY, base64.b64encode(KEY), KEY.hex().encode(), str(KEY).encode())
    assert [where for where, text in told.items() if any(one in text for one in secrets)] == []
    if engine != "auto":
        return
    words = {"raw": "", "other": "encrypted with the key of --sse-customer-key-file?", "": "mount with that one"}
    for name, said in words.items():
        option = [f"--sse-customer-key-file={keys / name}"] if name else []
        cache = mounter.cache(f"cache-{name}")
        mount = mounter.mount(server, "s3://models", *options, *option, cache=cache, expect=["digest", "EACCES"])
        if said:
            assert denied(partial(reader.call, "digest", str(mount.path / "weights")))
            assert said in mount.logged()
        else:
            assert (mount.path / "weights").read_bytes() == DATA
        mount.unmount()


def refusal(mounter: Mounter, server: FastS3Server, *options: str) -> str:
    """The one sentence with which a mount fails."""
    place = mounter.place()
    usual = [*mounter.options(server), f"--cache-dir={mounter.cache()}", f"--log-file={mounter.work / 'daemon.log'}"]
    done = run(["mount", *usual, *options, "--", "s3://models", place], environment(mounter.work / "home", server))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert not is_mounted(place)
    return done.stderr


def test_a_key_that_is_not_sent(s3: FastS3Server, mounter: Mounter) -> None:
    """Not in the clear to another machine; not if it is none. Its bytes are in no sentence."""
    key = mounter.work / "key"
    key.write_bytes(KEY)
    option = f"--sse-customer-key-file={key}"
    said = refusal(mounter, s3, option, "--endpoint-url=http://192.0.2.1:9000")
    assert said == "lazyfs: the key of --sse-customer-key-file is sent over https only, not to http://192.0.2.1\n"
    key.write_text("canary-5ecret")
    said = refusal(mounter, s3, option)
    assert "holds no key: write 32 bytes, or their base64" in said
    assert "canary" not in said
    key.unlink()
    assert "cannot read the key" in refusal(mounter, s3, option)
    assert s3.take_log() == []


def without(header: str, value: str) -> Callable[[Request], Fault | None]:
    """Refuses what does not say so, as S3 does: without a word why."""
    return lambda request: None if request.headers.get(header) == value else Fault(status=403, code="AccessDenied")


@pytest.mark.parametrize("engine", ENGINES)
def test_who_pays_and_who_owns(s3: FastS3Server, mounter: Mounter, engine: str) -> None:
    """Said with every request of every kind, and without it one sentence that says what may be wanted."""
    s3.put("models", "weights", DATA)
    s3.put("models", "deep/er", b"x")
    for header, value, option, hint in (
        ("x-amz-request-payer", "requester", "--requester-pays", "whose requesters pay wants --requester-pays"),
        ("x-amz-expected-bucket-owner", "123456789012", "--expected-bucket-owner=123456789012", ""),
    ):
        s3.fault = without(header, value)
        mount = mounter.mount(s3, "s3://models", f"--s3-engine={engine}", option, cache=mounter.cache(option))
        assert (mount.path / "weights").read_bytes() == DATA
        assert (mount.path / "deep/er").read_bytes() == b"x"
        os.statvfs(mount.path)
        mount.settle()
        mount.unmount()
        if hint and engine == "auto":
            assert hint in refusal(mounter, s3)
    assert {request.kind for request in s3.log if request.status < 300} >= {"GET", "HEAD", "LIST"}
    if engine == "auto":
        said = refusal(mounter, s3, "--expected-bucket-owner=210987654321")
        assert "does account 210987654321 of --expected-bucket-owner own the bucket?" in said


@pytest.mark.parametrize("engine", ONE_ENGINE)
def test_what_is_stored_encoded_is_read_as_it_is_stored(s3: FastS3Server, mounter: Mounter, engine: str) -> None:
    """Content-Encoding says what was stored, and is none of our business: sizes agree, nothing is unpacked."""
    stored = gzip.compress(os.urandom(2 * MIB), mtime=0)
    s3.put("models", "weights.gz", stored, headers={"Content-Encoding": "gzip"})
    mount = mounter.mount(s3, "s3://models", f"--s3-engine={engine}", "--read-part-size=1MiB")
    path = mount.path / "weights.gz"
    assert path.stat().st_size == len(stored)
    assert path.read_bytes() == stored
    assert all("gzip" not in request.headers.get("accept-encoding", "") for request in s3.log)
