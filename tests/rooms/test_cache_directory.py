"""The cache directory: what is refused and why, what is made, and who may read it."""

import os
from pathlib import Path

import pytest

from lazyfs.cache.directory import MARK, CacheDirectory
from lazyfs.errors import SetupError


def refused(path: Path) -> str:
    """Why the directory cannot be a cache."""
    with pytest.raises(SetupError) as error:
        CacheDirectory(path, create=False)
    return str(error.value)


def test_a_directory_that_is_not_fit_is_refused(tmp_path: Path) -> None:
    """Each with one sentence that says what to do."""
    missing = tmp_path / "missing"
    assert f"mkdir -m 700 -p {missing}" in refused(missing)
    file = tmp_path / "file"
    file.write_text("")
    assert "is not a directory" in refused(file)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("")
    assert "not lazyfs's" in refused(foreign)
    assert (foreign / "thesis.tex").exists()
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert "is not a directory" in refused(link)
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / MARK).write_text('{"layout": 99}')
    assert "does not know" in refused(newer)


@pytest.mark.parametrize("name", ["index", "objects", "daemons"])
def test_a_planted_link_is_refused(tmp_path: Path, name: str) -> None:
    """Nothing is written through a link that somebody else put there."""
    place, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    place.mkdir()
    elsewhere.mkdir()
    CacheDirectory(place, create=False).close()
    (place / name).rename(tmp_path / "old") if name != "daemons" else (place / name).rmdir()
    (place / name).symlink_to(elsewhere)
    assert "is not a directory of yours" in refused(place)
    assert list(elsewhere.iterdir()) == []


def test_a_directory_of_somebody_else_is_refused(place: Path) -> None:
    """Even to root: whoever owns it could change what readers get."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    os.chown(place, 12345, 12345)
    with pytest.raises(SetupError, match="belongs to user 12345"):
        CacheDirectory(place, create=False)
    assert list(place.iterdir()) == []


def test_a_directory_open_to_others_is_closed(place: Path) -> None:
    """What is in it is as private as the bucket."""
    place.chmod(0o777)
    CacheDirectory(place, create=False).close()
    assert place.stat().st_mode & 0o777 == 0o700


def test_only_the_default_place_is_made(tmp_path: Path) -> None:
    """With its parents, and for nobody else to read; a place that the user names must exist."""
    path = tmp_path / "a" / "b"
    CacheDirectory(path, create=True).close()
    assert path.stat().st_mode & 0o777 == 0o700
    CacheDirectory(path, create=False).close()
