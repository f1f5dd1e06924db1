"""Whether an index file can be trusted, asked before it is opened."""

import struct
import subprocess
import sys
from pathlib import Path

_META = struct.Struct("=16x I 20x I 92x QQ")
"""Of the two header pages of LMDB's format 1: magic, page size, the last page in use, the transaction that says so."""

_MAGIC = 0xBEEFC0DE


def cut_short(path: Path) -> bool:
    """Whether the index file ends before the last page that its header names, as after a copy that broke off.

    LMDB maps the file and trusts its header, so it would die of SIGBUS where others raise. May be true of a sound file
    whose last pages were freed before they were ever written; `verify` tells.
    """
    try:
        with (path / "data.mdb").open("rb") as file:
            first = file.read(_META.size)
            if len(first) < _META.size:
                return False
            magic, page_size, last, transaction = _META.unpack(first)
            if magic != _MAGIC:
                return False
            file.seek(page_size)
            second = file.read(_META.size)
            if len(second) == _META.size and _META.unpack(second)[3] > transaction:
                last = _META.unpack(second)[2]
            return bool(file.seek(0, 2) < (last + 1) * page_size)
    except OSError:  # missing, or a directory in its place: opening it says so
        return False


def verify(path: Path) -> bool:
    """Whether the index file is whole, by lmdb's own offline checker, which does not open it as a database.

    In a process of its own, for it is meant as a program. Reads the whole file, so not for every start.
    """
    if not (path / "data.mdb").exists():
        return True
    command = [sys.executable, "-m", "lmdb", "verify", "-e", str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
