"""Mounts that meet trouble: a file to read, hooks that say which requests meet what, and stands that serve many tests.

Must not know which troubles there are; `servers.troubles` has them.
"""

import base64
import errno
import hashlib
import re
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from awscrt.checksums import crc64nvme

from tests.mounts.contents import MIB, pages
from tests.mounts.daemon_logs import unannounced
from tests.mounts.mounting import LIFETIME, Mount, Mounter, outlive_moment
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault, FaultHook
from tests.servers.proxy import FaultProxy
from tests.servers.records import Request
from tests.servers.troubles import Trouble

SIZE = 5 * MIB + 4321
DATA = pages(1, SIZE)
SUM = (SIZE, hashlib.sha256(DATA).hexdigest())
CHECKSUM = {"x-amz-checksum-crc64nvme": base64.b64encode(crc64nvme(DATA).to_bytes(8, "big")).decode()}
"""What S3 keeps of an object; asked for by a HEAD when all of it is here."""

FAR = 3 * MIB
"""Offset of a page that nothing brings ahead of a first touch."""

LONG = MIB // 2
"""Bytes of a GET that is long enough to break in the middle, or to stall there."""

ENOUGH = "--retry-budget=60s"
"""For trouble that passes: more than any of it lasts."""

NONE = "--retry-budget=0s"
"""One attempt, for trouble that lasts."""


def by_botocore(request: Request) -> bool:
    """Whether botocore sent it; else it came over a wire, or by awscrt."""
    return "amz-sdk-invocation-id" in request.headers


class Meet:
    """A hook: requests of a kind meet these troubles, one each, in the order in which they come. `met` are those that
    did; not GETs of less than `LONG`, such as that of a file's last bytes, which end before most troubles begin."""

    def __init__(self, *troubles: Trouble, kind: str = "GET") -> None:
        self.met: list[Request] = []
        self._left = list(reversed(troubles))
        self._kind = kind
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Fault | None:
        with self._lock:
            if request.kind != self._kind or not self._left or _short(request):
                return None
            trouble = self._left.pop()
            self.met.append(request)
        return trouble.fault(request)


def _short(request: Request) -> bool:
    return request.range is not None and request.range[1] - request.range[0] < LONG


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


class Stands:
    """Stands by their options. Each serves many tests, and is made anew before its daemon's own alarm ends it."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._made: dict[tuple[str, ...], tuple[Stand, ExitStack, float]] = {}

    def __call__(self, *options: str) -> Stand:
        """The stand of these options."""
        for made, (_, stack, born) in list(self._made.items()):
            if time.monotonic() - born > LIFETIME / 2:
                del self._made[made]
                stack.close()
        if options not in self._made:
            with ExitStack() as stack:
                mounter, born = Mounter(self._factory.mktemp("stand")), time.monotonic()
                server = stack.enter_context(FastS3Server())
                server.add_bucket("models")
                proxy = stack.enter_context(FaultProxy(server))
                stack.callback(mounter.end)
                expect = ["read failed with (ESTALE|EACCES|EIO): ", "s3://models has no objects yet"]
                mount = mounter.mount(proxy, "s3://models", "--metadata-ttl=0s", *options, expect=expect)
                self._made[options] = Stand(mount, proxy, server), stack.pop_all(), born
        return self._made[options][0]

    def close(self) -> None:
        """End them all, and look into their logs."""
        with ExitStack() as all_of_them:
            for _, stack, _ in self._made.values():
                all_of_them.push(stack)
