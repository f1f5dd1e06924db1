"""The index and what lies beside it, with any bytes in any place: what was kept, or nothing, or `CacheUnavailable`."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cache.answer import Answer
from lazyfs.cache.audit import cut_short
from lazyfs.cache.directory import MARK, CacheDirectory
from lazyfs.cache.index import Index
from lazyfs.cache.records import (
    HEAD,
    OBJECT,
    SUMS_SIZE,
    Kept,
    Run,
    Written,
    number_of,
    run_key,
    run_of,
    segment_key,
    sound,
)
from lazyfs.cache.sums import seal
from lazyfs.cache.sweep import entries
from lazyfs.errors import CacheUnavailable, LazyfsError, SetupError
from lazyfs.objects import MIB, ObjectVersion
from tests.fuzz.examples import FULL, TIMES, examples, outcome
from tests.servers.processes import ROOT

VERSION = ObjectVersion("p", "key", '"1"', 3 * MIB + 5)
SUMS = [bytes([number]) * 128 for number in range(4)]
KEY = segment_key(VERSION.object_id, 0)
BODY = HEAD.pack(7, 1, 0b101) + bytes(range(256)) * (SUMS_SIZE // 256)
RECORD = BODY + seal(KEY, BODY)


# ---- records


@given(st.integers(0, len(RECORD) - 1), st.integers(1, 255), st.integers(0, len(KEY) - 1))
@examples(300)
def test_a_record_with_a_byte_that_is_off(at: int, bits: int, in_key: int) -> None:
    """In the record or in its key."""
    record, key = bytearray(RECORD), bytearray(KEY)
    record[at] ^= bits
    key[in_key] ^= bits
    assert sound(KEY, RECORD)
    assert not sound(KEY, bytes(record))
    assert not sound(bytes(key), RECORD)


@given(st.binary(max_size=40), st.integers(0, len(RECORD)))
@examples(200)
def test_a_record_of_any_length(noise: bytes, cut: int) -> None:
    """Noise, and a good one that is cut off or goes on."""
    assert not sound(KEY, noise)
    assert sound(KEY, RECORD[:cut]) == (cut == len(RECORD))
    assert sound(KEY, RECORD + noise) == (not noise)
    assert 0 <= number_of(noise) < 1 << 64


@given(st.binary(max_size=40))
@examples(200)
def test_a_run_of_any_bytes(key: bytes) -> None:
    """Is numbers that a file can have, and of a whole key it is that run."""
    run = run_of(key)
    assert all(0 <= number < 1 << 32 for number in (run.generation, run.first, run.stop))
    assert len(key) != 28 or run_key(run) == key


# ---- tables

TABLES = ["meta", "objects", "segments", "lru", "claims", "graves", "verdicts", "listings", "pins"]
RUN_KEY = run_key(Run(VERSION.object_id, 1, 0, 3))
GOOD_KEYS = [VERSION.object_id, KEY, b"used", bytes(7) + b"\1", b"l" * 16, RUN_KEY, bytes(28)]
NOISE = st.one_of(st.binary(max_size=30), st.just(RECORD[:-1] + b"x"), st.binary(min_size=28, max_size=90))
SMALL = st.integers(0, 300).map(lambda size: OBJECT.pack(1, size * MIB, size))
LARGE = st.integers(0, (1 << 64) - 1).map(lambda size: OBJECT.pack(1, size, 3))


ENTRIES = st.tuples(
    st.sampled_from(TABLES), st.sampled_from(GOOD_KEYS) | st.binary(min_size=1, max_size=30), NOISE | SMALL | LARGE
)


@given(st.lists(ENTRIES, max_size=5))
@examples(150)
def test_noise_in_every_table(tmp_path: Path, puts: list[tuple[str, bytes, bytes]]) -> None:
    """Every operation of the index: what it gives is right or nothing, and it raises nothing but `CacheUnavailable`."""
    shutil.rmtree(tmp_path / "index", ignore_errors=True)
    index = Index(tmp_path / "index")
    generation = index.generation(VERSION)
    assert index.claim(1, [Run(VERSION.object_id, generation, 0, 3)], 3 * MIB, 1 << 40, [VERSION]) is Answer.GRANTED
    index.settle(1, [Written(VERSION, generation, number, SUMS[number]) for number in range(3)])
    index.put_listings({b"l" * 16: b"listing"})
    for table, key, value in puts:
        # LMDB takes no second handle of a table while a transaction is open.
        with index._env.begin(write=True, db=index._env.open_db(table.encode())) as txn:
            txn.put(key, value)
    damaged = {table for table, _, _ in puts}
    for number in range(4):
        kept = outcome(index.kept, VERSION.object_id, number)
        assert not isinstance(kept, LazyfsError) or "segments" in damaged
        assert not isinstance(kept, Kept) or (number < 3 and kept == Kept(generation, SUMS[number]))
    assert outcome(index.listing, b"l" * 16) == b"listing" or "listings" in damaged
    steps: list[Callable[[], object]] = [
        lambda: index.present(VERSION.object_id, 0), lambda: index.present_chunks(VERSION.object_id), index.used,
        lambda: list(entries(index)), index.claims, index.graves, lambda: index.touch({(VERSION.object_id, 0)}),
        lambda: index.generation(VERSION), lambda: index.claim(2, [], MIB, 1 << 40), lambda: index.settle(2, []),
        lambda: index.discard(VERSION.object_id, 1), lambda: index.bury(2 * MIB),
        lambda: index.bury_object(VERSION.object_id),
    ]  # fmt: skip
    for step in steps:
        found = outcome(step)
        assert not isinstance(found, LazyfsError) or isinstance(found, CacheUnavailable)
    index.close()


# ---- files


@given(st.binary(max_size=500))
@examples(200)
def test_noise_for_an_index(tmp_path: Path, noise: bytes) -> None:
    """It is not mapped if that would kill, and not opened as what it is not."""
    place = tmp_path / "index"
    place.mkdir(exist_ok=True)
    (place / "data.mdb").write_bytes(noise)
    assert cut_short(place) in (True, False)
    if not cut_short(place):
        found = outcome(Index, place)
        if isinstance(found, Index):
            assert not noise
            found.close()
        else:
            assert isinstance(found, CacheUnavailable)
    (place / "data.mdb").unlink()


@given(st.integers(0, 31), st.integers(0, 1 << 64), st.booleans())
@examples(100)
def test_a_header_with_numbers_that_are_off(tmp_path: Path, word: int, value: int, second: bool) -> None:
    """Of the header pages; a page size of 0, a last page beyond all, a transaction of the far future."""
    place = tmp_path / "index"
    if not place.exists():
        Index(place).close()
    before = (place / "data.mdb").read_bytes()
    changed = bytearray(before)
    at = (4096 if second else 0) + word * 4
    changed[at : at + 8] = value.to_bytes(9, "little")[:8]
    (place / "data.mdb").write_bytes(changed)
    assert cut_short(place) in (True, False)
    (place / "data.mdb").write_bytes(before)


LAYOUTS = [b'{"layout": 1}', b'{"layout": 1.0}', b'{"layout": true}', b'{"layout": "1"}']


@given(st.one_of(st.binary(max_size=60), st.sampled_from([*LAYOUTS, b"[1]", b"1", b"{" * 400, b"\xff", b"9" * 5000])))
@examples(200)
def test_any_mark(tmp_path: Path, mark: bytes) -> None:
    """A cache of this layout is taken; every other is refused, in a sentence."""
    place = tmp_path / "cache"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    (place / MARK).write_bytes(mark)
    found = outcome(lambda: CacheDirectory(place, create=False))
    if isinstance(found, CacheDirectory):
        found.close()
        assert mark.startswith(b'{"layout": 1') or mark == b'{"layout": true}'
    else:
        assert isinstance(found, SetupError)


# ---- flipped bytes, in processes of their own, for LMDB trusts its pages


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """By outcome, the flips that had it; see `flipping`."""
    count = 3 * TIMES if FULL else 3
    command = [sys.executable, "-m", "tests.fuzz.flipping", str(tmp_path_factory.mktemp("flipped")), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100 * TIMES, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return {int(status): flips for status, *flips in lines}


def test_no_flipped_byte_makes_wrong_bytes(flipped: dict[int, list[str]]) -> None:
    """What a reader gets is what was kept, or nothing; and most flips do no harm at all."""
    assert 3 not in flipped, f"wrong bytes after {flipped[3]}"
    assert len(flipped.get(0, [])) > 50


def test_what_a_flipped_byte_can_do_is_found_by_the_audit(flipped: dict[int, list[str]]) -> None:
    """LMDB trusts its own pages, and a flip in the right place kills the process. Each of these is found by `verify`,
    which a start after a power failure asks before it opens the index."""
    for status, flips in flipped.items():
        assert status in (0, 1, 2, -6, -7, -11), (status, flips)
    assert 9 not in flipped, "it was killed, and verifies"


def test_lmdb_is_the_one_with_the_checker() -> None:
    """That `verify` needs."""
    assert int(lmdb.__version__.split(".")[0]) >= 3
