"""Several sources: how they are said, what is shared evenly, and a tree that has them side by side."""

import math
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lazyfs.cache.shares import DISK, Shares
from lazyfs.cli.main import cli
from lazyfs.cli.mount_helper import translate
from lazyfs.cli.settings import FromFile
from lazyfs.cli.sources import configured, find_sources, source_arguments, split_places
from lazyfs.config import MOST_SOURCES, Config, check_source_name
from lazyfs.errors import LazyfsError, UsageError
from lazyfs.filesystem.names import Hidden
from lazyfs.filesystem.nodes import Branch, Directory, File, parts, side_by_side
from lazyfs.filesystem.tree import ROOT, Tree
from lazyfs.filesystem.walking import Walk
from lazyfs.objects import ObjectVersion
from lazyfs.service.origins import stores_of
from lazyfs.stores.base import Claim
from lazyfs.stores.fetch import PatientStore
from lazyfs.stores.several import Stores
from tests.rooms.memory_store import MemoryStore

TWO = ["llm=s3://bucket-a/llm/", "tools=s3://bucket-b"]


def said(*flags: str, place: str = "", file: object = None, **env: str) -> list[tuple[str, str]]:
    """Names and URLs of what is found."""
    found = find_sources(place, flags, (), env, None if file is None else FromFile("f.toml", file))
    return [(one.name, one.url) for one in found]


def test_all_ways_to_say_it() -> None:
    pairs = [("llm", "s3://bucket-a/llm/"), ("tools", "s3://bucket-b")]
    assert said(*TWO) == pairs
    assert said(place=" ".join(TWO)) == pairs
    assert said(LAZYFS_SOURCE="\n".join(TWO)) == pairs
    assert said(file=[{"name": name, "url": url} for name, url in pairs]) == pairs
    for one in (said(place="s3://b/x"), said(LAZYFS_SOURCE="s3://b/x"), said(file="s3://b/x")):
        assert one == [("", "s3://b/x")]
    assert said("a=b=s3://bucket/=s3://x") == [("a=b", "s3://bucket/=s3://x")], "a name has no slash"
    assert said(LAZYFS_SOURCE="a=s3://b/my models/ c=s3://d") == [("a", "s3://b/my models/"), ("c", "s3://d")]


def test_the_first_that_says_anything_says_all() -> None:
    assert said("a=s3://flag", file=[{"name": "b", "url": "s3://file"}], LAZYFS_SOURCE="c=s3://env") == [
        ("a", "s3://flag")
    ]
    assert said(file=[{"name": "b", "url": "s3://file"}], LAZYFS_SOURCE="c=s3://env") == [("c", "s3://env")]
    assert said(file="s3://file", LAZYFS_SOURCE="") == [("", "s3://file")], "as systemd gives what is not set"


@pytest.mark.parametrize(
    ("places", "found"),
    [
        (["s3://b", "/m"], ("s3://b", "/m")),
        (["/m"], ("", "/m")),
        (["s3://b"], ("s3://b", "/env")),
        ([], ("", "/env")),
        (["", "/m"], ("", "/m")),
        (["lazyfs", "/m"], ("", "/m")),
        (["a=s3://b c=s3://d"], ("a=s3://b c=s3://d", "/env")),
    ],
)
def test_places(places: list[str], found: tuple[str, str]) -> None:
    assert split_places(places, {"LAZYFS_MOUNTPOINT": "/env"}) == found


