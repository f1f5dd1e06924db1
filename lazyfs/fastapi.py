"""A model for a FastAPI application: got while the server starts, and said to be ready only when it can be used.

    model = Model("llama-3-8b", "v1", source="s3://my-models/llm/", load=load_weights, start_jitter=10)
    app = FastAPI(lifespan=model.lifespan)
    app.include_router(model.router)

    @app.post("/predict")
    def predict(question: Question, weights: Annotated[Weights, Depends(model.loaded)]) -> Answer: ...

The server answers from its first second: `/cache/health` with 503 and why until the model is usable, then with 200,
which is what a load balancer and Kubernetes' readiness probe ask; and so does every route that depends on
`model.loaded`.

One thread gets the model, through `lazyfs.ModelCache`: a path in a mount of this machine, or files on this disk. It is
a daemon thread, so that a server that is stopped while the model arrives ends at once; what has arrived is found again.

Needs the extra `lazyfs[fastapi]`. A door of the house, for programs: no room imports it.
"""

import json
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from lazyfs import __version__
from lazyfs.errors import LazyfsError, UsageError
from lazyfs.service import metrics, mounts, warmth
from lazyfs.service.modelcache import ModelCache
from lazyfs.words import parse_duration

log = logging.getLogger(__name__)

RETRY_AFTER = 5
"""Seconds after which who was told 503 may ask again."""

PAUSES = (1.0, 60.0)
"""Seconds between attempts to get the model, doubling from the first to the second: a bucket that does not answer now,
or a model that is not published yet, is asked for again for as long as the server runs."""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]


@dataclass(frozen=True, slots=True)
class State:
    """How far the model is. `step`: waiting (for its turn), getting, warming, loading, ready, or failed; `trouble` is
    what went wrong last, and `seconds` since the start, until it was ready."""

    step: str
    trouble: str
    seconds: float


