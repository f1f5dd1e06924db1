"""Archives without a mount: what tar says, what it may not say, gzip from anywhere, and what is kept of both."""

import io
import random
import tarfile
from collections.abc import Awaitable, Callable, Sequence

import pytest

from lazyfs.archives import gz, zst
from lazyfs.archives.contents import Contents, pack, unpack
from lazyfs.archives.directories import Directories
from lazyfs.archives.library import Library
from lazyfs.archives.members import MOST_MEMBERS, Damaged, looks_like_tar, members
from lazyfs.archives.names import directory_of, may_be_archive, member_etag, place_of
from lazyfs.archives.stored import StoredFile
from lazyfs.errors import Corrupt, Unreachable
from lazyfs.objects import Listing, ObjectInfo, ObjectVersion
from tests.rooms.tars import END, MOMENT, header, padded, squeezed, tar_of, zipped

FILES = {
    "model.safetensors": random.Random(1).randbytes(300_000),
    "./a/one.txt": b"one",
    "a/b/" + "long" * 40 + "/" + "name" * 50: b"long names",
    "a/ümläut": b"\xff" * 513,
    "empty": b"",
}
SHOWN = {name.removeprefix("./"): data for name, data in FILES.items()}


def shown(data: bytes) -> dict[str, bytes]:
    """What is shown of an archive, by path."""
    found = members(io.BytesIO(data))
    return {path: data[one.start : one.start + one.size] for path, one in found.files.items()}


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> bytes:
    return header(name, kind, link=to)


def file(name: str, data: bytes) -> bytes:
    return header(name, size=len(data)) + padded(data)


# ---- tar


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_slices_of_the_archive(form: int) -> None:
    files = FILES if form != tarfile.USTAR_FORMAT else {"a/one.txt": b"one", "empty": b""}
    data = tar_of(files, form)
    assert looks_like_tar(data[:512])
    assert shown(data) == {name.removeprefix("./"): content for name, content in files.items()}
    assert {one.seconds for one in members(io.BytesIO(data)).files.values()} == {MOMENT}


def test_directories_are_those_that_are_named_and_those_that_something_is_in() -> None:
    data = header("only/", tarfile.DIRTYPE) + file("a/b/c", b"1") + END
    assert members(io.BytesIO(data)).folders == {"only", "a", "a/b"}


