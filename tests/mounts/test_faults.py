"""P5: trouble with S3 that is shorter than the retry budget is not seen by who reads, mapped or not; what is wrong or
ambiguous is never taken for data; what S3 says with authority is said at once, as the README has it.

Each row of `servers.troubles` is tried with the listing of a mount, with a later one, with the first GET of a mount,
which goes by botocore, with a later one over a wire, with GETs in the middle of a mapped load, and with the HEAD by
which an object is verified.
"""

import base64
import errno
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from awscrt.checksums import crc64nvme

from tests.mounts.contents import MIB, pages
from tests.mounts.daemon_logs import unannounced
from tests.mounts.mounting import Mount, Mounter, MountFailed, outlive_moment, wait_until
from tests.mounts.reader import Reader, ReaderDied
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault, FaultHook, moved
from tests.servers.proxy import FaultProxy
from tests.servers.records import Request
from tests.servers.swift import SwiftServer
from tests.servers.troubles import FINAL, PASSING, Trouble

SIZE = 5 * MIB + 4321
DATA = pages(1, SIZE)
SUM = (SIZE, hashlib.sha256(DATA).hexdigest())
CHECKSUM = {"x-amz-checksum-crc64nvme": base64.b64encode(crc64nvme(DATA).to_bytes(8, "big")).decode()}
"""What S3 keeps of an object; asked for by a HEAD when all of it is here."""

FAR = 3 * MIB
"""Offset of a page that nothing brings ahead of a first touch."""

ENOUGH = "--retry-budget=60s"
"""For trouble that passes: more than any of it lasts."""

NONE = "--retry-budget=0s"
"""One attempt, for trouble that lasts."""


def by_botocore(request: Request) -> bool:
    """Whether botocore sent it; else it came over a wire, or by awscrt."""
    return "amz-sdk-invocation-id" in request.headers


class Meet:
    """A hook: requests of a kind meet these troubles, one each, in the order in which they come. `met` are those that
    did."""

    def __init__(self, *troubles: Trouble, kind: str = "GET") -> None:
        self.met: list[Request] = []
        self._left = list(reversed(troubles))
        self._kind = kind
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Fault | None:
        with self._lock:
            if request.kind != self._kind or not self._left:
                return None
            trouble = self._left.pop()
            self.met.append(request)
        return trouble.fault(request)


def always(trouble: Trouble, kind: str = "GET") -> FaultHook:
    """A hook: every request of the kind meets this trouble."""
    return lambda request: trouble.fault(request) if request.kind == kind else None


def either(*hooks: FaultHook) -> FaultHook:
    """A hook: what one of these has."""
    return lambda request: next((fault for hook in hooks if (fault := hook(request))), None)


