"""P1, by a state machine: readers of every kind, while objects change and the cache and the daemon come and go.

The model is the bytes of each version. What a handle reads are bytes of the version that was opened, or ESTALE once
the name stands for another; after a kill, an error of the mount that is gone. Nothing else is ever right.
"""

import errno
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.mounts.contents import MIB, pages, versions_in
from tests.mounts.mounting import LIFETIME, Mount, Mounter, outlive_moment
from tests.mounts.reader import ADVICE, Reader
from tests.servers.fast import FastS3Server

FULL = os.environ.get("LAZYFS_TEST_FULL") == "1"
NAMES = ("small", "odd", "large")
SIZES = {"small": (1, 4097), "odd": (MIB - 1, 2 * MIB + 5), "large": (9 * MIB, 12 * MIB + 1)}
READS = st.tuples(
    st.sampled_from(["pread", "readv", "sendfile", "forked"]),
    st.floats(0, 1.1),
    st.sampled_from([1, 511, 4096, 70_000, MIB, 5 * MIB]),
)
"""How, where in the file (1 is its end), and how many bytes."""
RESTART_AFTER = 20
"""Reads between two restarts, which cost as much as a hundred of them."""
EXPECT = [
    "read failed with ESTALE",
    "open failed with ESTALE",
    "is another version by now",
]


@dataclass
class Handle:
    """An open descriptor in the reader: which bytes it must give, and whether it is of the mount that runs."""

    fd: int
    key: str
    version: int
    mount: int
    mapped: bool = False


class World:
    """The server, the reader and the mount, which all examples share; each example has a directory of its own."""

    def __init__(self, work: Path) -> None:
        self.server = FastS3Server().start()
        self.server.add_bucket("models")
        self.server.put("models", "always", b"here")
        self.mounter = Mounter(work)
        self.reader = Reader()
        self.generation = 0
        self.example = 0
        self.version = 0
        self.started = 0.0
        self.mount = self.start()

    def start(self) -> Mount:
        """Mount; a cache smaller than the objects, and a listing that is never trusted."""
        self.generation += 1
        self.started = time.monotonic()
        options = ("--metadata-ttl=0s", "--negative-metadata-ttl=0s", "--max-cache-size=12MiB", "--memory-budget=32MiB")
        return self.mounter.mount(self.server, "s3://models", *options, expect=EXPECT)

    def renew(self) -> None:
        """Another mount, if this one is old: its daemon ends by its own alarm, which on a slow machine is soon."""
        if time.monotonic() - self.started > LIFETIME / 3:
            assert self.mount.signal(15) == 0
            self.mount = self.start()

    def close(self) -> None:
        """End everything; AssertionError for what the logs should not hold."""
        self.reader.close()
        try:
            self.mounter.end()
        finally:
            self.server.stop()


