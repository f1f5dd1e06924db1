"""Files of digests beside the file they are of: which one counts, and what is taken for a digest."""

import pytest

from lazyfs.filesystem.nodes import Branch, Directory, File
from lazyfs.filesystem.sidecars import beside, is_sidecar, sha256_in
from lazyfs.filesystem.tree import Tree
from lazyfs.objects import MIB, Listing, ObjectInfo

ONE, TWO = "1" * 64, "ab" * 32


def directory(**sizes: int) -> Directory:
    """A directory with files of these sizes; `_` stands for a dot."""

    async def nothing(*_: object) -> Listing:
        raise NotImplementedError

    tree = Tree(Branch(place="p", prefix="", list_prefix=nothing, age=lambda _: 0.0, ttl=60))
    infos = tuple(ObjectInfo(name.replace("_", "."), '"1"', size, 0) for name, size in sizes.items())
    tree.adopt(tree.root, Listing("", infos, (), 0.0))
    return tree.root


def found(**sizes: int) -> str | None:
    """The name of what is beside `m.bin`."""
    file = directory(m_bin=5, **sizes).children["m.bin"]
    assert isinstance(file, File)
    sidecar = beside(file)
    return sidecar.name if sidecar else None


def test_its_own_goes_before_the_list() -> None:
    assert found() is None
    assert found(other_sha256=65) is None
    assert found(SHA256SUMS=65) == "SHA256SUMS"
    assert found(sha256sums_txt=65) == "sha256sums.txt"
    assert found(m_bin_sha256=65, SHA256SUMS=65) == "m.bin.sha256"


def test_what_is_too_large_or_empty_is_something_else() -> None:
    assert found(m_bin_sha256=MIB) is None
    assert found(m_bin_sha256=0) is None
    assert found(SHA256SUMS=5 * MIB) is None
    assert found(m_bin_sha256=MIB, SHA256SUMS=100) == "SHA256SUMS"


def test_names_of_sidecars() -> None:
    assert [is_sidecar(name) for name in ("a.sha256", "SHA256SUMS", "sha256sums.txt", "a.sha256.bin", "sha256")] == [
        True,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        (f"{ONE}", ONE),
        (f"  {TWO.upper()}\n", TWO),
        (f"{ONE}  m.bin\n", ONE),
        (f"{ONE} *m.bin\r\n", ONE),
        (f"{ONE}  ./m.bin", ONE),
        (f"{TWO}  other\n{ONE}  m.bin\n", ONE),
        (f"{TWO}  other\n", ""),
        (f"{TWO}\n{ONE}\n", ""),
        (f"{ONE}x  m.bin", ""),
        (f"{ONE[:-1]}  m.bin", ""),
        ("", ""),
        ("<html>404</html>", ""),
        (f"# a comment\n\n{ONE}  m.bin", ONE),
        (f"{ONE}  dir/m.bin", ""),
    ],
)
def test_what_is_a_digest(text: str, digest: str) -> None:
    assert sha256_in(text.encode(), "m.bin") == digest


def test_noise_is_no_digest() -> None:
    assert sha256_in(bytes(range(256)) * 40, "m.bin") == ""
