"""Versions whose bytes must not be served now: what was found wrong waits to be fetched again, or is refused for good.

Must not know why. Loop thread only. Costs nothing while nothing is barred.
"""

import trio

from lazyfs.errors import LazyfsError
from lazyfs.objects import ObjectVersion


class _Bar:
    __slots__ = ("changed", "error")

    def __init__(self) -> None:
        self.changed = trio.Event()
        self.error: LazyfsError | None = None


class Barred:
    """The versions that are barred, by their object_id."""

    def __init__(self) -> None:
        self._bars: dict[bytes, _Bar] = {}

    def __len__(self) -> int:
        return len(self._bars)

    def __contains__(self, version: ObjectVersion) -> bool:
        return bool(self._bars) and version.object_id in self._bars

    def hold(self, version: ObjectVersion) -> None:
        """Readers of this version wait from now on."""
        self._bars.setdefault(version.object_id, _Bar())

    def refuse(self, version: ObjectVersion, error: LazyfsError) -> None:
        """Readers of this version get the error from now on, those that wait as well."""
        bar = self._bars.setdefault(version.object_id, _Bar())
        bar.error = error
        bar.changed.set()

    def admit(self, version: ObjectVersion) -> None:
        """Readers of this version go on."""
        bar = self._bars.pop(version.object_id, None)
        if bar is not None:
            bar.changed.set()

    async def passed(self, version: ObjectVersion) -> None:
        """Return when the version may be read, or raise what it is refused with."""
        while (bar := self._bars.get(version.object_id)) is not None:
            if bar.error is not None:
                raise bar.error
            await bar.changed.wait()
