"""Upgrades as the README tells of them: what a reader that opens files all the time, and one that holds one, sees."""

import os
import threading

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mounter, run
from tests.servers.fast import FastS3Server

DATA = pages(1, 8 * MIB)
PLAIN = {"PATH": "/usr/bin:/bin"}


def test_by_a_link_nobody_notices(s3: FastS3Server, mounter: Mounter) -> None:
    """The new mount beside the old one, the link renamed over, the old one taken away lazily: every open finds the file
    from the first to the last, and a handle from before reads on until it is closed."""
    s3.put("models", "weights", DATA)
    old = mounter.mount(s3, "s3://models", at=mounter.place("old"))
    link, fresh = mounter.work / "current", mounter.work / "next"
    link.symlink_to(old.path)
    held = os.open(link / "weights", os.O_RDONLY)
    stop, opened, failures = threading.Event(), [0], []

    def keep_opening() -> None:
        while not stop.is_set():
            try:
                with open(link / "weights", "rb") as stream:
                    assert stream.read(4096) == DATA[:4096]
                opened[0] += 1
            except (OSError, AssertionError) as error:
                failures.append(error)

    reader = threading.Thread(target=keep_opening)
    reader.start()
    try:
        new = mounter.mount(s3, "s3://models", at=mounter.place("new"))
        fresh.symlink_to(new.path)
        fresh.rename(link)
        assert run(["unmount", "--lazy", old.path], PLAIN).returncode == 0
        assert os.pread(held, MIB, 5 * MIB) == DATA[5 * MIB : 6 * MIB]
    finally:
        stop.set()
        reader.join(30)
        os.close(held)
    assert not reader.is_alive()
    assert failures == []
    assert opened[0] > 0
    assert old.process.wait(20) == 0


@pytest.mark.parametrize("lazy", [False, True], ids=["unmount", "unmount --lazy"])
def test_at_the_same_place(s3: FastS3Server, mounter: Mounter, lazy: bool) -> None:
    """Between the two the directory is empty. Lazily, a handle from before reads on beside the new mount; otherwise it
    keeps the unmount from being made, and the mount as it is."""
    s3.put("models", "weights", DATA)
    old = mounter.mount(s3, "s3://models")
    held = os.open(old.path / "weights", os.O_RDONLY)
    try:
        done = run(["unmount", *(["--lazy"] if lazy else []), old.path], PLAIN)
        if not lazy:
            assert (done.returncode, "is in use" in done.stderr) == (1, True)
            assert os.pread(held, 4096, 0) == DATA[:4096]
            return
        assert os.listdir(old.path) == []
        new = mounter.mount(s3, "s3://models")
        assert os.pread(held, MIB, 6 * MIB) == DATA[6 * MIB : 7 * MIB]
        assert (new.path / "weights").read_bytes() == DATA
    finally:
        os.close(held)
    assert old.process.wait(20) == 0
