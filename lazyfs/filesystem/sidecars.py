"""Digests that are stored as objects beside the one they are of: which file that is, and what it says of a name. Pure.

`model.safetensors.sha256` holds the digest of `model.safetensors`: 64 hexadecimal digits, alone or as `sha256sum`
writes them. `SHA256SUMS` (or `sha256sums.txt`) holds those of all files in its directory, a line each, as `sha256sum`
writes them.
"""

import re

from lazyfs.filesystem.nodes import File
from lazyfs.objects import KIB, MIB

SUFFIX = ".sha256"
LISTS = ("SHA256SUMS", "sha256sums.txt")

LARGEST = {SUFFIX: 64 * KIB, "": 4 * MIB}
"""Bytes of one that are looked at: 40,000 lines. A larger one is something else."""

_LINE = re.compile(r"\\?([0-9A-Fa-f]{64}) [ *](.+)")
"""Of coreutils' sha256sum; a leading backslash says that the name is escaped."""


def is_sidecar(name: str) -> bool:
    """Whether this is the name of a file of digests, of which nobody expects a digest."""
    return name.endswith(SUFFIX) or name in LISTS


def beside(file: File) -> File | None:
    """The file that should hold the digest of this one, by the names of its directory; its own before the list."""
    for name in (file.name + SUFFIX, *LISTS):
        found = file.parent.children.get(name)
        kind = SUFFIX if name.endswith(SUFFIX) else ""
        if isinstance(found, File) and found.inode != file.inode and 0 < found.size <= LARGEST[kind]:
            return found
    return None


def sha256_in(text: bytes, name: str) -> str:
    """The digest that the text of such a file says `name` has, in lower case; empty if it says nothing of it."""
    lines = text.decode("utf-8", "replace").splitlines()
    if len(lines) == 1 and re.fullmatch(r"[0-9A-Fa-f]{64}", lines[0].strip()):
        return lines[0].strip().lower()
    for line in lines:
        match = _LINE.fullmatch(line.rstrip("\r\n"))
        if match is not None and match[2].removeprefix("./") == name:
            return match[1].lower()
    return ""
