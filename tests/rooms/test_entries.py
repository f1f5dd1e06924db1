"""The entries of a directory: sorted, found by name, what is hidden counted, and inodes that stay where nothing
changed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.dense import Infos, Names
from lazyfs.filesystem.entries import NOTHING, Entries
from lazyfs.filesystem.names import Hidden, problem
from lazyfs.objects import Listing, ObjectInfo


class Numbers:
    """Inodes that were given out."""

    def __init__(self) -> None:
        self.next = 2

    def __call__(self, count: int) -> int:
        self.next += count
        return self.next - count


def listing(*names: str, etag: str = "e", kind: str = "") -> Listing:
    """Of `p/`: names, and those of directories, with a slash."""
    files = tuple(ObjectInfo(f"p/{name}", etag, 1, 0, kind) for name in names if not name.endswith("/"))
    return Listing("p/", files, tuple(f"p/{name}" for name in names if name.endswith("/")), 0.0)


def entries(*names: str) -> Entries:
    """Of a directory that was not listed before."""
    return Entries.of(listing(*names), NOTHING, Numbers())


NAMES = st.text(st.characters(blacklist_characters="/"), max_size=4)
MANY = st.lists(st.one_of(NAMES, NAMES.map("{}/".format), st.sampled_from([".", "..", "../", "x" * 256])), max_size=12)


@given(MANY)
def test_every_name_has_its_entry_or_its_reason(names: list[str]) -> None:
    """Whatever the order of a listing, and if it says a name twice."""
    found = entries(*names)
    shown = list(found.names())
    assert shown == sorted(set(shown))
    directories = {name[:-1] for name in names if name.endswith("/") and problem(name[:-1]) is None}
    files = {name for name in names if not name.endswith("/") and problem(name) is None} - directories
    assert set(shown) == directories | files
    for at, name in enumerate(shown):
        assert found.find(name) == at
        assert found.is_directory(at) == (name in directories)
        if name in files:
            assert found.infos[found.file(at)].key == f"p/{name}"
    for name in ("", "nothing", "\uffff"):
        assert found.find(name) == -1 or name in shown
    twice = len(names) - len(set(names))
    assert twice or len(found) + sum(found.hidden.values()) == len(names)


@pytest.mark.parametrize(
    ("names", "hidden"),
    [
        (["", "k"], Hidden.MARKER),
        (["/", "k"], Hidden.EMPTY_NAME),
        (["..", "k"], Hidden.DOTS),
        (["./", "k"], Hidden.DOTS),
        (["a\0b", "k"], Hidden.NUL),
        (["\udcff/", "k"], Hidden.NOT_UTF8),
        (["é" * 128, "k"], Hidden.TOO_LONG),
        (["x" * 256 + "/", "k"], Hidden.TOO_LONG),
        (["k", "k/"], Hidden.SHADOWED),
    ],
)
def test_what_is_hidden_is_counted_with_its_reason(names: list[str], hidden: Hidden) -> None:
    """Keys and common prefixes."""
    found = entries(*names)
    assert list(found.names()) == ["k"]
    assert found.hidden == {hidden: 1}


def test_names_that_differ_in_case_or_form_are_different() -> None:
    assert list(entries("A", "a", "\u00e9", "e\u0301", "É").names()) == sorted(["A", "a", "\u00e9", "e\u0301", "É"])


@given(MANY, MANY)
def test_inodes_stay_with_what_stays(before: list[str], after: list[str]) -> None:
    """And no other entry gets one that was given before."""
    numbers = Numbers()
    one = Entries.of(listing(*before), NOTHING, numbers)
    limit = numbers.next
    two = Entries.of(listing(*after), one, numbers)
    for at, name in enumerate(two.names()):
        old = one.find(name)
        same = old >= 0 and one.is_directory(old) == two.is_directory(at)
        assert two.inodes[at] == one.inodes[old] if same else two.inodes[at] >= limit
    assert len(set(two.inodes)) == len(two)
    three = Entries.of(listing(*after, etag="f"), two, numbers)
    for at in range(len(three)):
        assert (three.inodes[at] == two.inodes[at]) == three.is_directory(at)


def test_a_storage_class_is_no_attribute() -> None:
    """The same bytes in another class are the same inode."""
    numbers = Numbers()
    one = Entries.of(listing("a", "b"), NOTHING, numbers)
    assert list(Entries.of(listing("a", "b", kind="GLACIER_IR"), one, numbers).inodes) == list(one.inodes)


def test_an_entry_gets_another_inode() -> None:
    """It alone, and the next listing keeps it."""
    numbers = Numbers()
    found = Entries.of(listing("a", "b", "c/"), NOTHING, numbers)
    before = list(found.inodes)
    found.renumber(1, 99)
    assert list(found.inodes) == [before[0], 99, before[2]]
    assert list(Entries.of(listing("a", "b", "c/"), found, numbers).inodes) == [before[0], 99, before[2]]
    assert list(Entries.of(listing("b", "c/"), found, numbers).inodes) == [99, before[2]]


def test_one_entry_by_itself() -> None:
    """What an inode needs that its directory no longer names."""
    found = entries("a", "b/", "c")
    for at, name in enumerate(["a", "b", "c"]):
        alone = found.alone(at)
        assert (alone.name(0), alone.is_directory(0), len(alone)) == (name, name == "b", 1)
        if name != "b":
            assert alone.infos[alone.file(0)] == found.infos[found.file(at)]


# ---- the columns behind them


@given(st.lists(st.text(max_size=4)))
def test_names_are_a_sequence_of_strings(names: list[str]) -> None:
    found = Names.of(names)
    assert found == names
    assert list(found) == names
    assert [found[at] for at in range(-len(names), len(names))] == names * 2
    assert found[1:3] == tuple(names[1:3])
    with pytest.raises(IndexError):
        found[len(names)]


INFOS = st.builds(
    ObjectInfo,
    st.text(max_size=4).map("p/".__add__),
    st.text(max_size=4),
    st.integers(0, (1 << 63) - 1),
    st.integers(-(1 << 36), 1 << 36).map(lambda seconds: seconds * 10**9),
    st.text(max_size=2),
)


@given(st.lists(INFOS, max_size=6))
def test_infos_are_a_sequence_of_what_they_are_made_of(infos: list[ObjectInfo]) -> None:
    found = Infos.of("p/", infos)
    assert found == infos
    assert found == Infos.of("p/", iter(infos))
    assert hash(found) == hash(Infos.of("p/", infos))
    assert list(found[::-1]) == infos[::-1]


@pytest.mark.parametrize(
    "info", [ObjectInfo("q/k", "", 0, 0), ObjectInfo("p/k", "", -1, 0), ObjectInfo("p/k", "", 1 << 63, 0)]
)
def test_what_no_object_can_be(info: ObjectInfo) -> None:
    """A key from elsewhere, a size that there is not."""
    with pytest.raises(ValueError, match=r"\w"):
        Infos.of("p/", [info])
