"""R8: pages here and there of a cold mapped file, without advice: what each costs, and what is left of it."""

import hashlib
import os
import random
import threading
from functools import partial

from lazyfs.reading.windows import ALONE
from tests.mounts.books import check_at_rest
from tests.mounts.contents import MIB, PAGE, pages
from tests.mounts.mounting import Mount, Mounter, run, wait_until
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault
from tests.servers.records import Request

SIZE = 160 * MIB


def is_marked(mount: Mount) -> bool:
    """Whether all chunks that were touched on disk have their marks."""
    return not mount.stats()["chunks"]["unmarked"]


def test_touches_bring_what_the_kernel_reads_and_no_more(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """The first ones two chunks each, the others the blocks in which the kernel's 960 KiB lie, a MiB at most, by one
    GET; another mount of the same cache fetches nothing for them, and what it reads of the rest is right."""
    data = pages(1, SIZE)
    s3.put("models", "table", data)
    # 5 MiB apart at least, and no two steps alike: no walk, and no two in one chunk.
    places = [5 * MIB * number + 700 * 1024 + number * number * PAGE for number in range(1, 24)]
    random.Random(3).shuffle(places)
    wanted = [data[offset : offset + PAGE] for offset in places]
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    s3.take_log()
    assert reader.call("mapped_pages", str(mount.path / "table"), places) == wanted
    gets = [request for request in s3.take_log() if request.kind == "GET"]
    assert [request.bytes_sent for request in gets[: 2 * (ALONE - 1)]] == [MIB] * (2 * (ALONE - 1))
    assert len(gets) == 2 * (ALONE - 1) + len(places) - (ALONE - 1)
    assert max(request.bytes_sent for request in gets) <= MIB
    assert not mount.settle()["chunks"]["unkept"]
    check_at_rest(mount.cache)
    assert mount.unmount() == 0
    again = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    assert reader.call("mapped_pages", str(again.path / "table"), places) == wanted
    assert [request for request in s3.take_log() if request.kind != "LIST"] == []
    for offset in places[-6:]:
        around = [offset + MIB * step for step in (-1, 1)]
        assert reader.call("mapped_pages", str(again.path / "table"), around) == [data[at : at + PAGE] for at in around]
    again.settle()
    check_at_rest(again.cache)
    assert again.unmount() == 0
    checked = run(["fsck", again.cache], os.environ)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_first_bytes_do_not_wait_for_the_rest(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """Who opens a file in Python and reads 8 bytes of it has them while the server has sent no more than 128 KiB of its
    first chunk; who touches a page far inside another, with MADV_RANDOM, while all before it is held."""
    data = pages(2, 8 * MIB)
    s3.put("models", "table", data)
    inside = 3 * MIB + 704 * 1024
    rest = threading.Event()

    def fault(request: Request) -> Fault | None:
        return Fault(stall_after=0 if request.range == (3 * MIB, inside) else 128 * 1024, until=rest)

    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    path = mount.path / "table"
    assert path.stat().st_blksize == 64 * 1024
    s3.take_log()
    s3.fault = fault
    assert reader.call("buffered", str(path), 8) == data[:8]
    reader.call("map_file", fd := reader.call("open_file", str(path)), "random")
    assert reader.call("peek", fd, PAGE, inside) == data[inside : inside + PAGE]
    rest.set()
    assert reader.call("digest", str(path)) == (len(data), hashlib.sha256(data).hexdigest())
    reader.call("unmap", fd)
    reader.call("close_file", fd)
    gets = [request.range or (0, 0) for request in s3.take_log() if request.kind == "GET"]
    assert {(3 * MIB, inside), (inside, 4 * MIB)} < set(gets)
    assert sum(stop - start for start, stop in gets) == len(data), "each chunk once"
    assert mount.unmount() == 0


def test_what_was_touched_is_prepared_for_more_of_it(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """Chunks on disk that were touched are marked when nobody reads; the next mount finds that, all bytes are right,
    nothing is fetched, and `lazyfs fsck` is content."""
    data = pages(3, 16 * MIB)
    s3.put("models", "table", data)
    # No two steps alike: of a walk the next chunks are brought whole, and who finds one there touches no disk.
    places = [MIB * number + number * number % 17 * 12 * PAGE for number in (0, 9, 15, 3, 1, 12, 7, 4)]
    mount = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
    assert reader.call("digest", str(mount.path / "table")) == (len(data), hashlib.sha256(data).hexdigest())
    assert not mount.settle()["chunks"]["unkept"]
    assert mount.unmount() == 0
    s3.take_log()
    for turn, step in enumerate((0, 5 * PAGE)):
        mount = mounter.mount(s3, "s3://models", "--metadata-ttl=1h")
        reader.call("map_file", fd := reader.call("open_file", str(mount.path / "table")), "random")
        for offset in [place + step for place in places]:
            assert reader.call("peek", fd, PAGE, offset) == data[offset : offset + PAGE]
        reader.call("unmap", fd)
        reader.call("close_file", fd)
        chunks = mount.stats()["chunks"]
        assert chunks["disk_hits"] >= len(places)
        assert chunks["misses"] == 0
        if turn:
            assert chunks["unmarked"] == 0, "marked by the mount before"
        wait_until(partial(is_marked, mount), "marks")
        mount.settle()
        check_at_rest(mount.cache)
        assert mount.unmount() == 0
    assert [request for request in s3.take_log() if request.kind == "GET"] == []
    checked = run(["fsck", mount.cache], os.environ)
    assert checked.returncode == 0, checked.stdout + checked.stderr
