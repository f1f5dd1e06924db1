"""A version's files brought from a bucket, in parallel ranges, each compared with its digests before anybody sees it.

Below the version's directory of what is coming: `files/` (the files, sparse until they are whole) and `logs/` (which
ranges of each are there, with their checksums, so that a download that was killed goes on where it was). A range is
logged after it is written, and compared with its checksum when a later attempt finds it.

A file that is wrong is fetched again once, whole; what is wrong twice is an error and is not kept. Must not know names
of a user, nor who waits. Loop thread only; disks are for threads.
"""

import contextlib
import logging
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio
from awscrt.checksums import combine_crc64nvme, crc64nvme

from lazyfs.errors import Corrupt, SetupError
from lazyfs.models.gathering import digests
from lazyfs.models.manifest import Manifest, ManifestFile
from lazyfs.objects import MIB, ObjectVersion
from lazyfs.stores.base import Claim, Store
from lazyfs.stores.together import together

SPAN = 8 * MIB
"""Bytes of one GET: a request costs a millisecond of CPU whatever its size."""

MOST_SPANS = 16
"""GETs at a time; each has a buffer."""

LARGE_AT_ONCE = 2
"""Files of several spans at a time: the digest of one is made while the next one comes."""

SMALL_AT_ONCE = 16
"""Files of one span at most, which take a round trip each."""

Told = Callable[[int], None]
"""Told of so many bytes more that are there."""

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class Downloaded:
    """What bringing a version came to: bytes fetched now, bytes that an earlier attempt had left, files that were wrong
    and had to be fetched again."""

    fetched: int = 0
    resumed: int = 0
    wrong: int = 0


@dataclass(slots=True)
class _Target:
    """A file that is coming: checksums of its spans by their start."""

    file: ManifestFile
    version: ObjectVersion
    path: Path
    log: Path
    sums: dict[int, int] = field(default_factory=dict)


class Download:
    """Brings files through a store into a directory."""

    def __init__(self, store: Store, folder: Path, *, connections: int, told: Told = lambda _: None) -> None:
        self._store = store
        self._folder = folder
        self._told = told
        self._spans = min(connections, MOST_SPANS)
        self._buffers = [mmap.mmap(-1, SPAN) for _ in range(self._spans)]
        self._free = trio.Semaphore(self._spans)
        self._disk = trio.CapacityLimiter(4)
        self.result = Downloaded()

    async def bring(self, manifest: Manifest, versions: Mapping[str, ObjectVersion]) -> None:
        """Bring all files; `versions` says which object each path is. `Corrupt` for one that is wrong twice,
        `ObjectChanged` for one that is replaced meanwhile."""
        targets = []
        for number, file in enumerate(manifest.files):
            path, journal = self._folder / "files" / file.path, self._folder / "logs" / str(number)
            targets.append(_Target(file, versions[file.path], path, journal))
        await self._run(_prepare, self._folder, targets)
        large = [target for target in targets if target.file.size > SPAN]
        small = [target for target in targets if target.file.size <= SPAN]
        await together((partial(self._bring, target) for target in large), at_once=LARGE_AT_ONCE)
        await together((partial(self._bring, target) for target in small), at_once=SMALL_AT_ONCE)

    async def _bring(self, target: _Target) -> None:
        file = target.file
        await self._run(_resume, target)
        self.result.resumed += (done := sum(min(SPAN, file.size - start) for start in target.sums))
        self._told(done)
        wrong = await self._fetch(target)
        if wrong:
            self.result.wrong += 1
            log.error("WRONG BYTES: %s. They are dropped and fetched again", wrong)
            await self._run(_start_anew, target)
            if wrong := await self._fetch(target, told=lambda _: None):
                await self._run(_start_anew, target)
                raise Corrupt(
                    f"{wrong}, also when fetched again; publish the version again, or remove it with `lazyfs rm`"
                )
        await self._run(os.chmod, target.path, 0o400)

    async def _fetch(self, target: _Target, told: Told | None = None) -> str:
        """Fetch what is missing, and compare; in words what is wrong."""
        file = target.file
        missing = [start for start in range(0, file.size, SPAN) if start not in target.sums]
        steps = (partial(self._span, target, start, told or self._told) for start in missing)
        await together(steps, at_once=self._spans)
        total = 0
        for start in range(0, file.size, SPAN):
            total = combine_crc64nvme(total, target.sums[start], min(SPAN, file.size - start))
        if total != file.crc64nvme:
            return f"the CRC64NVME of {target.version.key!r} is {total:016x}, its manifest says {file.crc64nvme:016x}"
        left = False
        try:
            found = await self._run(partial(digests, str(target.path), stop=lambda: left))
        finally:
            left = True
        if found.sha256 != file.sha256:
            return f"the SHA-256 of {target.version.key!r} is {found.sha256}, its manifest says {file.sha256}"
        return ""

    async def _span(self, target: _Target, start: int, told: Told) -> None:
        size = min(SPAN, target.file.size - start)
        async with self._free:
            buffer = self._buffers.pop()
            try:
                with memoryview(buffer)[:size] as view:
                    await self._store.read(target.version, start, [view], lambda _: None, Claim(urgent=True))
                    target.sums[start] = await self._run(_keep, target, start, view)
            finally:
                self._buffers.append(buffer)
        self.result.fetched += size
        told(size)

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        try:
            return await trio.to_thread.run_sync(function, *args, limiter=self._disk)
        except OSError as error:
            raise SetupError(
                f"cannot write {self._folder}: {error.strerror}; free space there, or choose another cache directory"
            ) from error


def _prepare(folder: Path, targets: Sequence[_Target]) -> None:
    """Every file and directory, and its space: a disk that has too little of it says so now, and not at the end."""
    (folder / "logs").mkdir(exist_ok=True)
    for target in targets:
        target.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            target.path.chmod(0o600)  # one that was whole when an attempt ended
        with open(os.open(target.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "rb+") as file:
            os.ftruncate(file.fileno(), target.file.size)
            if target.file.size:
                os.posix_fallocate(file.fileno(), 0, target.file.size)


def _resume(target: _Target) -> None:
    """What an earlier attempt has left of this very object, as far as it is what its log says."""
    head = f"{target.version.etag} {target.file.sha256}\n"
    try:
        lines = target.log.read_text().splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    if not lines or lines[0] != head:
        target.log.write_text(head)
        return
    with open(target.path, "rb", buffering=0) as file:
        for line in lines[1:]:
            # The last line may have been cut short by a kill; it is no number then, or does not hold.
            with contextlib.suppress(ValueError):
                start, crc = int(line.split()[0]), int(line.split()[1], 16)
                size = min(SPAN, target.file.size - start)
                if start % SPAN == 0 and size > 0 and crc64nvme(os.pread(file.fileno(), size, start)) == crc:
                    target.sums[start] = crc
    target.log.write_text(head + "".join(f"{start} {crc:016x}\n" for start, crc in target.sums.items()))


def _start_anew(target: _Target) -> None:
    target.sums.clear()
    target.log.unlink(missing_ok=True)
    _resume(target)


def _keep(target: _Target, start: int, view: memoryview) -> int:
    crc: int = crc64nvme(view)
    done = 0
    descriptor = os.open(target.path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        while done < len(view):
            done += os.pwrite(descriptor, view[done:], start + done)
    finally:
        os.close(descriptor)
    with open(target.log, "a") as log_file:
        log_file.write(f"{start} {crc:016x}\n")
    return crc
