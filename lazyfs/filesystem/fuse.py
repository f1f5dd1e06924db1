"""The translation between the kernel and the model: with `session.py` and `guard.py` the only importer of pyfuse3.

Its job: names, attributes, open files in the kernel's words; every handler is `guarded`. No decision about chunks or
listings is made here.

Rules from the kernel: an inode is one immutable object version, so pages stay right for ever (keep_cache, never
direct_io, which would refuse mmap); nothing is invalidated and nothing notifies, since a notification that waits for a
page held by a read that waits for us leaves an unkillable process; attributes are the same from lookup, getattr and
readdirplus, because a size that shrinks kills mapped readers by SIGBUS.
"""

import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any, cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, StatvfsData

from lazyfs import errors
from lazyfs.filesystem.calls import Calls
from lazyfs.filesystem.control import Control
from lazyfs.filesystem.device import Answer
from lazyfs.filesystem.files import OpenFile, OpenFiles
from lazyfs.filesystem.guard import guarded, read_only, refusal
from lazyfs.filesystem.nodes import Directory, File, Node
from lazyfs.filesystem.passthrough import Passthrough
from lazyfs.filesystem.tree import Tree
from lazyfs.objects import KIB, size_of

log = logging.getLogger(__name__)

FOREVER = 365 * 86400.0
"""Seconds: attributes of an inode never change, so the kernel may keep them."""

BUFFER = 64 * KIB
"""`st_blksize`, the buffer of who reads through one that he did not choose: Python's `open` and stdio read so much for
the first byte, and after each seek. With 1 MiB the first read waited for all of its chunk, and 8 bytes here and there
of a file on disk cost a MiB each. `cat` and `cp` take 128 KiB or more whatever this says (coreutils' ioblksize.h)."""

XATTR = "user.lazyfs."


def _nothing() -> None:
    pass


