"""Walks over many directories: how many requests they take, that a stretch gives nothing that a listing would not, and
what a guess costs that was wrong."""

from collections.abc import Awaitable, Callable, Iterable, Sequence

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from lazyfs.cache.walks import MOST_AHEAD, MOST_LISTINGS, ONE_BY_ONE, Walks, ancestors, split
from lazyfs.errors import Transient
from lazyfs.objects import Listing, ObjectInfo, Stretch
from tests.rooms.memory_store import Call, Fault, MemoryStore, Valve


class Walker:
    """Who walks over a bucket as a file system does: out of what was kept, a stretch, or a listing alone."""

    def __init__(
        self,
        keys: Iterable[str],
        *,
        page: int = 1000,
        root: str = "",
        kept: bool = True,
        nursery: trio.Nursery | None = None,
    ) -> None:
        self.store = MemoryStore()
        self.store.page = page
        for key in keys:
            self.store.put(key, b"x")
        self.kept: dict[str, Listing] = {}
        self._keep_any = kept
        self._children: dict[str, Sequence[str]] = {}
        self.walks = self.walks_of(self.store.stretch, root=root, nursery=nursery)
        self.fresh: Callable[[Listing], bool] = lambda listing: True

    def walks_of(
        self,
        stretch: Callable[[str, str], Awaitable[Stretch]],
        *,
        root: str = "",
        nursery: trio.Nursery | None = None,
    ) -> Walks:
        """The walks, with what they need of this."""
        return Walks(
            root=root,
            stretch=stretch,
            keep=self._keep,
            children=lambda prefix: self._children.get(prefix, ()),
            nursery=nursery,
        )

    async def _keep(self, listings: Sequence[Listing]) -> None:
        if self._keep_any:
            self.kept |= {listing.prefix: listing for listing in listings}

    async def ask(self, prefix: str) -> Listing:
        """The listing, as `Listings` gets it."""
        if prefix in self.kept:
            self.walks.passed(prefix)
            return self.kept[prefix]
        found = await self.walks.bring(prefix, self.fresh)
        if found is None:
            found = await self.store.list(prefix)
            self.walks.listed(prefix)
            await self._keep([found])
            self._children[prefix] = found.prefixes
        return found

    async def walk(self, prefix: str = "") -> list[str]:
        """Every key below, directory by directory, in order, as `find` does."""
        listing = await self.ask(prefix)
        found = [info.key for info in listing.objects]
        for below in listing.prefixes:
            found += await self.walk(below)
        return found

    def asked(self, kind: str) -> int:
        """How many requests of a kind there were."""
        return sum(call.kind == kind for call in self.store.calls)


def models(count: int, files: int) -> list[str]:
    """The keys of so many directories of so many files."""
    return [f"big/model-{number:05}/part-{part}" for number in range(count) for part in range(files)]


@pytest.mark.parametrize("kept", [True, False])
async def test_a_walk_takes_a_request_for_a_thousand_keys(*, kept: bool) -> None:
    """And not one for each directory; the ones besides are of the root, of the parent, and of what begins a walk.
    Without a disk to keep it on as well."""
    keys = models(1000, 5)
    walker = Walker(keys, kept=kept)
    assert sorted(await walker.walk()) == sorted(keys)
    assert walker.asked("list") == 2 + ONE_BY_ONE
    assert walker.asked("stretch") <= 6


async def test_one_directory_alone_is_one_request() -> None:
    """So are two, and one again and again."""
    walker = Walker(models(10, 5), kept=False)
    for prefix in ["big/model-00001/"] * 20 + ["big/model-00003/"]:
        await walker.ask(prefix)
    assert walker.asked("stretch") == 0
    assert walker.asked("list") == 21


KEYS = st.lists(st.sampled_from(["a", "b", "a b", "a-", "a.", "a0", "", "é"]), min_size=1, max_size=5).map("/".join)


