"""P13: what somebody planted in a cache directory before a start is not followed, waited for, or deleted through: the
start is refused in a sentence that names it, and nothing outside is touched."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lazyfs.cache.directory import MARK, CacheDirectory, filesystem_type
from lazyfs.errors import SetupError
from tests.rooms.building import CacheMaker, chunk_on, keep, object_files, pattern, version_of

DATA = pattern(2 << 20)
VERSION = version_of("k", DATA)
FOLDERS = ["index", "objects", "daemons", "damaged", "objects/xx"]
FILES = [MARK, "open", "room", "index/data.mdb", "index/lock.mdb"]


@pytest.fixture
def cache(place: Path) -> Path:
    """A cache with something in it, which nobody uses; it was not closed in order, so that every file is there."""
    with CacheMaker(place) as maker:
        disk = maker.open()
        keep(disk, VERSION, DATA, range(2))
        maker.kill(disk)
    return place


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder of somebody's, which is as it was at the end."""
    folder = tmp_path / "outside"
    (folder / "inner").mkdir(parents=True)
    (folder / "thesis").write_text("all of it")
    (folder / "empty").touch()
    yield folder
    assert sorted(path.name for path in folder.rglob("*")) == ["empty", "inner", "thesis"]
    assert (folder / "thesis").read_text() == "all of it"
    assert (folder / "empty").stat().st_size == 0


def at(cache: Path, name: str) -> Path:
    """The place of that name; of the folders of object files the one that is there."""
    return object_files(cache)[0].parent if name == "objects/xx" else cache / name


def replace(path: Path, plant: Callable[[Path], object]) -> None:
    """Put something else in the place of what is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    plant(path)


def refused(cache: Path, path: Path) -> None:
    """A start says what is in the way, leaves it where it is, and works once it is gone."""
    with pytest.raises(SetupError) as failure:
        CacheDirectory(cache, create=False)
    assert str(path) in str(failure.value)
    assert "remove it" in str(failure.value) or "not lazyfs's" in str(failure.value)
    assert os.path.lexists(path)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("what", ["link", "dangling", "file", "pipe"])
def test_in_the_place_of_a_folder(cache: Path, outside: Path, name: str, what: str) -> None:
    """A link to a folder of somebody's, or to none; a file; a pipe, which would be waited for."""
    plants: dict[str, Callable[[Path], object]] = {
        "link": lambda path: path.symlink_to(outside),
        "dangling": lambda path: path.symlink_to(outside / "new"),
        "file": Path.touch,
        "pipe": os.mkfifo,
    }
    path = at(cache, name)
    replace(path, plants[what])
    refused(cache, path)


PLANTED = [(name, what) for name in FILES for what in ("link", "empty", "dangling", "hard link", "pipe", "folder")]


# A folder where LMDB has a file is an index that is none: set aside, and no reason to refuse a start.
@pytest.mark.parametrize(("name", "what"), [one for one in PLANTED if one[1] != "folder" or "index" not in one[0]])
def test_in_the_place_of_a_file(cache: Path, outside: Path, name: str, what: str) -> None:
    """A link to a file of somebody's, an empty one, or none, which would be made; a hard link; a pipe; a folder."""
    plants: dict[str, Callable[[Path], object]] = {
        "link": lambda path: path.symlink_to(outside / "thesis"),
        "empty": lambda path: path.symlink_to(outside / "empty"),
        "dangling": lambda path: path.symlink_to(outside / "new"),
        "hard link": lambda path: path.hardlink_to(outside / "thesis"),
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
    }
    path = cache / name
    replace(path, plants[what])
    refused(cache, path)


@pytest.mark.parametrize("name", FOLDERS + FILES)
def test_of_somebody_else(cache: Path, name: str) -> None:
    """Who owns it could change what readers get."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = at(cache, name)
    path.mkdir(exist_ok=True) if name == "damaged" else None
    os.chown(path, 12345, 12345)
    refused(cache, path)


def test_what_is_set_aside_is_deleted_and_not_what_its_links_name(
    cache: Path, outside: Path, caches: CacheMaker
) -> None:
    """Links in what an earlier daemon set aside, and in what is set aside now, are removed as links."""
    aside = cache / "damaged" / "0123"
    aside.mkdir(parents=True)
    (aside / "link").symlink_to(outside)
    (aside / "inner").symlink_to(outside / "inner")
    (object_files(cache)[0].parent / "link").symlink_to(outside)
    (cache / "index" / "data.mdb").write_bytes(b"no index" * 1000)
    disk = caches.open()
    for thread in [one for one in threading.enumerate() if one.name == "clear-damaged"]:
        thread.join(20)
    assert list((cache / "damaged").rglob("*")) == [] if (cache / "damaged").exists() else True
    assert chunk_on(disk, VERSION, 0) is None
    assert keep(disk, VERSION, DATA, range(2)) == 2


def test_a_link_at_what_is_set_aside_while_it_runs(cache: Path, outside: Path) -> None:
    """Nothing is moved through it."""
    directory = CacheDirectory(cache, create=False)
    (cache / "damaged").symlink_to(outside)
    with pytest.raises(SetupError, match="not a directory of yours"):
        directory.set_aside()
    directory.clear_aside()
    directory.close()


@pytest.mark.parametrize("noise", [b"", b"\xff\xfe", b"x" * 10_000])
def test_noise_for_the_open_mark(cache: Path, noise: bytes, caches: CacheMaker) -> None:
    """Says that the machine stopped; the index is then looked at before it is used."""
    (cache / "open").write_bytes(noise)
    directory = CacheDirectory(cache, create=False)
    assert directory.lost_power()
    directory.close()
    (cache / "open").write_bytes(noise)
    assert chunk_on(caches.open(), VERSION, 1) == DATA[1 << 20 :]


DEEP, DIGITS, LATE = b"[" * 100_000, b'{"layout": ' + b"9" * 5000 + b"}", b" " * 10_000 + b'{"layout": 1}'


@pytest.mark.parametrize("mark", [b"{}", DEEP, DIGITS, LATE], ids=["empty", "deep", "digits", "late"])
def test_a_mark_that_is_no_mark(cache: Path, mark: bytes) -> None:
    """However deep or long."""
    (cache / MARK).write_bytes(mark)
    with pytest.raises(SetupError, match="a layout that this lazyfs does not know"):
        CacheDirectory(cache, create=False)


@pytest.mark.parametrize("name", ["a\rb", "a\x1c-\x1cb c"])
def test_somebody_elses_mountpoint_with_an_odd_name(cache: Path, tmp_path: Path, name: str) -> None:
    """Is a line of the kernel's table like any other, though Python takes it for two, or for other fields."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    path = tmp_path / name
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "odd", str(path)], check=True, timeout=30)
    try:
        assert filesystem_type(path) == "tmpfs"
        CacheDirectory(cache, create=False).close()
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=30)
