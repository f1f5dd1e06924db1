"""Looking at a bucket for `lazyfs doctor`: what each request comes to, in facts, and no patience at all.

Its job: ask as a mount would, with the same client, and say what came: status, code, words, headers. Must not know what
is made of it. No secret leaves this module: of credentials, only where they came from and until when they are good.
Blocking; any thread.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import botocore.exceptions
from botocore.utils import get_environ_proxies

from lazyfs.errors import StoreError
from lazyfs.stores.border import translated
from lazyfs.stores.client import Connection
from lazyfs.stores.customer_keys import open_way, sse_arguments
from lazyfs.stores.traffic import Traffic

PIECE = 256 * 1024
LANES = 8
"""GETs at once when the rate is measured."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """`provider` is botocore's word for where they were found, empty if they were not. `expires` is seconds since the
    epoch, None for never."""

    provider: str
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """What S3 said to one request. `status` is 0 if it said nothing, and `words` then says why. Names in `headers` are
    lower case; `seconds` until the head of the answer was here."""

    status: int
    code: str = ""
    words: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    found: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fine(self) -> bool:
        """Whether it gave what was asked for."""
        return 200 <= self.status < 300 and not self.code


class Probe:
    """One bucket. `arguments` as `Connection` takes them; `SetupError` if there is no such profile or CA bundle."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        *,
        common: Mapping[str, str],
        customer_key: bytes | None = None,
        **arguments: Any,
    ) -> None:
        self._prefix = prefix
        self._key = customer_key
        self._common = {"Bucket": bucket, **common}
        self._connection = Connection(**arguments, connections=LANES, traffic=Traffic())

    @property
    def _client(self) -> Any:
        return self._connection.ready()[0]

    def _for_objects(self) -> dict[str, Any]:
        """What is said of an object; a customer's key only where it may go, without which S3 says what it wants."""
        key = self._key if self._key and not open_way(self.endpoint) else None
        return {**self._common, **(sse_arguments(key) if key else {})}

    @property
    def endpoint(self) -> str:
        """The URL of the server."""
        return str(self._client.meta.endpoint_url)

    @property
    def region(self) -> str:
        """The region that requests are signed for."""
        return str(self._client.meta.region_name)

    def credentials(self) -> Credentials:
        """Find them, and renew them where that is needed. `StoreError` if who should give them does not."""

        def find() -> Credentials:
            held = self._client._request_signer._credentials
            if held is None:
                return Credentials("")
            held.get_frozen_credentials()
            expires = getattr(held, "_expiry_time", None)
            return Credentials(str(held.method), None if expires is None else expires.timestamp())

        return translated(find)

    def list(self) -> Answered:
        """The first 1,000 objects below the prefix; `found["Contents"]` has them."""
        return self._asked(lambda: self._client.list_objects_v2(**self._common, Prefix=self._prefix))

    def head_bucket(self) -> Answered:
        """The bucket itself; a header says its region."""
        return self._asked(lambda: self._client.head_bucket(**self._common))

    def versioning(self) -> Answered:
        """Whether the bucket keeps versions, as far as one may ask."""
        return self._asked(lambda: self._client.get_bucket_versioning(**_without_payer(self._common)))

    def head(self, key: str) -> Answered:
        """An object, with its checksums."""
        return self._asked(lambda: self._client.head_object(**self._for_objects(), Key=key, ChecksumMode="ENABLED"))

    def first_byte(self, key: str) -> Answered:
        """One byte of an object, which must not be empty."""

        def get() -> Any:
            answer = self._client.get_object(**self._for_objects(), Key=key, Range="bytes=0-0")
            answer["Body"].read()
            return answer

        return self._asked(get)

    def rate(self, key: str, size: int, *, most: int, seconds: float) -> tuple[int, float]:
        """Receive up to `most` bytes of an object, for so many seconds at most, by several ranges at once; bytes and
        seconds. `StoreError` if one fails."""
        lock, received, began = threading.Lock(), 0, time.monotonic()
        total = min(size, most)
        step = -(-total // LANES)

        def receive(start: int) -> None:
            nonlocal received
            stop = min(total, start + step)
            body = self._client.get_object(**self._for_objects(), Key=key, Range=f"bytes={start}-{stop - 1}")["Body"]
            while time.monotonic() - began < seconds and (piece := body.read(PIECE)):
                with lock:
                    received += len(piece)
            body.close()

        def lane(start: int) -> None:
            try:
                translated(receive, start)
            except StoreError as error:
                failures.append(error)

        # Not a pool, whose threads the end of the process waits for: one may stand on a silent connection.
        failures: list[StoreError] = []
        lanes = [threading.Thread(target=lane, args=(start,), daemon=True) for start in range(0, total, step)]
        for each in lanes:
            each.start()
        for each in lanes:
            each.join()
        if failures:
            raise failures[0]
        return received, max(time.monotonic() - began, 1e-6)

    def _asked(self, ask: Callable[[], Any]) -> Answered:
        began = time.monotonic()

        def answered(answer: Mapping[str, Any]) -> Answered:
            told, error = answer.get("ResponseMetadata", {}), answer.get("Error", {})
            headers = {str(name).lower(): str(value) for name, value in told.get("HTTPHeaders", {}).items()}
            status, code = int(told.get("HTTPStatusCode", 0)), str(error.get("Code", ""))
            return Answered(
                status, code, str(error.get("Message", "")), headers, time.monotonic() - began, {} if code else answer
            )

        def attempt() -> Answered:
            try:
                return answered(ask())
            except botocore.exceptions.ClientError as error:
                return answered(error.response)

        try:
            return translated(attempt)
        except StoreError as error:
            return Answered(0, "", str(error), {}, time.monotonic() - began)


def _without_payer(common: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in common.items() if name != "RequestPayer"}


def proxy_of(url: str) -> str | None:
    """The proxy that requests to this URL go through by the environment, as its URL, None without."""
    found: dict[str, str] = get_environ_proxies(url)
    return found.get(url.partition("://")[0])
