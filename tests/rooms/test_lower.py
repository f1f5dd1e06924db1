"""A disk cache over a lower layer: what is read from where, and which directory can be a layer."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import lmdb
import pytest

from lazyfs.cache.digest import Hashing, from_sums
from lazyfs.cache.directory import CacheDirectory
from lazyfs.cache.disk import Verified
from lazyfs.cache.layers import LayeredDisk
from lazyfs.cache.lower import LowerLayer, lower_layer
from lazyfs.cache.packing import pack, time_of, unpack
from lazyfs.cache.records import LOWER, MIXED
from lazyfs.cache.sums import block_sums
from lazyfs.cache.verdicts import Verdict
from lazyfs.cache.verdicts import pack as pack_verdict
from lazyfs.cache.verdicts import unpack as unpack_verdict
from lazyfs.objects import BLOCK_SIZE, CHUNK_SIZE, MARK_SIZE, Checksums, Listing, ObjectInfo
from tests.rooms.building import CacheMaker, chunk_on, keep, object_files, pattern, version_of

DATA = pattern(3 * CHUNK_SIZE + 100)
VERSION = version_of("weights", DATA)
OTHER = version_of("other", b"other")


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A layer with three of the four chunks of VERSION, and all of OTHER."""
    place = tmp_path / "layer"
    place.mkdir(mode=0o700)
    with CacheMaker(place) as maker:
        disk = maker.open()
        assert keep(disk, VERSION, DATA, [0, 1, 2]) == 3
        assert keep(disk, OTHER, b"other", [0]) == 1
        disk.put_listings({b"a" * 16: listing(1.0), b"b" * 16: listing(3.0), b"c" * 16: listing(1.0)})
        generation = disk.generation(OTHER)
        assert generation is not None
        disk.put_verdict(OTHER.object_id, pack_verdict(Verdict("sha256", generation, "s3", "0" * 64)))
    return place


def listing(at: float) -> bytes:
    """One that is of this time."""
    packed = pack(Listing("p/", (ObjectInfo("p/x", '"1"', 1, 0),), (), at))
    assert packed is not None
    return packed


@pytest.fixture
def opened(tmp_path: Path, layer: Path) -> Iterator[Callable[[], LayeredDisk]]:
    """Opens disk caches of one directory over the layer; one at a time."""
    (tmp_path / "cache").mkdir(mode=0o700)
    made: list[LayeredDisk] = []

    def open_() -> LayeredDisk:
        while made:
            made.pop().close()
        below = lower_layer(layer)
        assert below is not None
        directory = CacheDirectory(tmp_path / "cache", create=False)
        made.append(LayeredDisk(directory, max_size=None, min_free=0, lower=below))
        return made[-1]

    yield open_
    while made:
        made.pop().close()


def test_what_the_layer_has_is_read_from_it(opened: Callable[[], LayeredDisk], layer: Path) -> None:
    """Whole chunks and parts; the rest is missing, until it is kept here, and then all of it is one file."""
    disk = opened()
    assert disk.present(VERSION.object_id, 0) == 0b111
    assert (disk.cached_chunks(VERSION), disk.below(VERSION)) == (3, 3 * CHUNK_SIZE)
    assert [chunk_on(disk, VERSION, n) for n in range(3)] == [
        DATA[n * CHUNK_SIZE : (n + 1) * CHUNK_SIZE] for n in range(3)
    ]
    kept = disk.kept(VERSION.object_id, 1)
    assert kept is not None
    assert kept.generation >= LOWER
    assert disk.read_part(VERSION, 1, kept, 5, 77) == DATA[CHUNK_SIZE + 5 : CHUNK_SIZE + 77]
    assert disk.generation(VERSION) is None
    assert disk.path(VERSION) == ""

    keep(disk, VERSION, DATA, [3])
    generation = disk.generation(VERSION)
    assert generation is not None
    assert generation >= MIXED
    assert disk.path(VERSION) == ""
    assert disk.lend(VERSION, generation) is None
    hashing = Hashing(disk, VERSION)
    assert hashing.some(VERSION.chunk_count, lambda _: None)
    found = hashing.digests
    assert found is not None
    assert from_sums(disk, VERSION, {}) == Checksums(crc64nvme=found.crc64nvme)
    assert disk.present(VERSION.object_id, 0) == 0b1111
    assert len(object_files(disk._directory.path)) == 1
    assert disk._index.present_chunks(VERSION.object_id) == 1

    generation = disk.generation(OTHER)
    assert generation is not None
    assert LOWER <= generation < MIXED
    assert Path(disk.path(OTHER)).is_relative_to(layer)
    lent = disk.lend(OTHER, generation)
    assert lent is not None
    assert os.pread(lent, 9, 0) == b"other"
    os.close(lent)


