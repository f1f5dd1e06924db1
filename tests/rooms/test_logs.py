"""What a log says of words that mean harm: one line, without passwords, in both formats."""

import errno
import json
import logging
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.service.logs import JsonLines, TextLines, answers_somebody, told

LAST = r"FileNotFoundError: [Errno 2] No such file or directory: 'http://***@host/\x1b[31m'"


def line(formatter: logging.Formatter, *words: object, failed: bool = False) -> str:
    """What the formatter makes of a warning."""
    trace = None
    try:
        os.stat("http://user:canary@host/\x1b[31m")
    except OSError:
        trace = sys.exc_info() if failed else None
    return formatter.format(logging.LogRecord("lazyfs.x", logging.WARNING, "", 0, "%s failed: %s", words, trace))


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_words_are_one_line_of_letters(one: str, other: str) -> None:
    """No line break, no order to a terminal, nothing that cannot be encoded."""
    for text in (told(one), line(TextLines(), one, other)):
        assert text.isprintable()
        assert text.encode().decode() == text
    assert json.loads(line(JsonLines(), one, other))["message"] == told(f"{one} failed: {other}")


def test_what_is_plain_stays() -> None:
    """Letters of all languages, and the shape of the line."""
    assert told("模型 ü 🦙 's3://models/a b'") == "模型 ü 🦙 's3://models/a b'"
    assert line(TextLines(), "read", "a\nERROR x").endswith(r"WARNING lazyfs.x: read failed: a\nERROR x")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ('"http://user:canary@host:9/x"', '"http://***@host:9/x"'),
        ("see https://canary@host", "see https://***@host"),
        ("http://user:can@ary@host/a@b", "http://***@host/a@b"),
        ("s3://models/a@b user@host", "s3://models/a@b user@host"),
    ],
)
def test_a_url_without_its_password(text: str, plain: str) -> None:
    """P15. An `@` behind the host is part of a key."""
    assert told(text) == plain


def test_a_traceback_has_its_lines_and_no_password() -> None:
    """It is of a defect, whose words may be anybody's."""
    text = line(TextLines(), "read", "x", failed=True)
    assert text.count("\n") >= 3
    assert text.splitlines()[-1] == LAST
    fields = json.loads(line(JsonLines(), "read", "x", failed=True))
    assert fields["traceback"].splitlines()[-1] == LAST


def test_answers_that_nobody_waits_for_are_no_errors() -> None:
    """As pyfuse3 words them; every other one of its errors is logged."""

    def record(words: str) -> logging.LogRecord:
        text = "fuse_read(): fuse_reply_* failed with %s"
        return logging.LogRecord("pyfuse3", logging.ERROR, "", 0, text, (words,), None)

    assert not answers_somebody(record(os.strerror(errno.ENOENT)))
    assert answers_somebody(record(os.strerror(errno.EINVAL)))
