"""The life of a mount's process: from the first request to its end, in order.

Its job: signals, readiness, and the order of the end: unmount, write what is queued, close the index, exit. Must not
know what the mount is made of.
"""

import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence

import trio

from lazyfs import errors
from lazyfs.config import Config, SourceConfig
from lazyfs.filesystem.session import Session
from lazyfs.service.mount import RunningMount
from lazyfs.service.notify import notify
from lazyfs.service.watchdog import Watchdog
from lazyfs.service.watching import Watching

log = logging.getLogger(__name__)

LAST_READS = 2.0
"""Seconds that an end waits for reads under way; their readers get an error after that, as mapped ones SIGBUS."""


async def serve(
    config: Config,
    sources: Sequence[SourceConfig],
    mountpoint: str,
    ready: Callable[[], None],
    *,
    signals: Mapping[signal.Signals, Callable[[], None]],
    handed: int | None = None,
) -> None:
    """Run one mount from start to end, and end the process; `ready` is called once the mount answers. `signals`: what
    is done about those that do not ask for the end. `handed`: a descriptor that is mounted already (`handed.py`).

    `SetupError` if it cannot be started; then nothing is left mounted.
    """
    failure: Exception | None = None
    watchdog = Watchdog(mountpoint, signals)
    async with trio.open_nursery() as nursery:
        try:
            mount = RunningMount(config, sources, mountpoint, nursery, handed)
            await _live(config, mount, mountpoint, nursery, watchdog, ready)
        except Exception as error:  # noqa: BLE001 - raised again outside, where no nursery wraps it in a group
            failure = error
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
) -> None:
    """From the first request to the end of the process."""
    stop, ended, reads = trio.Event(), trio.Event(), trio.CancelScope()
    nursery.start_soon(_stop_when_asked, watchdog, stop)
    notify(f"STATUS=asking S3 for {mount.origins.title}")
    watching: Watching | None = None
    try:
        watching = Watching(config, mount)
        await _unless(stop, nursery, mount.check)
        session = mount.attach()
    except BaseException:
        if watching is not None:
            watching.close()
        mount.disk.close()
        raise
    try:
        watching.start()
        watchdog.mounted(mount.status)
        nursery.start_soon(_run_session, session, reads, stop, ended)
        nursery.start_soon(_stop_when_unmounted, session, stop)
        nursery.start_soon(mount.chunks.writer.run)
        nursery.start_soon(mount.store.watch)
        await _unless(stop, nursery, mount.prove)
        # In a thread: it runs programs that may look at every mount, this one included.
        await trio.to_thread.run_sync(mount.tune)
        watching.mounted(True)
        log.info("%s is mounted at %s", mount.origins.title, mountpoint)
        watchdog.said = mount.status()
        notify("READY=1", f"STATUS={watchdog.said}")
        ready()
        threading.Thread(target=mount.memory.populate, name="populate", daemon=True).start()
        await stop.wait()
        watching.mounted(False)
        notify("STOPPING=1", "STATUS=unmounting, and writing what is queued")
        if not ended.is_set():
            watchdog.end_in_time()
            session.stop()
            with trio.move_on_after(LAST_READS):
                await ended.wait()
            reads.cancel()
            await ended.wait()
    finally:
        watchdog.end_in_time()
        session.close()
        watching.close()
    await watching.stop()
    await mount.end()
    log.info("%s is unmounted from %s", mount.origins.title, mountpoint)
    # Worker threads may still wait on silent connections, for bytes that have no reader any more.
    logging.shutdown()
    os._exit(0)


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