HOSTILE = {
    "dots above": file("../../etc/passwd", b"root"),
    "dots inside": file("a/../../passwd", b"root"),
    "a link out": link("out", "/etc/passwd"),
    "a link above": link("a/out", "../../etc/passwd"),
    "a link to itself": link("round", "round"),
    "links in a circle": link("x", "y") + link("y", "x"),
    "a hard link out": link("out", "../../etc/shadow", tarfile.LNKTYPE),
    "a hard link to nothing": link("out", "nothing", tarfile.LNKTYPE),
    "a device": header("sda", tarfile.BLKTYPE),
    "a terminal": header("tty", tarfile.CHRTYPE),
    "a pipe": header("pipe", tarfile.FIFOTYPE),
    "an unknown kind": header("what", b"Z"),
    "a name too long": header("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=301)
    + padded(b"n" * 300 + b"\0")
    + file("n" * 99, b"1"),
    "a name that is no UTF-8": file("x\udcff", b"1"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_could_do_harm_is_hidden_and_counted(what: str) -> None:
    data = HOSTILE[what] + file("good", b"good") + END
    found = members(io.BytesIO(data))
    assert list(found.files) == ["good"]
    assert found.hidden >= 1


def test_absolute_names_are_below_the_directory() -> None:
    assert shown(file("/etc/passwd", b"mine") + END) == {"etc/passwd": b"mine"}


def test_links_to_files_in_the_archive_are_those_files() -> None:
    """As in a hub's snapshots; a hard link to what had the name when the link was made."""
    data = (
        link("snapshots/main/w", "../../blobs/1")
        + file("blobs/1", b"old")
        + link("hard", "./blobs/1", tarfile.LNKTYPE)
        + file("blobs/1", b"new")
        + link("twice", "snapshots/main/w")
        + END
    )
    assert shown(data) == {"snapshots/main/w": b"new", "blobs/1": b"new", "hard": b"old", "twice": b"new"}


def test_the_last_of_a_name_counts_and_a_directory_goes_before_a_file() -> None:
    assert shown(file("x", b"1") + file("./x", b"22") + END) == {"x": b"22"}
    assert shown(file("x", b"1") + file("x/y", b"2") + END) == {"x/y": b"2"}
    assert shown(link("x", "/etc") + file("x/passwd", b"2") + END) == {"x/passwd": b"2"}, "not through a link"


def test_a_sparse_file_is_hidden() -> None:
    raw = bytearray(header("sparse", tarfile.GNUTYPE_SPARSE, size=512))
    raw[386:410] = b"%011o\0%011o\0" % (0, 512)
    raw[483:495] = b"%011o\0" % 4096
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    found = members(io.BytesIO(bytes(raw) + bytes(512) + file("good", b"good") + END))
    assert (list(found.files), found.hidden) == (["good"], 1)


LIES = {
    "a negative size": header("x", field=b"\xff" * 12) + END,
    "a size beyond the end": header("x", field=b"\x80" + bytes(3) + (1 << 62).to_bytes(8, "big")) + bytes(512) + END,
    "a size that is no number": header("x", field=b"hello") + END,
    "an extension of a GiB": header("x", tarfile.XHDTYPE, size=1 << 30) + END,
    "a negative extension": header("x", tarfile.XHDTYPE, field=b"\xff" * 12) + END,
    "a long name of a GiB": header("x", tarfile.GNUTYPE_LONGNAME, size=1 << 30) + END,
    "a number of many digits": header("x", tarfile.XHDTYPE, size=40_000) + padded(b"1" * 40_000) + file("x", b"") + END,
    "long names without end": (header("x", tarfile.GNUTYPE_LONGNAME, size=1) + padded(b"a")) * 3000 + END,
    "an extension of nothing": header("x", tarfile.XHDTYPE, size=512) + padded(b"99 path=") + END,
    "a wrong checksum in the middle": file("x", b"1") + b"?" + file("y", b"2")[1:] + END,
    "text in the middle": file("x", b"1") + b"hello" * 300,
}


@pytest.mark.parametrize("what", LIES)
def test_headers_that_lie_are_refused(what: str) -> None:
    with pytest.raises(Damaged):
        members(io.BytesIO(LIES[what]))


def test_any_change_of_a_header_is_refused_or_harmless() -> None:
    """With a right checksum again, as who means harm would have it."""
    rng = random.Random(5)
    bases = [tar_of(FILES), tar_of(FILES, tarfile.PAX_FORMAT), *(data + END for data in HOSTILE.values())]
    for _ in range(1000):
        data = bytearray(rng.choice(bases))
        heads = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
        for _ in range(rng.randrange(1, 5)):
            at = rng.choice(heads)
            data[at + rng.choice([rng.randrange(512), rng.randrange(124, 136), 156])] = rng.choice(
                b"\0\xff\x800127gxLKS"
            )
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        try:
            found = members(io.BytesIO(bytes(data)))
        except Damaged:
            continue
        assert all(0 <= one.start <= one.start + one.size <= len(data) for one in found.files.values())
        assert not any({"", ".", ".."} & set(path.split("/")) for path in found.files)


def test_a_truncated_archive_is_refused_or_lacks_its_end_only() -> None:
    """At every block: never fewer members, never other bytes."""
    data = tar_of(FILES)
    for length in range(512, len(data), 512):
        try:
            found = shown(data[:length])
        except Damaged:
            continue
        # What is cut off where a header would begin cannot be told from an archive without its last zeros.
        assert list(found.items()) == list(SHOWN.items())[: len(found)]


def test_what_is_none_is_told_by_its_beginning() -> None:
    for head in (b"", b"hello", b"hello" * 200, bytes(512), b"\x1f\x8b\x08", header("x")[:511]):
        assert not looks_like_tar(head)


def test_too_many_members_are_refused() -> None:
    """A hundred bytes each when it is packed: made as it is read, not in memory."""
    one = header("x")

    class Endless(io.RawIOBase):
        at = 0

        def read(self, size: int = -1) -> bytes:
            start, self.at = self.at % 512, self.at + size
            return (one * (size // 512 + 2))[start : start + size]

        def seek(self, offset: int, whence: int = 0) -> int:
            self.at = offset
            return offset

        def tell(self) -> int:
            return self.at

    with pytest.raises(Damaged, match=f"more than {MOST_MEMBERS}"):
        members(Endless())


# ---- gzip


def unpacked(data: bytes, index: bytes | None = None) -> gz.Unpacked:
    return gz.Unpacked(StoredFile(len(data), lambda start, stop: data[start:stop]), len(data), index)


def test_gzip_is_read_from_anywhere_with_an_index_made_once() -> None:
    plain = random.Random(2).randbytes(3 << 20) * 4
    for data in (zipped(plain), zipped(plain[: 5 << 20]) + zipped(plain[5 << 20 :])):
        index = unpacked(data).index_all()
        again = unpacked(data, index)
        for start in (0, 11 << 20, 5, (4 << 20) - 1, len(plain) - 10):
            size = min(1 << 20, len(plain) - start)
            into = [memoryview(bytearray(size // 2)), memoryview(bytearray(size - size // 2))]
            again.read_into(start, into)
            assert b"".join(into) == plain[start : start + size]
        with pytest.raises(Damaged):
            again.read_into(len(plain) - 5, [memoryview(bytearray(10))])


def test_damaged_gzip_is_refused() -> None:
    data = zipped(tar_of(FILES))
    for wrong in (data[:-1], data[:-8] + b"\0" * 8, data[:5000] + b"??" + data[5002:]):
        with pytest.raises(Damaged):
            unpacked(wrong).index_all()


def test_a_bomb_is_refused() -> None:
    """1.1 GiB of zeros in a MiB, of which no more than a step beyond the bound is unpacked."""
    data = zipped(bytes(64 << 20)) * 18
    assert gz.bound(len(data)) == gz.ALWAYS_FINE
    with pytest.raises(Damaged, match="more than"):
        unpacked(data).index_all()


def test_a_failure_of_the_store_is_that_failure() -> None:
    data = zipped(random.Random(3).randbytes(8 << 20))

    def fetch(start: int, stop: int) -> bytes:
        if start > 5 << 20:
            raise Unreachable("not now")
        return data[start:stop]

    with pytest.raises(Unreachable):
        gz.Unpacked(StoredFile(len(data), fetch, piece=1 << 20), len(data)).index_all()


# ---- zstd

SKIPPED = (0x184D2A53).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"hello"


def of_frames(data: bytes, index: bytes | None = None) -> zst.Unpacked:
    return zst.Unpacked(StoredFile(len(data), lambda start, stop: data[start:stop]), len(data), index)


def test_zstd_is_read_from_anywhere_whatever_its_frames_are() -> None:
    plain = random.Random(2).randbytes(3 << 20) * 4
    for data in (squeezed(plain), squeezed(plain, 1_000_000), SKIPPED + squeezed(plain, 7_000_000) + SKIPPED):
        assert zst.may_begin(data[:512])
        index = of_frames(data).index_all()
        again = of_frames(data, index)
        for start in (0, 11 << 20, 5, (4 << 20) - 1, len(plain) - 10):
            into = [memoryview(bytearray(min(1 << 20, len(plain) - start)))]
            again.read_into(start, into)
            assert bytes(into[0]) == plain[start : start + len(into[0])]
        with pytest.raises(Damaged):
            again.read_into(len(plain) - 5, [memoryview(bytearray(10))])
        for wrong in (index[:-1], index[:16], index[16:], index[:-16], b"\xff" * len(index)):
            with pytest.raises(Damaged):
                of_frames(data, wrong)
        assert not zst.solid(index)
    large = of_frames(squeezed(bytes(65 << 20)) + squeezed(plain)).index_all()
    assert zst.solid(large)


def test_damaged_zstd_is_refused() -> None:
    data = squeezed(tar_of(FILES), 100_000)
    middle = len(data) // 2
    for wrong in (
        data[:-1],
        data[:middle],
        data[:middle] + b"??" + data[middle + 2 :],
        data + b"?",
        data + SKIPPED[:9],
    ):
        with pytest.raises(Damaged):
            of_frames(wrong).index_all()
    bomb = squeezed(bytes(64 << 20)) * 18
    with pytest.raises(Damaged, match="more bytes"):
        of_frames(bomb).index_all()


# ---- what is kept, and names


def test_contents_are_what_they_were() -> None:
    found = members(io.BytesIO(tar_of(FILES)))
    contents = Contents("gz", found, b"places")
    assert unpack(pack(contents)) == contents


def test_contents_that_were_tampered_with_are_refused() -> None:
    """Any byte changed, any length: nothing but `Damaged`, or contents whose names and numbers are possible."""
    packed = pack(Contents("tar", members(io.BytesIO(tar_of(FILES)))))
    rng = random.Random(4)
    for _ in range(500):
        wrong = bytearray(packed[: rng.randrange(len(packed) + 1)] if rng.random() < 0.3 else packed)
        for _ in range(rng.randrange(3) if wrong else 0):
            wrong[rng.randrange(len(wrong))] = rng.randrange(256)
        try:
            found = unpack(bytes(wrong))
        except Damaged:
            continue
        assert all(one.start >= 0 and one.size >= 0 for one in found.members.files.values())


def test_a_member_says_where_it_is() -> None:
    archive = ObjectVersion("place", "a/m.tar", '"etag"', 1000, "", "one")
    member = ObjectVersion("place", "a/m.tar.d/x", member_etag(archive, "tar", 512), 10, "", "one")
    found = place_of(member)
    assert found is not None
    assert (found.archive, found.archive.origin, found.kind, found.start) == (archive, "one", "tar", 512)
    elsewhere = ObjectVersion("place", "b/m.tar.d/x", '"e"+lazyfs:tar:99:1000:0', 10)
    assert place_of(elsewhere) is None
    assert place_of(ObjectVersion("place", "a/secret/x", member_etag(archive, "tar", 0), 10)) is None
    assert place_of(archive) is None
    assert [may_be_archive(name) for name in ("m.tar", "M.TAR.GZ", "m.tgz", ".tar", "a/.tgz", "tar", "m.zip")] == [
        True, True, True, False, False, False, False,
    ]  # fmt: skip


class Shelf:
    """What is kept, in memory; `lost` has nothing of it. See `library.Keeps`."""

    def __init__(self) -> None:
        self.notes: dict[bytes, bytes] = {}
        self.objects: dict[ObjectVersion, bytes] = {}
        self.brought: list[str] = []

    def note(self, key: bytes) -> bytes | None:
        return self.notes.get(key)

    async def put_note(self, key: bytes, note: bytes) -> None:
        self.notes[key] = note

    async def kept(self, version: ObjectVersion) -> bytes | None:
        return self.objects.get(version)

    async def keep(self, version: ObjectVersion, data: bytes) -> None:
        self.objects[version] = data

    async def bring(self, versions: Sequence[ObjectVersion]) -> None:
        self.brought += [version.key for version in versions]


class Bucket:
    """Objects, and how many bytes were asked for of each by whom."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.shelf = Shelf()
        self.now = 1e9

    def put(self, key: str, data: bytes) -> ObjectVersion:
        self.data[key] = data
        return ObjectVersion("place", key, f'"{hash(data)}"', len(data))

    def fetcher(self, who: str) -> Callable[[ObjectVersion, int, int], Awaitable[bytes]]:
        async def fetch(version: ObjectVersion, start: int, stop: int) -> bytes:
            self.asked.append(who)
            return self.data[version.key][start:stop]

        return fetch

    def library(self) -> Library:
        return Library(
            walk=self.fetcher("walk"), straight=self.fetcher("straight"), keeps=self.shelf, clock=lambda: self.now
        )

    async def list(self, prefix: str, doubted: bool = False) -> Listing:
        below = [key for key in sorted(self.data) if key.startswith(prefix)]
        infos = [
            ObjectInfo(key, f'"{hash(self.data[key])}"', len(self.data[key]), 0)
            for key in below
            if "/" not in key[len(prefix) :]
        ]
        folders = {prefix + key[len(prefix) :].split("/")[0] + "/" for key in below if "/" in key[len(prefix) :]}
        return Listing(prefix, tuple(infos), tuple(sorted(folders)), 5.0)


@pytest.mark.parametrize("pack", [zipped, squeezed])
async def test_an_archive_is_listed_once_and_unpacked_when_all_that_was_kept_is_lost(
    pack: Callable[[bytes], bytes],
) -> None:
    bucket = Bucket()
    archive = bucket.put("m.tgz", pack(tar_of(FILES)))
    found = await bucket.library().contents(archive)
    assert found is not None
    assert found.members.files.keys() == SHOWN.keys()
    bucket.asked.clear()
    library = bucket.library()
    assert await library.contents(archive) is not None
    assert bucket.asked == [], "it is kept"
    bucket.shelf.objects.clear()
    one, into = found.members.files["model.safetensors"], [memoryview(bytearray(1000)), memoryview(bytearray(10))]
    library = bucket.library()
    await library.unpack(archive, one.start + 7, into)
    assert b"".join(into) == FILES["model.safetensors"][7:1017]
    assert set(bucket.asked) == {"straight"}, "inside a flight nothing waits for memory"


async def test_one_large_frame_is_unpacked_in_order_when_it_is_listed() -> None:
    bucket = Bucket()
    archive = bucket.put("m.tar.zst", squeezed(tar_of({"b": bytes(65 << 20), "a": b"1"})))
    assert await bucket.library().contents(archive) is not None
    assert bucket.shelf.brought == ["m.tar.zst.d/b", "m.tar.zst.d/a"]


NONE = {
    "a text": b"a text",
    "nothing": b"",
    "a gzip of a text": zipped(b"a text"),
    "a gzip that is cut off": zipped(tar_of(FILES))[:150_000],
    "a zstd of a text": squeezed(b"a text"),
    "a zstd that is cut off": squeezed(tar_of(FILES))[:150_000],
    "a gzip of a tar without its end": zipped(file("x", b"1")),
    "a tar with something behind it": file("x", b"1") + b"?" * 512,
}


@pytest.mark.parametrize("what", NONE)
async def test_what_is_none_lists_nothing_and_that_is_kept(what: str, caplog: pytest.LogCaptureFixture) -> None:
    bucket = Bucket()
    archive = bucket.put("m.tar", NONE[what])
    assert await bucket.library().contents(archive) is None
    bucket.asked.clear()
    bucket.now += 3600
    assert await bucket.library().contents(archive) is None
    assert bucket.asked == []
    bucket.now += 86400
    assert await bucket.library().contents(archive) is None
    assert bucket.asked != [] or not archive.size
    assert [record.message for record in caplog.records if "shows nothing" in record.message] != []
    with pytest.raises(Corrupt):
        await bucket.library().unpack(archive, 0, [memoryview(bytearray(1))])


async def test_an_archive_stands_beside_itself_unless_something_has_the_name() -> None:
    bucket = Bucket()
    for key in ("p/m.tar", "p/taken.tar", "p/file.tar"):
        bucket.put(key, tar_of(FILES))
    bucket.put("p/taken.tar.d/mine", b"mine")
    bucket.put("p/file.tar.d", b"mine")
    listed = Directories(bucket.list, bucket.library(), place="place", root="p/", origin="").list
    assert (await listed("p/")).prefixes == ("p/m.tar.d/", "p/taken.tar.d/")
    assert [one.key for one in (await listed("p/taken.tar.d/")).objects] == ["p/taken.tar.d/mine"]
    top = await listed(directory_of("p/m.tar"))
    assert [one.key for one in top.objects] == ["p/m.tar.d/empty", "p/m.tar.d/model.safetensors"]
    assert (top.prefixes, top.listed_at) == (("p/m.tar.d/a/",), 5.0)
    inner = await listed("p/m.tar.d/a/")
    assert [one.key for one in inner.objects] == ["p/m.tar.d/a/one.txt", "p/m.tar.d/a/ümläut"]
    assert (await listed("p/none.tar.d/")).objects == ()
