"""The page for people: one HTML document, and the JSON beside it from which it draws.

Its job: who may see what, what a browser is told to refuse, and the numbers of the last minutes, which are kept while
somebody looks. Names of files are for root and who mounted, as with `lazyfs top`: over a unix socket, which is open to
nobody else, or with the key that `lazyfs status` shows those two. Other users of this machine, whom a port of the
loopback is open to, see numbers. Must not know how HTTP goes (`http`), nor what the mount is made of (`glance`).

A page of somebody else's in a browser must learn nothing: no answer has a CORS header, the key is sent in a header that
no form or image can set, and a Host that is a name of somebody else's (DNS rebinding) is refused.

Concurrency: the observer's thread.
"""

import base64
import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import cache, partial
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

import trio

from lazyfs.errors import LazyfsError, NoSuchName
from lazyfs.service import glance, http
from lazyfs.service.asking import Asker, Silent
from lazyfs.service.facts import Facts
from lazyfs.service.metrics import Health
from lazyfs.service.mount import RunningMount
from lazyfs.tallies import QUICK, SLOW, Spread
from lazyfs.words import Address

SAMPLES = 300
"""Of the last minutes, one a second at most: 0.3 MB as JSON."""

APART = 0.9
"""Seconds between two of them at least."""

GAP = 60.0
"""Seconds without one, for nobody looked, after which they begin anew."""

FIELDS = (
    "at", "to_readers", "from_disk", "from_store", "used", "waits", "disk_hits", "misses", "failures", "requests",
    "retries", "under_way", "memory", "reads", "first_byte",
)  # fmt: skip
"""Of a sample, in order: seconds since the start of the mount, then counts since then, but for `under_way` and
`memory`, which are of the moment; the last two are counts of durations by bucket."""

NO_NAMES = (
    "Names of files are for root and who mounted: `lazyfs status` shows them the address of this page with its key."
)

Look = Callable[[], Awaitable[tuple[Facts | None, Health]]]


