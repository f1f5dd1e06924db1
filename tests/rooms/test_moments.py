"""A time as somebody writes it: one text for one time, and one sentence for what is none."""

import pytest

from lazyfs.errors import UsageError
from lazyfs.moments import parse_moment, seconds_of, split_moment


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
        ("2026-01-31T13:00:00+01:00", "2026-01-31T12:00:00Z"),
        (" 2026-01-31 12:00 ", "2026-01-31T12:00:00Z"),
        ("2026-01-31", "2026-01-31T00:00:00Z"),
        ("20260131T120000.5Z", "2026-01-31T12:00:00.500000Z"),
    ],
)
def test_one_time_is_one_text(text: str, moment: str) -> None:
    assert parse_moment(text) == parse_moment(moment) == moment


NONE = ["", "yesterday", "1700000000.0", "2026-02-30", "9999-12-31T23:00:00-05:00", "x" * 500]


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time in ISO 8601; write it like") as raised:
        parse_moment(text)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("s3://b", ("s3://b", "")),
        ("s3://b?versionAt=2026-01-31", ("s3://b", "2026-01-31T00:00:00Z")),
        ("s3://b/a/?versionAt=2026-01-31T13:00:00%2B01:00", ("s3://b/a/", "2026-01-31T12:00:00Z")),
        ("s3://b/a?b/", ("s3://b/a?b/", "")),
        ("s3://b/a?versionAt=2026/b", ("s3://b/a?versionAt=2026/b", "")),
    ],
)
def test_at_the_end_of_a_source(source: str, found: tuple[str, str]) -> None:
    assert split_moment(source) == found


def test_seconds() -> None:
    assert seconds_of("1970-01-01T00:01:00.500000Z") == 60.5