def failure_of(call: Callable[[], object]) -> str:
    """The name of the error number that a call fails with."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the number is looked at)
        call()
    return errno.errorcode[caught.value.errno or 0]


@pytest.fixture
def proxy(s3: FastS3Server) -> Iterator[FaultProxy]:
    """In front of a server with the object `k`."""
    s3.put("models", "k", DATA)
    with FaultProxy(s3) as running:
        yield running


# ---- the beginning of a mount

UNLIKE = {"503 SlowDown", "403 ExpiredToken", "end in the body", "no length", "gzip in chunks", "nothing", "301"}
"""Rows of different kinds; with the others a mount each takes a minute."""


@pytest.mark.parametrize(
    "name", [name if name in UNLIKE else pytest.param(name, marks=pytest.mark.slow) for name in PASSING]
)
def test_a_mount_and_its_first_read(proxy: FaultProxy, mounter: Mounter, reader: Reader, name: str) -> None:
    """Its listing and its first GET meet trouble: the mount becomes ready, and the bytes are right."""
    listing, get = Meet(PASSING[name], kind="LIST"), Meet(PASSING[name])
    proxy.fault = either(listing, get)
    mount = mounter.mount(proxy, "s3://models", ENOUGH)
    assert reader.call("digest", str(mount.path / "k")) == SUM
    assert (len(listing.met), len(get.met)) == (1, 1)
    assert by_botocore(get.met[0])
    assert mount.stats()["failures"] == 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(status=404, code="NoSuchBucket"), "there is no bucket 'models'"),
        (Fault(status=403, code="AccessDenied"), "cannot list s3://models.*AccessDenied"),
        (Fault(status=403, code="RequestTimeTooSkewed"), "cannot reach s3://models.*RequestTimeTooSkewed"),
        (Fault(page=b"<html>log in</html>"), "cannot reach s3://models.*something else"),
        (Fault(page=b"default backend - 404", status=404), "cannot reach s3://models.*404"),
        (Fault(status=301, code="PermanentRedirect"), "cannot reach s3://models.*PermanentRedirect"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mount_that_cannot_be(proxy: FaultProxy, mounter: Mounter, fault: Fault, said: str) -> None:
    """Is refused in one sentence that says why, and is never a mount without files."""
    proxy.fault = lambda request: fault
    with pytest.raises(MountFailed, match=said):
        mounter.mount(proxy, "s3://models", NONE)


# ---- one mount for many tests


@dataclass(frozen=True)
class Stand:
    """A mount that lists at each look, its proxy, and the server behind that."""

    mount: Mount
    proxy: FaultProxy
    server: FastS3Server

    def open(self, reader: Reader, name: str, meet: FaultHook | None = None) -> int:
        """A descriptor of an object of its own, with `DATA`, of which nothing was read; it was listed while `meet`
        held. Nothing is wrong else, and the next GET goes as GETs do that are not the first."""
        key = re.sub(r"\W", "-", name)
        self.server.put("models", key, DATA, headers=CHECKSUM)
        self.proxy.fault = None
        # After bodies without a length botocore sends one, which is learned from again.
        self.server.put("models", "before", DATA[:10])
        assert reader.call("digest", str(self.mount.path / "before"))[0] == 10
        self.proxy.fault = meet
        outlive_moment()
        return int(reader.call("open_file", str(self.mount.path / key)))

    def verified(self, reader: Reader, fd: int) -> str:
        """By which digest all of an open file was found right."""
        return str(reader.call("os:getxattr", f"/proc/self/fd/{fd}", "user.lazyfs.verified").decode())

    def news(self) -> "News":
        """What happens in the mount from here on."""
        return News(self.mount)


class News:
    """What a mount logged since this was made, and how often it failed."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._logged = len(mount.logged())
        self._failures = mount.stats()["failures"]

    @property
    def failures(self) -> int:
        """Calls of the kernel that were answered with an error."""
        return int(self._mount.stats()["failures"] - self._failures)

    @property
    def lines(self) -> list[str]:
        """What was logged and is no plain information."""
        return unannounced(self._mount.logged()[self._logged :], [])


@pytest.fixture(scope="module")
def stands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Stand]]:
    """Makes a stand of these options, or gives the one that is there."""
    made: dict[tuple[str, ...], Stand] = {}
    with ExitStack() as stack:

        def stand(*options: str) -> Stand:
            if options not in made:
                mounter = Mounter(tmp_path_factory.mktemp("stand"))
                server = stack.enter_context(FastS3Server())
                server.add_bucket("models")
                proxy = stack.enter_context(FaultProxy(server))
                stack.callback(mounter.end)
                expect = ["read failed with (ESTALE|EACCES|EIO): ", "s3://models has no objects yet"]
                mount = mounter.mount(proxy, "s3://models", "--metadata-ttl=0s", *options, expect=expect)
                made[options] = Stand(mount, proxy, server)
            return made[options]

        yield stand


@pytest.fixture(scope="module")
def hand() -> Iterator[Reader]:
    """A reader that outlives a test, for those that do not kill it."""
    with Reader() as made:
        yield made


FEW = [
    "503 SlowDown",
    "403 ExpiredToken",
    "reset in the body",
    "end in the body",
    "no length",
    "the whole object",
    "gzip in chunks",
    "somebody else's page",
    "301 with a region",
]
"""For the engines that are not the usual one."""

EACH = [("auto", name) for name in PASSING] + [(engine, name) for engine in ("boto3", "awscrt") for name in FEW]


@pytest.mark.parametrize(("engine", "name"), EACH)
def test_later_requests(stands: Callable[..., Stand], hand: Reader, engine: str, name: str) -> None:
    """A listing meets trouble, then the first GET of a file, then two GETs in the middle of a mapped load, and the HEAD
    by which the whole of it is verified."""
    stand, trouble = stands(ENOUGH, f"--s3-engine={engine}"), PASSING[name]
    proxy, news = stand.proxy, stand.news()
    fd = stand.open(hand, name, listing := Meet(trouble, kind="LIST"))
    proxy.fault = plain = Meet(trouble)
    assert hand.call("pread", fd, 4096, 0) == DATA[:4096]
    proxy.fault = None
    stand.mount.settle()
    hand.call("map_file", fd)
    middle, head = Meet(trouble, trouble), Meet(trouble, kind="HEAD")
    proxy.fault = either(middle, head)
    assert hand.call("peek", fd, SIZE, 0) == DATA
    wait_until(lambda: stand.verified(hand, fd) == "crc64nvme", "the whole object is verified")
    assert [len(meet.met) for meet in (listing, plain, middle, head)] == [1, 1, 2, 1]
    assert by_botocore(plain.met[0]) == (engine == "boto3")
    assert (news.failures, news.lines) == (0, [])
    hand.call("unmap", fd)
    hand.call("close_file", fd)


