"""A process that flips bytes of an index and has children use it; run by test_cache_files.

    python -m tests.fuzz.flipping DIR COUNT

flips COUNT bits in the first 100 bytes of each page, where LMDB keeps its own pointers, and as many anywhere. Prints
a line for each outcome and the flips, as place,bits, that had it: 0 all was right, 1 `CacheUnavailable`, 2 another
exception, 3 wrong bytes, 9 a death that `verify` did not foresee, below 0 the signal of which a child died.
"""

import contextlib
import os
import random
import shutil
import signal
import sys
from collections import defaultdict
from pathlib import Path

from lazyfs.cache.audit import verify
from lazyfs.errors import CacheUnavailable
from lazyfs.objects import MIB
from tests.rooms.building import CacheMaker, bury, chunk_on, keep, pattern, version_of

DATA = [pattern(2 * MIB + 5, number) for number in range(3)]
VERSIONS = [version_of(f"key-{number}", data) for number, data in enumerate(DATA)]
LISTING = b"l" * 16
SECONDS = 20


def use(place: Path) -> int:
    """Everything that a daemon does with an index; 3 if what it gives is wrong."""
    with CacheMaker(place) as maker:
        disk = maker.open()
        for version, data in zip(VERSIONS, DATA, strict=True):
            for number in range(version.chunk_count):
                if chunk_on(disk, version, number) not in (None, data[number * MIB : (number + 1) * MIB]):
                    return 3
        disk.used()
        disk.listing(LISTING)
        disk.cached_bytes(VERSIONS[0])
        disk.touch({(VERSIONS[0].object_id, 0)})
        more = version_of("more", DATA[0])
        keep(disk, more, DATA[0], range(more.chunk_count))
        disk.discard(VERSIONS[1], 0)
        bury(disk, 8 * MIB)
        if chunk_on(disk, more, 1) not in (None, DATA[0][MIB : 2 * MIB]):
            return 3
        maker.close(disk)
    return 0


def outcome(place: Path) -> int:
    """What becomes of a child that uses it."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.alarm(SECONDS)
        status = 2
        with contextlib.suppress(Exception):
            try:
                status = use(place)
            except CacheUnavailable:
                status = 1
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(work: Path, count: int) -> None:
    """Make a cache, flip, say."""
    good, place = work / "good", work / "place"
    good.mkdir(mode=0o700)
    with CacheMaker(good) as maker:
        disk = maker.open()
        for version, data in zip(VERSIONS, DATA, strict=True):
            keep(disk, version, data, range(version.chunk_count))
        disk.put_listings({LISTING: b"listing" * 50})
        maker.close(disk)
    index = (good / "index" / "data.mdb").read_bytes()
    dice = random.Random(1)
    pages = range(0, len(index), 4096)
    flips = [(page + dice.randrange(100), 1 << dice.randrange(8)) for page in pages for _ in range(count)]
    flips += [(dice.randrange(len(index)), dice.randrange(1, 256)) for _ in flips]
    found = defaultdict(list)
    shutil.copytree(good, place)
    for at, bits in flips:
        changed = bytearray(index)
        changed[at] ^= bits
        shutil.rmtree(place / "index")
        shutil.copytree(good / "objects", place / "objects", dirs_exist_ok=True)
        (place / "index").mkdir(mode=0o700)
        (place / "index" / "data.mdb").write_bytes(changed)
        status = outcome(place)
        if status not in (0, 1, 3):
            (place / "index" / "data.mdb").write_bytes(changed)
            (place / "index" / "lock.mdb").unlink(missing_ok=True)
            found[9 if verify(place / "index") else status].append((at, bits))
        found[status].append((at, bits))
    for status, places in found.items():
        sys.stdout.write(" ".join([str(status), *(f"{at},{bits}" for at, bits in places)]) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
