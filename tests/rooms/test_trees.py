"""Listings out of manifests: whom they ask, how often, and when they are not believed."""

from collections import Counter

import trio

from lazyfs.cache.listings import STALE_FOR
from lazyfs.errors import NotFound, Transient
from lazyfs.models import trees
from lazyfs.models.manifest import Manifest, ManifestFile, pack
from lazyfs.models.names import MANIFEST, ModelVersion
from lazyfs.models.trees import Manifests, Trees
from lazyfs.objects import Listing, ObjectInfo, ObjectVersion

ROOT = "llm/tiny/v1/"
FILES = {"big": 9, "a/b/c": 3}


class World:
    """A bucket with one version, whose listings are old as soon as they are there."""

    def __init__(self, *, root: str = ROOT) -> None:
        files = [ManifestFile(path, size, "0" * 64, 0, f'"{path}"', 7) for path, size in FILES.items()]
        self.raw = pack(Manifest(ModelVersion("llm/tiny", "v1"), files, ""))
        self.objects = {ROOT + file.path: ObjectInfo(ROOT + file.path, file.etag, file.size, 0) for file in files}
        self.objects[ROOT + MANIFEST] = ObjectInfo(ROOT + MANIFEST, '"m"', len(self.raw), 0)
        self.asked: Counter[str] = Counter()
        self.time = 1000.0
        self.down = False
        self.trees = Trees(self, Manifests(self.read), place="p", root=root, origin="", stat=self.stat)

    async def stat(self, key: str) -> ObjectInfo:
        self.asked[f"stat {key.removeprefix(ROOT)}"] += 1
        if self.down:
            raise Transient("down")
        if key not in self.objects:
            raise NotFound(key)
        return self.objects[key]

    async def read(self, version: ObjectVersion) -> bytes:
        self.asked["read"] += 1
        return self.raw

    async def list(self, prefix: str, doubted: bool = False) -> Listing:
        self.asked["list"] += 1
        below = [info for key, info in sorted(self.objects.items()) if key.startswith(prefix)]
        here = [info for info in below if "/" not in info.key[len(prefix) :]]
        folders = {prefix + info.key[len(prefix) :].split("/")[0] + "/" for info in below if info not in here}
        return Listing(prefix, tuple(here), tuple(sorted(folders)), self.time)

    def fresh(self, prefix: str) -> Listing | None:
        return None

    def now(self) -> float:
        return self.time

    def walking(self, prefix: str) -> bool:
        return False

    async def keep(self, listing: Listing) -> None:
        self.asked["keep"] += 1

    def names(self, prefix: str, *, doubted: bool = False) -> set[str]:
        """What a directory shows."""
        found = trio.run(self.trees.list, prefix, doubted)
        return {*(info.key[len(prefix) :] for info in found.objects), *(one[len(prefix) :] for one in found.prefixes)}


def test_a_version_is_asked_for_and_not_listed() -> None:
    world = World()
    assert world.names(ROOT) == {"big", "a/", MANIFEST}
    assert world.names(f"{ROOT}a/") == {"b/"}
    assert world.names(f"{ROOT}a/b/") == {"c"}
    assert world.asked["list"] == 0
    assert (world.asked["read"], world.asked["stat big"]) == (1, 1), "it is read, and compared, once"


def test_in_an_outage_nobody_waits_for_it_again_and_again() -> None:
    """What asks S3 takes seconds then: not every directory of a walk does, and when the time is over it is asked."""
    world = World()
    assert world.names(ROOT) == {"big", "a/", MANIFEST}
    world.down = True
    before = world.asked[f"stat {MANIFEST}"]
    for prefix in (ROOT, f"{ROOT}a/", f"{ROOT}a/b/", ROOT):
        assert world.names(prefix)
    assert world.asked[f"stat {MANIFEST}"] == before + 1
    world.time += STALE_FOR
    world.names(ROOT)
    assert world.asked[f"stat {MANIFEST}"] == before + 2


def test_one_whose_files_are_not_there_is_not_believed() -> None:
    """Its largest file is gone: what there is is listed, and the question is not asked again of this manifest."""
    world = World()
    del world.objects[f"{ROOT}big"]
    for _ in range(3):
        assert world.names(ROOT) == {"a/", MANIFEST}
    assert (world.asked["stat big"], world.asked["list"]) == (1, 3)
    world.objects[ROOT + MANIFEST] = ObjectInfo(ROOT + MANIFEST, '"another"', len(world.raw), 0)
    world.objects[f"{ROOT}big"] = ObjectInfo(f"{ROOT}big", '"big"', 9, 0)
    assert world.names(ROOT) == {"big", "a/", MANIFEST}
    assert world.asked["list"] == 3, "another manifest is another question"


def test_one_that_was_found_wrong_is_listed_from_then_on() -> None:
    world = World(root="")
    assert world.names(ROOT) == {"big", "a/", MANIFEST}
    world.names(f"{ROOT}a/")
    listed = world.asked["list"]
    world.objects[f"{ROOT}a/new"] = ObjectInfo(f"{ROOT}a/new", '"n"', 1, 0)
    assert world.names(f"{ROOT}a/") == {"b/"}
    assert world.names(f"{ROOT}a/", doubted=True) == {"b/", "new"}
    assert world.names(f"{ROOT}a/") == {"b/", "new"}
    assert world.asked["list"] > listed


def test_no_more_is_remembered_than_there_is_room_for() -> None:
    """A tree of many versions: each is one, and the first ones are forgotten."""
    world = World(root="")
    for number in range(trees.MOST_TOPS + 10):
        prefix = f"m/v{number}/"
        world.objects = {prefix + MANIFEST: ObjectInfo(prefix + MANIFEST, '"m"', 1, 0)}
        trio.run(world.trees.list, prefix)
    assert len(world.trees._tops) == trees.MOST_TOPS
