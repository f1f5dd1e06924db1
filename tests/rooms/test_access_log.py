"""The access log: its lines, words in them that mean harm, and files that go away."""

import json
import os
from pathlib import Path

import pytest

from lazyfs.errors import SetupError
from lazyfs.filesystem.calls import About
from lazyfs.service.access import AccessLog

READ = About("a/b\nERROR x\x1b[31m", "", 4096, 1024)
LOOKUP = About("a/", "name")


def write(place: Path, format_: str) -> list[str]:
    """The lines of three calls."""
    log = AccessLog(str(place), format_)
    log("read", READ, "ok", 83e-6)
    log("lookup", LOOKUP, "EIO", 1.5)
    log("statfs", About(), "ok", 0.0)
    log.close()
    return place.read_text().splitlines()


def test_lines_of_text(tmp_path: Path) -> None:
    """One for each call, whatever the key."""
    lines = [line.partition(" ") for line in write(tmp_path / "log", "text")]
    assert [line for _, _, line in lines] == [
        r"read 'a/b\nERROR x\x1b[31m' offset 4096 size 1024 ok 83 us",
        "lookup 'a/name' EIO 1500000 us",
        "statfs ok 0 us",
    ]


def test_lines_of_json(tmp_path: Path) -> None:
    fields = [json.loads(line) for line in write(tmp_path / "log", "json")]
    assert [list(one) for one in fields] == [
        ["time", "operation", "key", "offset", "size", "result", "microseconds"],
        ["time", "operation", "key", "result", "microseconds"],
        ["time", "operation", "key", "result", "microseconds"],
    ]
    assert (fields[0]["key"], fields[0]["microseconds"]) == (r"a/b\nERROR x\x1b[31m", 83)


def test_a_file_that_is_renamed(tmp_path: Path) -> None:
    """As logrotate does: what comes later is in a new one."""
    place = tmp_path / "log"
    write(place, "text")
    log = AccessLog(str(place), "text")
    place.rename(tmp_path / "log.1")
    log("statfs", About(), "ok", 0.0)
    log.close()
    assert len((tmp_path / "log.1").read_text().splitlines()) == 3
    assert len(place.read_text().splitlines()) == 1


def test_a_disk_that_is_full_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """And nobody fails of it."""
    log = AccessLog("/dev/full", "text")
    for _ in range(100):
        log("statfs", About(), "ok", 0.0)
    log.close()
    assert caplog.text.count("the access log cannot be written, its lines are lost: ") == 1


def test_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog("-", "text")
    log("read", READ, "ok", 83e-6)
    log.close()
    assert [record.name for record in caplog.records] == ["lazyfs.access"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot write the access log .*; choose another --access-log"):
        AccessLog(os.fspath(tmp_path / "missing" / "log"), "text")
