"""What users and their tools write: sizes, times, sources, TOML, environment, `-o` strings. A value or `UsageError`."""

import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st

from lazyfs import words as parsing
from lazyfs.cli.main import cli
from lazyfs.cli.mount_helper import split_options, translate
from lazyfs.cli.sources import SourceWords, configured, find_sources, source_arguments
from lazyfs.config import MOST_CONNECTIONS, Config, SourceConfig, parse_source
from lazyfs.errors import UsageError
from lazyfs.filesystem.options import mount_options
from lazyfs.words import LARGEST_SIZE
from tests.fuzz.examples import examples, memory_bounded, outcome

ODD_NUMBERS = ["9" * 400, "1." + "9" * 5000, "1e9", "0x5", "\u0663", "\u00bd", "1_0"]
NUMBERS = st.one_of(st.integers(-5, 1 << 70).map(str), st.floats().map(str), st.sampled_from(ODD_NUMBERS))
UNITS = st.sampled_from(["", "b", "k", "KiB", "m", "G", "TB", "h", "d", "%", "ms"])
WORDS = st.one_of(st.text(max_size=12), st.builds("{}{}{}".format, NUMBERS, st.sampled_from(["", " "]), UNITS))
FLAWLESS = re.compile(r"\s*[0-9]+(\.[0-9]+)?\s*[A-Za-z%]*\s*")


@given(WORDS)
@examples(400)
@example("9" * 400)
@example("9" * 400 + "%")
@example("9" * 5000)
def test_numbers_with_units(words: str) -> None:
    """A number that can be reckoned with, or a sentence; nothing that is not written in plain digits is a number."""
    for parse, least, most in (
        (parsing.parse_size, 0, LARGEST_SIZE),
        (parsing.parse_share, 0, LARGEST_SIZE),
        (parsing.parse_duration, 0, math.inf),
        (parsing.parse_mode, 0, 0o7777),
        (parsing.parse_count, 0, 10**9),
    ):
        found = outcome(parse, words)
        if not isinstance(found, UsageError):
            assert isinstance(found, int | float)
            assert least <= found <= most
            assert FLAWLESS.fullmatch(words) or words.strip().lower() == "indefinite"
    flag = outcome(parsing.parse_flag, words)
    assert isinstance(flag, bool | UsageError)


@given(st.one_of(st.text(max_size=20), st.text(max_size=20).map("s3://bucket/".__add__)))
@examples(400)
@example("s3://bucket/\udcff")
@example("s3://bucket/a\nb")
@example("s3://" + "b" * 100_000)
def test_sources(text: str) -> None:
    """A bucket that can be one, and a prefix in UTF-8 that is empty or ends with a slash."""
    found = outcome(parse_source, text)
    if not isinstance(found, UsageError):
        assert isinstance(found, tuple)
        bucket, prefix = found
        assert re.fullmatch(r"[A-Za-z0-9._-]{2,63}", bucket)
        assert prefix.encode().endswith(b"/") or not prefix
        assert f"s3://{bucket}/{prefix}".rstrip("/") == text.rstrip("/")


@given(st.text(max_size=20))
@examples(200)
@example("a\\,allow_other,b")
@example("\\")
@example("\\101")
def test_a_source_adds_no_option_to_the_mount(prefix: str) -> None:
    """libfuse reads the options again, which are ASCII: a backslash takes three octal digits of a byte, or the next
    letter as it is, and a comma ends one (fuse_opt.c). What comes out must be the source."""
    options = mount_options(f"s3://bucket/{prefix}", allow_other=False, allow_root=False, noexec=False)
    joined, read, at = ",".join(sorted(options)).encode("ascii"), [bytearray()], 0
    while at < len(joined):
        if joined[at : at + 1] == b",":
            read.append(bytearray())
        elif octal := re.match(rb"\\([0-3][0-7]{2})", joined[at:]):
            read[-1].append(int(octal[1], 8))
            at += 3
        else:
            at += joined[at : at + 1] == b"\\"
            read[-1] += joined[at : at + 1]
        at += 1
    words = {word.decode() for word in read}
    assert words == {
        f"fsname=s3://bucket/{prefix}", "subtype=lazyfs", "ro", "nosuid", "nodev", "noatime", "default_permissions"
    }  # fmt: skip