class Hold(threading.Event):
    """What a stall waits for; `begun` when one does."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        """As an event's."""
        self.begun.set()
        return super().wait(timeout)


@pytest.mark.parametrize("after", [0, 300_000])
def test_a_stall_that_ends(stands: Callable[..., Stand], hand: Reader, after: int) -> None:
    """Is waited for, before the body and in it."""
    stand, hold = stands(ENOUGH, "--s3-engine=auto"), Hold()
    fd, news = stand.open(hand, f"stall {after}"), stand.news()
    hand.call("map_file", fd)
    stand.proxy.fault = Meet(Trouble(lambda request: Fault(stall_after=after, until=hold)))
    hand.begin("peek", fd, SIZE, 0)
    assert hold.begun.wait(20)
    hold.set()
    assert hand.result() == DATA
    assert (news.failures, news.lines) == (0, [])
    hand.call("unmap", fd)
    hand.call("close_file", fd)


@pytest.mark.slow  # 20 s of silence end a connection
@pytest.mark.parametrize("engine", ["auto", "boto3", "awscrt"])
def test_a_stall_that_does_not_end(stands: Callable[..., Stand], hand: Reader, engine: str) -> None:
    """Is a connection that is given up, and what came before counts."""
    stand = stands(ENOUGH, f"--s3-engine={engine}")
    fd, news = stand.open(hand, "silence"), stand.news()
    hand.call("map_file", fd)
    stand.proxy.fault = stalled = Meet(*[Trouble(lambda request: Fault(stall_after=300_000))] * 2)
    assert hand.call("peek", fd, SIZE, 0) == DATA
    assert len(stalled.met) == 2
    assert (news.failures, news.lines) == (0, [])
    hand.call("unmap", fd)
    hand.call("close_file", fd)


# ---- what is said with authority, and what lasts

ERRNO = {name: "EACCES" if name.startswith("403") else "ESTALE" for name in FINAL}


@pytest.mark.parametrize("name", FINAL)
@pytest.mark.parametrize("engine", ["auto", "boto3", "awscrt"])
def test_what_s3_says_with_authority(stands: Callable[..., Stand], hand: Reader, name: str, engine: str) -> None:
    """Is said at once, in the middle of a file as well, and holds as long as it is said: then the file can be opened
    and read again."""
    stand = stands(ENOUGH, f"--s3-engine={engine}")
    fd, news = stand.open(hand, name), stand.news()
    assert hand.call("pread", fd, 4096, 0) == DATA[:4096]
    before = stand.mount.settle()["store"]["retries"]
    stand.proxy.fault = always(FINAL[name])
    assert failure_of(lambda: hand.call("pread", fd, 4096, FAR)) == ERRNO[name]
    assert hand.call("pread", fd, 4096, 0) == DATA[:4096], "what is here stays readable"
    assert news.failures == len(news.lines) >= 1
    assert all(f"read failed with {ERRNO[name]}: " in line for line in news.lines)
    assert stand.mount.stats()["store"]["retries"] == before
    stand.proxy.fault = None
    again = hand.call("open_file", hand.call("os:readlink", f"/proc/self/fd/{fd}"))
    assert hand.call("pread", again, SIZE, 0) == DATA
    hand.call("close_file", again)
    hand.call("close_file", fd)


LASTING = [name for name, trouble in PASSING.items() if "GET" not in trouble.harmless]


@pytest.mark.parametrize("name", LASTING)
def test_trouble_that_lasts(stands: Callable[..., Stand], hand: Reader, name: str) -> None:
    """Past the budget it is EIO, and one line for each read that failed, which names key, range, attempts and the last
    cause; never bytes that are not those of the object. Then all is right again, through the same descriptor."""
    stand = stands(NONE)
    fd, news = stand.open(hand, f"lasting {name}"), stand.news()
    key = re.sub(r"\W", "-", f"lasting {name}")
    # Of itself, or botocore would ask for the one that was redirected again.
    stand.proxy.fault = lambda request: PASSING[name].fault(request) if request.kind == "GET" else None
    assert failure_of(lambda: hand.call("pread", fd, 4096, FAR)) == "EIO"
    pattern = rf"read failed with EIO: read '{re.escape(key)}' bytes \d+-\d+: \d+ attempts failed, the last with \w.+"
    assert news.failures == len(news.lines) >= 1
    assert all(re.search(pattern, line) for line in news.lines), news.lines
    stand.proxy.fault = None
    assert hand.call("pread", fd, SIZE, 0) == DATA
    hand.call("close_file", fd)


