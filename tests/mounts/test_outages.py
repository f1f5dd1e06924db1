"""P5 from the first request of a mount to the end of an outage: trouble while it begins, silence, outages that are
shorter and longer than the retry budget, and all of that in front of a real server.
"""

import re
import time
from collections.abc import Iterator

import pytest

from tests.mounts.contents import MIB
from tests.mounts.mounting import Mount, Mounter, MountFailed, wait_until
from tests.mounts.reader import Reader, ReaderDied
from tests.mounts.trouble import DATA, ENOUGH, NONE, SIZE, SUM, Meet, News, by_botocore, either
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault
from tests.servers.proxy import FaultProxy
from tests.servers.swift import SwiftServer
from tests.servers.troubles import PASSING, Trouble


@pytest.fixture
def proxy(s3: FastS3Server) -> Iterator[FaultProxy]:
    """In front of a server with the object `k`."""
    s3.put("models", "k", DATA)
    with FaultProxy(s3) as running:
        yield running


UNLIKE = {"503 SlowDown", "403 ExpiredToken", "end in the body", "no length", "gzip in chunks", "nothing", "301"}
"""Rows of different kinds; with the others a mount each takes a minute."""


@pytest.mark.parametrize(
    "name", [name if name in UNLIKE else pytest.param(name, marks=pytest.mark.slow) for name in PASSING]
)
def test_a_mount_and_its_first_read(proxy: FaultProxy, mounter: Mounter, reader: Reader, name: str) -> None:
    """Its listing and its first GET meet trouble: the mount becomes ready, and the bytes are right. Beside a listing
    that is sent on to another region nothing is learned of GETs."""
    listing, get = Meet(PASSING[name], kind="LIST"), Meet(PASSING[name])
    proxy.fault = either(listing, get)
    mount = mounter.mount(proxy, "s3://models", ENOUGH)
    assert reader.call("digest", str(mount.path / "k")) == SUM
    assert (len(listing.met), len(get.met)) == (1, 1)
    assert by_botocore(get.met[0]) == ("with a region" in name)
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


@pytest.mark.slow  # 20 s of silence end a connection; over a wire 40, for what came before it is waited for as long
@pytest.mark.parametrize("engine", ["auto", "boto3", "awscrt"])
def test_a_stall_that_does_not_end(proxy: FaultProxy, mounter: Mounter, reader: Reader, engine: str) -> None:
    """Is a connection that is given up."""
    mount = mounter.mount(proxy, "s3://models", f"--s3-engine={engine}", "--retry-budget=5m")
    fd = reader.call("open_file", str(mount.path / "k"))
    assert reader.call("pread", fd, 4096, 0) == DATA[:4096], "the next GETs are not by botocore"
    reader.call("map_file", fd)
    proxy.fault = stalled = Meet(Trouble(lambda request: Fault(stall_after=300_000)))
    assert reader.call("peek", fd, SIZE, 0, timeout=90) == DATA
    assert len(stalled.met) == 1
    assert by_botocore(stalled.met[0]) == (engine == "boto3")
    assert mount.stats()["failures"] == 0
    store = mount.stats()["store"]
    assert store["retries"] + store["restarts"] >= 1, "asked again, or behind its like and restarted"


@pytest.mark.parametrize(
    ("seconds", "refuse"),
    [
        pytest.param(4, True, id="4 s, refused"),
        pytest.param(1, False, id="1 s, dropped"),
        pytest.param(60, True, id="60 s, refused", marks=pytest.mark.slow),
        pytest.param(60, False, id="60 s, dropped", marks=pytest.mark.slow),
    ],
)
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
