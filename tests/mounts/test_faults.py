"""P5: trouble with S3 that is shorter than the retry budget is not seen by who reads, mapped or not; what is wrong or
ambiguous is never taken for data; what S3 says with authority is said at once, as the README has it.

Each row of `servers.troubles` is tried with a listing, with a GET over a wire, with GETs in the middle of a mapped
load, and with the HEAD by which an object is verified. `test_outages` tries the first requests of a mount.
"""

import re
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.mounts.mounting import wait_until
from tests.mounts.reader import Reader
from tests.mounts.trouble import DATA, ENOUGH, FAR, NONE, SIZE, Meet, Stands, always, by_botocore, either, failure_of
from tests.servers.faults import Fault, moved
from tests.servers.records import Request
from tests.servers.troubles import FINAL, PASSING, Trouble


@pytest.fixture(scope="module")
def stands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stands]:
    """Mounts for many tests."""
    made = Stands(tmp_path_factory)
    yield made
    made.close()


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
def test_later_requests(stands: Stands, hand: Reader, engine: str, name: str) -> None:
    """A listing meets trouble, then the first GET of a file, then two GETs in the middle of a mapped load, and the HEAD
    by which the whole of it is verified."""
    stand, trouble = stands(ENOUGH, f"--s3-engine={engine}"), PASSING[name]
    proxy, news = stand.proxy, stand.news()
    fd = stand.open(hand, name, listing := Meet(trouble, kind="LIST"))
    # A good answer after whatever trouble was last: one without a length has botocore send the next GET.
    assert hand.call("pread", fd, 4096, SIZE - 4096) == DATA[-4096:]
    # Bytes are given out before their GET is over, and only then the next one goes the quick way.
    stand.mount.settle()
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
def test_a_stall_that_ends(stands: Stands, hand: Reader, after: int) -> None:
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


ERRNO = {name: "EACCES" if name.startswith("403") else "ESTALE" for name in FINAL}


@pytest.mark.parametrize("name", FINAL)
@pytest.mark.parametrize("engine", ["auto", "boto3", "awscrt"])
def test_what_s3_says_with_authority(stands: Stands, hand: Reader, name: str, engine: str) -> None:
    """Is said at once, in the middle of a file as well, and holds as long as it is said: then the file can be opened
    and read again."""
    stand = stands(ENOUGH, f"--s3-engine={engine}")
    fd, news = stand.open(hand, name), stand.news()
    assert hand.call("pread", fd, 4096, 0) == DATA[:4096]
    before = stand.mount.settle()["store"]["retries"]
    stand.proxy.fault = always(FINAL[name])
    assert failure_of(lambda: hand.call("pread", fd, 4096, FAR)) == ERRNO[name]
    assert hand.call("pread", fd, 4096, 0) == DATA[:4096], "what is here stays readable"
    if "InvalidObjectState" in name:  # an archive stays one for hours, so it is said once
        assert news.failures >= len(news.lines) == 1
    else:
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
def test_trouble_that_lasts(stands: Stands, hand: Reader, name: str) -> None:
    """Past the budget it is EIO, and one line for each read that failed, which names key, range, attempts and the last
    cause; never bytes that are not those of the object. Then all is right again, through the same descriptor. A body
    that breaks does so before a page of it is here, which would be an answer."""
    stand = stands(NONE)
    fd, news = stand.open(hand, f"lasting {name}"), stand.news()
    key = re.sub(r"\W", "-", f"lasting {name}")

    def lasting(request: Request) -> Fault | None:
        # Not of the HEAD by which botocore finds where it was redirected to: it would ask for that again.
        fault = PASSING[name].fault(request) if request.kind == "GET" else None
        return replace(fault, close_after=100) if fault is not None and fault.close_after else fault

    stand.proxy.fault = lasting
    assert failure_of(lambda: hand.call("pread", fd, 4096, FAR)) == "EIO"
    pattern = rf"read failed with EIO: read '{re.escape(key)}' bytes \d+-\d+: \d+ attempts failed, the last with \w.+"
    assert news.failures == len(news.lines) >= 1
    assert all(re.search(pattern, line) for line in news.lines), news.lines
    stand.proxy.fault = None
    assert hand.call("pread", fd, SIZE, 0) == DATA
    hand.call("close_file", fd)


@pytest.mark.parametrize("status", [301, 307])
@pytest.mark.parametrize("region", [None, "eu-west-1"])
def test_a_redirect_that_lasts(stands: Stands, hand: Reader, status: int, region: str | None) -> None:
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
