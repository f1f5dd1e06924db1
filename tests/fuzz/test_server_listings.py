"""LIST answers of a server that means harm, or is none: the listing that it is, or `Transient`; never an empty one.

Through the real S3Store and botocore, whose parser takes any XML for a listing.
"""

import functools
from collections.abc import Iterator
from xml.sax.saxutils import escape

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import LazyfsError, Transient
from lazyfs.objects import Listing, ObjectInfo
from lazyfs.stores.s3 import S3Store
from tests.fuzz.examples import examples, memory_bounded
from tests.rooms.raw_server import RawServer, Say, answer

NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
WHOLE = "<IsTruncated>false</IsTruncated>"
FIELDS = {"Key": "k", "Size": "5", "LastModified": "2020-01-01T00:00:00.000Z", "ETag": '"x"'}
GOOD = ObjectInfo("k", '"x"', 5, 1_577_836_800 * 10**9)


def listing(*inner: str, end: str = WHOLE) -> str:
    """A page of a listing."""
    return f"<ListBucketResult {NAMESPACE}><EncodingType>url</EncodingType>{end}{''.join(inner)}</ListBucketResult>"


def item(**changes: str | None) -> str:
    """An object in it; None leaves a field out."""
    fields = {**FIELDS, **changes}
    return "<Contents>" + "".join(f"<{n}>{v}</{n}>" for n, v in fields.items() if v is not None) + "</Contents>"


class Harm:
    """A server that answers every request with `body`, and a store that asks it."""

    def __init__(self) -> None:
        self.body = b""
        self.server = RawServer(lambda _: Say((answer(self.body, status="HTTP/1.1 200 OK"),)))
        self.store = S3Store("models", endpoint_url=self.server.url)

    def ask(self, body: bytes | str) -> Listing | LazyfsError:
        """What the listing of the bucket comes to."""
        self.body = body.encode() if isinstance(body, str) else body

        async def send() -> Listing | LazyfsError:
            with trio.fail_after(30):
                try:
                    return await self.store.list("")
                except LazyfsError as error:
                    return error

        return trio.run(send)

    def objects(self, body: bytes | str) -> list[ObjectInfo]:
        """The objects of what must be a listing."""
        found = self.ask(body)
        assert isinstance(found, Listing), found
        return list(found.objects)


@pytest.fixture(scope="module")
def harm(_aws: None) -> Iterator[Harm]:
    """One for all examples."""
    made = Harm()
    with made.server:
        yield made
        made.store.close()


def test_a_good_listing_is_taken(harm: Harm) -> None:
    """Else nothing below would mean anything."""
    assert harm.objects(listing(item())) == [GOOD]
    assert harm.objects(listing()) == []
    assert harm.objects(listing(item(ETag=None))) == [ObjectInfo("k", "", 5, GOOD.mtime_ns)]


ENTITIES = "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
NO_LISTINGS = {
    "nothing": "",
    "a proxy's page": "<html><body>Please log in.</body></html>",
    "another document": "<ListAllMyBucketsResult><Buckets/></ListAllMyBucketsResult>",
    "words": "hello",
    "cut off": listing(item())[:-30],
    "cut short": listing(item(), end="<IsTruncated>true</IsTruncated>"),
    "the same page for ever": listing(
        item(), end="<IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"
    ),
    "no key": listing(item(Key=None)),
    "no size": listing(item(Size=None)),
    "no time": listing(item(LastModified=None)),
    "two keys": listing(item(ETag='"x"</ETag><Key>l</Key><ETag>')),
    "no prefix": listing("<CommonPrefixes></CommonPrefixes>"),
    "nested": "<ListBucketResult>" + "<Contents>" * 50_000 + "</Contents>" * 50_000 + "</ListBucketResult>",
    "a negative size": listing(item(Size="-5")),
    "a size beyond all": listing(item(Size="9" * 30)),
    "a size of 5,000 digits": listing(item(Size="9" * 5000)),
    "a size that is none": listing(item(Size="much")),
    "a time beyond all": listing(item(LastModified="1" * 30)),
    "an infinite time": listing(item(LastModified="inf")),
    "a time that is none": listing(item(LastModified="yesterday")),
    "a billion laughs": f'<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">{ENTITIES}]>{listing(item(Key="&j;"))}',
    "a file of ours": f'<!DOCTYPE l [<!ENTITY a SYSTEM "file:///etc/passwd">]>{listing(item(Key="&a;"))}',
}


@pytest.mark.parametrize("name", NO_LISTINGS)
def test_what_is_no_listing(harm: Harm, name: str) -> None:
    """Is asked for again, and is never a directory without files."""
    with memory_bounded(64 << 20):
        found = harm.ask(NO_LISTINGS[name])
    assert isinstance(found, Transient), found
    assert "passwd" not in str(found)


def test_what_comes_of_keys_that_are_no_utf8(harm: Harm) -> None:
    """Surrogates, which no other key has, so that it is hidden and counted; NUL stays and is hidden as well."""
    assert harm.objects(listing(item(Key="%FF%00%zz")))[0].key == "\udcff\0%zz"
    assert harm.objects(listing(item(Key="%ED%A0%80")))[0].key == "\ud800"
    assert harm.objects(listing(item(Key="%252e%252e/a+b%2Bc")))[0].key == "%2e%2e/a b+c"


TEXTS = st.one_of(
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "%", "%00", "&#0;", "<b/>"]),
)
FIELD = st.one_of(st.none(), TEXTS.map(escape), TEXTS)


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), FIELD), st.sampled_from([WHOLE, "", "<IsTruncated/>"]))
@examples(150)
def test_any_words_in_any_field(harm: Harm, changes: dict[str, str | None], end: str) -> None:
    """A listing whose objects the kernel can be told of, or a failure."""
    found = harm.ask(listing(item(**changes), end=end).encode("utf-8", "replace"))
    if isinstance(found, Listing):
        assert all(info.possible and isinstance(info.key, str) for info in found.objects)
        assert end
    else:
        assert isinstance(found, Transient)


@functools.cache
def page() -> bytes:
    """A page of three objects and a prefix."""
    prefix = "<CommonPrefixes><Prefix>d/</Prefix></CommonPrefixes>"
    return listing(item(), item(Key="l"), item(Key="m"), prefix).encode()


@given(st.integers(0, 700), st.binary(max_size=30), st.integers(0, 40))
@examples(150)
def test_any_bytes_in_a_page(harm: Harm, at: int, noise: bytes, cut: int) -> None:
    """As on a line that garbles."""
    at %= len(page())
    found = harm.ask(page()[:at] + noise + page()[at + cut :])
    assert isinstance(found, Listing | Transient)
