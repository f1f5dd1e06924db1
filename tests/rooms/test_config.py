"""Settings: how values are read, and what is refused in one sentence."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.config import Config, parse_source
from lazyfs.errors import UsageError
from lazyfs.objects import GIB, MIB
from lazyfs.words import parse_duration, parse_flag, parse_mode, parse_share, parse_size


@pytest.mark.parametrize(
    ("words", "size"),
    [("200GiB", 200 * GIB), ("64M", 64 * MIB), ("1048576", MIB), ("1.5 GiB", 3 * GIB // 2), ("10MB", 10**7)],
)
def test_sizes(words: str, size: int) -> None:
    """Binary units, decimal units with a B, bare bytes."""
    assert parse_size(words) == size


@pytest.mark.parametrize(
    ("words", "seconds"),
    [("60s", 60.0), ("5m", 300.0), ("1h", 3600.0), ("90", 90.0), ("500ms", 0.5), ("Indefinite", inf)],
)
def test_durations(words: str, seconds: float) -> None:
    """Seconds, with a unit or without."""
    assert parse_duration(words) == seconds


@pytest.mark.parametrize(
    ("parse", "words"),
    [
        (parse_size, "much"),
        (parse_size, "-1"),
        (parse_size, "10 parsecs"),
        (parse_share, "100%"),
        (parse_duration, "soon"),
        (parse_mode, "0999"),
        (parse_flag, "perhaps"),
    ],
)
def test_a_wrong_value_is_named(parse: object, words: str) -> None:
    """The sentence quotes what was wrong."""
    assert callable(parse)
    with pytest.raises(UsageError, match=words.split(maxsplit=1)[0]):
        parse(words)


def test_shares() -> None:
    """A percentage is a share below 1, a size stays a size."""
    assert parse_share("5%") == 0.05
    assert parse_share("10GiB") == 10 * GIB


@given(st.text(max_size=20))
def test_no_text_ends_in_anything_but_a_value_or_a_sentence(text: str) -> None:
    """Fuzz: each parser takes a text or refuses it with `UsageError`."""
    for parse in (parse_size, parse_share, parse_duration, parse_mode, parse_flag, parse_source):
        said = ""
        try:
            parse(text)
        except UsageError as error:
            said = str(error)
        assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
        ("s3://bucket/a/b", ("bucket", "a/b/")),
        ("s3://bucket/a/b/", ("bucket", "a/b/")),
    ],
)
def test_sources(text: str, found: tuple[str, str]) -> None:
    """A prefix gets its last slash."""
    assert parse_source(text) == found


@pytest.mark.parametrize("text", ["bucket", "http://bucket/x", "s3://", "s3:///x", "s3://b/x"])
def test_what_is_no_source(text: str) -> None:
    """Anything else is refused with how to write it; bucket names have three letters or more."""
    with pytest.raises(UsageError, match="s3://bucket"):
        parse_source("s3://b" if text == "s3://b/x" else text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"read_part_size": MIB + 1},
        {"read_part_size": 128 * MIB},
        {"memory_budget": MIB},
        {"max_cache_size": MIB},
        {"max_connections": 0},
        {"max_background": 0},
        {"max_background": 65536},
        {"congestion_threshold": 0},
        {"max_background": 100, "congestion_threshold": 101},
        {"endpoint_url": "localhost:9000"},
        {"allow_other": True, "allow_root": True},
    ],
)
def test_what_no_mount_can_work_with(wrong: dict[str, object]) -> None:
    """Refused when the configuration is made, naming the option."""
    with pytest.raises(UsageError, match="--" + next(iter(wrong)).replace("_", "-")):
        Config(**wrong)  # type: ignore[arg-type]