def machine_in(world: World) -> type[RuleBasedStateMachine]:
    """The machine's class, with the world that its examples share."""

    class Machine(RuleBasedStateMachine):
        handles = Bundle("handles")

        @initialize(target=handles)
        def begin(self) -> object:
            """Objects of all sizes, each with a handle."""
            world.example += 1
            world.renew()
            self.quiet = 0
            self.directory = f"e{world.example}"
            self.current: dict[str, int | None] = {}
            self.data: dict[int, bytes] = {}
            for name in NAMES:
                self.put(name, SIZES[name][0])
            return multiple(*(self.open_now(name) for name in NAMES))

        def put(self, name: str, size: int) -> None:
            world.version += 1
            self.data[world.version] = pages(world.version, size)
            self.current[name] = world.version
            world.server.put("models", f"{self.directory}/{name}", self.data[world.version])
            outlive_moment()

        @rule(name=st.sampled_from(NAMES), which=st.integers(0, 1))
        def overwrite(self, name: str, which: int) -> None:
            self.put(name, SIZES[name][which])

        @rule(name=st.sampled_from(NAMES))
        def delete(self, name: str) -> None:
            self.current[name] = None
            world.server.delete("models", f"{self.directory}/{name}")
            outlive_moment()

        @rule(target=handles, name=st.sampled_from(NAMES))
        def open(self, name: str) -> object:
            if self.current[name] is None:
                with pytest.raises(FileNotFoundError):
                    self.open_now(name)
                return multiple()
            return self.open_now(name)

        def open_now(self, name: str) -> Handle:
            fd = world.reader.call("open_file", str(world.mount.path / self.directory / name))
            return Handle(fd, name, self.current[name] or 0, world.generation)

        @rule(target=handles, handle=handles)
        def duplicate(self, handle: Handle) -> Handle:
            return Handle(world.reader.call("duplicate", handle.fd), handle.key, handle.version, handle.mount)

        @rule(
            handle=handles,
            advice=st.sampled_from(sorted(ADVICE)),
            place=st.floats(0, 1),
            size=st.sampled_from([1, 4096, 70_000, 3 * MIB]),
        )
        def map_and_peek(self, handle: Handle, advice: str, place: float, size: int) -> None:
            """Only of a version that is current: a fault that gets an error is SIGBUS, which ends the reader."""
            assume(handle.mount == world.generation and self.current[handle.key] == handle.version)
            if not handle.mapped:
                world.reader.call("map_file", handle.fd, advice)
                handle.mapped = True
            self.quiet += 1
            data = self.data[handle.version]
            offset = int(place * len(data))
            assert world.reader.call("peek", handle.fd, size, offset) == data[offset : offset + size]

        @rule(handle=handles, reads=st.lists(READS, min_size=1, max_size=8))
        def read(self, handle: Handle, reads: list[tuple[str, float, int]]) -> None:
            for how, place, size in reads:
                self.quiet += 1
                self.read_once(handle, how, int(place * len(self.data[handle.version])), size)

        def read_once(self, handle: Handle, how: str, offset: int, size: int) -> None:
            expected = self.data[handle.version][offset : offset + size]
            arguments = (handle.fd, [size // 2, size - size // 2] if how == "readv" else size, offset)
            try:
                found = world.reader.call(how, *arguments)
            except OSError as error:
                self.may_fail(handle, error.errno)
                return
            found = b"".join(found) if how == "readv" else found
            # Short, as POSIX allows after some bytes, before an error: of what was replaced, or of a dead mount.
            may_end = handle.mount != world.generation or self.current[handle.key] != handle.version
            if found != expected[: len(found)] or (len(found) < len(expected) and not may_end):
                raise AssertionError(self.what_is_wrong(handle, how, offset, found, expected))

        def what_is_wrong(self, handle: Handle, how: str, offset: int, found: bytes, expected: bytes) -> str:
            first = next((n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found))
            begin = -(-(offset + first) // 16) * 16 - offset
            return (
                f"{how} at {offset} of version {handle.version} ({len(self.data[handle.version])} bytes, "
                f"{'this' if handle.mount == world.generation else 'an earlier'} mount, now version "
                f"{self.current[handle.key]}): {len(found)} bytes, not {len(expected)}, wrong from {first} on, there "
                f"are versions {versions_in(found[begin:], offset + begin)}"
            )

        def may_fail(self, handle: Handle, number: int | None) -> None:
            if handle.mount != world.generation:
                assert number in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENODEV)
            else:
                assert number == errno.ESTALE
                assert self.current[handle.key] != handle.version, "the version that was opened is still there"

        @rule(handle=consumes(handles))
        def close(self, handle: Handle) -> None:
            if handle.mapped:
                world.reader.call("unmap", handle.fd)
            try:
                world.reader.call("close_file", handle.fd)
            except OSError:
                assert handle.mount != world.generation, "the descriptor is gone, and its last word is of a dead mount"

        @precondition(lambda self: self.quiet >= RESTART_AFTER)
        @rule(kill=st.booleans())
        def restart(self, kill: bool) -> None:
            """Unmount, lazily since handles are open, or SIGKILL; then mount again. Handles of before are dead."""
            if kill:
                world.mount.kill()
            else:
                assert world.mount.signal(15) == 0
            world.mount = world.start()
            self.quiet = 0

        def teardown(self) -> None:
            world.reader.close()
            world.reader = Reader()

    return Machine


@pytest.mark.timeout(1500 if FULL else 240)
def test_every_read_is_of_the_version_that_was_opened() -> None:
    with tempfile.TemporaryDirectory(prefix="lazyfs-machine-") as work:
        world = World(Path(work))
        try:
            run_state_machine_as_test(
                machine_in(world),
                settings=settings(
                    max_examples=300 if FULL else 12,
                    stateful_step_count=40,
                    deadline=None,
                    derandomize=not FULL,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            world.close()
