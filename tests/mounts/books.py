"""A cache directory from outside: what its index says, what is on the disk, and where the two differ.

Its job: to read both without lazyfs's own classes, be a daemon running or dead, and to state in numbers how far they
may be apart. Must not know what was read or killed.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import lmdb

from lazyfs.cache.records import HEAD, OBJECT, WHOLE_FILE, Run, parts_in, run_of, runs_in, segment_size

FILE_SLACK = 64 * 1024
"""What an object file may take beyond its chunks: ext4 keeps a list of extents, a page for each 340."""

CACHE_SLACK = 192 * 1024
"""What the rest of the directory may take beyond the index: LMDB's lock file with 512 places, the marks."""

KNOWN = {"lazyfs-cache.json", "open", "room", "index/data.mdb", "index/lock.mdb"}


@dataclass(frozen=True)
class Books:
    """What an index says: `files` has bytes of chunks by (object_id, generation), `present` numbers of chunks. Chunks
    that are here in part take the room of whole ones: `parts` bytes of `files` may not be on the disk."""

    used: int
    files: dict[tuple[bytes, int], int]
    parts: dict[tuple[bytes, int], int]
    present: dict[tuple[bytes, int], set[int]]
    claims: dict[int, tuple[int, list[Run]]]
    graves: dict[Run, int]

    @property
    def sum(self) -> int:
        """What `used` must be."""
        claims = sum(size for size, _ in self.claims.values())
        return sum(self.files.values()) + claims + sum(self.graves.values())


def books(cache: Path) -> Books:
    """The index as it is now."""
    with lmdb.open(str(cache / "index"), max_dbs=16, readonly=True, lock=False) as env:
        tables = {name: env.open_db(name, create=False) for name in (b"meta", b"objects", b"segments")}
        tables |= {name: env.open_db(name, create=False) for name in (b"claims", b"graves")}
        with env.begin() as txn:
            rows = {name: [(bytes(k), bytes(v)) for k, v in txn.cursor(db)] for name, db in tables.items()}
    objects = {key: OBJECT.unpack_from(value) for key, value in rows[b"objects"]}
    files = {(key, generation): 0 for key, (generation, _, _) in objects.items()}
    parts = dict.fromkeys(files, 0)
    present: dict[tuple[bytes, int], set[int]] = {place: set() for place in files}
    for key, value in rows[b"segments"]:
        generation, _, bits = HEAD.unpack_from(value)
        object_id, segment = key[:-4], int.from_bytes(key[-4:], "big")
        files[object_id, generation] += segment_size(objects[object_id][1], segment, bits | parts_in(value))
        parts[object_id, generation] += segment_size(objects[object_id][1], segment, parts_in(value))
        present[object_id, generation] |= {segment * 64 + place for place in range(64) if bits >> place & 1}
    for key, (generation, _, count) in objects.items():
        assert len(present[key, generation]) == count
    meta = dict(rows[b"meta"])
    return Books(
        used=int.from_bytes(meta.get(b"used", b""), "little"),
        files=files,
        parts=parts,
        present=present,
        claims={
            int.from_bytes(key, "big"): (int.from_bytes(value[:8], "little"), list(runs_in(value[8:])))
            for key, value in rows[b"claims"]
        },
        graves={run_of(key): int.from_bytes(value, "little") for key, value in rows[b"graves"]},
    )


def index_is_clean(cache: Path) -> None:
    """lmdb's own offline checker finds nothing."""
    command = [sys.executable, "-m", "lmdb", "verify", "-e", str(cache / "index")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def allocated(directory: Path) -> int:
    """Bytes of disk blocks of all files below a directory, files that vanish meanwhile left out."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def object_file_sizes(cache: Path) -> dict[tuple[bytes, int], int]:
    """Bytes of disk by (object_id, generation); every file below `objects` must have such a name."""
    return {
        (bytes.fromhex(path.stem), int(path.suffix[1:], 16)): path.lstat().st_blocks * 512
        for path in (cache / "objects").rglob("*")
        if path.is_file()
    }


def check_after_a_kill(cache: Path) -> Books:
    """Nobody has the cache open now: the index is whole, its sum is right, and a claim or a grave names whatever is on
    disk and not present. So what a kill can leave is bounded by one claim for each daemon and one eviction."""
    index_is_clean(cache)
    found = books(cache)
    assert found.used == found.sum
    loose = [*found.graves, *(run for _, runs in found.claims.values() for run in runs)]
    for (object_id, generation), size in object_file_sizes(cache).items():
        named = [run for run in loose if (run.object_id, run.generation) == (object_id, generation)]
        known = found.files.get((object_id, generation))
        assert known is not None or any(run.stop == WHOLE_FILE for run in named) or named, "a file that nobody knows"
        assert size <= (known or 0) + FILE_SLACK or named, "bytes that nobody knows"
    return found


def check_at_rest(cache: Path, *, daemons: int = 1) -> Books:
    """`daemons` have the cache open and none writes: nothing is claimed, nothing waits to be cleared, no file is
    unknown, none holds more or less than the index says, and nothing else lies about."""
    found = books(cache)
    assert found.used == found.sum
    assert not found.claims
    assert not found.graves
    sizes = object_file_sizes(cache)
    assert sizes.keys() <= found.files.keys(), "a file that the index does not know"
    for place, size in found.files.items():
        assert size - found.parts[place] <= sizes.get(place, 0) <= size + FILE_SLACK
    others = {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()}
    others = {name for name in others if not name.startswith("objects/")} - KNOWN
    assert sorted(name.split("/")[0] for name in others) == ["daemons"] * daemons
    own = (cache / "index" / "data.mdb").stat().st_blocks * 512
    beyond = allocated(cache) - found.used - own
    assert -sum(found.parts.values()) <= beyond <= CACHE_SLACK + FILE_SLACK * len(sizes)
    return found
