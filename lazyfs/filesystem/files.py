"""Open files: a read becomes what to bring ahead and what to wait for.

Must not know FUSE or S3. All opens of one inode share one `OpenFile`, so that its streams are seen whatever descriptor
they come through.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

from lazyfs.cache.chunks import SMALL_READ, ChunkCache
from lazyfs.cache.spans import NEAR
from lazyfs.errors import ArchivedObject, Corrupt, StoreError
from lazyfs.filesystem.following import Following
from lazyfs.filesystem.nodes import File
from lazyfs.objects import ARCHIVES, CHUNK_SIZE, Pieces, size_of
from lazyfs.reading.formats import borders, has_tensors
from lazyfs.reading.plans import Plan
from lazyfs.reading.streams import Streams
from lazyfs.reading.windows import Budget

MOST_REMEMBERED = 16_384
LOOKED_AT = 1024
"""Runs that the streams of all open files may remember, some 7 MiB, and reads between two looks: 300 touches of a file
at random are 350 runs, and of 100,000 open files were 12 GiB."""

MOST_CLOSED = 8
"""Files that are remembered after they were closed, so that who looks now and then sees those that are read quickly."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What is done with one inode: open `handles`, bytes given to readers since it was opened, `streams` with something
    planned ahead of them, bytes planned `ahead`. `last` orders files by their latest reads."""

    file: File
    handles: int
    read_bytes: int
    streams: int
    ahead: int
    last: int


class OpenFile:
    """An inode with at least one open handle; reads the bytes of exactly the version that the inode stands for."""

    __slots__ = (
        "_alone", "_began", "_cache", "_count", "_following", "_last", "_late", "_read_bytes", "_streams", "_unseen",
        "file", "handles",
    )  # fmt: skip

    def __init__(
        self,
        file: File,
        cache: ChunkCache,
        budget: Budget,
        count: Iterator[int],
        began: Callable[[File], None],
        opened: Container[int],
        foreseen: set[int],
    ) -> None:
        """`count` goes on with every read of the mount; `began` is told of the first one here, when it is answered;
        `opened` are the inodes that are open, `foreseen` those of which some was set on its way."""
        self.file = file
        self._began = began
        self.handles = 0
        self._count = count
        self._last = next(count)
        self._read_bytes = 0
        self._unseen = True
        self._cache = cache
        self._streams = Streams(file.version.size, budget)
        self._following = Following(file, cache, opened, foreseen)
        # Where reads that wait begin, of which nothing beside their bytes is wanted.
        self._alone: Counter[int] = Counter()
        # A read that was answered before anything was decided: where it begins and ends, and its bytes.
        self._late: tuple[int, int, bytes] | None = None

    async def read(self, offset: int, size: int) -> Pieces:
        """`size` bytes from `offset` on, less only at the end of the file. Views are good until the next await."""
        found = self.now(offset, size)
        self.after()
        return await self.wait(offset, size) if found is None else found

    def now(self, offset: int, size: int) -> Pieces | None:
        """As `read`, if nothing must be waited for; else None, and `wait` gives the bytes. Either way `after` is to be
        called before anything else is done here, and may be called when the bytes are on their way to the reader.

        What to bring is decided and started here, before anything is waited for; but a few bytes on a disk that is
        quick are read first, and what follows from that is left to `after`: to decide takes 20 us, and to read them 80.
        """
        if self.file.spoiled:
            raise Corrupt(f"{self.file.version.key!r} had wrong bytes when it was read from here; open it again")
        version = self.file.version
        stop = min(offset + size, version.size)
        if offset >= stop:
            return ()
        touched = self._cache.touched(version, offset, stop) if stop - offset <= SMALL_READ else None
        if touched is not None:
            self._late = offset, stop, touched
            return (touched,)
        alone = self._decide(offset, stop)
        found = self._cache.now(version, offset, stop)
        if found is None:
            self._streams.waiting += 1
            if alone:
                self._alone[offset] += 1
        else:
            self._served(found)
        return found

    def after(self) -> None:
        """What `now` left."""
        if self._late is not None:
            (offset, stop, touched), self._late = self._late, None
            self._decide(offset, stop)
            self._served((touched,))

    def _decide(self, offset: int, stop: int) -> bool:
        """Decide what to bring for a read of bytes [offset, stop), and start that; whether nothing beside these bytes
        is wanted. A touch is left to the cache, which need not bring all of its chunk if that is on disk."""
        version = self.file.version
        plan = self._streams.observe(offset, stop)
        for start, end in plan.dropped:
            self._cache.drop(version, start, end)
        alone = plan.alone and self._cache.apart(version, offset, stop)
        if alone:
            plan.reached(0, plan.ranges[0][0])
        elif not (plan.touch and stop - offset <= SMALL_READ):
            self._start(plan, offset, stop)
        following = self._following
        if following.more and 8 * stop >= version.size:
            beyond = self._streams.beyond
            if beyond > following.sent:
                following.bring(beyond, self._streams.latest)
        return alone

    async def wait(self, offset: int, size: int) -> Pieces:
        """The bytes that `now` could not give."""
        version, alone = self.file.version, self._left(offset)
        try:
            found = await self._cache.wait(version, offset, min(offset + size, version.size), alone=alone)
        finally:
            self._streams.waiting -= 1
        self._served(found)
        return found

    def _left(self, offset: int) -> bool:
        """Whether one of the reads from here on that wait is one beside whose bytes nothing is wanted; one less is."""
        if self._alone and offset in self._alone:
            self._alone[offset] -= 1
            if not self._alone[offset]:
                del self._alone[offset]
            return True
        return False

    def _served(self, found: Pieces) -> None:
        if not self._read_bytes:
            self._began(self.file)
        if self._unseen:
            self._look_inside()
        self._read_bytes += size_of(found)
        self._last = next(self._count)

    def _look_inside(self) -> None:
        """Tell the streams what the file's own header says, if that was fetched for the first reads, and nobody left a
        tensor of it when it was open before. A few bytes are answered before all of it is here."""
        self._unseen = False
        if has_tensors(self.file.name) and not self.file.partly:
            beginning = self._cache.held(self.file.version, 0)
            if beginning is not None:
                self._streams.tensors.know(borders(beginning, self.file.version.size))
            self._unseen = beginning is None and self._read_bytes < CHUNK_SIZE

    def state(self) -> FileState:
        """What is done with it now."""
        streams, ahead = self._streams.ahead()
        return FileState(self.file, self.handles, self._read_bytes, streams, ahead, self._last)

    def _start(self, plan: Plan, offset: int, stop: int) -> None:
        """Set on its way what the plan says, until memory is short."""
        version, lane = self.file.version, plan.stride or plan.run
        for place, (start, end) in enumerate(plan.ranges):
            # Nobody waits for what is below the read, nor is he near.
            demand, reader = (stop, stop) if end > offset else (0, max(0, start - NEAR))
            reached = self._cache.start(version, start, end, demand=demand, reader=reader, lane=lane)
            if reached < end:
                plan.reached(place, reached)
                break

    @property
    def last(self) -> int:
        """When it was read last, in reads of the mount."""
        return self._last

    @property
    def remembered(self) -> int:
        """How many runs its streams remember; 0 while somebody waits for a read, who is not to be forgotten."""
        return 0 if self._streams.waiting else self._streams.remembered

    def forget(self) -> None:
        """What its readers did is forgotten, as if it had just been opened: they have been idle for long."""
        for start, stop in self._streams.close():
            self._cache.drop(self.file.version, start, stop)

    def close(self) -> None:
        """The last handle is closed: read-ahead that waits in a queue need not be sent, and none of other shards if
        this one was not read to its end."""
        self.file.partly |= self._streams.tensors.left
        finished = self._streams.finished
        self.forget()
        self._following.close(finished=finished)


class OpenFiles:
    """The open files of a mount, by inode. `began` is told of a file when its first read since it was opened is
    answered, `ended` when its last handle is closed."""

    def __init__(
        self,
        cache: ChunkCache,
        budget: Budget,
        *,
        began: Callable[[File], None] = lambda _: None,
        ended: Callable[[FileState], None] = lambda _: None,
    ) -> None:
        self._began = began
        self._ended = ended
        self._cache = cache
        self._budget = budget
        self._files: dict[int, OpenFile] = {}
        self.foreseen: set[int] = set()
        """Inodes of shards that who reads the one before through is taken to go on with: some of each was set on its
        way for him, and nobody has read half of it and closed it since."""
        self._closed: deque[FileState] = deque(maxlen=MOST_CLOSED)
        self._count = self._counted()

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[OpenFile]:
        return iter(self._files.values())

    def _counted(self) -> Iterator[int]:
        """Numbers of reads. Now and then what all open files remember is looked at: as often as that costs next to
        nothing for a read, however many are open."""
        due, looked = LOOKED_AT, 0
        for number in itertools.count():
            if number >= due:
                self._forget_idle(looked)
                due, looked = number + max(LOOKED_AT, len(self._files)), number
            yield number

    def _forget_idle(self, since: int) -> None:
        """If too many runs are remembered, forget those of files, the ones first that had no read `since` and were idle
        for longest, and then those with most. Not where there are few: that is who reads his file through."""
        remembered = [(opened.remembered, opened) for opened in self._files.values()]
        count, few = sum(runs for runs, _ in remembered), MOST_REMEMBERED // (2 * max(1, len(remembered)))
        if count <= MOST_REMEMBERED:
            return
        many = [(runs, opened) for runs, opened in remembered if runs > few]
        idle = sorted((one for one in many if one[1].last < since), key=lambda one: one[1].last)
        read = sorted((one for one in many if one[1].last >= since), key=lambda one: -one[0])
        for runs, opened in (*idle, *read):
            if count <= MOST_REMEMBERED // 2:
                break
            opened.forget()
            count -= runs

    def open(self, file: File) -> int:
        """One more handle on the file; the handle is its inode."""
        found = self._files.get(file.inode)
        if found is None:
            found = self._files[file.inode] = OpenFile(
                file, self._cache, self._budget, self._count, self._began, self._files, self.foreseen
            )
        found.handles += 1
        return file.inode

    async def prove(self, file: File) -> None:
        """`ArchivedObject` for a file of an archive class whose beginning cannot be had: restored ones can, and a
        listing does not tell which are. Said when it is opened, for whoever maps it would die of it. Any other failure
        is for who reads."""
        if file.storage_class in ARCHIVES and file.size:
            try:
                await self._cache.read(file.version, 0, 1)
            except ArchivedObject:
                raise
            except StoreError:
                pass

    def quiet(self) -> bool:
        """Whether no bytes are on their way."""
        return not self._cache.flying

    def get(self, handle: int) -> OpenFile:
        """The open file of a handle."""
        return self._files[handle]

    def release(self, handle: int) -> None:
        """One handle less; with the last one the streams are forgotten. Bytes on their way go on
        into the cache."""
        found = self._files[handle]
        found.handles -= 1
        if found.handles == 0:
            state = found.state()
            found.file.served += state.read_bytes
            if 2 * state.read_bytes >= found.file.size:
                self.foreseen.discard(handle)
            self._closed.append(state)
            self._ended(state)
            found.close()
            del self._files[handle]

    def states(self) -> list[FileState]:
        """Those that are open, and the last ones that were closed; who was read last comes first."""
        closed = {state.file.inode: state for state in self._closed if state.file.inode not in self._files}
        found = [*(opened.state() for opened in self._files.values()), *closed.values()]
        return sorted(found, key=lambda state: state.last, reverse=True)
