"""`get` of a version that is one archive gives what is in it, as plain files; and nothing of what means harm."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from lazyfs import ModelCache
from lazyfs.errors import NoRoom
from lazyfs.models.unpacked import unpack
from tests.models.library import MIB
from tests.rooms.building import allocated, pattern
from tests.servers.moto_server import MotoServer

FILES = {"model.safetensors": pattern(3 * MIB + 77), "sub/vocab.txt": b"words", "sub/deep/empty": b""}

Caches = Callable[..., ModelCache]


def tar(files: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    """An archive with these files, and what else there is."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    return raw.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member that is no file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "model.tar": lambda raw: raw,
    "model.tar.gz": lambda raw: gzip.compress(raw, 1),
    "model.tgz": lambda raw: gzip.compress(raw, 1),
    "model.tar.zst": lambda raw: zstandard.compress(raw, 1),
    "model.tzst": lambda raw: zstandard.compress(raw[: 2 * MIB], 1) + zstandard.compress(raw[2 * MIB :], 1),
}


def contents(path: Path) -> dict[str, bytes]:
    """All files below a path."""
    return {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()}


@pytest.mark.parametrize("name", PACKED)
def test_every_kind(name: str, tmp_path: Path) -> None:
    """Files, directories, times, and links to files as names of those."""
    path = tmp_path / name
    path.write_bytes(PACKED[name](tar(FILES, special("link", tarfile.SYMTYPE, "sub/vocab.txt"))))
    sizes: list[int] = []
    assert unpack(path, sizes.extend)
    found = tmp_path / f"{name}.d"
    assert contents(found) == FILES | {"link": b"words"}
    assert sum(sizes) == sum(map(len, FILES.values())) + 5
    assert not any(one.is_symlink() for one in found.rglob("*"))
    assert (found / "sub/vocab.txt").stat().st_mtime == 1_700_000_000
    assert (found / "sub/vocab.txt").stat().st_mode & 0o777 == 0o400


def test_what_means_harm_is_left_out(tmp_path: Path) -> None:
    """Nothing is outside of the directory, no link and no device is on the disk."""
    (tmp_path / "outside").write_bytes(b"mine")
    harm = [
        special("abs", tarfile.SYMTYPE, str(tmp_path / "outside")),
        special("up", tarfile.SYMTYPE, "../outside"),
        special("hard", tarfile.LNKTYPE, "../outside"),
        special("device", tarfile.CHRTYPE),
        special("pipe", tarfile.FIFOTYPE),
        special("dir", tarfile.SYMTYPE, ".."),
    ]
    raw = tar({"../escaped": b"x", "/rooted": b"y", "dir/through": b"z", "good": b"ok"}, *harm)
    path = tmp_path / "m.tar"
    path.write_bytes(raw)
    assert unpack(path, lambda _: None)
    found = contents(tmp_path / "m.tar.d")
    assert found == {"rooted": b"y", "dir/through": b"z", "good": b"ok"}
    assert {one.name for one in tmp_path.iterdir()} == {"outside", "m.tar", "m.tar.d"}
    assert (tmp_path / "outside").read_bytes() == b"mine"
    assert all(one.is_dir() or (one.is_file() and not one.is_symlink()) for one in (tmp_path / "m.tar.d").rglob("*"))


@pytest.mark.parametrize("cut", range(6))
@pytest.mark.parametrize("name", PACKED)
def test_a_damaged_one_leaves_nothing(name: str, cut: int, tmp_path: Path) -> None:
    """Cut anywhere, or no archive at all."""
    packed = PACKED[name](tar(FILES))
    path = tmp_path / name
    path.write_bytes(packed[: len(packed) * cut // 6])
    assert not unpack(path, lambda _: None)
    assert [one.name for one in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["model.tar.gz", "model.tar.zst"])
def test_a_bomb_is_not_unpacked(name: str, tmp_path: Path) -> None:
    """What unpacks to a thousand times its size and more than a GiB is given up on the way."""
    path = tmp_path / name
    info = tarfile.TarInfo("zeros")
    info.size = 3 << 30
    head, zeros = info.tobuf(), bytes(16 * MIB)
    with path.open("wb") as stream:
        if name.endswith("gz"):
            piece = gzip.compress(zeros, 1)
            stream.write(gzip.compress(head))
        else:
            piece = zstandard.compress(zeros, 1)
            stream.write(zstandard.compress(head))
        for _ in range(192):
            stream.write(piece)
    refused: list[int] = []
    assert not unpack(path, refused.extend)
    assert refused == []


@pytest.mark.usefixtures("_aws")
def test_get_gives_what_is_in_it(moto: MotoServer, tmp_path: Path) -> None:
    """Once, for all processes; counted and evicted with its archive; as it is where that is wanted."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m/model.tar.gz").write_bytes(PACKED["model.tar.gz"](tar(FILES)))
    client = moto.client()
    client.create_bucket(Bucket="archives")
    settings = {"endpoint_url": moto.url, "min_free_space": 0, "use_mounts": False}
    with ModelCache("s3://archives", cache_dir=str(tmp_path / "one"), **settings) as first:  # type: ignore[arg-type]
        path = first.put("packed", "v1", tmp_path / "m")
        assert contents(path) == FILES
        assert path.name == "model.tar.gz.d"
    with ModelCache("s3://archives", cache_dir=str(tmp_path / "two"), **settings) as cache:  # type: ignore[arg-type]
        path = cache.get("packed", "v1")
        assert contents(path) == FILES
        assert cache.get("packed", "v1") == path
        assert cache.stats().bytes >= allocated(tmp_path / "two" / "models") - 64 * 1024
        cache.release("packed", "v1")
        (path / "sub/vocab.txt").parent.chmod(0o700)
        cache.evict("packed", "v1")
        assert not path.exists()
    with ModelCache("s3://archives", cache_dir=str(tmp_path / "three"), unpack=False, **settings) as raw:  # type: ignore[arg-type]
        assert contents(raw.get("packed", "v1")) == {"model.tar.gz": (tmp_path / "m/model.tar.gz").read_bytes()}
    full = ModelCache("s3://archives", cache_dir=str(tmp_path / "four"), max_cache_size="6MiB", **settings)  # type: ignore[arg-type]
    with full, pytest.raises(NoRoom, match="packed/v1 needs"):
        full.get("packed", "v1")
