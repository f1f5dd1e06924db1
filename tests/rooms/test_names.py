"""Names: each key is where the rule says, or hidden for the reason it says.

The rule is written a second time here, from the words of `names.py`, by regular expression instead of by splitting.
"""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.filesystem.names import Hidden, Placed, place, problem

PREFIX = "p/"

PIECES = ("", ".", "..", "a", "b", "A", "é", "e\u0301", "ab", " ", "...", "a\0b", "n" * 255, "ü" * 128, "\ud800", "🦙")
KEYS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("/".join)
ANY_KEY = st.one_of(KEYS, st.text(max_size=12))


def expected(rest: str) -> Placed | Hidden:
    """The rule for what is left of a key below the mounted prefix: the first name that cannot be decides."""
    if rest == "":
        return Hidden.MARKER
    names = re.findall(r"([^/]*)/", rest)
    last = re.search(r"[^/]*$", rest)
    assert last is not None
    whole = rest[-1] != "/"
    for name in [*names, last[0]] if whole else names:
        if name == "":
            return Hidden.EMPTY_NAME
        if re.fullmatch(r"\.{1,2}", name):
            return Hidden.DOTS
        if re.search(r"\x00", name):
            return Hidden.NUL
        if re.search(r"[\ud800-\udfff]", name):
            return Hidden.NOT_UTF8
        if sum(1 + (ord(c) > 0x7F) + (ord(c) > 0x7FF) + (ord(c) > 0xFFFF) for c in name) > 255:
            return Hidden.TOO_LONG
    return Placed((*names, last[0])) if whole else Hidden.MARKER


@given(ANY_KEY, st.sampled_from(["", PREFIX, "p/q/"]))
@settings(max_examples=600)
def test_a_key_has_the_place_that_the_rule_gives_it(rest: str, prefix: str) -> None:
    """Any key at all, below any prefix; and a key that is not below it is outside."""
    assert place(prefix + rest, prefix) == expected(rest)
    if not rest.startswith("p/"):
        assert place(rest, "p/") is Hidden.OUTSIDE


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("a", Placed(("a",))),
        ("a/b", Placed(("a", "b"))),
        ("a/", Hidden.MARKER),
        ("/", Hidden.EMPTY_NAME),
        ("/a", Hidden.EMPTY_NAME),
        ("a//b", Hidden.EMPTY_NAME),
        ("a//", Hidden.EMPTY_NAME),
        ("a/./b", Hidden.DOTS),
        ("..", Hidden.DOTS),
        ("...", Placed(("...",))),
        ("n" * 256, Hidden.TOO_LONG),
        ("n" * 255, Placed(("n" * 255,))),
        ("a\\b", Placed(("a\\b",))),
    ],
)
def test_the_rule_by_example(key: str, found: Placed | Hidden) -> None:
    assert place(key, "") == found


def test_no_name_holds_a_slash() -> None:
    """As one that is cut from a common prefix would, if a server took no notice of the delimiter. The kernel refuses
    the whole directory then."""
    assert problem("a/b") is Hidden.OUTSIDE
    assert problem("a") is None
