"""A cached listing, whatever the index holds in its place: that listing, or none."""

import json
import zlib

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cache import listings
from lazyfs.cache.listings import LONGEST, pack, unpack
from lazyfs.objects import Listing, ObjectInfo
from tests.fuzz.examples import examples, memory_bounded

LISTING = Listing("p/", (ObjectInfo("p/a", '"1"', 5, 10**18, "STANDARD"),), ("p/d/",), 1e9)
PACKED = pack(LISTING) or b""
SIZES = st.one_of(st.integers(), st.integers(50, 90).map(lambda n: 1 << n), st.floats(), st.text(max_size=5), st.none())


@given(st.binary(max_size=300), st.integers(0, len(PACKED)), st.integers(0, len(PACKED)))
@examples(400)
def test_bytes_cut_out_and_put_in(noise: bytes, start: int, stop: int) -> None:
    """What is cut short, mixed or longer is no listing; only bytes behind its end do not matter."""
    changed = PACKED[:start] + noise + PACKED[stop:]
    found = unpack(changed)
    assert found is None or (found == LISTING and changed.startswith(PACKED))


@given(SIZES, SIZES)
@examples(400)
def test_sizes_and_times_that_no_kernel_can_be_told(size: object, mtime: object) -> None:
    """An object of such a size would make its whole directory unreadable."""
    text = json.dumps(["", 0.0, [], [["k", "e", size, mtime, ""]]])
    found = unpack(zlib.compress(text.encode()))
    if found is not None:
        assert 0 <= found.objects[0].size < 1 << 63
        assert abs(found.objects[0].mtime_ns) < 10**9 << 63


def test_a_bomb_is_not_unpacked() -> None:
    """Twice the bound, compressed to one thousandth of that: no more of it than the bound is unpacked, as bytes
    and as text."""
    packing = zlib.compressobj(9)
    piece = b" " * (1 << 20)
    bomb = b"".join([packing.compress(piece) for _ in range(2 * LONGEST >> 20)]) + packing.flush()
    assert len(bomb) < LONGEST >> 8
    with memory_bounded(2 * LONGEST + (8 << 20)):
        assert unpack(bomb) is None


def test_a_listing_that_is_too_long_is_not_packed() -> None:
    """So that what is kept can be read again. One that just fits is."""
    key = "k" * (LONGEST // 4)
    infos = [ObjectInfo(f"{key}{n}", "", 0, 0) for n in range(5)]
    assert pack(Listing("", tuple(infos[:5]), (), 0.0)) is None
    fits = Listing("", tuple(infos[:3]), (), 0.0)
    packed = pack(fits)
    assert packed is not None
    assert unpack(packed) == fits


def test_the_bound_is_not_what_real_directories_reach() -> None:
    """A hundred thousand objects with names of a hundred letters."""
    name = "model" * 19
    infos = tuple(ObjectInfo(f"{name}{n:06}", f'"{n:032x}-7"', n, 10**18 + n, "STANDARD") for n in range(100_000))
    packed = listings.pack(Listing("", infos, (), 0.0))
    assert packed is not None
    assert unpack(packed) == Listing("", infos, (), 0.0)
