"""What is set of a mount's read-ahead while files are opened."""

from pathlib import Path

from lazyfs.service.machine import FileReadAhead


def place(root: Path, value: str) -> Path:
    """Where the kernel would have it."""
    directory = root / "sys/class/bdi/0:7"
    directory.mkdir(parents=True)
    (directory / "read_ahead_kb").write_text(value)
    return directory / "read_ahead_kb"


def test_more_for_what_is_read_through_and_back_again(tmp_path: Path) -> None:
    """Back to what it was, which somebody may have set since the mount was made."""
    kernel = place(tmp_path, "1024\n")
    files = FileReadAhead("0:7", 16384, tmp_path)
    assert files.shard_kb == 16384
    for through, expected in ((False, "1024\n"), (True, "16384"), (True, "16384"), (False, "1024")):
        files.next_open(through=through)
        assert kernel.read_text() == expected
    kernel.write_text("2048")
    files.next_open(through=False)
    assert kernel.read_text() == "2048"
    files.next_open(through=True)
    files.next_open(through=False)
    assert kernel.read_text() == "2048"
    files.next_open(through=True)
    kernel.write_text("4096")
    files.next_open(through=False)
    assert kernel.read_text() == "4096", "set while it was raised"
    files.next_open(through=True)
    kernel.write_text("512")
    files.next_open(through=True)
    assert kernel.read_text() == "16384"
    files.next_open(through=False)
    assert kernel.read_text() == "512"


def test_never_less_than_the_mount_has(tmp_path: Path) -> None:
    """Who asked for 32 MiB everywhere has it for shards too."""
    kernel = place(tmp_path, "32768")
    FileReadAhead("0:7", 16384, tmp_path).next_open(through=True)
    assert kernel.read_text() == "32768"


def test_nothing_where_rights_do_not_allow(tmp_path: Path) -> None:
    """No mount of ours, as in a container that does not see it; and none asked for."""
    files = FileReadAhead("0:7", 16384, tmp_path)
    assert files.shard_kb == 0
    files.next_open(through=True)
    kernel = place(tmp_path, "1024")
    FileReadAhead("0:7", 0, tmp_path).next_open(through=True)
    assert kernel.read_text() == "1024"