@pytest.mark.parametrize("name", ["llm", "a b", "modèles", "a=b", "a:b", "...", "x" * 255])
def test_names_that_can_be(name: str) -> None:
    check_source_name(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        (".", "itself"),
        ("..", "above"),
        ("a/b", "slash"),
        ("a\0", "NUL"),
        ("é" * 128, "255"),
        ("\udcff", "UTF-8"),
    ],
)
def test_names_that_cannot_be(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        said(file=[{"name": name, "url": "s3://bucket"}])


@pytest.mark.parametrize(
    ("flags", "options", "words"),
    [
        (["a=s3://one", "a=s3://two"], [], "two sources have the name 'a'"),
        (["s3://one"], [], "it is empty|names no source"),
        (["one"], [], "names no source"),
        (["a=http://one"], [], "source 'a': 'http://one' is not a source"),
        ([f"s{n}=s3://bucket" for n in range(MOST_SOURCES + 1)], [], "too many"),
        (["a=s3://one"], ["b:region=x"], "is for no source of this mount"),
        (["a=s3://one"], ["a:regoin=x"], "source 'a': there is no setting 'regoin'"),
        (["a=s3://one"], ["a:cache-dir=/x"], "cache-dir holds for the whole mount"),
        (["a=s3://one"], ["a:region"], "has no value"),
        (["a=s3://one"], ["a:metadata-ttl=soon"], "source 'a': metadata-ttl: 'soon' is not a time"),
        (["a=s3://one"], ["a:endpoint-url=http://u:canary@h"], "source 'a': .*must not hold a user"),
        ([], [], "name a source"),
    ],
)
def test_what_is_refused(flags: list[str], options: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        configured(find_sources("", flags, options, {}, None), Config())
    assert "canary" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (1, "must be s3://bucket/prefix/, or tables"),
        ([], "must be"),
        ([1], "must be"),
        ({"name": "a"}, "must be"),
        ([{"name": "a"}], "no url"),
        ([{"url": "s3://b"}], "no name"),
        ([{"name": 1, "url": "s3://b"}], "no name"),
        ([{"name": "a", "url": "s3://b", "region": ["x"]}], "single value"),
        ([{"name": "a", "url": "s3://b", "max-cache-size": 1}], "holds for the whole mount"),
    ],
)
def test_tables_that_are_refused(source: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        said(file=source)


def test_settings_of_a_source_and_of_the_mount() -> None:
    """A table's, an option's above it, and the mount's where a source says nothing; names may have colons."""
    first = {"name": "a", "url": "s3://bucket", "region": "x", "metadata-ttl": 7, "no-sign-request": True}
    file = FromFile("f", [first, {"name": "a:b", "url": "s3://bucket/p"}])
    words = find_sources("", [], ["a:region=y", "a:b:requester-pays"], {}, file)
    one, two = configured(words, Config(region="z", max_connections=5))
    assert (one.config.region, one.config.metadata_ttl, one.config.no_sign_request) == ("y", 7.0, True)
    assert (one.config.max_connections, one.config.requester_pays) == (5, False)
    assert (two.config.region, two.config.requester_pays, two.source.prefix) == ("z", True, "p/")
    flags, places = source_arguments(words)
    again = configured(
        find_sources("", [f[9:] for f in flags if f.startswith("--source=")],
                     [f[16:] for f in flags if f.startswith("--source-option=")], {}, None),
        Config(region="z", max_connections=5),
    )  # fmt: skip
    assert (again, places) == ([one, two], [])


def test_a_path_of_a_source_is_absolute_for_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags, _ = source_arguments(find_sources("", ["a=s3://bucket"], ["a:ca-bundle=ca.pem"], {}, None))
    assert flags == ["--source=a=s3://bucket", f"--source-option=a:ca-bundle={tmp_path}/ca.pem"]


def shown(*arguments: str, env: dict[str, str] | None = None) -> Result:
    """`lazyfs mount --print-config`."""
    result = CliRunner().invoke(cli, ["mount", "--print-config", *arguments], env=env)
    assert result.exit_code in (0, 2), result.output
    return result


def test_what_is_printed_says_where_it_came_from_and_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text('region = "r"\n[[source]]\nname = "llm"\nurl = "s3://bucket/x"\nno_sign_request = true\n'
                    '[[source]]\nname = "to\\"ols"\nurl = "s3://bucket"\n')  # fmt: skip
    first = shown(f"--config={file}", "--source-option=llm:region=s", "/nowhere").output
    own = 'no-sign-request = true  # file\nregion = "s"  # flag'
    assert f'[[source]]  # file\nname = "llm"\nurl = "s3://bucket/x"\n{own}' in first
    again = tmp_path / "again.toml"
    again.write_text(first)
    second = shown(f"--config={again}", "/nowhere").output
    assert tomllib.loads(second) == tomllib.loads(first)
    assert shown("s3://bucket/x", "/nowhere").output.startswith('source = "s3://bucket/x"  # flag\n')
    named = shown("/nowhere", env={"LAZYFS_SOURCE": "a=s3://bucket"}).output
    assert named.rstrip().endswith('[[source]]  # environment\nname = "a"\nurl = "s3://bucket"')
    assert "not both" in shown("--source=a=s3://b", "s3://b", "/nowhere").output


def test_the_helper_of_mount_8() -> None:
    """Something stands before the directory, and says nothing where options or a file say what is mounted."""
    options = r"source=llm=s3://a/x\,y/,source=t=s3://b,source_option=t:region=r,ro"
    flags = ["--source=llm=s3://a/x,y/", "--source=t=s3://b", "--source-option=t:region=r"]
    assert translate(["lazyfs", "/m", "-o", options]) == [*flags, "--", "/m"]
    assert translate(["none", "/m", "-o", "config=/f"]) == ["--config=/f", "--", "/m"]


def test_shares_leave_room_for_the_others() -> None:
    """Whoever takes all that it may leaves each other one its part; one that is alone may have all."""
    shares = Shares(24, ["a", "b"])
    assert shares.room("a") == 16
    shares.take("a", 16)
    assert (shares.room("a"), shares.room("b"), shares.room(DISK)) == (0, 4, 4)
    shares.take("b", 4)
    assert (shares.room("a"), shares.room("b"), shares.room(DISK)) == (0, 0, 4)
    shares.give("a")
    assert (shares.room("a"), shares.room("b"), shares.room(DISK)) == (1, 1, 5), "what is more than a part is anybody's"
    assert Shares(24, [""]).room("") == 24
    few = Shares(15, [str(n) for n in range(MOST_SOURCES)])
    assert few.room("3") == 15, "parts of less than a slot are none"


def patient(store: MemoryStore) -> PatientStore:
    """With the usual patience."""
    return PatientStore(store, connections=4, retry_budget=300.0)


async def test_each_version_is_asked_for_where_it_was_found() -> None:
    one, two = MemoryStore(), MemoryStore()
    version = one.put("k", b"one")
    etags = {"a": version.etag, "b": two.put("k", b"two").etag}
    stores = Stores({"a": patient(one), "b": patient(two)})
    for origin, data in (("a", b"one"), ("b", b"two")):
        buffer = bytearray(3)
        asked = ObjectVersion(version.place, "k", etags[origin], 3, origin=origin)
        await stores.read(asked, 0, [memoryview(buffer)], lambda count: None, Claim(urgent=True))
        assert bytes(buffer) == data
    assert stores.statistics().get_requests == 2
    assert (stores["a"].trouble, stores["b"].trouble) == ("", "")
    assert stores.useful() is None


def test_the_origin_is_no_part_of_the_identity() -> None:
    one, two = (ObjectVersion("p", "k", "e", 1, origin=origin) for origin in ("a", "b"))
    assert one == two
    assert one.object_id == two.object_id
    assert hash(one) == hash(two)


@pytest.mark.usefixtures("_aws")
def test_sources_that_ask_alike_have_one_store() -> None:
    words = find_sources("", ["a=s3://bucket/x", "b=s3://bucket/y", "c=s3://bucket/z"], ["c:no-sign-request"], {}, None)
    stores = stores_of(configured(words, Config(endpoint_url="http://127.0.0.1:1")), watched=lambda store: store)
    assert stores["a"] is stores["b"]
    assert stores["a"] is not stores["c"]


def test_sources_of_one_endpoint_have_one_bound() -> None:
    """The largest of theirs, whatever their buckets; another endpoint has its own, and of AWS each bucket has a host.
    What asking comes to is each source's own."""
    words = find_sources(
        "", ["a=s3://one", "b=s3://two", "c=s3://one", "d=s3://two"],
        ["b:max-connections=48", "c:endpoint-url=http://127.0.0.1:2", "d:endpoint-url=http://127.0.0.1:2"], {}, None,
    )  # fmt: skip
    stores = stores_of(configured(words, Config(endpoint_url="http://127.0.0.1:1")), watched=lambda store: store)
    bounds = [stores[name]._gate._bound for name in "abcd"]
    assert bounds[0] is bounds[1] is not bounds[2] is bounds[3]
    assert [bound.most for bound in bounds if bound is not None] == [48, 48, 32, 32]
    assert [stores[name].statistics().connections for name in "abc"] == [32, 48, 32]
    assert stores["a"]._endpoint is not stores["b"]._endpoint
    aws = find_sources("", ["a=s3://one", "b=s3://two"], [], {}, None)
    stores = stores_of(configured(aws, Config(region="us-east-1")), watched=lambda store: store)
    assert [stores[name]._gate._bound for name in "ab"] == [None, None]


class Pair:
    """A tree of two sources, `b` and `a`, with the same keys; stores that say how often they were listed."""

    def __init__(self, ttl: float = 60.0) -> None:
        self.stores = {"b": MemoryStore(), "a": MemoryStore()}
        self.ttl = ttl
        self.tree = Tree(side_by_side({name: self._branch(name) for name in self.stores}))

    def _branch(self, name: str) -> Branch:
        store = self.stores[name]
        return Branch(
            place=f"place-{name}",
            prefix=f"{name}/",
            list_prefix=lambda prefix, _: store.list(prefix),
            age=lambda _: 0.0,
            ttl=self.ttl,
            name=name,
        )

    def put(self, key: str, data: bytes) -> None:
        """In both, each below its prefix."""
        for name, store in self.stores.items():
            store.put(f"{name}/{key}", data)


async def test_a_tree_side_by_side() -> None:
    """The top is never listed and always known; below it each has its place and prefix."""
    pair = Pair()
    pair.put("d/f", b"x")
    tree = pair.tree
    top = await tree.entries(ROOT)
    assert [node.name for node in top] == ["a", "b"]
    assert all(len(store.calls) == 0 for store in pair.stores.values())
    assert tree.trusted_for(tree.root) == math.inf
    for name in ("a", "b"):
        directory = await tree.lookup(ROOT, name)
        assert directory is tree.tops[name]
        assert isinstance(directory, Directory)
        inner = await tree.lookup(directory.inode, "d")
        file = await tree.lookup(inner.inode, "f")
        assert isinstance(file, File)
        assert (file.version.place, file.version.key, file.version.origin) == (f"place-{name}", f"{name}/d/f", name)
    assert (len(pair.stores["a"].calls), len(pair.stores["b"].calls)) == (2, 2)
    tree.forget(tree.tops["a"].inode, 1)
    assert tree.node(tree.tops["a"].inode) is tree.tops["a"], "known, whatever the kernel forgets"
    with pytest.raises(LazyfsError):
        await tree.lookup(ROOT, "c")
    found = [file.version.key async for file in Walk(tree, [tree.root, tree.tops["b"]]).files()]
    assert found == ["a/d/f", "b/d/f"], "each once"
    assert parts(tree.root) == [tree.tops["a"], tree.tops["b"]]


async def test_what_is_hidden_and_doubted_is_so_in_one_source() -> None:
    pair = Pair()
    pair.put("f", b"x")
    pair.stores["a"].put("a//hidden", b"")
    tree = pair.tree
    for name in ("a", "b"):
        await tree.refresh(tree.tops[name])
    assert tree.hidden("a") == {Hidden.EMPTY_NAME: 1}
    assert not tree.hidden("b")
    assert tree.hidden() == tree.hidden("a")
    assert tree.listed_bytes("a") == 1
    tree.expire(tree.tops["a"].children["f"])
    for name, times in (("a", 2), ("b", 1)):
        await tree.refresh(tree.tops[name])
        assert len(pair.stores[name].calls) == times


def test_each_setting_says_whether_a_source_may_have_its_own() -> None:
    """Who adds a setting decides."""
    own = {name for name, field in Config.__dataclass_fields__.items() if field.metadata["per_source"]}
    assert own >= {"endpoint_url", "profile", "metadata_ttl", "max_connections", "fips"}
    assert not own & {"cache_dir", "memory_budget", "uid", "log_level"}
