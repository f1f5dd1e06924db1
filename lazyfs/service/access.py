"""The access log: a line for each request of the kernel, in a file of its own or in the log.

Its job: to cost the loop next to nothing, 3 us a request: what is told is put into a queue, and a thread makes lines of
it. When the disk does not follow, lines are dropped, and that is said; readers never wait for it. A file that was
renamed (logrotate) is opened anew. Must not know FUSE.
"""

import contextlib
import json
import logging
import queue
import threading
import time
from logging.handlers import WatchedFileHandler

from lazyfs.errors import SetupError
from lazyfs.filesystem.calls import About
from lazyfs.service.logs import told

log = logging.getLogger(__name__)

MOST_QUEUED = 50_000
"""Requests that wait to be written: about a second of the most there can be, and 20 MiB."""

LAST = 1.0
"""Seconds for the end: what is queued is written."""

THE_LOG = "-"

Entry = tuple[float, str, About, str, float]


class AccessLog:
    """Told of requests on the loop (it is a `calls.Listener`); writes in a thread of its own."""

    def __init__(self, place: str, format_: str) -> None:
        """`place`: a path, or `-` for the log. `SetupError` if it cannot be written."""
        self._line = _json_line if format_ == "json" else _text_line
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._dropped = 0
        self._logger = logging.getLogger("lazyfs.access")
        self._logger.setLevel(logging.INFO)  # asked for by name, whatever else is logged
        self._file: _File | None = None
        if place != THE_LOG:
            try:
                self._file = _File(place, encoding="utf-8", errors="backslashreplace")
            except OSError as error:
                raise SetupError(
                    f"cannot write the access log {place}: {error.strerror}; choose another --access-log"
                ) from None
        self._thread = threading.Thread(target=self._write, name="access log", daemon=True)
        self._thread.start()

    def __call__(self, operation: str, about: About, result: str, seconds: float) -> None:
        """One request was answered."""
        if self._queue.qsize() >= MOST_QUEUED:
            self._dropped += 1
        else:
            self._queue.put((time.time(), operation, about, result, seconds))

    def close(self) -> None:
        """Write what is queued, if that does not take long."""
        self._queue.put(None)
        self._thread.join(LAST)

    def _write(self) -> None:
        while (entry := self._queue.get()) is not None:
            if self._file is None:
                self._logger.info("%s", self._line(entry))
            else:
                self._file.emit(logging.makeLogRecord({"msg": self._line(entry)}))
            if self._dropped and self._queue.empty():
                dropped, self._dropped = self._dropped, 0
                log.warning("%d lines of the access log were dropped: it could not be written in time", dropped)
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a disk that is full; said already
                self._file.close()


class _File(WatchedFileHandler):
    """A file that says once that it cannot be written, and goes on trying."""

    failing = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            self.reopenIfNeeded()
            if self.stream is not None:  # only between a close and the next line
                self.stream.write(record.getMessage() + "\n")
                self.stream.flush()
            self.failing = False
        except (OSError, ValueError) as error:
            if not self.failing:
                log.warning("the access log cannot be written, its lines are lost: %s", error)
            self.failing = True


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e6):06d}Z"


def _text_line(entry: Entry) -> str:
    """`TIME read 'a/b' offset 0 size 131072 ok 83 us`."""
    when, operation, about, result, seconds = entry
    where = f" offset {about.offset} size {about.size}" if about.size >= 0 else ""
    what = f" {about.key + about.name!r}" if about.key or about.name else ""
    return told(f"{_when(when)} {operation}{what}{where} {result} {seconds * 1e6:.0f} us")


def _json_line(entry: Entry) -> str:
    when, operation, about, result, seconds = entry
    fields: dict[str, object] = {"time": _when(when), "operation": operation, "key": told(about.key + about.name)}
    if about.size >= 0:
        fields |= {"offset": about.offset, "size": about.size}
    return json.dumps(fields | {"result": result, "microseconds": round(seconds * 1e6)})
