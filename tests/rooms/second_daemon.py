"""Another daemon on the same cache directory, in a process of its own: LMDB opens a file once in a process.

    python -m tests.rooms.second_daemon DIR [MAX_SIZE]

reads one command a line and answers each with one line of JSON: `keep KEY SIZE SEED NUMBER...`, `have KEY SIZE SEED
NUMBER...` (which of them it reads, verified and equal), `bury SIZE`, `close`. Objects are those of `building.pattern`.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lazyfs.cache.directory import CacheDirectory
from lazyfs.cache.disk import Disk
from tests.rooms.building import bury, chunk_on, keep, pattern, verified, version_of


class SecondDaemon:
    """The parent's side."""

    def __init__(self, place: Path, max_size: int | None = None) -> None:
        command = [sys.executable, "-m", "tests.rooms.second_daemon", str(place)]
        self._process = subprocess.Popen(
            command + ([] if max_size is None else [str(max_size)]),
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    def ask(self, *words: object) -> Any:
        """The answer to one command."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process.stdout.close()


def answer(disk: Disk, words: list[str]) -> object:
    """What one command does."""
    if words[0] == "bury":
        bury(disk, int(words[1]))
        return True
    data = pattern(int(words[2]), int(words[3]))
    version = version_of(words[1], data)
    numbers = [int(word) for word in words[4:]]
    if words[0] == "keep":
        return keep(disk, version, data, numbers)
    return [n for n in numbers if chunk_on(disk, version, n) == bytes(verified(version, data, n).view)]


def main() -> None:
    """The child's side: until its input ends, which is an orderly close."""
    max_size = int(sys.argv[2]) if len(sys.argv) > 2 else None
    disk = Disk(CacheDirectory(Path(sys.argv[1]), create=False), max_size=max_size, min_free=0)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(disk, line.split())) + "\n")
        sys.stdout.flush()
    disk.close()


if __name__ == "__main__":
    main()
