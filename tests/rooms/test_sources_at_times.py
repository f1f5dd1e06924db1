"""Sources that show one bucket as of different times, or with different keys: what each has of its own."""

from pathlib import Path

import pytest
import trio
import trio.testing

from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.memory import Memory
from lazyfs.cli.settings import FromFile
from lazyfs.cli.sources import configured, find_sources, source_arguments
from lazyfs.config import Config, SourceConfig
from lazyfs.errors import AccessDenied, SetupError, StoreError, Unreachable, UsageError
from lazyfs.filesystem.nodes import Branch, side_by_side
from lazyfs.filesystem.tree import Tree
from lazyfs.filesystem.walking import Walk
from lazyfs.objects import MIB, ObjectVersion
from lazyfs.service.origins import stores_of
from lazyfs.stores.several import Stores
from tests.rooms.building import CacheMaker, pattern
from tests.rooms.memory_store import Fault, MemoryStore, Valve
from tests.rooms.test_sources import patient

THEN = "2026-01-31T12:00:00Z"
BOTH = ["now=s3://bucket", f"then=s3://bucket?versionAt={THEN}"]


def sources(flags: list[str], *options: str, config: Config | None = None) -> list[SourceConfig]:
    """As they are said by flags."""
    return configured(find_sources("", flags, options, {}, None), config or Config(endpoint_url="http://127.0.0.1:1"))


def test_each_says_its_own_time() -> None:
    """In its URL or by an option; one that says nothing has that of the mount; listings are told apart, bytes not."""
    mount = Config(version_at="2026-02-01T00:00:00Z")
    for flags, option in ((BOTH, []), (["now=s3://bucket", "then=s3://bucket"], [f"then:version-at={THEN}"])):
        now, then = sources(flags, *option)
        assert (now.source.moment, then.source.moment) == ("", THEN)
        assert now.source.place == then.source.place
        assert now.source.listing_place != then.source.listing_place
        assert then.title == f"then=s3://bucket?versionAt={THEN}"
        later, then = sources(flags, *option, config=mount)
        assert (later.source.moment, then.source.moment) == (mount.version_at, THEN)
    tables = [{"name": "then", "url": "s3://bucket", "version-at": "2026-01-31 13:00:00+01:00"}]
    (one,) = configured(find_sources("", [], [], {}, FromFile("f", tables)), Config())
    assert one.source.moment == THEN


def test_two_times_are_refused() -> None:
    with pytest.raises(UsageError, match=f"source 'then': the source is of {THEN}, and --version-at of 2020"):
        sources(BOTH, "then:version-at=2020-01-01")


def test_a_key_file_is_absolute_for_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = find_sources("", BOTH, ["then:sse-customer-key-file=key"], {}, None)
    assert f"--source-option=then:sse-customer-key-file={tmp_path}/key" in source_arguments(words)[0]


@pytest.mark.usefixtures("_aws")
def test_a_store_is_shared_by_those_that_ask_alike(tmp_path: Path) -> None:
    """The time and the customer's key are part of what is asked, however they are said."""
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    flags = [*BOTH, "too=s3://bucket/x", "locked=s3://bucket", "again=s3://bucket"]
    options = [f"too:version-at={THEN}", f"locked:sse-customer-key-file={key}"]
    stores = stores_of(sources(flags, *options), watched=lambda store: store)
    assert stores["then"] is stores["too"]
    assert stores["now"] is stores["again"]
    assert len({id(stores[name]) for name in ("now", "then", "locked")}) == 3
    key.write_bytes(b"short")
    with pytest.raises(SetupError, match=r"^source 'locked': --sse-customer-key-file"):
        stores_of(sources(flags, *options), watched=lambda store: store)


async def test_a_walk_has_both() -> None:
    """The same key of one bucket, as of two times, is two files; as of one time it is one."""
    past, present = MemoryStore(), MemoryStore()
    past.put("d/f", b"old")
    present.put("d/f", b"new and longer")

    def branch(name: str, store: MemoryStore, moment: str = "") -> Branch:
        return Branch("place", "", lambda prefix, _: store.list(prefix), lambda _: 0.0, 60.0, name, moment)

    branches = [branch("a", present), branch("b", present), branch("c", past, THEN)]
    tree = Tree(side_by_side({one.name: one for one in branches}))
    assert [file.size async for file in Walk(tree, [tree.root]).files()] == [14, 3]


@pytest.mark.parametrize("error", [AccessDenied("no"), Unreachable("nobody is there")])
async def test_who_waits_for_another_is_not_refused_with_it(caches: CacheMaker, error: StoreError) -> None:
    """A flight that one source began is refused: the other asks by itself, with its own key. What has nothing to do
    with who asks holds for both."""
    one, two = MemoryStore(), MemoryStore()
    data = pattern(MIB)
    version = one.put("k", data)
    two.put("k", data)
    valve = Valve()
    one.valve = lambda _: valve
    one.fault = lambda _: Fault(error)
    found: dict[str, object] = {}

    async def read(cache: ChunkCache, origin: str) -> None:
        asked = ObjectVersion(version.place, "k", version.etag, MIB, origin=origin)
        try:
            found[origin] = bytes(await cache.read(asked, 0, MIB))
        except StoreError as failed:
            found[origin] = type(failed)

    stores = Stores({"a": patient(one), "b": patient(two)})
    async with trio.open_nursery() as nursery:
        cache = ChunkCache(
            store=stores, disk=caches.open(), memory=Memory(64 * MIB), nursery=nursery, span_size=MIB, origins="ab"
        )
        nursery.start_soon(cache.writer.run)
        async with trio.open_nursery() as readers:
            readers.start_soon(read, cache, "a")
            await trio.testing.wait_all_tasks_blocked()
            readers.start_soon(read, cache, "b")
            await trio.testing.wait_all_tasks_blocked()
            valve.open()
        nursery.cancel_scope.cancel()
    assert found == {"a": type(error), "b": data if isinstance(error, AccessDenied) else type(error)}