class Operations(pyfuse3.Operations):
    """One mount as the kernel sees it.

    `total_size` gives the bytes of all objects; `report` is what the root's `user.lazyfs.stats` says, `xattrs` the
    attributes of a file, `control` answers those that are not listed and do something; `opened` is told of each file
    before it is read. Which files the kernel reads by itself is `passthrough`'s affair.
    """

    enable_writeback_cache = False
    supports_dot_lookup = False

    def __init__(
        self,
        *,
        tree: Tree,
        files: OpenFiles,
        total_size: Callable[[], Awaitable[int]],
        report: Callable[[], bytes],
        xattrs: Callable[[File], dict[str, str]],
        control: Control,
        opened: Callable[[File], None],
        passthrough: Passthrough | None,
        negative_ttl: float,
        uid: int,
        gid: int,
        file_mode: int,
        dir_mode: int,
        started_ns: int,
    ) -> None:
        super().__init__()
        self._tree = tree
        self._files = files
        self._total_size = total_size
        self._report = report
        self._xattrs = xattrs
        self._control = control
        self._opened = opened
        self.passthrough = passthrough
        self._negative_ttl = negative_ttl
        self._owner = (uid, gid)
        self._modes = (stat.S_IFREG | file_mode, stat.S_IFDIR | dir_mode)
        self.started_ns = started_ns
        """When directories were last changed, in nanoseconds since the epoch, as far as we know."""
        self.calls = Calls(tree)
        self._snapshots = self.calls.snapshots
        self.failures = 0
        self.received: Callable[[], None] = _nothing
        self.reads = 0
        self.read_bytes = 0
        self._read_last: OpenFile | None = None
        self.begun = trio.Event()

    def _attributes(self, node: Node) -> EntryAttributes:
        """The attributes of a node: always the same for an inode, whoever asks. For what an entry is good for, see
        `_entry`."""
        entry = EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(node.inode)
        entry.generation = 0
        entry.st_uid, entry.st_gid = self._owner
        entry.st_rdev = 0
        entry.st_blksize = BUFFER
        entry.attr_timeout = FOREVER
        entry.entry_timeout = 0
        if isinstance(node, File):
            entry.st_mode = pyfuse3.ModeT(self._modes[0])
            entry.st_nlink = 1
            entry.st_size = node.size
            mtime = node.mtime_ns
        else:
            # 1 says that the number of subdirectories is not to be read off here; it would change as we list.
            entry.st_mode = pyfuse3.ModeT(self._modes[1])
            entry.st_nlink = 1
            entry.st_size = 0
            mtime = self.started_ns
        entry.st_blocks = -(-entry.st_size // 512)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = mtime
        return entry

    def _entry(self, node: Node) -> EntryAttributes:
        """The attributes, with how long the name may be believed: as long as the listing that gave it."""
        entry = self._attributes(node)
        if node.parent is not None:
            entry.entry_timeout = min(FOREVER, self._tree.trusted_for(node.parent))
        return entry

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """A name in a directory. A missing one is answered with inode 0, which the kernel may remember for a while."""
        try:
            return self._entry(await self._tree.lookup(parent_inode, os.fsdecode(name)))
        except errors.NoSuchName:
            missing = EntryAttributes()
            missing.st_ino = pyfuse3.InodeT(0)
            trusted = self._tree.trusted_for(self._tree.directory(parent_inode))
            missing.entry_timeout = min(self._negative_ttl, trusted, FOREVER)
            return missing

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel forgot inodes; each that many times."""
        for inode, count in inode_list:
            self._tree.forget(inode, count)

    @guarded
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """The attributes of an inode."""
        return self._attributes(self._tree.node(inode))

    @guarded
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """A handle on a snapshot of the directory, so that cookies stay right whatever happens meanwhile."""
        snapshot = await self._tree.entries(inode)
        handle = self.calls.next_snapshot
        self.calls.next_snapshot += 1
        self._snapshots[handle] = snapshot
        return handle

    @guarded
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """Entries from cookie `start_id` on; the cookie of an entry is the number of the next one."""
        snapshot = self._snapshots[fh]
        directory = snapshot.directory
        for number in range(start_id, 2 + len(snapshot)):
            if number < 2:
                node: Node = (directory, directory.parent or directory)[number]
                name = (b".", b"..")[number]
            else:
                node = snapshot[number - 2]
                name = os.fsencode(node.name)
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), self._entry(node), number + 1):
                return
            if number >= 2:
                self._tree.remember(node)

    @guarded
    async def releasedir(self, fh: int) -> None:
        """The snapshot is no longer needed."""
        del self._snapshots[fh]

    @guarded
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """A handle for reading. ESTALE for a version that its name no longer stands for: the kernel then looks the name
        up again, once, and opens what it finds. A read that found another version is believed before the listing that
        the kernel still trusts."""
        node = self._tree.node(inode)
        if isinstance(node, Directory):
            raise errors.IsADirectory(node.name)
        # O_TRUNC comes alone too, and the kernel would then believe that the file is empty now.
        if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
            raise FUSEError(errno.EROFS)
        if node.parent.doubted:
            await self._tree.refresh(node.parent)  # the kernel may believe the name for long; S3 has said otherwise
        if not node.current:
            raise errors.StaleHandle(f"{node.version.key!r} is another version by now")
        await self._files.prove(node)
        self._opened(node)
        handle = self._files.open(node)
        if self.passthrough is not None:
            self.passthrough.answer_open(node, alone=self._files.get(handle).handles == 1)
        return FileInfo(fh=pyfuse3.FileHandleT(handle), keep_cache=True, direct_io=False)

    def quiet(self) -> bool:
        """Whether nobody waits: nothing is on its way to any reader, and no other call is under way."""
        return not self.calls.under_way and self._files.quiet()

    def read_now(self, fh: int, off: int, size: int) -> Answer | None:
        """What `device.Device` answers a read with that can be answered at once: the bytes, or an errno. None if it
        must wait, for `read_later`. Either way what the file's readers will want is on its way after `read_done`."""
        started = perf_counter()
        try:
            self._read_last = self._files.get(fh)
            found = self._read_last.now(off, size)
        except Exception as error:  # noqa: BLE001 - as in `guarded`
            number = refusal(self, "read", (fh, off, size), error)
            self.calls.answered("read", (fh, off, size), number, started)
            return number
        if found is not None:
            self.reads += 1
            self.read_bytes += size_of(found)
            self.calls.answered("read", (fh, off, size), 0, started)
        return found

    def read_done(self) -> None:
        """Do what the last read that was answered at once left to be done."""
        opened, self._read_last = self._read_last, None
        if opened is not None:
            try:
                opened.after()
            except Exception:
                self.failures += 1
                log.exception("a defect in what follows from a read of %r, which was answered", opened.file.version.key)

    async def read_later(self, fh: int, off: int, size: int) -> Answer:
        """What a read is answered with when it can be, after `read_now` said that it must wait."""
        try:
            return cast(Answer, await self.read(fh, off, size))
        except FUSEError as error:
            return int(error.errno)

    @guarded
    async def read(self, fh: int, off: int, size: int) -> Any:
        """Bytes of the version that was opened; fewer than `size` only at its end. Plans nothing: see `read_now`."""
        opened = self._files.get(fh)
        try:
            found = await opened.wait(off, size)
        except (errors.ObjectChanged, errors.NotFound):
            self._tree.expire(opened.file)
            raise
        self.reads += 1
        self.read_bytes += size_of(found)
        return found

    @guarded
    async def flush(self, fh: int) -> None:
        """Nothing is ever written."""

    @guarded
    async def release(self, fh: int) -> None:
        """The handle is closed and no mapping of it is left."""
        self._files.release(fh)
        if self.passthrough is not None:
            self.passthrough.release(fh)

    @guarded
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """The filesystem is as large as its objects, of a great many as the first ones, and full."""
        found = StatvfsData()
        found.f_bsize = found.f_frsize = 4096
        found.f_blocks = -(-await self._total_size() // 4096)
        found.f_bfree = found.f_bavail = 0
        found.f_files = len(self._tree)
        found.f_ffree = found.f_favail = 0
        found.f_namemax = 255
        return found

    def _named_xattrs(self, inode: int) -> dict[str, bytes]:
        node = self._tree.node(inode)
        if isinstance(node, File):
            return {XATTR + name: os.fsencode(value) for name, value in self._xattrs(node).items()}
        if node is self._tree.root:
            return {XATTR + "stats": self._report()}
        return {}

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """One `user.lazyfs.*` attribute, also of those that do something and are not listed. `ls -l`, once it knows
        that there are no ACLs, asks no further file for one."""
        if not name.startswith(b"user."):
            raise FUSEError(errno.EOPNOTSUPP)
        text = os.fsdecode(name)
        found = self._named_xattrs(inode).get(text)
        if found is None and text.startswith(XATTR):
            found = await self._control.answer(self._tree.node(inode), text.removeprefix(XATTR), ctx.uid)
        if found is None:
            raise errors.NoSuchAttribute(text)
        return found

    @guarded
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        """The names of the attributes of an inode."""
        return [os.fsencode(name) for name in self._named_xattrs(inode)]


for _name in [
    "setattr",
    "mknod",
    "mkdir",
    "unlink",
    "rmdir",
    "symlink",
    "rename",
    "link",
    "write",
    "create",
    "setxattr",
    "removexattr",
]:
    setattr(Operations, _name, read_only(_name))