@given(st.sets(KEYS, min_size=1, max_size=40), st.integers(1, 12), st.text("ab/-.0", max_size=5), st.data())
@settings(max_examples=300)
def test_what_a_stretch_lists_is_what_listing_would_say(
    keys: set[str], page: int, after: str, data: st.DataObject
) -> None:
    """Every directory of it, wherever it begins and ends; those that it cuts are not in it."""
    below = data.draw(st.sampled_from(["", *sorted({key[: key.find("/") + 1] for key in keys})]))

    async def run() -> None:
        walker = Walker(keys, page=page)
        stretch = await walker.store.stretch(below, below + after)
        listings = split(stretch)
        assert len({listing.prefix for listing in listings}) == len(listings)
        for listing in listings:
            assert listing.prefix.startswith(below)
            assert listing == await walker.store.list(listing.prefix)
        inside = {info.key for info in stretch.objects}
        every = {key[: cut + 1] for key in inside for cut in range(len(below), len(key)) if key[cut] == "/"}
        whole = {one for one in every if all(key in inside for key in keys if key.startswith(one))}
        last = max(inside, default="")
        unknown = set() if stretch.complete else {one for one in every if last.startswith(one)}
        unknown |= {one for one in every if stretch.after.startswith(one)}
        assert {listing.prefix for listing in listings} == whole - unknown

    trio.run(run)


@given(st.sets(KEYS, min_size=1, max_size=40), st.integers(2, 12))
@settings(max_examples=200)
def test_any_bucket_is_walked_right(keys: set[str], page: int) -> None:
    """Key by key, and with no more than a request for each directory and one in vain for every other."""

    async def run() -> None:
        walker = Walker(keys, page=page)
        assert sorted(await walker.walk()) == sorted(keys)
        directories = 1 + len({key[: cut + 1] for key in keys for cut in range(len(key)) if key[cut] == "/"})
        assert len(walker.store.calls) <= directories * 1.5

    trio.run(run)


@given(st.sets(KEYS, min_size=1, max_size=40), st.integers(2, 12), st.booleans(), st.integers(1, 3))
@settings(max_examples=200)
def test_any_bucket_is_walked_right_by_some_at_once(
    keys: set[str],
    page: int,
    kept: bool,
    walkers: int,
) -> None:
    """With stretches brought ahead of them, and some of these failing; and nothing is left under way."""

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            walker = Walker(keys, page=page, kept=kept, nursery=nursery)
            turn = iter(range(1 << 30))
            fault = Fault(Transient("down"))
            walker.store.fault = lambda call: fault if call.kind == "stretch" and next(turn) % 3 == 2 else None

            async def look() -> None:
                assert sorted(await walker.walk()) == sorted(keys)

            for _ in range(walkers):
                nursery.start_soon(look)
        assert all(not walk.flights for walk in walker.walks._walks.values())

    trio.run(run)


@pytest.mark.parametrize("kept", [True, False])
async def test_what_lies_ahead_of_a_walk_is_on_its_way(*, kept: bool) -> None:
    """More with every stretch that the walk comes to, some at the same time, and each but once; all of it costs hardly
    more than one after the other."""
    keys = models(200, 5)
    async with trio.open_nursery() as nursery:
        walker = Walker(keys, page=50, kept=kept, nursery=nursery)
        at_once: list[int] = []

        def look(call: Call) -> Valve | None:
            at_once.append(sum(len(walk.flights) for walk in walker.walks._walks.values()))
            return None

        walker.store.valve = look
        assert sorted(await walker.walk()) == sorted(keys)
    assert max(at_once) >= MOST_AHEAD - 1
    stretches = [call.key for call in walker.store.calls if call.kind == "stretch"]
    assert len(set(stretches)) == len(stretches)
    assert walker.asked("list") == 2 + ONE_BY_ONE
    assert len(stretches) <= 1000 / 50 * 1.2 + 1


async def test_a_walk_that_ends_has_cost_what_was_ahead_of_it() -> None:
    """The stretch that somebody needed and one more: a guess is made larger only where the walk follows."""
    async with trio.open_nursery() as nursery:
        walker = Walker(models(200, 5), page=50, nursery=nursery)
        await walker.ask("big/")
        for number in range(ONE_BY_ONE + 1):
            await walker.ask(f"big/model-{number:05}/")
    assert walker.asked("stretch") == 2


