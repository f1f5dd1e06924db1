"""What a page of ListObjectsV2, or of ListObjects, says: from its XML to rows, or the failure that it is. Pure.

botocore's own way takes 70 ms of CPU for a page of 1,000 keys, three quarters of it for reading times with dateutil;
this takes 5, most of it in expat, the C parser that botocore has as well. Must not know how pages come, nor what they
are for.
"""

import datetime
from collections import Counter
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes
from xml.etree.ElementTree import Element, ParseError, XMLParser

from lazyfs.dense import Row
from lazyfs.errors import Transient

LARGEST = 64 << 20
"""Bytes of a page: 1,000 keys of 1,024 bytes, url-encoded, are 4 MiB."""


_ONCE = ("Key", "Prefix", "Size", "LastModified", "ETag", "StorageClass", "VersionId", "IsLatest")


@dataclass(frozen=True, slots=True)
class Page:
    """Objects and common prefixes in the order of the page; `following` is where the next one begins, empty after the
    last: a token of ListObjectsV2 if `second`, else a marker of ListObjects."""

    rows: list[Row]
    prefixes: list[str]
    following: str
    second: bool = True


def read_page(body: bytes, *, second: bool = True) -> Page:
    """The page that came when ListObjectsV2 was asked for, or ListObjects if not `second`. `Transient` for what is none
    of S3's, or lacks something: a part of a listing would take names away.

    A server that does not know `list-type` answers with a page of ListObjects, which is told by what is missing.
    """
    root, top, encoded = document(body, "ListBucketResult")
    rows, prefixes = [], []
    for child in root:
        kind = name_of(child)
        if kind == "Contents":
            rows.append(row_of(fields_of(child), encoded=encoded))
        elif kind == "CommonPrefixes":
            prefixes.append(decoded(said(fields_of(child), "Prefix"), encoded=encoded))
    more = top["IsTruncated"] == "true"
    if not top.keys() & {"NextContinuationToken", "KeyCount"} and (more or "Marker" in top):
        second = False
    following = ""
    if more and second:
        following = top.get("NextContinuationToken", "")
    elif more:
        following = _marker(top, rows, prefixes, encoded=encoded)
    if more and not following:
        raise Transient("the listing goes on and does not say where")
    return Page(rows, prefixes, following, second)


def _marker(top: dict[str, str], rows: list[Row], prefixes: list[str], *, encoded: bool) -> str:
    """Where ListObjects goes on: behind the last that it brought. NextMarker, which S3 has with a delimiter only, is
    the same, and Ceph does not encode it (ceph/ceph#23371); it counts where the page brought nothing."""
    last = max([row[0] for row in rows[-1:]] + prefixes[-1:], default="")
    return last or decoded(top.get("NextMarker", ""), encoded=encoded)


def document(body: bytes, kind: str) -> tuple[Element, dict[str, str], bool]:
    """The root of a page of this kind, what is said right below it, whether its keys are url-encoded; `IsTruncated` is
    `true` or `false`. `Transient` for anything else."""
    if len(body) > LARGEST:
        raise Transient(f"a page of a listing of {len(body)} bytes")
    if b"<!DOCTYPE" in body:
        raise Transient("a listing that brings a grammar of its own")
    parser = XMLParser()  # noqa: S314 - without a grammar there are no entities, and expat bounds them besides
    try:
        parser.feed(body)
        root: Element = parser.close()
    except (ParseError, LookupError, ValueError) as error:
        raise Transient(f"asked for a listing, got no XML with status 200: {error}") from None
    if name_of(root) != kind:
        raise Transient("asked for a listing, got something else with status 200")
    top = {name_of(child): child.text or "" for child in root}
    if "IsTruncated" not in top:
        raise Transient("asked for a listing, got something else with status 200")
    top["IsTruncated"] = more = top["IsTruncated"].strip().lower()
    if more not in ("true", "false"):
        raise Transient(f"the answer says that it is {more[:20]!r} truncated")
    return root, top, top.get("EncodingType") == "url"


def row_of(fields: dict[str, str], *, encoded: bool, version: str = "") -> Row:
    """What is said of one object, or of one `version` of it."""
    size = said(fields, "Size")
    # Fractions of seconds are not kept, for a HEAD has none.
    seconds = int(modified(fields))
    try:
        count = int(size)
    except ValueError as error:
        raise Transient(f"a listing with a size or time that is none: {error!s:.80}") from None
    key = decoded(said(fields, "Key"), encoded=encoded)
    if not 0 <= count < 1 << 63:
        raise Transient(f"{key[:80]!r} is listed with {size[:40]} bytes, which cannot be")
    return key, fields.get("ETag", ""), count, seconds * 10**9, fields.get("StorageClass", ""), version


def modified(fields: dict[str, str]) -> float:
    """When it was written, in seconds since the epoch."""
    text = said(fields, "LastModified")
    try:
        # As S3 has them; the other forms of ISO 8601 are taken for no time, such as many digits.
        moment = datetime.datetime.fromisoformat(text if text[4:11:6] == "-T" else "")
        # Without a zone it is UTC, as everywhere in S3.
        return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise Transient(f"a listing with a size or time that is none: {error!s:.80}") from None


def fields_of(item: Element) -> dict[str, str]:
    """What stands right below an element; `Transient` if it says something of an object twice."""
    fields = {name_of(child): child.text or "" for child in item}
    if len(fields) < len(item) and max(Counter(map(name_of, item))[name] for name in _ONCE) > 1:
        raise Transient("the answer says something of an object twice")
    return fields


def said(fields: dict[str, str], name: str) -> str:
    """What a page must say of each of its items."""
    if name not in fields:
        raise Transient(f"the answer does not say {name}")
    return fields[name]


def name_of(element: Element) -> str:
    """Of its tag, whatever namespace a server puts it in."""
    return element.tag.rpartition("}")[2]


def decoded(text: str, *, encoded: bool) -> str:
    """A key as it is. What is no UTF-8 becomes surrogates, which no other key has."""
    if not encoded or ("%" not in text and "+" not in text):
        return text
    raw = unquote_to_bytes(text.replace("+", " "))
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "surrogateescape")