@pytest.mark.parametrize("status", [301, 307])
@pytest.mark.parametrize("region", [None, "eu-west-1"])
def test_a_redirect_that_lasts(stands: Callable[..., Stand], hand: Reader, status: int, region: str | None) -> None:
    """To a server whom botocore does not follow to: EIO after the budget, not at once; and it leaves nothing behind,
    such as another region to sign for."""
    stand = stands(NONE)
    fd, news = stand.open(hand, f"moved {status} {region}"), stand.news()
    stand.proxy.fault = lambda request: moved(request, stand.server.url, status, region=region)
    assert failure_of(lambda: hand.call("pread", fd, 4096, FAR)) == "EIO"
    assert all("attempts failed, the last with " in line for line in news.lines)
    stand.proxy.fault = None
    assert hand.call("pread", fd, SIZE, 0) == DATA
    hand.call("close_file", fd)


# ---- outages


@pytest.mark.parametrize("refuse", [True, False], ids=["refused", "dropped"])
@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_an_outage_in_the_middle_of_a_mapped_load(
    proxy: FaultProxy, mounter: Mounter, reader: Reader, seconds: float, refuse: bool
) -> None:
    """Is a pause."""
    mount = mounter.mount(proxy, "s3://models", "--retry-budget=5m")
    outage_of(proxy, mount, reader, "k", seconds, refuse=refuse)


def outage_of(proxy: FaultProxy, mount: Mount, reader: Reader, key: str, seconds: float, *, refuse: bool) -> None:
    """Hold the bytes from the third MiB on while the file is read through a mapping, then break everything for so long,
    and expect the right bytes, and no word about it."""
    fd = reader.call("open_file", str(mount.path / key))
    reader.call("map_file", fd)
    with proxy.hold(lambda request: request.kind == "GET" and (request.range or (0, 0))[0] >= 2 * MIB) as gate:
        reader.begin("peek", fd, SIZE, 0)
        gate.wait_for(1)
        asked = mount.stats()["store"]["retries"]
        with proxy.outage(refuse=refuse):
            gate.release()
            over = time.monotonic() + seconds

            def lasted() -> bool:
                return time.monotonic() >= over and mount.stats()["store"]["retries"] >= asked + 2

            wait_until(lasted, "an outage of this length, in which it was asked again", seconds + 20)
        assert reader.result() == DATA
    assert mount.stats()["failures"] == 0
    reader.call("unmap", fd)
    reader.call("close_file", fd)


def test_an_outage_longer_than_the_budget(proxy: FaultProxy, mounter: Mounter, reader: Reader) -> None:
    """EIO, which is SIGBUS for a mapped reader, with lines that say why; after it another descriptor of the same file,
    opened before, reads."""
    pattern = r"read failed with EIO: read 'k' bytes \d+-\d+: (\d+) attempts failed, the last with \w*Connection"
    mount = mounter.mount(proxy, "s3://models", "--retry-budget=1s", "--metadata-ttl=1h", expect=[pattern])
    fd = reader.call("open_file", str(mount.path / "k"))
    news = News(mount)
    with Reader() as victim:
        mapped = victim.call("open_file", str(mount.path / "k"))
        victim.call("map_file", mapped, "random")
        with proxy.outage(), pytest.raises(ReaderDied, match="SIGBUS"):
            victim.call("peek", mapped, 1, 0)
    found = [re.search(pattern, line) for line in news.lines]
    assert news.failures == len(found) >= 1
    assert all(found), news.lines
    assert max(int(match[1]) for match in found if match) > 1
    assert reader.call("pread", fd, SIZE, 0) == DATA


# ---- the real server


def test_in_front_of_a_real_server(swift: SwiftServer, mounter: Mounter, reader: Reader) -> None:
    """A plain read; a mapped load whose GETs meet six troubles; an outage. Swift checks signatures and regions."""
    names = ["503 SlowDown", "reset in the body", "the whole object", "301 with a region", "403 ExpiredToken"]
    names += ["gzip of unknown length"]
    with FaultProxy(swift) as proxy:
        client = proxy.client()
        client.create_bucket(Bucket="faults")
        for key in ("plain", "mapped", "outage"):
            client.put_object(Bucket="faults", Key=key, Body=DATA)
        client.close()
        mount = mounter.mount(proxy, "s3://faults", "--retry-budget=5m")
        assert reader.call("digest", str(mount.path / "plain")) == SUM
        fd = reader.call("open_file", str(mount.path / "mapped"))
        reader.call("map_file", fd)
        proxy.fault = meet = Meet(*(PASSING[name] for name in names))
        assert reader.call("peek", fd, SIZE, 0) == DATA
        assert len(meet.met) == len(names)
        reader.call("unmap", fd)
        outage_of(proxy, mount, reader, "outage", 1, refuse=True)