async def test_a_defect_ahead_of_a_walk_is_logged_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for ever for what it should have brought."""
    keys = models(40, 5)
    async with trio.open_nursery() as nursery:
        walker = Walker(keys, page=50)
        stretch, turn = walker.store.stretch, iter(range(1 << 30))

        async def defect(prefix: str, after: str) -> Stretch:
            if next(turn) == 1:
                raise RuntimeError("a defect")
            return await stretch(prefix, after)

        walker.walks = walker.walks_of(defect, nursery=nursery)
        assert sorted(await walker.walk()) == sorted(keys)
    assert "a defect in a walk" in caplog.text


async def test_directories_that_are_too_large_are_soon_asked_for_alone() -> None:
    """A stretch that does not reach the end of one was in vain; after each, twice as many are listed first."""
    walker = Walker(models(40, 30), page=20)
    await walker.walk()
    assert walker.asked("list") == 2 + 40
    assert walker.asked("stretch") == 4


async def test_large_directories_among_small_ones() -> None:
    """Cost what they would cost, one request in vain, and two directories that are then asked for alone."""
    keys = models(100, 5) + [f"big/model-00050/more-{number:05}" for number in range(400)]
    walker = Walker(keys, page=100)
    assert sorted(await walker.walk()) == sorted(keys)
    assert walker.asked("list") == 2 + ONE_BY_ONE + 1 + 2
    assert walker.asked("stretch") == 7


async def test_who_walks_at_the_same_time_waits_for_the_same_stretch() -> None:
    walker = Walker(models(50, 5))
    for number in range(ONE_BY_ONE):
        await walker.ask(f"big/model-{number:05}/")
    valve = Valve()
    walker.store.valve = lambda call: valve
    found: list[str] = []

    async def look(number: int) -> None:
        found.append((await walker.ask(f"big/model-{number:05}/")).prefix)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look, 10)
        await wait_all_tasks_blocked()
        for number in range(11, 30):
            nursery.start_soon(look, number)
        await wait_all_tasks_blocked()
        assert walker.asked("stretch") == 1
        valve.open()
    assert len(set(found)) == 20
    assert walker.asked("stretch") == 1


async def test_a_stretch_that_fails_is_nobodys_failure() -> None:
    """The directory is asked for alone, and nothing that came before it is lost."""
    keys = models(20, 5)
    walker = Walker(keys)
    walker.store.fault = lambda call: Fault(Transient("down")) if call.kind == "stretch" else None
    assert sorted(await walker.walk()) == sorted(keys)
    assert walker.asked("list") == 22


async def test_nothing_above_the_root_is_asked_for() -> None:
    """A mount of a prefix may not be allowed to list what is beside it."""
    walker = Walker([f"llm/{number}/k" for number in range(9)] + ["other/k"], root="llm/", kept=False)
    for _ in range(4):
        await walker.ask("llm/")
    for number in range(9):
        await walker.ask(f"llm/{number}/")
    assert [call for call in walker.store.calls if call.kind == "stretch"] == [Call("stretch", "llm/|llm/2")]


async def test_a_store_without_order_is_asked_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    """Directory buckets, and servers that do not know `start-after`: what comes from a stretch there is no listing."""
    walker = Walker(models(20, 5))
    stretch = walker.store.stretch

    async def shuffled(prefix: str, after: str) -> Stretch:
        found = await stretch(prefix, after)
        return Stretch(prefix, after, found.objects[::-1], found.complete, found.listed_at)

    walker.walks = walker.walks_of(shuffled)
    assert len(await walker.walk()) == 100
    assert walker.asked("stretch") == 1
    assert walker.asked("list") == 22
    assert "does not list keys in order" in caplog.text


async def test_what_a_stretch_brought_is_no_younger_than_it() -> None:
    """It is as old as its request, and what is too old by then is asked for again."""
    walker = Walker(models(20, 5), kept=False)
    walker.store.listed_at = 17.0
    for number in range(ONE_BY_ONE):
        await walker.ask(f"big/model-{number:05}/")
    assert (await walker.ask("big/model-00005/")).listed_at == 17.0
    walker.store.listed_at = 90.0
    assert (await walker.ask("big/model-00006/")).listed_at == 17.0
    walker.fresh = lambda listing: listing.listed_at > 50
    assert (await walker.ask("big/model-00007/")).listed_at == 90.0


async def test_a_directory_that_was_asked_for_alone_is_not_what_a_stretch_said() -> None:
    """The younger word counts."""
    walker = Walker(models(20, 5), kept=False)
    for number in range(ONE_BY_ONE + 1):
        await walker.ask(f"big/model-{number:05}/")
    walker.store.put("big/model-00010/new", b"x")
    walker.walks.listed("big/model-00010/")
    assert "big/model-00010/new" in [info.key for info in (await walker.ask("big/model-00010/")).objects]


def test_slashes_without_end_are_bounded() -> None:
    """A thousand keys of as many slashes as a key can have."""
    infos = tuple(ObjectInfo(f"{number:03}/" + "a/" * 500 + "k", "", 0, 0) for number in range(1000))
    assert len(split(Stretch("", "", infos, True, 0.0))) <= MOST_LISTINGS


def test_ancestors() -> None:
    assert ancestors("") == []
    assert ancestors("a/") == [""]
    assert ancestors("a/b//") == ["", "a/", "a/b/"]
