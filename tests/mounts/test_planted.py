"""P13: what somebody puts in the place of object files and their folders while a mount uses them: reads are right and
end, and nothing outside is written, cut or deleted."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter
from tests.mounts.reader import Reader
from tests.mounts.test_bounds import FAILING
from tests.servers.fast import FastS3Server

DATA = pages(1, 4 * MIB)
MORE = pages(2, 24 * MIB)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of somebody's, which nobody but the test may touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def object_file(mount: Mount) -> Path:
    """The one of `weights`."""
    return next(path for path in (mount.cache / "objects").rglob("*") if path.is_file())


def linked_folder(file: Path, outside: Path) -> None:
    """The folder goes elsewhere, with what is in it, and a link to it takes its place."""
    file.parent.rename(outside / "moved")
    file.parent.symlink_to(outside / "moved")


def linked_file(file: Path, outside: Path) -> None:
    """The same with the file."""
    file.rename(outside / "moved")
    file.symlink_to(outside / "moved")


def named_twice(file: Path, outside: Path) -> None:
    """The file has another name elsewhere."""
    shutil.copy(file, outside / "moved")
    file.unlink()
    file.hardlink_to(outside / "moved")


def pipe(file: Path, outside: Path) -> None:
    """Nobody writes into it, or reads from it."""
    file.unlink()
    os.mkfifo(file)


def folder(file: Path, outside: Path) -> None:
    """Of the same name."""
    file.unlink()
    file.mkdir()


PLANTS = [linked_folder, linked_file, named_twice, pipe, folder]


@pytest.mark.parametrize(
    ("plant", "when"),
    # With a link in the place of a folder a start is refused: tests/rooms/test_planted.py.
    [*((plant, "running") for plant in PLANTS), *((plant, "before") for plant in PLANTS[1:])],
)
def test_in_the_place_of_an_object_file(
    s3: FastS3Server, mounter: Mounter, reader: Reader, outside: Path, plant: Callable[[Path, Path], None], when: str
) -> None:
    """Read, written to, evicted, and read again, by a daemon that had the file open and by one that had not."""
    expect = [*FAILING, "cannot clear", "cannot write"]
    for name, data in (("weights", DATA), ("more", MORE)):
        s3.put("models", name, data)
    options = ("--max-cache-size=16MiB", "--memory-budget=16MiB", "--retry-budget=5s")
    mount = mounter.mount(s3, "s3://models", *options, expect=expect)
    fd = reader.call("open_file", str(mount.path / "weights"))
    assert reader.call("pread", fd, MIB, 0) == DATA[:MIB]
    mount.settle()
    file = object_file(mount)
    if when == "before":
        reader.call("close_file", fd)
        assert mount.unmount() == 0
    plant(file, outside)
    before = contents(outside)
    if when == "before":
        mount = mounter.mount(s3, "s3://models", *options, expect=expect)
        fd = reader.call("open_file", str(mount.path / "weights"))
    assert reader.call("pread", fd, len(DATA), 0, timeout=30) == DATA
    mount.settle()
    more = reader.call("open_file", str(mount.path / "more"))
    for offset in range(0, len(MORE), MIB):
        assert reader.call("pread", more, MIB, offset, timeout=30) == MORE[offset : offset + MIB]
    mount.settle()
    assert reader.call("pread", fd, len(DATA), 0, timeout=30) == DATA
    assert mount.stats()["failures"] == 0
    if plant is linked_folder:
        assert contents(outside).keys() == before.keys(), "nothing was made there or deleted"
    else:
        assert contents(outside) == before