class Pages:
    """The page of one mount, served at `address`. `look` gives its numbers."""

    def __init__(self, mount: RunningMount, address: Address, main: trio.lowlevel.TrioToken, look: Look) -> None:
        self.key = secrets.token_urlsafe(16)
        """What opens the names, for as long as this daemon runs."""
        self._mount = mount
        self._open = bool(address.path)
        self._near = not address.path and ipaddress.ip_address(address.host).is_loopback
        self._look = look
        self._asker = Asker(main)
        self._samples: deque[list[Any]] = deque(maxlen=SAMPLES)
        self._sampled = float("-inf")

    def routes(self, others: http.Routes) -> http.Routes:
        """The page, its JSON, and the other routes: on the loopback these also only for whom its Host names."""
        mine: http.Routes = {
            "/": self._document,
            "/cache/recent": self._recent,
            "/cache/tree": partial(self._about, glance.directory),
            "/cache/file": partial(self._about, glance.chunks),
        }
        guarded = mine if not self._near else {**others, **mine}
        return {**others, **{path: partial(_for_us, handler) for path, handler in guarded.items()}}

    async def _document(self, _: http.Request) -> http.Answer:
        body, policy = document()
        return http.Answer(body, "text/html; charset=utf-8", headers={**policy, **CLOSED})

    async def _recent(self, request: http.Request) -> http.Answer:
        """What goes on. `since`: the time of the last sample that is known."""
        facts, health = await self._look()
        names = self._may_see(request)
        told: dict[str, Any] = {
            "now": time.time(),
            "names": names,
            "health": {"ok": not health.words, "words": health.words},
            "mount": None,
            "fields": FIELDS,
            "bounds": {"reads": QUICK, "first_byte": SLOW},
            "samples": [],
            "activity": None,
            "loads": None,
        }
        if facts is None:
            return _json(told)
        told["mount"] = {
            **json.loads(facts.report),
            "disk": {"used": facts.disk_used, "bound": facts.disk_bound, "evicted": facts.disk_evicted},
            "verified": asdict(facts.verified),
        }
        if health.turning:
            try:
                found = await self._asker.ask("recent", lambda: glance.recent(self._mount))
            except Silent:
                return _json(told)
            self._sample(told["mount"]["uptime"], facts, found["activity"])
            told |= found if names else _nameless(found)
        since = _number(_arguments(request).get("since", ""))
        told["samples"] = [sample for sample in self._samples if sample[0] > since]
        return _json(told)

    async def _about(
        self, question: Callable[[RunningMount, str], Awaitable[dict[str, Any]]], request: http.Request
    ) -> http.Answer:
        """A directory or a file, by its `path` in the mount."""
        if not self._may_see(request):
            return http.sentence(403, NO_NAMES)
        path = _arguments(request).get("path", "").strip("/")
        try:
            return _json(await self._asker.ask((question, path), partial(question, self._mount, path)))
        except NoSuchName as error:
            return http.sentence(404, str(error))
        except LazyfsError as error:
            return http.sentence(503, str(error))

    def _may_see(self, request: http.Request) -> bool:
        """Whether names are for who asks."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
        return self._open or hmac.compare_digest(given, self.key.encode())

    def _sample(self, at: float, facts: Facts, activity: dict[str, Any]) -> None:
        now = trio.current_time()
        if now - self._sampled < APART:
            return
        if now - self._sampled > GAP:
            self._samples.clear()
        self._sampled = now
        chunks, counters = facts.chunks, activity["counters"]
        reads, first = facts.calls.seconds.get("read"), facts.traffic.first_byte.get("GetObject")
        self._samples.append([
            at, counters["to_readers"], counters["from_disk"], counters["from_store"],
            chunks.memory_hits, chunks.waits, chunks.disk_hits, chunks.misses,
            facts.failures, sum(facts.traffic.requests.values()), facts.fetch.retries,
            activity["requests_under_way"], facts.memory.slots - facts.memory.free,
            _counts(reads, QUICK), _counts(first, SLOW),
        ])  # fmt: skip


SCRIPTS = ("drawing.js", "files.js", "page.js")
"""In the order in which they are one script."""

CLOSED = {
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}
"""What a browser is told of each answer, beside what the page may do itself."""


@cache
def document() -> tuple[bytes, dict[str, str]]:
    """The page with its style and script inside, and the policy by which a browser runs these and nothing else, loads
    nothing, and asks nobody but who served it. Names can be text in it and never HTML (trusted types)."""
    parts = resources.files("lazyfs.service") / "page"
    page, style, *scripts = (
        (parts / name).read_text(encoding="utf-8") for name in ("page.html", "style.css", *SCRIPTS)
    )
    script = "".join(scripts)
    allowed = {name: f"'sha256-{_digest(text)}'" for name, text in (("style", style), ("script", script))}
    policy = (
        f"default-src 'none'; style-src {allowed['style']}; script-src {allowed['script']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    body = page.replace("/* style */", style).replace("/* script */", script)
    return body.encode(), {"content-security-policy": policy}


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


async def _for_us(handler: http.Handler, request: http.Request) -> http.Answer:
    """What a route answers who asked for this machine by an address or its own name. Others are pages elsewhere whose
    name was made to lead here."""
    if not ours(request.headers.get("host", "")):
        return http.sentence(421, "Ask by an IP address, localhost, or the name of this machine.")
    return await handler(request)


def ours(host: str) -> bool:
    """Whether a Host header has nothing that somebody else could have given an address."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]{1,5})?", host)
    name = (match[1] or match[2]).lower() if match else ""
    if name in ("localhost", socket.gethostname().lower()):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _nameless(found: dict[str, Any]) -> dict[str, Any]:
    """The same without what names of files are in."""
    activity, loads = found["activity"], found["loads"]
    return {
        "activity": {
            **activity,
            "files": [],
            "requests": [{**one, "key": None} for one in activity["requests"]],
            "words": [{**one, "words": None} for one in activity["words"]],
        },
        "loads": {**loads, "files": [{**one, "path": None} for one in loads["files"]]},
    }


def _arguments(request: http.Request) -> dict[str, str]:
    """The query; of what is given twice the first, and nothing of what is none."""
    try:
        found = parse_qs(request.query, keep_blank_values=True, max_num_fields=8, errors="surrogateescape")
    except ValueError:
        return {}
    return {name: values[0] for name, values in found.items()}


def _number(text: str) -> float:
    return float(text) if re.fullmatch(r"[0-9]{1,12}(?:\.[0-9]{1,9})?", text) else -1.0


def _counts(spread: Spread | None, bounds: tuple[float, ...]) -> list[int]:
    return list(spread.counts) if spread is not None else [0] * (len(bounds) + 1)


def _json(told: dict[str, Any]) -> http.Answer:
    return http.Answer(json.dumps(told, separators=(",", ":")).encode(), "application/json", headers=CLOSED)