def shown(*arguments: str, env: dict[str, str] | None = None) -> Result:
    """`lazyfs mount --print-config`: settings in zero or one sentence, never a traceback."""
    result = CliRunner().invoke(cli, ["mount", "--print-config", *arguments, "s3://bucket", "/nowhere"], env=env)
    assert result.exit_code in (0, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if result.exit_code == 2 and not result.output.startswith("Usage: "):
        assert result.output.count("\n") == 1
    return result


TOML_KEYS = ["region", "metadata-ttl", "allow_other", "max-cache-size", "a.b", "[region]", '""', "endpoint-url"]
TOML_VALUES = ["1", "true", '"x"', "[1]", "{a=1}", "1979-05-27", "nan", "inf", "1e400", "9" * 5000, "'''\n'''"]
TOML_VALUES += ['"\\u0000"', '"\\u001b"', '"\\u007f\\\\"', '"\\U0001f999"']
TABLE_KEYS = ["name", "url", "region", "metadata-ttl", "no_sign_request", "cache-dir", "endpoint_url", "source", '""']
TABLE_VALUES = [*TOML_VALUES, '"llm"', '".."', '"a/b"', '"s3://bucket"', '"s3://bucket/x"', '"http://u:canary@h"']
LINES = st.lists(st.builds("{} = {}".format, st.sampled_from(TABLE_KEYS), st.sampled_from(TABLE_VALUES)), max_size=3)
NAMED = st.sampled_from(['name = "a"\nurl = "s3://bucket/x"', "name = 'b\\\"'\nurl = 's3://bucket'", ""])
TABLES = st.lists(
    st.builds(lambda named, lines: "\n".join(["[[source]]", named, *lines]), NAMED, LINES), min_size=1, max_size=3
).map("\n".join)
TOML = st.one_of(
    st.text(max_size=60),
    st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")),
    st.builds("{} = {}\n".format, st.sampled_from(TOML_KEYS), st.sampled_from(TOML_VALUES)),
)


@given(TOML)
@examples(150)
@example("region = " + "[" * 5000 + "]" * 5000)
@example("a = 1\n" * 50_000)
@example('region = "' + "x" * 200_000 + '"')
def test_configuration_files(tmp_path: Path, text: str) -> None:
    """And what is printed of one can be read again, with the same values."""
    file = tmp_path / "lazyfs.toml"
    file.write_bytes(text.encode("utf-8", "replace"))
    result = shown(f"--config={file}")
    if result.exit_code == 0:
        again = tmp_path / "again.toml"
        again.write_text(result.output)
        values = [tomllib.loads(output) for output in (result.output, shown(f"--config={again}").output)]
        assert values[0] == values[1]


@given(st.one_of(TABLES, st.builds("source = {}\n".format, st.sampled_from(TABLE_VALUES))))
@examples(150)
@example("[[source]]\n" * 100_000)
@example("[source]\nname = 'a'\nurl = 's3://bucket'")
@example("source = []")
@example("[[source]]\nname = 'a'\nurl = 's3://bucket'\n" + "x" * 100_000 + " = 1")
@example("[[source]]\nname = 'a'\nurl = 's3://bucket'\nno-sign-request = 'true'")
def test_tables_of_sources(tmp_path: Path, text: str) -> None:
    """The same of [[source]], where no SOURCE is given: what is printed can be read again, or there is a sentence."""
    file = tmp_path / "lazyfs.toml"
    file.write_text(text)
    arguments = ["mount", "--print-config", "/nowhere", "--config"]
    result = CliRunner().invoke(cli, [*arguments, str(file)])
    assert result.exit_code in (0, 2), result.output
    assert isinstance(result.exception, SystemExit | None)
    assert "canary" not in result.output
    if result.exit_code == 2:
        assert result.output.count("\n") == 1
        assert len(result.output) < 1000
        return
    again = tmp_path / "again.toml"
    again.write_text(result.output)
    second = CliRunner().invoke(cli, [*arguments, str(again)])
    assert tomllib.loads(result.output) == tomllib.loads(second.output)
    assert tomllib.loads(result.output)["source"]


@given(st.lists(st.text(max_size=20), max_size=3), st.lists(st.text(max_size=20), max_size=2), st.text(max_size=30))
@examples(300)
@example(["a=s3://bucket"], ["a:region"], "")
@example(["=s3://bucket"], [], "")
@example([], [], "a=s3://bucket \t=s3://bucket")
def test_words_that_name_sources(flags: list[str], options: list[str], environment: str) -> None:
    """Sources that flags say again, each a name and a bucket; or a sentence."""

    def read() -> tuple[list[SourceWords], list[SourceConfig]]:
        words = find_sources("", flags, options, {"LAZYFS_SOURCE": environment}, None)
        return words, configured(words, Config())

    outcome_of = outcome(read)
    if not isinstance(outcome_of, tuple):
        return
    found, made = outcome_of
    again, places = source_arguments(found)
    named = [flag.removeprefix("--source=") for flag in again if flag.startswith("--source=")]
    own = [flag.removeprefix("--source-option=") for flag in again if flag.startswith("--source-option=")]
    assert configured(find_sources("".join(places), named, own, {}, None), Config()) == made
    assert len({one.name for one in made}) == len(made)


def test_a_configuration_file_that_is_none(tmp_path: Path) -> None:
    """Bytes that are no text, a folder, and nothing."""
    noise = tmp_path / "noise"
    noise.write_bytes(bytes(range(256)))
    for path in (noise, tmp_path / "missing"):
        assert shown(f"--config={path}").exit_code == 2
    assert shown(f"--config={tmp_path}").exit_code == 2


NAMES = sorted(Config.__dataclass_fields__)


@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=12).filter(lambda text: "\0" not in text), max_size=3))
@examples(150)
@example({"max_connections": "999999999"})
@example({"endpoint_url": "http://user:canary@host"})
@example({"region": "a\x1b[31mb\x7f\n"})
@example({"cache_dir": "/\udcff"})
def test_environments(values: dict[str, str]) -> None:
    """Any text in any variable: settings, or the name of the one that is wrong; never the password in a URL."""
    result = shown(env={f"LAZYFS_{name.upper()}": text for name, text in values.items()})
    assert "canary" not in result.output
    if result.exit_code == 2 and not result.output.startswith("Usage: "):
        assert "--" in result.output


