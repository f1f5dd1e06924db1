"""What ends the process when the loop does not: signals and clocks in threads of their own, outside the loop.

Its job: hear SIGTERM and SIGINT also while the loop stands still, start the clock of the end when one comes, notice a
loop that has stopped for good, and then abort the connection, so that readers get an error and none is left waiting for
a process that does nothing. Must not know what the mount is made of.

Why by signal threads: Python runs its handlers in the main thread, between two steps of it; a loop that waits for a
disk that hangs takes no step. What no thread can help with is one that keeps the interpreter for itself; SIGKILL does,
with which systemd ends a service that outlives its stop.
"""

import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path

import trio

from lazyfs.service import mounts
from lazyfs.service.notify import listens, notify, watchdog_time

log = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds for an orderly end; after that the process ends without: libfuse before 3.18 can hang in a lazy unmount."""

LOOK = 10.0
"""Seconds between two questions to the loop whether it moves; the only thing that an idle mount does."""

LOOKS = 6
"""Questions in a row without an answer after which the loop has stopped for good. Not seconds: a machine that was
suspended, or a container that was paused, has missed all of the time and none of the questions."""

ENDINGS = (signal.SIGTERM, signal.SIGINT)


class Watchdog:
    """The watchdog of this process. Made on the loop, before other threads are started, which must not get signals.
    `others`: what is done about signals that do not ask for the end, in a thread, also while the loop stands still."""

    def __init__(self, mountpoint: str, others: Mapping[signal.Signals, Callable[[], None]]) -> None:
        self._mountpoint = mountpoint
        self._token = trio.lowlevel.current_trio_token()
        self._lock = threading.Lock()
        self._ending = False
        self._device: str | None = None
        self._status: Callable[[], str] = str
        self.said = ""
        """The status that systemd was last told; empty before it is told that the mount is ready."""
        self.asked = trio.Event()
        """Set when a signal asks for the end."""
        self._others = others
        signal.pthread_sigmask(signal.SIG_BLOCK, (*ENDINGS, *others))
        self._start(self._hear)

    def mounted(self, status: Callable[[], str]) -> None:
        """From here on there is a connection to abort, and a loop that must move; while it does, systemd is told so,
        and what `status`, called on the loop, says. Reads /proc."""
        self._status = status
        found = mounts.mounted_at(self._mountpoint)
        self._device = None if found is None else found.device
        self._start(self._look)

    def handed_over(self) -> None:
        """The connection is another process's, and so is what systemd is told."""
        self._device, self.said = None, ""

    def end_in_time(self) -> None:
        """Start the clock of the end, once: the process is over when it has run down, one way or the other."""
        with self._lock:
            if self._ending:
                return
            self._ending = True
        timer = threading.Timer(GRACE, self._end, ["the mount does not end by itself"])
        timer.daemon = True
        timer.start()

    def _start(self, target: Callable[[], None]) -> None:
        threading.Thread(target=target, name="watchdog", daemon=True).start()

    def _hear(self) -> None:
        while True:
            number = signal.Signals(signal.sigwait((*ENDINGS, *self._others)))
            if number in self._others:
                self._others[number]()
                continue
            self.end_in_time()
            try:
                self._token.run_sync_soon(self._heard, number)
            except trio.RunFinishedError:
                return

    def _heard(self, number: int) -> None:
        if not self.asked.is_set():
            log.info("%s: unmounting", signal.Signals(number).name)
            self.asked.set()

    def _look(self) -> None:
        """All that systemd is told while nothing happens is told from here, so that an idle mount wakes for one thing
        only: `WATCHDOG=1` after each answer of the loop, `STATUS=` when it is another than before."""
        # Half of systemd's time would do for a loop that answers at once.
        watched = watchdog_time()
        every = min(LOOK, (watched or inf) / 3)
        pause, missed = threading.Event(), 0
        while missed * every < LOOK * LOOKS:
            moved, words = threading.Event(), [""]
            try:
                self._token.run_sync_soon(self._answer, words, moved)
            except trio.RunFinishedError:
                return
            if not moved.wait(every):
                missed += 1
                continue
            missed = 0
            if listens() and not self.asked.is_set():
                news = ["WATCHDOG=1"] if watched else []
                if self.said and words[0] not in ("", self.said):
                    news.append(f"STATUS={words[0]}")
                    self.said = words[0]
                if news:
                    notify(*news)
            pause.wait(every)
        self._end(f"the mount's loop has not moved for {LOOK * LOOKS:.0f} s")

    def _answer(self, words: list[str], moved: threading.Event) -> None:
        try:
            words[0] = self._status() if listens() else ""
        except Exception:  # an exception here would end the loop, and a status line is not worth a mount
            log.exception("a defect in the status line")
        moved.set()

    def _end(self, why: str) -> None:
        """Say where every thread stands, wake whoever waits in the kernel, and be gone."""
        sys.stderr.flush()
        log.critical("%s; aborting it. Where its threads are:", why)
        faulthandler.dump_traceback(all_threads=True)
        if self._device is not None:
            try:
                Path("/sys/fs/fuse/connections", self._device.split(":")[1], "abort").write_text("1")
            except OSError as error:
                # No rights, or nobody mounted fusectl. The kernel aborts it when the last thread of ours is gone, which
                # is now, unless one waits for our own mount.
                log.info("the connection is aborted by the kernel when this process is gone: %s", error)
        os._exit(1)
