"""Going wrong on purpose: what an answer may have wrong with it, and gates that hold requests.

Its job: to describe, so that a test reads as the failure it means. Must not know sockets; `sending` does what is
said here, for the servers of this folder and for the proxy in front of a real one.
"""

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Literal, Self
from urllib.parse import quote, urlencode

from tests.servers.records import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How one answer differs from the right one.

    Each field is one deviation, None and False are none, and they combine:

    status: answer with this status and an S3 error of `code`, instead of the object.
    page: answer with these bytes, which are not S3's, as something on the way may do; 200 unless there is a `status`.
    headers: added, or put in place of the right ones (Location, Content-Encoding, Content-Length, ...).
    without: names of headers that are left out, as they are spelled in answers (ETag, Content-Range, ...).
    etag: the ETag to claim, with its quotes.
    content_range: the Content-Range to claim.
    whole: a Range is ignored: 200 and all bytes.
    wrong_bytes: the first byte of the body is inverted.
    gzip: the body is compressed on the way, and Content-Encoding says so; the other headers stay those of the object.
    framing: how the end of the body is told: by its "length", in "chunks", or by the end of the connection ("close").
    rate: bytes per second of this body.
    hang_up: close the connection without an answer.
    close_after: close it after so many bytes of the body.
    reset: where it is closed, by RST instead of FIN; bytes that the client has not read yet are lost to it.
    stall_after: send nothing more after so many bytes of the body, until the event `until` is set (then the
    rest follows), the client goes away or the server stops.
    """

    status: int | None = None
    code: str = "InternalError"
    page: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    without: tuple[str, ...] = ()
    etag: str | None = None
    content_range: str | None = None
    whole: bool = False
    wrong_bytes: bool = False
    gzip: bool = False
    framing: Literal["length", "chunks", "close"] = "length"
    rate: float | None = None
    hang_up: bool = False
    close_after: int | None = None
    reset: bool = False
    stall_after: int | None = None
    until: threading.Event | None = None


FaultHook = Callable[[Request], Fault | None]


def first(count: int, fault: Fault, matching: Callable[[Request], bool] | None = None) -> FaultHook:
    """A hook that gives `fault` to the first `count` requests that match (by default: GETs of objects)."""
    lock = threading.Lock()
    left = count

    def hook(request: Request) -> Fault | None:
        nonlocal left
        if not (matching(request) if matching else request.kind == "GET"):
            return None
        with lock:
            left -= 1
            return fault if left >= 0 else None

    return hook


def moved(request: Request, to: str, status: int, *, region: str | None = None) -> Fault:
    """A redirect of this request to the server at `to`, as S3 says it: 301 for good, 307 for now. `region` is the one
    in which the bucket is said to be; S3 leaves that out at times."""
    target = quote(f"/{request.bucket}/{request.key}" if request.key else f"/{request.bucket}")
    headers = {"Location": to + target + (f"?{urlencode(request.query)}" if request.query else "")}
    if region is not None:
        headers["x-amz-bucket-region"] = region
    return Fault(status=status, code="PermanentRedirect" if status == 301 else "TemporaryRedirect", headers=headers)


class Gate:
    """Holds the requests that match, before anything of them is answered, until `release`. Safe for threads.

    As a context manager it opens for good at the end of the block.
    """

    def __init__(self, matching: Callable[[Request], bool]) -> None:
        self._matching = matching
        self._changed = threading.Condition()
        self._held: list[Request] = []
        self._passes: float = 0

    def admit(self, request: Request) -> None:
        """Called by the server for each request: return at once, or when it may go on."""
        if not self._matching(request):
            return
        with self._changed:
            self._held.append(request)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._passes > 0)
            self._passes -= 1
            self._held.remove(request)
            self._changed.notify_all()

    @property
    def held(self) -> list[Request]:
        """The requests that wait now, in the order they came."""
        with self._changed:
            return list(self._held)

    def wait_for(self, count: int = 1, timeout: float = 10.0) -> list[Request]:
        """Block until at least `count` requests are held and return them.

        TimeoutError after `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._held) >= count, timeout):
                raise TimeoutError(f"{len(self._held)} of {count} requests were held after {timeout} s")
            return list(self._held)

    def release(self, count: int | None = None) -> None:
        """Let `count` requests through, waiting or still to come, or all of them for good."""
        with self._changed:
            self._passes += math.inf if count is None else count
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
