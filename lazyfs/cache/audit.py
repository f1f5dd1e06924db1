"""Whether an index file can be trusted, asked before it is opened."""

import subprocess
import sys
from pathlib import Path


def verify(path: Path) -> bool:
    """Whether the index file is whole, by lmdb's own offline checker, which does not open it as a database.

    In a process of its own, for it is meant as a program. Reads the whole file, so not for every start.
    """
    if not (path / "data.mdb").exists():
        return True
    command = [sys.executable, "-m", "lmdb", "verify", "-e", str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