def test_a_touch_of_the_layer_reads_a_page(
    opened: Callable[[], LayeredDisk], layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it was marked when it was a cache; for who wants the chunk nothing changes."""
    with CacheMaker(layer) as maker:
        maker.open().mark(VERSION, [0, 1, 2])
    disk, asked, real = opened(), [], os.preadv

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        asked.append(sum(map(len, buffers)))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    kept = disk.kept(VERSION.object_id, 1, partly=True)
    assert kept is not None
    assert kept == disk.kept(VERSION.object_id, 1)
    assert disk.read_part(VERSION, 1, kept, 5, 77) == DATA[CHUNK_SIZE + 5 : CHUNK_SIZE + 77]
    assert asked == [MARK_SIZE]


def test_verdicts_are_of_the_bytes_that_were_looked_at(opened: Callable[[], LayeredDisk]) -> None:
    """That of the layer is one of this cache, until some of it is here."""
    disk = opened()
    found = unpack_verdict(disk.verdict(OTHER.object_id))
    assert found is not None
    assert (found.held, found.generation) == ("sha256", disk.generation(OTHER))
    keep(disk, OTHER, b"other", [0])
    generation = disk.generation(OTHER)
    assert generation is not None
    assert generation < LOWER
    disk.put_verdict(OTHER.object_id, pack_verdict(Verdict("", 0, "s3", wrong="it is")))
    found = unpack_verdict(disk.verdict(OTHER.object_id))
    assert found is not None
    assert found.wrong == "it is"
    disk.put_verdict(OTHER.object_id, pack_verdict(Verdict("crc64nvme", generation, "s3")))
    disk.drop([OTHER.object_id])
    found = unpack_verdict(disk.verdict(OTHER.object_id))
    assert found is not None
    assert (found.held, found.generation) == ("sha256", disk.generation(OTHER)), "what is here was evicted"


def test_a_part_here_is_not_taken_for_damage_below(opened: Callable[[], LayeredDisk]) -> None:
    """A chunk of the layer goes before a part of it that is here: of the two it is what was found damaged."""
    disk = opened()
    view = memoryview(DATA)[CHUNK_SIZE : CHUNK_SIZE + BLOCK_SIZE]
    assert disk.keep([Verified(VERSION, 1, view, block_sums(view))]) == 1
    kept = disk.kept(VERSION.object_id, 1, partly=True)
    assert kept is not None
    assert kept.generation >= LOWER
    disk.discard(VERSION, 1)
    kept = disk.kept(VERSION.object_id, 1, partly=True)
    assert kept is not None
    assert kept.generation < LOWER
    assert disk.read_part(VERSION, 1, kept, 5, 77) == DATA[CHUNK_SIZE + 5 : CHUNK_SIZE + 77]
    disk.discard(VERSION, 1)
    assert disk.kept(VERSION.object_id, 1, partly=True) is None


def test_what_is_wrong_in_the_layer_is_not_there(opened: Callable[[], LayeredDisk], layer: Path) -> None:
    """A damaged chunk, and a whole object that is forgotten; what is fetched for them is kept here and goes first."""
    big = next(path for path in object_files(layer) if path.stat().st_size == len(DATA))
    with big.open("r+b") as file:
        file.seek(CHUNK_SIZE + 7)
        file.write(b"!!!!")
    disk = opened()
    assert chunk_on(disk, VERSION, 1) is None
    disk.discard(VERSION, 1)
    assert disk.kept(VERSION.object_id, 1) is None
    assert (disk.present(VERSION.object_id, 0), disk.cached_chunks(VERSION)) == (0b101, 2)
    keep(disk, VERSION, DATA, [1])
    again = opened()
    assert again.cached_chunks(VERSION) == 3
    assert chunk_on(again, VERSION, 1) == DATA[CHUNK_SIZE : 2 * CHUNK_SIZE]
    again.forget(VERSION)
    again.forget(OTHER)
    assert (again.cached_chunks(VERSION), again.present(VERSION.object_id, 0)) == (0, 0)
    assert (again.generation(OTHER), again.verdict(OTHER.object_id)) == (None, None)
    keep(again, OTHER, b"other", [0])
    assert chunk_on(opened(), OTHER, 0) == b"other"


def test_the_younger_listing_holds(opened: Callable[[], LayeredDisk]) -> None:
    disk = opened()
    disk.put_listings({b"a" * 16: listing(2.0), b"b" * 16: listing(2.0), b"d" * 16: listing(4.0)})
    times = {}
    for name in (b"a", b"b", b"c", b"d"):
        found = unpack(disk.listing(name * 16))
        assert found is not None
        times[name] = found.listed_at
    assert times == {b"a": 2.0, b"b": 3.0, b"c": 1.0, b"d": 4.0}
    assert disk.listing(b"e" * 16) is None


def test_the_time_of_a_listing() -> None:
    """Compressed or not, and of what is none."""
    many = Listing("p/", [ObjectInfo(f"p/{n}", '"1"', 1, 0) for n in range(1000)], (), 7.5)
    packed = pack(many)
    assert packed is not None
    assert (time_of(packed), time_of(listing(2.5))) == (7.5, 2.5)
    for raw in (b"", b"Z2", b"Z2\0\0\0\0rubbish", b"L2\0\0\0\0\0", b"L2\0\0\0\0" + b"\xff" * 8):
        assert time_of(raw) == float("-inf")


def other_layout(layer: Path) -> None:
    (layer / "lazyfs-cache.json").write_text('{"layout": 2}')


def newer_index(layer: Path) -> None:
    env = lmdb.open(str(layer / "index"), max_dbs=16)
    with env.begin(write=True) as txn:
        txn.put(b"format", b"lazyfs-index-9", db=env.open_db(b"meta", txn))
    env.close()


def no_tables(layer: Path) -> None:
    shutil.rmtree(layer / "index")
    lmdb.open(str(layer / "index")).close()


def a_link(layer: Path) -> None:
    (layer / "objects").rename(layer.parent / "elsewhere")
    (layer / "objects").symlink_to(layer.parent / "elsewhere")


UNFIT: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (shutil.rmtree, "cannot be read: No such file"),
    "foreign": (lambda layer: (layer / "lazyfs-cache.json").unlink(), "cannot be read: No such file"),
    "newer layout": (other_layout, "has a layout that this lazyfs does not know"),
    "no json": (lambda layer: (layer / "lazyfs-cache.json").write_text("{"), "has a layout that"),
    "newer index": (newer_index, "has format b'lazyfs-index-9'"),
    "no tables": (no_tables, "index cannot be used"),
    "rubbish": (lambda layer: (layer / "index/data.mdb").write_bytes(b"rubbish" * 4096), "index cannot be used"),
    "cut short": (lambda layer: os.truncate(layer / "index/data.mdb", 8192), "cut short"),
    "writable": (lambda layer: (layer / "objects").chmod(0o770), "others may write to"),
    "a link": (a_link, "is not what a cache directory has there"),
    "open": (lambda layer: (layer / "open").write_text("boot"), "a mount has it open"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_a_layer(name: str, layer: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning that says why."""
    spoil, why = UNFIT[name]
    spoil(layer)
    assert lower_layer(layer) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert why in record.getMessage()
    assert "lazyfs bake" in record.getMessage()


def test_a_layer_that_fails_has_nothing(layer: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And that is said once."""
    below = LowerLayer(layer)
    below._index.close()
    for _ in range(3):
        assert below.kept(VERSION.object_id, 0) is None
        assert (below.present(VERSION.object_id, 0), below.chunks(VERSION), below.complete(OTHER)) == (0, 0, None)
        assert (below.listing(b"a" * 16), below.verdict(OTHER.object_id)) == (None, None)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    below.files.close()


def test_nothing_of_a_layer_is_written(layer: Path, tmp_path: Path) -> None:
    """Not even a lock: names, times and bytes stay."""

    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [layer, *layer.rglob("*")]}

    before = state()
    below = LowerLayer(layer)
    assert below.kept(OTHER.object_id, 0) is not None
    below.close()
    assert state() == before


def test_of_a_file_of_both_no_verdict_outlives_a_chunk(opened: Callable[[], LayeredDisk]) -> None:
    """Whichever of them has lost it: what comes in its place was not compared, and the file has the same generation as
    before."""
    disk = opened()
    generations = set()
    for number in (3, 1, 1):  # of which one is lost in the layer first, and then here
        keep(disk, VERSION, DATA, [number])
        generation = disk.generation(VERSION)
        assert generation is not None
        assert generation >= MIXED
        disk.put_verdict(VERSION.object_id, pack_verdict(Verdict("sha256", generation, "s3", "0" * 64)))
        assert unpack_verdict(disk.verdict(VERSION.object_id)) is not None
        disk.discard(VERSION, 1)
        generations.add(generation)
        assert unpack_verdict(disk.verdict(VERSION.object_id)) is None
    assert len(generations) == 1


def test_a_file_with_holes_in_the_layer_is_lent_to_nobody(opened: Callable[[], LayeredDisk], layer: Path) -> None:
    """Though its count of chunks, which has no checksum, says that it is whole."""
    with lmdb.open(str(layer / "index"), max_dbs=16) as env:
        objects = env.open_db(b"objects", create=False)
        with env.begin(write=True, db=objects) as txn:
            record = bytearray(txn.get(VERSION.object_id) or b"")
            record[12] = 4
            txn.put(VERSION.object_id, bytes(record))
    disk = opened()
    generation = disk.generation(VERSION)
    assert generation is not None
    assert disk.lend(VERSION, generation) is None
    assert disk.path(VERSION) == ""
