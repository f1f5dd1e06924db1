"""How a running mount is watched from outside: in a thread of its own, with a loop of its own.

Its job: serve pages and push metrics without ever holding up the mount's loop, and without being held up by it: a loop
that stands still is asked, does not answer, and is told of. Must not know what the numbers are called (`metrics`) or
how HTTP goes (`http`).

Concurrency: everything but what is public, which is the mount's loop's, runs in the thread. The loop is asked one
question at a time, whoever waits for the answer, and its answer is good for `FRESH`: so whatever clients do, it is
asked a few times a second at most.
"""

import contextlib
import json
import logging
import threading
from collections.abc import Callable
from functools import partial

import trio

from lazyfs.config import Config
from lazyfs.service import http, metrics
from lazyfs.service.facts import Facts, gather
from lazyfs.service.listening import Listening
from lazyfs.service.metrics import Health
from lazyfs.service.mount import RunningMount
from lazyfs.service.otlp import Push, pusher
from lazyfs.service.pages import Pages

log = logging.getLogger(__name__)

FRESH = 0.25
"""Seconds for which an answer of the loop is not asked for again."""

PATIENCE = 2.0
"""Seconds in which the loop must answer to count as turning. Scrapes usually wait 10."""

LAST = 1.5
"""Seconds for the end: one last push to a collector."""


class Observer:
    """What watches one mount, as the configuration says."""

    def __init__(self, config: Config, mount: RunningMount) -> None:
        """Bind the socket. `SetupError` if that cannot be done, or what a push needs is not installed."""
        self._push = pusher(config.otlp_endpoint) if config.otlp_endpoint else None
        self._listening = Listening(config.metrics_address) if config.metrics_address else None
        self._gather = partial(gather, mount)
        self._main = trio.lowlevel.current_trio_token()
        self._here: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._question: Question | None = None
        self._facts: Facts | None = None
        self._mounted = False
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)
        self._mount = mount
        self._pages: Pages | None = None
        if self._listening is not None and config.metrics_address is not None:
            mount.metrics_at = self._listening.where
            self._pages = Pages(mount, config.metrics_address, self._main, self._look)
            mount.page_at = "" if config.metrics_address.path else f"{self._listening.where}/#{self._pages.key}"
            log.info("metrics are served at %s", self._listening.where)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def mounted(self, is_: bool, /) -> None:
        """The mount can be read from now on, or no longer."""
        self._mounted = is_
        if is_:
            self._mount.loads.mounted()

    async def stop(self) -> None:
        """Stop answering, after a last push if there is where to."""
        self.close()
        if self._thread.is_alive():
            await trio.to_thread.run_sync(self._thread.join, LAST, abandon_on_cancel=True)

    def close(self) -> None:
        """Stop answering, at once."""
        if self._listening is not None:
            self._listening.close()
        if self._here is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._here.run_sync_soon(self._scope.cancel)

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except Exception:
            log.exception("a defect ended what watches the mount; the mount goes on")

    async def _serve(self) -> None:
        self._here = trio.lowlevel.current_trio_token()
        routes: http.Routes = {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/cache/stats": self._stats,
            "/cache/metrics": self._json,
        }
        if self._pages is not None:
            routes = self._pages.routes(routes)
        with self._scope:
            async with trio.open_nursery() as nursery:
                if self._listening is not None:
                    nursery.start_soon(http.serve, self._listening.socket, routes)
                if self._push is not None:
                    nursery.start_soon(self._push_on, self._push)
                await trio.sleep_forever()
        if self._push is not None:
            with trio.move_on_after(LAST):
                await self._push_once(self._push)

    # ---- the pages

    async def _metrics(self, request: http.Request) -> http.Answer:
        facts, health = await self._look()
        kind, text = metrics.page(metrics.families(facts, health), request.headers.get("accept", ""))
        return http.Answer(text, kind)

    async def _json(self, _: http.Request) -> http.Answer:
        found = metrics.as_json(metrics.families(*await self._look()))
        return http.Answer(json.dumps(found).encode(), "application/json")

    async def _stats(self, _: http.Request) -> http.Answer:
        facts, health = await self._look()
        if facts is None or not health.turning:
            return http.Answer(json.dumps({"error": health.words}).encode(), "application/json", 503)
        return http.Answer(facts.report, "application/json")

    async def _healthz(self, _: http.Request) -> http.Answer:
        health = (await self._look())[1]
        return http.sentence(503 if health.words else 200, health.words or "ok")

    # ---- the collector

    async def _push_on(self, push: Push) -> None:
        while True:
            await trio.sleep(push.interval)
            await self._push_once(push)

    async def _push_once(self, push: Push) -> None:
        found = metrics.families(*await self._look())
        await trio.to_thread.run_sync(push.send, found, abandon_on_cancel=True)

    # ---- the loop of the mount

    async def _look(self) -> tuple[Facts | None, Health]:
        """The facts of now, or the last ones if the loop does not answer."""
        question = self._question
        if question is None or (question.done.is_set() and trio.current_time() - question.answered > FRESH):
            question = self._question = Question(self._main, self._gather)
        with trio.move_on_at(question.asked + PATIENCE):  # who comes later does not wait as long again
            await question.done.wait()
        turning = question.done.is_set()
        if question.facts is not None:
            self._facts = question.facts
        lag = (question.answered if turning else trio.current_time()) - question.asked
        words = "" if self._mounted else "the mount cannot be read: it is starting, or ending"
        if not turning:
            words = f"the loop of the mount has not answered for {lag:.1f} s"
        return self._facts, Health(self._mounted, turning, lag, words)


class Question:
    """One question to the mount's loop: asked when it is made, `done` once the loop has answered."""

    def __init__(self, main: trio.lowlevel.TrioToken, gather_: Callable[[], Facts]) -> None:
        self.asked = self.answered = trio.current_time()
        self.done = trio.Event()
        self.facts: Facts | None = None
        here = trio.lowlevel.current_trio_token()

        def answer() -> None:
            try:
                self.facts = gather_()
            except Exception:
                log.exception("a defect while the mount's numbers were taken")
            with contextlib.suppress(trio.RunFinishedError):
                here.run_sync_soon(self._answered)

        with contextlib.suppress(trio.RunFinishedError):
            main.run_sync_soon(answer)

    def _answered(self) -> None:
        self.answered = trio.current_time()
        self.done.set()
