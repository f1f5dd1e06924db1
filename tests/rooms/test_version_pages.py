"""Pages of versions, and the tree of a moment out of them: against a model that knows the whole history."""

import contextlib
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cache.packing import pack, unpack
from lazyfs.dense import Row
from lazyfs.errors import Transient
from lazyfs.objects import Listing, ObjectInfo, ObjectVersion
from lazyfs.stores.answers import RangeAnswer
from lazyfs.stores.version_pages import AsOf, Change, VersionPage, read_version_page
from lazyfs.stores.versions import VersionIds

HEAD = b'<?xml version="1.0"?><ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'


def body(*parts: str, more: str = "false", encoded: bool = True) -> bytes:
    """A page."""
    top = f"<IsTruncated>{more}</IsTruncated>" + ("<EncodingType>url</EncodingType>" if encoded else "")
    return HEAD + top.encode() + "".join(parts).encode() + b"</ListVersionsResult>"


def version(key: str, number: int, at: str = "2026-01-01T00:00:01.500Z", latest: str = "true") -> str:
    """One version of a key."""
    return (
        f"<Version><Key>{quote(key)}</Key><VersionId>v{number}</VersionId><IsLatest>{latest}</IsLatest>"
        f"<LastModified>{at}</LastModified><ETag>&quot;{number}&quot;</ETag><Size>{number}</Size>"
        "<StorageClass>GLACIER</StorageClass><Owner><ID>o</ID><DisplayName>d</DisplayName></Owner></Version>"
    )


def test_a_page() -> None:
    """Versions, markers and prefixes with their keys decoded; a fraction of a second decides, and is not kept."""
    marker = (
        "<DeleteMarker><Key>b</Key><VersionId>m</VersionId><IsLatest>false</IsLatest>"
        "<LastModified>2026-01-01T00:00:02.000Z</LastModified></DeleteMarker>"
    )
    following = "<NextKeyMarker>b%20c</NextKeyMarker><NextVersionIdMarker>m</NextVersionIdMarker>"
    prefixes = "<CommonPrefixes><Prefix>d%2Be/</Prefix></CommonPrefixes>"
    page = read_version_page(body(version("ä +", 7), marker, prefixes, following, more="true"))
    second = 1767225601
    row = ("ä +", '"7"', 7, second * 10**9, "GLACIER", "v7")
    assert page.changes == [Change("ä +", second + 0.5, True, row), Change("b", second + 1.0, False, None)]
    assert page.prefixes == ["d+e/"]
    assert page.following == ("b c", "m")


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
        body(more="true"),
        body(more="perhaps"),
        body(version("a", 1).replace("VersionId>", "Id>")),
        body(version("a", 1).replace("Size>1<", "Size>-1<")),
        body(version("a", 1, at="now")),
        body(version("a", 1).replace("<IsLatest>", "<VersionId>w</VersionId><IsLatest>")),
        body("<DeleteMarker><Key>b</Key></DeleteMarker>"),
    ],
)
def test_what_is_no_page(page: bytes) -> None:
    """A part of a listing would take names away."""
    with pytest.raises(Transient):
        read_version_page(page)


PAGE = body(version("a b", 7), version("c", 8), "<NextKeyMarker>c</NextKeyMarker>", more="true")


@given(st.integers(0, len(PAGE) - 1), st.binary(max_size=3), st.integers(0, 3))
def test_any_bytes_are_a_page_or_none(at: int, put: bytes, cut: int) -> None:
    """Nothing a server sends is a defect of ours."""
    with contextlib.suppress(Transient):
        read_version_page(PAGE[:at] + put + PAGE[at + cut :])


HISTORIES = st.dictionaries(
    st.sampled_from(["a", "a/b", "b", "ba"]),
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=5),
    min_size=1,
)


@given(HISTORIES, st.integers(0, 6), st.integers(1, 4), st.booleans())
def test_the_tree_of_a_moment(
    histories: dict[str, list[tuple[int, bool]]], moment: int, size: int, markers_last: bool
) -> None:
    """For every history, cut into pages of any size: the last put at or before the moment, unless a delete came later.
    Of two in one second the later one counts; where a server lists markers last, there are no two in one second."""
    changes, expected = [], []
    for key, steps in sorted(histories.items()):
        told = sorted(dict(steps).items() if markers_last else steps, key=lambda step: step[0])
        made = []
        for number, (at, alive) in enumerate(told):
            row: Row | None = (key, "e", number, at * 10**9, "", f"v{number}") if alive else None
            made.append(Change(key, float(at), number == len(told) - 1, row))
        before = [one for one in made if one.at <= moment]
        expected += [one.row for one in before[-1:] if one.row]
        changes += made[::-1]
    pages = [changes[at : at + size] for at in range(0, len(changes), size)]
    selection, found = AsOf(moment), []
    for number, page in enumerate(pages):
        if markers_last:
            page.sort(key=lambda one: one.row is None)
        following = (max(one.key for one in page), "v") if number < len(pages) - 1 else None
        found += selection.feed(VersionPage(page, [], following))
    assert found == expected


def test_a_listing_with_versions_is_kept() -> None:
    """As one without, which is kept as it always was."""
    for ids in (("v1", "", "v3"), ("", "", "")):
        infos = tuple(ObjectInfo(f"p/{n}", f"e{n}", n, n * 10**9, "STANDARD", one) for n, one in enumerate(ids))
        listing = Listing("p/", infos, ("p/d/",), 5.0)
        packed = pack(listing)
        assert packed is not None
        assert packed[:2] == (b"L3" if any(ids) else b"L2")
        assert unpack(packed) == listing
        found = unpack(packed)
        assert found is not None
        assert [info.version_id for info in found.objects] == list(ids)


def test_a_version_id_is_no_part_of_the_identity() -> None:
    """What was cached before it was known is there afterwards; the identity of what is cached is what it was."""
    one, other = (ObjectVersion("e|b", "k", '"e"', 5, version_id) for version_id in ("", "v"))
    assert one == other
    assert one.object_id == other.object_id == bytes.fromhex("3f973b6c1b57333673e1f12ff731c63b")


def test_pins_forget_the_oldest() -> None:
    version_ids = VersionIds(most=2)
    versions = [ObjectVersion("p", str(number), '"e"', 4) for number in range(3)]
    for version_ in versions:
        answer = RangeAnswer(206, '"e"', "bytes 0-3/4", 4, version_id=f"v{version_.key}")
        version_ids.check(answer, version_, 0, 4)
    assert [version_ids.of(one) for one in versions] == ["", "v1", "v2"]
    assert version_ids.to_ask(versions[1]).version_id == "", "its key may still hold it"
    version_ids.displace(versions[1], "v1")
    assert version_ids.to_ask(versions[1]).version_id == "v1"
