"""Listings that outlive the daemon: when the store is asked, and what an outage or a wrong clock does."""

import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cache.disk import Disk
from lazyfs.cache.listings import SHORT_PATIENCE, STALE_FOR, Listings
from lazyfs.cache.packing import pack, unpack
from lazyfs.errors import AccessDenied, CacheUnavailable, NotFound, StoreError, Unreachable
from lazyfs.objects import Listing, ObjectInfo, Stretch
from lazyfs.service.origins import LONGEST_TTL
from tests.rooms.building import CacheMaker
from tests.rooms.memory_store import Call, Fault, MemoryStore

TTL = 60.0


class Desk:
    """Listings over a store in memory and a real disk, at a time that the test sets."""

    def __init__(self, disk: Disk, *, place: str = "p", ttl: float = TTL) -> None:
        self.store = MemoryStore()
        self.now = 1_000_000.0
        self.budgets: list[float | None] = []
        self.listings = Listings(
            place=place, root="", store=self, disk=disk, in_writer=self._write, ttl=ttl, clock=lambda: self.now
        )

    async def stretch(self, prefix: str, after: str, *, budget: float | None = None) -> Stretch:
        """The same."""
        assert budget == 0
        self.store.listed_at = self.now
        return await self.store.stretch(prefix, after)

    async def total_size(self, prefix: str, *, budget: float | None = None) -> int:
        """The same."""
        return await self.store.total_size(prefix)

    async def _write(self, function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(CacheUnavailable):
            function(*arguments)

    def fail(self, error: StoreError | None) -> None:
        """From now on every request fails with this."""
        self.store.fault = (lambda call: Fault(error)) if error is not None else None

    async def names(self, prefix: str = "", *, doubted: bool = False) -> list[str]:
        """The keys of a listing."""
        return [info.key for info in (await self.listings.list(prefix, doubted)).objects]

    async def list(self, prefix: str, *, budget: float | None = None) -> Listing:
        """As the store, which has the test's time."""
        self.budgets.append(budget)
        self.store.listed_at = self.now
        return await self.store.list(prefix)


@pytest.fixture
def desk(caches: CacheMaker) -> Desk:
    """Listings of a bucket with one object."""
    made = Desk(caches.open())
    made.store.put("a", b"1")
    return made


async def test_a_fresh_listing_asks_nothing(desk: Desk) -> None:
    """Until its time is over, to the second; then once."""
    assert await desk.names() == ["a"]
    desk.store.put("b", b"2")
    desk.now += TTL - 1
    assert await desk.names() == ["a"]
    assert len(desk.store.calls) == 1
    desk.now += 1
    assert await desk.names() == ["a", "b"]
    assert await desk.names() == ["a", "b"]
    assert len(desk.store.calls) == 2


async def test_a_remount_asks_nothing(caches: CacheMaker) -> None:
    """The same listing, to the last field, from another daemon on the same directory; also when the store is down."""
    disk = caches.open()
    before = Desk(disk)
    before.store.put("ü 🦙", b"1")
    before.store.put("dir/x", b"1")
    first = await before.listings.list("")
    caches.close(disk)
    after = Desk(caches.open())
    after.fail(Unreachable("down"))
    assert await after.listings.list("") == first
    assert after.listings.age(first) == 0
    assert after.store.calls == []


async def test_listings_of_one_prefix_are_not_anothers(caches: CacheMaker) -> None:
    """Nor those of another bucket or endpoint in the same cache."""
    disk = caches.open()
    one, two = Desk(disk, place="one"), Desk(disk, place="two")
    one.store.put("x", b"")
    one.store.put("d/y", b"")
    two.store.put("z", b"")
    assert await one.names() == ["x"]
    assert await one.names("d/") == ["d/y"]
    assert await two.names() == ["z"]
    assert await one.names() == ["x"]
    assert one.store.calls == [Call("list", ""), Call("list", "d/")]


async def test_an_outage_empties_nothing(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """An old listing goes on, for a while at a time, with little patience for the store; the log says so."""
    await desk.names()
    desk.now += TTL + 1000
    desk.fail(Unreachable("down"))
    listing = await desk.listings.list("")
    assert [info.key for info in listing.objects] == ["a"]
    assert "going on with the listing of 1060 s ago" in caplog.text
    assert TTL - desk.listings.age(listing) == STALE_FOR
    assert desk.budgets == [None, SHORT_PATIENCE]
    desk.now += STALE_FOR
    desk.fail(AccessDenied("no"))
    assert await desk.names() == ["a"]
    assert len(desk.budgets) == 3
    desk.now += STALE_FOR
    desk.fail(None)
    desk.store.put("b", b"2")
    assert await desk.names() == ["a", "b"]


async def test_without_an_old_listing_a_failure_is_a_failure(desk: Desk) -> None:
    """With the usual patience, or what the start of a mount has."""
    desk.fail(Unreachable("down"))
    with pytest.raises(Unreachable):
        await desk.names()
    desk.listings.patience = 3.0
    with pytest.raises(Unreachable):
        await desk.names()
    assert desk.budgets == [None, 3.0]


async def test_a_bucket_that_is_gone_is_gone(desk: Desk) -> None:
    """The store's own word passes, though an old listing is at hand."""
    await desk.names()
    desk.now += TTL
    desk.fail(NotFound("NoSuchBucket"))
    with pytest.raises(NotFound):
        await desk.names()


async def test_a_doubted_listing_is_asked_for_before_its_time(desk: Desk) -> None:
    """And what comes is kept; in an outage the doubted one is better than none."""
    await desk.names()
    desk.store.put("b", b"2")
    assert await desk.names(doubted=True) == ["a", "b"]
    assert await desk.names() == ["a", "b"]
    assert len(desk.store.calls) == 2
    desk.fail(Unreachable("down"))
    assert await desk.names(doubted=True) == ["a", "b"]


async def test_a_listing_from_the_future_is_not_believed(desk: Desk) -> None:
    """A clock that was set back must not make a listing fresh for years."""
    await desk.names()
    desk.store.put("b", b"2")
    desk.now -= 1000
    assert await desk.names() == ["a", "b"]
    assert await desk.names() == ["a", "b"]
    assert len(desk.store.calls) == 2


def test_no_age_is_negative(desk: Desk) -> None:
    """Whatever the clock did."""
    assert desk.listings.age(Listing("", (), (), desk.now + 5)) == 0
    assert desk.listings.age(Listing("", (), (), desk.now - 5)) == 5


async def test_an_indefinite_ttl_asks_once_for_ever(caches: CacheMaker) -> None:
    """For prefixes that never change."""
    desk = Desk(caches.open(), ttl=float("inf"))
    desk.store.put("a", b"")
    for _ in range(3):
        desk.now += 1e8
        assert await desk.names() == ["a"]
    assert len(desk.store.calls) == 1


async def test_a_damaged_listing_is_asked_for_again(caches: CacheMaker) -> None:
    """One byte off: it does not unpack, and the store is asked, not the mount failed."""
    disk = caches.open()
    desk = Desk(disk)
    desk.store.put("a", b"")
    await desk.names()
    with disk._index._env.begin(write=True, db=disk._index._listings) as txn:
        ((key, value),) = [(bytes(k), bytes(v)) for k, v in txn.cursor()]
        txn.put(key, value[:-1] + bytes([value[-1] ^ 1]))
    assert await desk.names() == ["a"]
    assert len(desk.store.calls) == 2


async def test_a_disk_that_fails_costs_a_request(desk: Desk) -> None:
    """Nothing else."""
    await desk.names()
    desk.listings._disk._index._env.close()
    for count in (2, 3):
        assert await desk.names() == ["a"]
        assert len(desk.store.calls) == count


TEXT = st.text(st.characters(blacklist_characters="/"), max_size=10)
TIMES = st.integers(-(1 << 40), 1 << 40).map(lambda seconds: seconds * 10**9)
INFOS = st.builds(ObjectInfo, TEXT.map("p/".__add__), st.text(), st.integers(0, (1 << 63) - 1), TIMES, st.text())
PREFIXES = st.lists(TEXT.map("p/{}/".format), max_size=4).map(tuple)
LISTINGS = st.builds(Listing, st.just("p/"), st.lists(INFOS, max_size=4).map(tuple), PREFIXES, st.floats(0, 1e12))


@given(LISTINGS)
def test_what_is_packed_is_unpacked(listing: Listing) -> None:
    """Every field, any Unicode, surrogates of keys that are not UTF-8 too; also when it is compressed."""
    assert unpack(pack(listing)) == listing
    long = replace(listing, objects=(*listing.objects, ObjectInfo("p/\ud800", "e" * 5000, 1, 0)))
    assert unpack(pack(long)) == long


@given(LISTINGS, st.data())
def test_no_flipped_byte_raises(listing: Listing, data: st.DataObject) -> None:
    """The checksum finds a byte that is off, wherever it is."""
    packed = bytearray(pack(listing) or b"")
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] ^= data.draw(st.integers(1, 255))
    assert unpack(bytes(packed)) is None
    assert unpack(None) is None


async def test_an_indefinite_listing_that_is_doubted_in_an_outage_is_tried_again(caches: CacheMaker) -> None:
    """It stays in use for a short while and no longer: what is left of its time is a number, however long its TTL."""
    desk = Desk(caches.open(), ttl=LONGEST_TTL)
    desk.store.put("a", b"1")
    assert await desk.names() == ["a"]
    desk.fail(Unreachable("down"))
    listing = await desk.listings.list("", True)
    assert [info.key for info in listing.objects] == ["a"]
    assert LONGEST_TTL - desk.listings.age(listing) == STALE_FOR
