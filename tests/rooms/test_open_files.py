"""Many open files: what is remembered of their readers is bounded, and whoever reads now is not forgotten."""

import random
from types import SimpleNamespace
from typing import Any, cast

from lazyfs.cache.chunks import ChunkCache
from lazyfs.filesystem import files as files_module
from lazyfs.filesystem.files import OpenFile, OpenFiles
from lazyfs.filesystem.nodes import File
from lazyfs.objects import GIB, MIB, ObjectVersion
from lazyfs.reading.windows import Budget

PAGE = 4096


class AllHere:
    """A cache that has every byte in memory, and notes what is set on its way and what is given up."""

    def __init__(self) -> None:
        self.dropped: list[tuple[str, int, int]] = []

    def touched(self, *_: Any) -> None:
        """No disk."""

    def apart(self, *_: Any) -> bool:
        """Nothing is."""
        return False

    def now(self, version: ObjectVersion, start: int, stop: int) -> tuple[bytes]:
        """Zeros."""
        return (bytes(min(stop - start, PAGE)),)

    def start(self, version: ObjectVersion, start: int, stop: int, **_: Any) -> int:
        """All of it comes."""
        return stop

    def drop(self, version: ObjectVersion, start: int, stop: int) -> None:
        """Noted."""
        self.dropped.append((version.key, start, stop))

    def held(self, *_: Any) -> None:
        """Nothing of a header."""


def opened(files: OpenFiles, number: int) -> OpenFile:
    """One more file of a GiB."""
    version = ObjectVersion("p", f"k{number}", '"e"', GIB)
    parent = SimpleNamespace(children={})
    file = SimpleNamespace(
        version=version, name=version.key, inode=number, parent=parent, spoiled=False, partly=False, served=0
    )
    return files.get(files.open(cast(File, file)))


def all_remembered(files: OpenFiles) -> int:
    """Runs of all open files."""
    return sum(one.remembered for one in files)


def touch(one: OpenFile, count: int, dice: random.Random) -> None:
    """Pages at random."""
    for _ in range(count):
        one.now(dice.randrange(GIB // PAGE) * PAGE, PAGE)
        one.after()


def test_what_is_remembered_of_open_files_is_bounded() -> None:
    """However many there are, of whatever reads; at the bound those that were read last are remembered."""
    files, dice = OpenFiles(cast(ChunkCache, AllHere()), Budget(256 * MIB)), random.Random(1)
    most = 0
    for number in range(100):
        touch(opened(files, number), 300, dice)
        most = max(most, all_remembered(files))
    assert most <= files_module.MOST_REMEMBERED + 2 * files_module.LOOKED_AT
    assert most > files_module.MOST_REMEMBERED // 2
    everyone = list(files)
    assert everyone[-1].remembered > 300
    assert everyone[0].remembered == 0


def test_who_is_forgotten_gives_up_what_was_queued_and_begins_anew() -> None:
    """One who was idle for long, while others read. Not one that waits for its bytes, nor one that read his file
    through, of whom there is little to remember."""
    cache = AllHere()
    files, dice = OpenFiles(cast(ChunkCache, cache), Budget(256 * MIB)), random.Random(1)
    idle, waiting, through = (opened(files, number) for number in (1000, 1001, 1002))
    for one in (idle, waiting, through):
        if one is not through:
            touch(one, 350, dice)
        for number in range(8):
            one.now(number * MIB, MIB)
            one.after()
    assert [one.state().streams for one in (idle, waiting, through)] == [1, 1, 1]
    waiting._streams.waiting += 1
    for number in range(60):
        touch(opened(files, number), 350, dice)
    assert {key for key, _, _ in cache.dropped} == {"k1000"}
    assert [one.state().streams for one in (idle, waiting, through)] == [0, 1, 1]
    for number in range(8, 12):
        idle.now(number * MIB, MIB)
        idle.after()
    assert idle.state().streams == 1


def test_who_reads_now_is_not_forgotten_for_others_that_touch() -> None:
    """80 files touched all the time and one read through at the same time: what has to go is of those with most."""
    cache = AllHere()
    files, dice = OpenFiles(cast(ChunkCache, cache), Budget(256 * MIB)), random.Random(1)
    through, others = opened(files, 1000), [opened(files, number) for number in range(80)]
    most = 0
    for number in range(600):
        through.now(number * MIB, MIB)
        through.after()
        for one in others:
            touch(one, 1, dice)
        most = max(most, all_remembered(files))
    assert "k1000" not in {key for key, _, _ in cache.dropped}
    assert through.state().streams == 1
    assert files_module.MOST_REMEMBERED < most <= files_module.MOST_REMEMBERED + 2 * files_module.LOOKED_AT
