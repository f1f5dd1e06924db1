"""A cached listing, whatever the index holds in its place: that listing, or none."""

import struct
import zlib

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cache.packing import LONGEST, pack, unpack
from lazyfs.objects import Listing, ObjectInfo
from tests.fuzz.examples import examples, memory_bounded

LISTING = Listing("p/", (ObjectInfo("p/a", '"1"', 5, 10**18, "STANDARD"),), ("p/d/",), 1e9)
PACKED = pack(LISTING) or b""


@given(st.binary(max_size=300), st.integers(0, len(PACKED)), st.integers(0, len(PACKED)))
@examples(400)
def test_bytes_cut_out_and_put_in(noise: bytes, start: int, stop: int) -> None:
    """What is cut short, mixed or longer is no listing."""
    changed = PACKED[:start] + noise + PACKED[stop:]
    assert unpack(changed) == (LISTING if changed == PACKED else None)


def framed(raw: bytes, *, compressed: bool = False) -> bytes:
    """What has the checksum that it should have."""
    body = zlib.compress(raw) if compressed else raw
    return struct.pack("<2sI", b"Z2" if compressed else b"L2", zlib.crc32(body)) + body


def test_what_is_framed_here_is_what_is_unpacked() -> None:
    """Else nothing below would mean anything."""
    assert framed(PACKED[6:]) == PACKED
    assert unpack(framed(PACKED[6:], compressed=True)) == LISTING


@given(
    noise=st.binary(max_size=40),
    start=st.integers(0, len(PACKED) - 6),
    cut=st.integers(0, 12),
    compressed=st.booleans(),
)
@examples(2000)
def test_bytes_that_somebody_else_put_there(noise: bytes, start: int, cut: int, *, compressed: bool) -> None:
    """With the right checksum, and any columns: a listing that the kernel can be told all of, or none."""
    raw = PACKED[6:]
    found = unpack(framed(raw[:start] + noise + raw[start + cut :], compressed=compressed))
    if found is not None:
        assert abs(found.listed_at) < float("inf")
        for info in found.objects:
            assert info.possible
            assert info.key.startswith(found.prefix)
            assert "/" not in info.key[len(found.prefix) :]
        assert all(prefix.endswith("/") for prefix in found.prefixes)


def test_a_bomb_is_not_unpacked() -> None:
    """Twice the bound, compressed to one thousandth of that: no more of it than the bound is unpacked."""
    packing = zlib.compressobj(9)
    piece = b" " * (1 << 20)
    bomb = b"".join([packing.compress(piece) for _ in range(2 * LONGEST >> 20)]) + packing.flush()
    assert len(bomb) < LONGEST >> 8
    bomb = struct.pack("<2sI", b"Z2", zlib.crc32(bomb)) + bomb
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
    infos = tuple(ObjectInfo(f"{name}{n:06}", f'"{n:032x}-7"', n, n * 10**9, "STANDARD") for n in range(100_000))
    packed = pack(Listing("", infos, (), 0.0))
    assert packed is not None
    assert unpack(packed) == Listing("", infos, (), 0.0)
