"""What a server answers to a GET: heads, bodies and errors, as bytes. A head, a failure of ours, and no memory."""

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import ObjectChanged, StoreError, Transient
from lazyfs.objects import ObjectVersion
from lazyfs.stores.answers import MOST_WORDS, RangeAnswer, check_range, element, failure
from lazyfs.stores.wire import HEAD_PIECE, LONGEST_ERROR, LONGEST_HEAD, Head, Wire, _unchunked
from tests.fuzz.examples import examples, memory_bounded, outcome
from tests.rooms.raw_server import CHUNKED, RawServer, Say, answer, chunked

REQUEST = b"GET / HTTP/1.1\r\n\r\n"
VERSION = ObjectVersion("p", "k", '"e"', 1000)


class Speaker:
    """A server that says `words`, whatever it is asked, and hangs up."""

    def __init__(self) -> None:
        self.words = b""
        self.server = RawServer(lambda _: Say((self.words,), close=True))

    def head(self, words: bytes) -> Head | StoreError:
        """What the wire makes of them."""
        self.words = words
        wire = Wire("127.0.0.1", self.server.port)
        try:
            found = outcome(wire.ask, REQUEST)
            assert isinstance(found, Head | Transient)
            return found
        finally:
            wire.close()

    def error(self, words: bytes) -> bytes | StoreError:
        """The body of the error that they are."""
        self.words = words
        wire = Wire("127.0.0.1", self.server.port)
        try:
            found = outcome(lambda: wire.rest(wire.ask(REQUEST)))
            assert isinstance(found, bytes | Transient)
            return found
        finally:
            wire.close()


@pytest.fixture(scope="module")
def speaker() -> Iterator[Speaker]:
    """One for all examples."""
    made = Speaker()
    with made.server:
        yield made


def sound(head: Head) -> None:
    """What holds for every head."""
    assert 200 <= head.status <= 999
    assert head.length is None or head.length >= 0
    assert all(name == name.lower() for name in head.headers)
    assert isinstance(head.keeps, bool)
    assert len(head.rest) < LONGEST_HEAD + HEAD_PIECE


LINES = st.sampled_from(
    [b"HTTP/1.1 206 OK", b"HTTP/1.1 200", b"HTTP/1.1 100 C", b"HTTP/1.0 404 x", b"HTTP/2 200"]
    + [b"\r\n", b"\n", b":", b"", b"ETag", b": x", b"\x00\xff: \x00", b"A: " + b"a" * 999]
    + [b"Content-Length: " + n for n in (b"5", b"-5", b"+5", b"5_0", b"0x5", b"1e9", b"\xb2", b"9" * 30, b"9" * 5000)]
    + [b"Transfer-Encoding: chunked", b"Content-Range: bytes 0-4/5"]
)
MANY_LINES = st.lists(st.one_of(LINES, st.binary(max_size=9)), max_size=9)
WORDS = st.one_of(st.binary(max_size=200), MANY_LINES.map(b"\r\n".join))


@given(WORDS)
@examples(250)
def test_no_head_is_trusted(speaker: Speaker, words: bytes) -> None:
    """Noise, and heads with something wrong in them."""
    for said in (words, words + b"\r\n\r\n", b"HTTP/1.1 206 x\r\n" + words + b"\r\n\r\n"):
        found = speaker.head(said)
        if isinstance(found, Head):
            sound(found)


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,8}", fullmatch=True)
VALUES = st.from_regex(r"([!-~]([ -~]{0,9}[!-~])?)?", fullmatch=True)


@given(st.integers(200, 999), st.dictionaries(NAMES.map(str.lower), VALUES, max_size=6), st.binary(max_size=50))
@examples(80)
def test_a_right_head_is_read_right(speaker: Speaker, status: int, headers: dict[str, str], body: bytes) -> None:
    """Every header, the status, and the first bytes of the body."""
    said = "".join(f"{name.title()}:  {value} \r\n" for name, value in headers.items())
    found = speaker.head(f"HTTP/1.1 {status} x\r\n{said}\r\n".encode() + body)
    assert isinstance(found, Head)
    assert (found.status, found.headers) == (status, headers)
    assert body.startswith(found.rest)
    sound(found)


@pytest.mark.parametrize(
    "words",
    [
        b"HTTP/1.1 206 x\r\n" + b"a" * (32 << 20),
        b"HTTP/1.1 206 x\r\n" + b"a: b\r\n" * (4 << 20),
        b"HTTP/1.1 100 x\r\n\r\n" * (1 << 20),
        b"\r\n" * (4 << 20),
    ],
    ids=["a line", "headers", "heads", "empty lines"],
)
def test_what_does_not_end_costs_no_memory(speaker: Speaker, words: bytes) -> None:
    """More than a bound of it is never held."""
    with memory_bounded(4 * LONGEST_HEAD):
        found = speaker.head(words)
    assert isinstance(found, Transient)


