"""The life of a mount's process: from the first request to its end, in order.

Its job: signals, readiness, and the order of the end: unmount, write what is queued, close the index, exit. Must not
know what the mount is made of.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence

import trio

from lazyfs import errors
from lazyfs.config import Config, SourceConfig
from lazyfs.filesystem.session import Session
from lazyfs.service.formers import Formers
from lazyfs.service.mount import RunningMount
from lazyfs.service.notify import notify
from lazyfs.service.succession import LAST_READS, Predecessor, Successor, now_main, why_not
from lazyfs.service.watchdog import Watchdog
from lazyfs.service.watching import Watching

log = logging.getLogger(__name__)


async def serve(
    config: Config,
    sources: Sequence[SourceConfig],
    mountpoint: str,
    ready: Callable[[], None],
    *,
    signals: Mapping[signal.Signals, Callable[[], None]],
    handed: int | None = None,
    successor: Successor | None = None,
) -> None:
    """Run one mount from start to end, and end the process; `ready` is called once the mount answers. `signals`: what
    is done about those that do not ask for the end. `handed`: a descriptor that is mounted already (`handed.py`).
    `successor`: of a process that serves the mount until now.

    `SetupError` if it cannot be started; then nothing is left mounted.
    """
    failure: Exception | None = None
    watchdog = Watchdog(mountpoint, signals)
    async with trio.open_nursery() as nursery:
        try:
            mount = RunningMount(config, sources, mountpoint, nursery, handed)
            await _live(config, mount, mountpoint, nursery, watchdog, ready, successor)
        except Exception as error:  # noqa: BLE001 - raised again outside, where no nursery wraps it in a group
            failure = error
            if successor is not None:
                await successor.failed(error)
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _live(
    config: Config,
    mount: RunningMount,
    mountpoint: str,
    nursery: trio.Nursery,
    watchdog: Watchdog,
    ready: Callable[[], None],
    successor: Successor | None,
) -> None:
    """From the first request to the end of the process."""
    stop, ended, reads = trio.Event(), trio.Event(), trio.CancelScope()
    nursery.start_soon(_stop_when_asked, watchdog, stop)
    notify(f"STATUS=asking S3 for {mount.origins.title}")
    watching: Watching | None = None
    try:
        watching = Watching(config, mount) if successor is None else None
        await _unless(stop, nursery, mount.check)
        session = mount.attach() if successor is None else await mount.take_over(successor)
    except BaseException:
        if watching is not None:
            watching.close()
        mount.disk.close()
        raise
    ours, moved = successor is None, False
    formers = Formers(session, nursery)
    try:
        if watching is not None:
            watching.start()
        watchdog.mounted(mount.status)
        nursery.start_soon(_run_session, session, reads, stop, ended)
        nursery.start_soon(_stop_when_unmounted, session, stop)
        nursery.start_soon(mount.chunks.writer.run)
        nursery.start_soon(mount.chunks.marker.run)
        nursery.start_soon(mount.store.watch)
        if successor is not None:
            await mount.operations.begun.wait()
            ours = True
            await successor.serving(formers)
            watching = _watching_again(config, mount)
        try:
            await _unless(stop, nursery, mount.prove)
        except errors.SetupError as error:
            if successor is None:
                raise
            if not stop.is_set():  # it is served, and somebody has it open
                log.error("the mount goes on, though: %s", error)
        # In a thread: it runs programs that may look at every mount, this one included.
        await trio.to_thread.run_sync(mount.tune)
        _watched(watching, True)
        log.info("%s is mounted at %s", mount.origins.title, mountpoint)
        watchdog.said = mount.status()
        notify("READY=1", f"STATUS={watchdog.said}")
        ready()
        threading.Thread(target=mount.memory.populate, name="populate", daemon=True).start()

        async def move(process: int) -> None:
            nonlocal moved
            moved = True
            watchdog.handed_over()
            now_main(process)
            if watching is not None:
                await watching.stop()
                watching.close()
            stop.set()

        mount.predecessor = Predecessor(
            mountpoint=mountpoint,
            session=session,
            idle=lambda: mount.operations.calls.under_way == 0,
            state=mount.packed,
            moved=move,
            formers=formers,
            why_not=why_not(handed=mount.is_handed, arguments=sys.argv),
            nursery=nursery,
        )
        await stop.wait()
        if moved:
            await mount.predecessor.finish(ended, watchdog.asked, reads.cancel)
        else:
            await _end(watchdog, watching, session, reads, ended)
    finally:
        watchdog.end_in_time()
        if ours and not moved:
            session.close()
        else:
            session.leave()
        if watching is not None:
            watching.close()
    if watching is not None and not moved:
        await watching.stop()
    await mount.end()
    log.info("%s is %s", mount.origins.title, "handed over" if moved else f"unmounted from {mountpoint}")
    # Worker threads may still wait on silent connections, for bytes that have no reader any more.
    logging.shutdown()
    os._exit(0)


async def _end(
    watchdog: Watchdog, watching: Watching | None, session: Session, reads: trio.CancelScope, ended: trio.Event
) -> None:
    """The orderly end of what is served here."""
    _watched(watching, False)
    notify("STOPPING=1", "STATUS=unmounting, and writing what is queued")
    if not ended.is_set():
        watchdog.end_in_time()
        session.stop()
        with trio.move_on_after(LAST_READS):
            await ended.wait()
        reads.cancel()
        await ended.wait()


def _watching_again(config: Config, mount: RunningMount) -> Watching | None:
    """What the process before this one has closed just now. The mount is served already, and does not end for it."""
    try:
        watching = Watching(config, mount)
    except errors.SetupError as error:
        log.error("the mount goes on without metrics and access log: %s", error)
        return None
    watching.start()
    return watching


def _watched(watching: Watching | None, is_: bool, /) -> None:
    if watching is not None:
        watching.mounted(is_)


async def _run_session(session: Session, reads: trio.CancelScope, stop: trio.Event, ended: trio.Event) -> None:
    try:
        with reads:
            await session.run()
    finally:
        ended.set()
        stop.set()


async def _stop_when_unmounted(session: Session, stop: trio.Event) -> None:
    await session.unmounted()
    stop.set()


async def _stop_when_asked(watchdog: Watchdog, stop: trio.Event) -> None:
    await watchdog.asked.wait()
    stop.set()


async def _unless(stop: trio.Event, nursery: trio.Nursery, step: Callable[[], Awaitable[None]]) -> None:
    """A step of the start, given up with `SetupError` when `stop` is set."""

    async def give_up() -> None:
        await stop.wait()
        scope.cancel()

    with trio.CancelScope() as scope:
        nursery.start_soon(give_up)
        await step()
    if scope.cancelled_caught:
        raise errors.SetupError("stopped before the mount was ready")