class Model:
    """One version of a model in one application. Safe for threads."""

    def __init__(
        self,
        model: str,
        version: str,
        *,
        source: str | None = None,
        load: Callable[[Path], Any] | None = None,
        warm: bool = False,
        start_jitter: float | str = 0.0,
        cache: ModelCache | None = None,
        **settings: Any,
    ) -> None:
        """`load` makes of the version's directory what routes are given, by default the directory itself. `warm`: if it
        is in a mount, have the mount bring all of it to its disk first. `start_jitter`: the start waits for a random
        part of so many seconds, or of a duration like "10s", so that a fleet does not ask at once.

        `cache` or `source` and `settings` as for `lazyfs.ModelCache`. `UsageError` says what is wrong with them.
        """
        if cache is not None and (source is not None or settings):
            raise UsageError("give a cache, or the source and settings of one, and not both")
        jitter = parse_duration(start_jitter) if isinstance(start_jitter, str) else float(start_jitter)
        if not 0 <= jitter < float("inf"):
            raise UsageError("start_jitter must be a number of seconds, from 0")
        self._of = (model, version)
        self._load = load or (lambda path: path)
        self._warm = warm
        self._jitter = jitter
        self._own = cache is None
        self.cache = cache if cache is not None else ModelCache(source, **settings)
        self._stopped = threading.Event()
        self._began = time.monotonic()
        self._state = State("waiting", "", 0.0)
        self._loaded: Any = None
        self._path: Path | None = None
        self.router = APIRouter(prefix="/cache", tags=["cache"])
        self.router.add_api_route("/health", self._health, methods=["GET"])
        self.router.add_api_route("/stats", self._stats, methods=["GET"])
        self.router.add_api_route("/metrics", self._metrics, methods=["GET"])

    @property
    def state(self) -> State:
        """How far it is now."""
        return self._state

    def loaded(self) -> Any:
        """A dependency of routes: what `load` made of the model; 503 with Retry-After until there is one."""
        if self._state.step != "ready":
            raise HTTPException(503, self._words(), headers={"Retry-After": str(RETRY_AFTER)})
        return self._loaded

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """The lifespan of an application, which gets the model beside its first requests."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def around(self, other: Lifespan) -> Lifespan:
        """A lifespan within this one, for an application that has its own."""

        @asynccontextmanager
        async def both(app: FastAPI) -> AsyncIterator[Any]:
            async with self.lifespan(app), other(app) as given:
                yield given

        return both

    def start(self) -> None:
        """Begin to get the model."""
        # Another event for each start: what an earlier one still waits for must not come to life again.
        self._stopped.set()
        stopped = self._stopped = threading.Event()
        self._began = time.monotonic()
        self._step("waiting")
        threading.Thread(target=self._run, args=(stopped,), name=f"get {'/'.join(self._of)}", daemon=True).start()

    def stop(self) -> None:
        """No more attempts; the version may be evicted from now on."""
        self._stopped.set()
        self._loaded = None
        self._step("waiting")
        self.cache.release(*self._of)
        if self._own:
            self.cache.close()

    # ---- the thread

    def _run(self, stopped: threading.Event) -> None:
        if stopped.wait(random.uniform(0, self._jitter)):
            return
        pause = PAUSES[0]
        while not stopped.is_set():
            try:
                self._get(stopped)
                return
            except Exception as error:
                if not isinstance(error, LazyfsError):
                    log.exception("%s cannot be loaded", "/".join(self._of))
                else:
                    log.error("%s cannot be had: %s", "/".join(self._of), error)
                self._step("failed", str(error) or type(error).__name__)
                if isinstance(error, UsageError):
                    return
            if stopped.wait(pause * random.uniform(0.5, 1.0)):
                return
            pause = min(2 * pause, PAUSES[1])

    def _get(self, stopped: threading.Event) -> None:
        self._step("getting")
        path = self._path = self.cache.get(*self._of)
        if self._warm and (mount := mounts.lazyfs_holding(path)) is not None:
            self._step("warming")
            warmth.warm(mount.mountpoint, path, stop=stopped.is_set)
        self._step("loading")
        loaded = self._load(path)
        if not stopped.is_set():
            self._loaded = loaded
            self._step("ready")

    def _step(self, step: str, trouble: str | None = None) -> None:
        kept = self._state.trouble if trouble is None and step in ("getting", "warming", "loading") else ""
        self._state = State(step, trouble or kept, round(time.monotonic() - self._began, 3))

    def _words(self) -> str:
        state = self._state
        return f"{'/'.join(self._of)} is not ready: {state.step}{state.trouble and f' ({state.trouble})'}"

    # ---- routes

    def _health(self) -> Response:
        """200 when the model can be used; until then 503, with how far it is and what went wrong last."""
        state = self._state
        ready = state.step == "ready"
        seconds = state.seconds if ready else round(time.monotonic() - self._began, 3)
        body = {"model": self._of[0], "version": self._of[1], "ready": ready, **asdict(state), "seconds": seconds}
        return JSONResponse(body, 200 if ready else 503, None if ready else {"Retry-After": str(RETRY_AFTER)})

    def _stats(self) -> dict[str, Any]:
        """Counters of the model cache; if the model is in a mount, those of the mount as well."""
        mount = None if self._path is None else mounts.lazyfs_holding(self._path)
        return {
            "version": __version__,
            "state": asdict(self._state),
            "cache": asdict(self.cache.stats()),
            "mount": None if mount is None else _said_by(mount.mountpoint),
        }

    def _metrics(self, request: Request) -> Response:
        """The counters, and whether the model is ready, as Prometheus reads them."""
        ready = self._state.step == "ready"
        kind, text = metrics.page(metrics.of_models(self.cache.stats(), ready=ready), request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": kind})


def _said_by(mountpoint: str) -> dict[str, Any]:
    """The counters of a mount, or its `trouble`."""
    try:
        return dict(json.loads(mounts.stats_of(mountpoint)))
    except (OSError, TimeoutError, ValueError) as error:
        return {"mountpoint": mountpoint, "trouble": str(error)}
