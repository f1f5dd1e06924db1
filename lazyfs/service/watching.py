"""What a mount tells of itself while it runs, as far as somebody asked for it: an access log, pages, pushes.

Its job: begin and end all of that. Must not know what is told, nor import what tells it before it is asked for: the
clients of Prometheus and OpenTelemetry take longer to import than a mount to start.
"""

from typing import TYPE_CHECKING

import trio

from lazyfs.config import Config
from lazyfs.service.access import AccessLog
from lazyfs.service.mount import RunningMount

if TYPE_CHECKING:
    from lazyfs.service.observer import Observer


class Watching:
    """Of one mount. All on its loop."""

    def __init__(self, config: Config, mount: RunningMount) -> None:
        """Open and bind what is needed. `SetupError` if that cannot be done."""
        self._access = AccessLog(config.access_log, config.log_format) if config.access_log else None
        mount.operations.calls.listener = self._access
        self._observer: Observer | None = None
        if config.metrics_address or config.otlp_endpoint:
            from lazyfs.service import observer  # noqa: PLC0415 - see above

            self._observer = observer.Observer(config, mount)

    def start(self) -> None:
        """Begin to answer; the mount cannot be read yet."""
        if self._observer is not None:
            self._observer.start()

    def mounted(self, is_: bool, /) -> None:
        """The mount can be read from now on, or no longer."""
        if self._observer is not None:
            self._observer.mounted(is_)

    async def stop(self) -> None:
        """Tell what is left to be told, within a bound, and stop."""
        if self._observer is not None:
            await self._observer.stop()
        if self._access is not None:
            await trio.to_thread.run_sync(self._access.close)

    def close(self) -> None:
        """Stop at once."""
        if self._observer is not None:
            self._observer.close()