@pytest.mark.parametrize(
    "words",
    [
        answer(b"e" * (16 << 20), status="HTTP/1.1 500 x"),
        answer(b"e" * (16 << 20), status="HTTP/1.1 500 x", length=None),
        answer(b"", status="HTTP/1.1 500 x", length=10**18) + b"e" * (16 << 20),
        answer(b"FFFFFFFF\r\n" + b"e" * (16 << 20), *CHUNKED, status="HTTP/1.1 500 x", length=None),
        answer(b"10\r\n0123456789abcdef\r\n" * 10_000, *CHUNKED, status="HTTP/1.1 500 x", length=None),
        answer(b"f" * (16 << 20), *CHUNKED, status="HTTP/1.1 500 x", length=None),
    ],
    ids=["announced", "to the end", "more than all", "one chunk of 4 GiB", "small chunks", "a size without end"],
)
def test_an_error_without_end_costs_no_memory(speaker: Speaker, words: bytes) -> None:
    """It is read up to a bound; what is said behind that is nobody's affair."""
    with memory_bounded(8 * LONGEST_ERROR):
        found = speaker.error(words)
    assert not isinstance(found, bytes) or len(found) <= LONGEST_ERROR + HEAD_PIECE


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=5), st.integers(0, 200), st.booleans())
@examples(300)
def test_chunks_as_far_as_they_came(chunks: list[bytes], cut: int, ended: bool) -> None:
    """The body up to there, and its end when that has come."""
    coded, body = chunked(*chunks) + (b"0\r\n\r\n" if ended else b""), b"".join(chunks)
    found, whole = _unchunked(coded[:cut])
    assert body.startswith(found)
    assert not whole or (ended and found == body)
    assert _unchunked(coded) == (body, ended)


@given(st.binary(max_size=200))
@examples(300)
def test_noise_for_chunks(data: bytes) -> None:
    """Gives no more than it is."""
    found, _ = _unchunked(data)
    assert len(found) <= len(data)


NUMBERS = st.one_of(
    st.integers(-2, 2000).map(str),
    st.integers(0, 1 << 70).map(str),
    st.sampled_from(["", "*", "9" * 5000, "\u0661", "\u00b2", " 1"]),
)


@given(NUMBERS, NUMBERS, NUMBERS, st.sampled_from([200, 206, 416]), st.sampled_from(['"e"', "e", 'W/"e"', '"f"', ""]))
@examples(500)
def test_only_the_right_range_passes(first: str, last: str, size: str, status: int, etag: str) -> None:
    """Of the version asked for, as asked for; else it is another object, or to be asked for again."""
    claimed = f"bytes {first}-{last}/{size}"
    found = outcome(check_range, RangeAnswer(status, etag, claimed, None), VERSION, 5, 10)
    right = (first, last) == ("5", "9") and size in ("1000", "*") and status != 416 and etag.strip('W/"') == "e"
    if right:
        assert found is None
    else:
        assert isinstance(found, ObjectChanged | Transient)


@pytest.mark.parametrize("digits", ["5", "0005", "9" * 30, "9" * 5000])
def test_numbers_of_any_length(digits: str) -> None:
    """Python itself refuses to read more than 4,300 digits."""
    assert Head(200, {"content-length": digits}, b"").length == (int(digits) if len(digits) < 4000 else None)
    found = outcome(check_range, RangeAnswer(206, '"e"', f"bytes 0-4/{digits}", 5), VERSION, 0, 5)
    assert isinstance(found, ObjectChanged | Transient)


@given(st.binary(max_size=200), st.text(max_size=30), st.integers(0, 1000))
@examples(300)
def test_an_error_document_of_any_kind(noise: bytes, words: str, status: int) -> None:
    """Gives words and a failure, whatever is in it."""
    for body in (noise, b"<Code>" + noise + b"</Code>", f"<Code>{words}</Code>".encode("utf-8", "replace")):
        code = element(body, "Code")
        assert len(code) <= MOST_WORDS
        assert isinstance(failure(status, code, words), StoreError)


@pytest.mark.parametrize(
    "reference", ["&#" + "9" * 5000 + ";", "&#x" + "f" * 5000 + ";", "&" + "a" * 70_000, "&#xD800;&#0;"]
)
def test_a_reference_to_no_letter(reference: str) -> None:
    """A number that Python would not read is not read; the code beside it still says what failed."""
    body = f"<Error><Code>AccessDenied</Code><Message>{reference}</Message></Error>".encode()
    assert len(element(body, "Message")) <= MOST_WORDS
    assert element(body, "Code") == "AccessDenied"


def test_the_words_of_a_server_are_bounded() -> None:
    """A sentence for a person; what a server adds to it is cut."""
    assert len(str(failure(500, "x" * 10**6, "y" * 10**6))) <= MOST_WORDS
    assert re.fullmatch(r"NoSuchKey: y+", str(failure(404, "NoSuchKey", "y" * 10**6)))