MOUNT_WORDS = ["ro", "allow_other", "allow_other=maybe", "max_cache_size=1", "a=b", "x-y", "config", "config=", "\\"]
MOUNT_WORDS += [",", "=", "no_sign_request=0", "uhelper=x"]


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(MOUNT_WORDS)).map(",".join)))
@examples(300)
def test_words_of_mount_8(text: str) -> None:
    """Flags of ours in front of `--`, and behind it the two places and nothing else; or a sentence."""
    found = outcome(translate, ["s3://bucket", "/mnt", "-o", text])
    if isinstance(found, UsageError):
        return
    assert isinstance(found, list)
    assert found[-3:] == ["--", "s3://bucket", "/mnt"]
    assert all(flag.startswith("--") and len(flag) > 2 for flag in found[:-3])


@given(st.lists(st.text(min_size=1, max_size=8), max_size=6))
@examples(200)
def test_words_with_commas_and_backslashes(words: list[str]) -> None:
    """What is escaped as the manual says comes back."""
    text = ",".join(word.replace("\\", "\\\\").replace(",", "\\,") for word in words)
    assert split_options(text) == words


@pytest.mark.parametrize("url", ["http://u:canary@host", "https://u@host:9000/canary", "u:canary@host", "http://u:can@ary@h"])
@pytest.mark.parametrize("layer", ["flag", "environment", "file"])
def test_a_password_in_the_endpoint_is_refused_and_not_repeated(tmp_path: Path, url: str, layer: str) -> None:
    """P15: it would stand in the process table and in every error."""
    file = tmp_path / "lazyfs.toml"
    file.write_text(f"endpoint-url = '{url}'\n" if layer == "file" else "")
    flags = [f"--endpoint-url={url}"] if layer == "flag" else []
    result = shown(f"--config={file}", *flags, env={"LAZYFS_ENDPOINT_URL": url} if layer == "environment" else None)
    assert result.exit_code == 2
    assert "must not hold a user or a password" in result.output
    assert "ary" not in result.output


@pytest.mark.parametrize("count", ["0", str(MOST_CONNECTIONS + 1), "999999999"])
def test_connections_are_bounded(count: str) -> None:
    """urllib3 makes room for each of them when it starts: with 999,999,999 it never ended."""
    with memory_bounded(64 << 20):
        result = shown(f"--max-connections={count}")
    assert f"--max-connections must be from 1 to {MOST_CONNECTIONS}" in result.output


@pytest.mark.parametrize("parse", [parsing.parse_size, parsing.parse_duration, parsing.parse_count, parse_source])
def test_a_sentence_about_much_is_short(parse: Callable[[str], object]) -> None:
    """What was written is repeated as far as it is needed."""
    found = outcome(parse, "x" * 10**6)
    assert isinstance(found, UsageError)
    assert len(str(found)) < 300
