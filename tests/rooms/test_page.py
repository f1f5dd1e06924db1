"""The page for people: what it is made of, whom it is for, and how often the mount's loop is asked for it."""

import base64
import hashlib
import logging
import re
import socket
from collections.abc import Callable

import pytest
import trio

from lazyfs.errors import LazyfsError, NoSuchName
from lazyfs.service import glance, http, pages
from lazyfs.service.asking import FRESH, PATIENCE, PAUSE, Asker, Silent

BODY, POLICY = pages.document()
TEXT = BODY.decode()
NAMESPACE = "http://www.w3.org/2000/svg"

LARGEST = 100_000


def test_it_is_one_document_that_asks_nobody_else() -> None:
    """No address in it but the name of SVG, nothing that loads, and small."""
    assert len(BODY) < LARGEST
    assert set(re.findall(r"https?://[^\s'\"]+", TEXT)) == {NAMESPACE}
    assert "//cdn" not in TEXT
    assert not re.search(r"<(?:link[^>]+href=\"(?!data:)|script[^>]+src|img|iframe|object|embed|base|form)\b", TEXT)
    assert not re.search(r"@import|url\(|@font-face", TEXT)
    asked = re.findall(r"(?:ask|fetch)\((`[^`]*`|\w+)", TEXT)
    assert {one.strip("`").partition("?")[0] for one in asked} == {
        "path", "/cache/recent", "/cache/file", "/cache/tree"
    }  # fmt: skip


def test_its_policy_lets_run_what_is_in_it_and_nothing_else() -> None:
    """The hashes are those of what is served; nothing in it needs what the policy forbids."""
    policy = dict(part.strip().partition(" ")[::2] for part in POLICY["content-security-policy"].split(";"))
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", TEXT, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert (policy["default-src"], policy["connect-src"], policy["img-src"]) == ("'none'", "'self'", "data:")
    for name in ("base-uri", "form-action", "frame-ancestors", "trusted-types"):
        assert policy[name] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert not re.search(r"<[^>]+\s(?:style|on[a-z]+)=", TEXT)


def test_names_are_text_in_it() -> None:
    """Nothing in its script makes HTML, or code, of a string."""
    found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc", TEXT)
    assert found == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_its_colours_can_be_read(scheme: str) -> None:
    """Contrast as WCAG 2.2 asks for it: 4.5 for text, 3 for what a chart is drawn with."""
    blocks = re.findall(r":root \{(.*?)\}", TEXT, re.DOTALL)
    colours = {name: value for block in blocks[: 1 if scheme == "light" else 2] for name, value in _colours(block)}
    for text in ("ink", "faint", "good", "bad"):
        for back in ("card", "back"):
            assert _contrast(colours[text], colours[back]) >= 4.5, (text, back)
    for text, back in (("good", "good-back"), ("bad", "bad-back"), ("ink", "notice")):
        assert _contrast(colours[text], colours[back]) >= 4.5, (text, back)
    for line in ("readers", "disk", "store", "memory"):
        assert _contrast(colours[line], colours["card"]) >= 3, line


def _colours(block: str) -> list[tuple[str, str]]:
    return re.findall(r"--([a-z-]+): #([0-9a-f]{3,6});", block)


def _contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        full = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
        parts = [int(full[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:9567", True),
        ("[::1]:9567", True),
        ("10.1.2.3", True),
        ("localhost:80", True),
        ("LOCALHOST", True),
        (f"{socket.gethostname()}:9567", True),
        ("evil.example:9567", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("localhost:80:80", False),
        ("user@localhost", False),
        ("", False),
    ],
)
def test_whose_name_a_host_is(host: str, answered: bool) -> None:
    """DNS rebinding: a name that is not this machine's may be anybody's."""
    assert pages.ours(host) == answered


@pytest.mark.parametrize("count", [1, 7, 64, 1000, 1024, 1025, 9000, 70_001])
def test_cells_count_what_is_there(count: int) -> None:
    """Of every third chunk, whatever the size of the file."""
    there = [number % 3 == 0 for number in range(count)]
    bits = bytearray(-(-count // 64) * 8)
    for number in range(count):
        bits[number // 8] |= there[number] << number % 8
    per_cell = -(-count // glance.MOST_CELLS)
    per_cell += -per_cell % 8 if per_cell > 1 else 0
    found = list(glance._cells(bytes(bits), count, per_cell))
    assert len(found) <= glance.MOST_CELLS
    assert found == [sum(there[first : first + per_cell]) for first in range(0, count, per_cell)]
    assert found == glance._counted([number for number in range(count) if there[number]], count, per_cell)


# ---- how often the loop is asked


class Loop:
    """Questions that note when they were asked."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.cancelled = 0
        self.asker = Asker(trio.lowlevel.current_trio_token())

    async def question(self) -> int:
        """One that is answered at once."""
        self.asked.append(trio.current_time())
        return len(self.asked)

    async def silence(self) -> int:
        """One that is never answered."""
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled += 1
            raise


async def test_many_who_ask_the_same_ask_once(autojump_clock: trio.testing.MockClock) -> None:
    """And again only when the answer is old."""
    loop, found = Loop(), []

    async def ask() -> None:
        found.append(await loop.asker.ask("a", loop.question))

    for _ in range(2):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        await trio.sleep(2 * FRESH)
    assert (found, len(loop.asked)) == ([1] * 20 + [2] * 20, 2)


async def test_many_who_ask_for_different_things_take_turns(autojump_clock: trio.testing.MockClock) -> None:
    """Ten a second at most, whoever asks."""
    loop = Loop()
    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(loop.asker.ask, number, loop.question)
    gaps = [later - sooner for sooner, later in zip(loop.asked, loop.asked[1:], strict=False)]
    assert len(gaps) == 29
    assert min(gaps) >= PAUSE - 1e-9


async def test_a_question_that_is_not_answered_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """On both sides, and the next one waits as long again."""
    loop = Loop()
    with pytest.raises(Silent):
        await loop.asker.ask("a", loop.silence)
    before = trio.current_time()
    assert await loop.asker.ask("b", loop.question) == 1
    assert trio.current_time() - before >= PATIENCE - 0.1
    assert loop.cancelled == 1


async def test_failures_are_told(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """One that was foreseen as it is, a defect in the log."""
    loop = Loop()

    def failing(error: Exception) -> Callable[[], object]:
        async def question() -> None:
            raise error

        return question

    with pytest.raises(NoSuchName, match="not here"):
        await loop.asker.ask("a", failing(NoSuchName("not here")))  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR), pytest.raises(LazyfsError, match="defect"):
        await loop.asker.ask("b", failing(ZeroDivisionError()))  # type: ignore[arg-type]
    assert "a defect while a page was made" in caplog.text


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("path=a%2Fb&since=1.5", {"path": "a/b", "since": "1.5"}),
        ("path=%FF", {"path": "\udcff"}),
        ("path=a&path=b", {"path": "a"}),
        ("&".join("a=b" for _ in range(100)), {}),
        ("%%%&&&===", {"%%%": "", "": "=="}),
        ("", {}),
    ],
)
def test_queries(query: str, found: dict[str, str]) -> None:
    """Bounded, and never a failure."""
    given = pages._arguments(http.Request("/", {}, query))
    assert given == found or set(given.items()) <= set(found.items())
