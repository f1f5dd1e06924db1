"""The cache directory: what is refused and why, what is made, and who may read it."""

import fcntl
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lazyfs.cache.directory import MARK, CacheDirectory
from lazyfs.errors import SetupError


def refused(path: Path) -> str:
    """Why the directory cannot be a cache."""
    with pytest.raises(SetupError) as error:
        CacheDirectory(path, create=False)
    return str(error.value)


def test_several_that_start_at_once_in_a_new_directory(tmp_path: Path) -> None:
    """One of them marks it, and none takes what another has just made for somebody else's."""
    for number in range(25):
        place = tmp_path / str(number)
        place.mkdir()
        start = threading.Barrier(6)

        def begin(place: Path = place, start: threading.Barrier = start) -> CacheDirectory:
            start.wait()
            return CacheDirectory(place, create=False)

        with ThreadPoolExecutor(6) as pool:
            found = [future.result() for future in [pool.submit(begin) for _ in range(6)]]
        assert found[0].alive() == {one.daemon for one in found}
        for one in found:
            one.close()


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


def test_a_kill_while_it_is_marked_is_made_up_for(place: Path) -> None:
    """The first start ever, killed between writing its mark and giving it its name."""
    (place / f"{MARK}.new").write_text("{")
    CacheDirectory(place, create=False).close()
    assert (place / MARK).exists()
    assert not (place / f"{MARK}.new").exists()


def test_a_daemon_that_starts_is_not_taken_for_a_dead_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is removed between being made and being locked: it makes another, and others see that it lives."""
    first = CacheDirectory(place, create=False)
    flock = fcntl.flock
    removed: list[Path] = []

    def remove_first(descriptor: int, operation: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.parent.name == "daemons" and operation == fcntl.LOCK_EX and not removed:
            removed.append(path)
            path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    second = CacheDirectory(place, create=False)
    monkeypatch.undo()
    assert len(removed) == 1
    assert first.alive() == second.alive() == {first.daemon, second.daemon}
    second.close()
    first.close()


def test_one_daemon_at_a_time_clears_the_disk(place: Path) -> None:
    """Another waits as long as it says, and no longer; when the first is done, or dead, it is free."""
    first, second = CacheDirectory(place, create=False), CacheDirectory(place, create=False)
    with first.alone(0) as one, second.alone(0) as two:
        assert (one, two) == (True, False)
    with second.alone(0) as two:
        assert two
    process = subprocess.Popen(
        ["flock", "--exclusive", "--no-fork", str(place / "room"), "sh", "-c", "echo held; exec sleep 600"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with first.alone(0) as one:
        assert not one
    process.kill()
    process.wait()
    process.stdout.close()
    with first.alone(5) as one:
        assert one
    first.close()
    second.close()


def test_object_files_leave_before_their_index(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle of setting aside leaves no file without an index: what is left is set aside again."""
    directory = CacheDirectory(place, create=False)
    (place / "objects" / "aa").mkdir()
    (place / "index" / "data.mdb").write_bytes(b"noise")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    rename, moved = Path.rename, []

    def rename_one(path: Path, target: Path) -> Path:
        moved.append(path.name)
        return rename(path, target) if len(moved) == 1 else die()  # type: ignore[func-returns-value,return-value]

    monkeypatch.setattr(Path, "rename", rename_one)
    with pytest.raises(KeyboardInterrupt):
        directory.set_aside()
    monkeypatch.undo()
    assert moved == ["objects", "index"]
    assert not directory.orphaned()
    directory.close()


def test_only_the_default_place_is_made(tmp_path: Path) -> None:
    """With its parents, and for nobody else to read; a place that the user names must exist."""
    path = tmp_path / "a" / "b"
    CacheDirectory(path, create=True).close()
    assert path.stat().st_mode & 0o777 == 0o700
    CacheDirectory(path, create=False).close()
