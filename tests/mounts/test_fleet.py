"""Real daemons that start at once, against a real server that refuses what is too much (`tests/simulation/fleet.py` has
fifty, simulated)."""

import threading
import time

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter
from tests.mounts.reader import Reader
from tests.mounts.test_cache import sum_of
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault
from tests.servers.records import Request

DATA = pages(1, 96 * MIB)


class Limit:
    """A fault hook: SlowDown for GETs beyond `rate` a second, with a second's worth at once."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._tokens, self._filled = rate, time.monotonic()
        self.refused = self.answered = 0

    def __call__(self, request: Request) -> Fault | None:
        if request.kind != "GET":
            return None
        with self._lock:
            now = time.monotonic()
            self._tokens = min(self._rate, self._tokens + (now - self._filled) * self._rate)
            self._filled = now
            if self._tokens >= 1:
                self._tokens -= 1
                self.answered += 1
                return None
            self.refused += 1
            return Fault(status=503, code="SlowDown")


@pytest.mark.slow
def test_ten_daemons_at_once(s3: FastS3Server, mounter: Mounter) -> None:
    """Each with a cache of its own reads the model to its end: nobody sees a failure, most requests are answered."""
    s3.put("models", "weights", DATA)
    mounts: list[Mount] = [
        mounter.mount(
            s3, "s3://models", "--memory-budget=64MiB", cache=mounter.cache(f"c{n}"), at=mounter.place(f"m{n}"),
            expect=["unreachable", "asks for less"],
        )
        for n in range(10)
    ]
    limit = s3.fault = Limit(60.0)
    found: list[tuple[int, str]] = []

    def read(mount: Mount) -> None:
        with Reader() as reader:
            found.append(reader.call("digest", str(mount.path / "weights"), timeout=100))

    threads = [threading.Thread(target=read, args=(mount,)) for mount in mounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(110)
    assert found == [sum_of(DATA)] * 10
    assert all(mount.stats()["failures"] == 0 for mount in mounts)
    assert limit.refused < limit.answered, (limit.refused, limit.answered)
