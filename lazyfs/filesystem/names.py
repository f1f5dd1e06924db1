"""Keys to paths: one pure function that says where a key appears in the tree, or why it is hidden.

The written rule:

- A key is cut at `/` below the mounted prefix; each piece is a name. All but the last are directories.
- A key that is the prefix of a directory itself (it ends in `/`) is a directory marker: the directory exists, also if
  nothing else is in it, and the key has no file, whether it has bytes or none.
- Hidden with everything below it, which counts as one: an empty name (`a//b`, a leading `/`), `.` and `..`, a name with
  NUL or longer than 255 bytes in UTF-8 (the kernel's NAME_MAX), a name that is not UTF-8 when its url-encoding is
  undone.
- Where a key is both a file and the prefix of others, the directory wins and the file is hidden.
- Names that differ only in case or Unicode form are different names.
"""

from dataclasses import dataclass
from enum import Enum

NAME_MAX = 255
"""linux/limits.h."""


class Hidden(Enum):
    """Why a key has no place in the tree."""

    OUTSIDE = "not below the mounted prefix"
    MARKER = "directory marker"
    EMPTY_NAME = "empty name between slashes"
    DOTS = "name is . or .."
    NUL = "name holds a NUL byte"
    TOO_LONG = "name is longer than 255 bytes"
    NOT_UTF8 = "name is not UTF-8"
    SHADOWED = "a directory has the same name"


@dataclass(frozen=True, slots=True)
class Placed:
    """A key's place: the names from the root of the mount down to the file, at least one."""

    names: tuple[str, ...]


def problem(name: str) -> Hidden | None:
    """Why `name` cannot be the name of an entry, or None if it can."""
    if not name:
        return Hidden.EMPTY_NAME
    if name in (".", ".."):
        return Hidden.DOTS
    if "/" in name:
        return Hidden.OUTSIDE  # a common prefix of a server that does not know what a delimiter is
    if "\0" in name:
        return Hidden.NUL
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        return Hidden.NOT_UTF8
    return Hidden.TOO_LONG if len(raw) > NAME_MAX else None


def place(key: str, prefix: str) -> Placed | Hidden:
    """Where `key` appears in a mount of `prefix` (empty, or ending in `/`), by the rule above but for `SHADOWED`,
    which depends on the other keys."""
    if not key.startswith(prefix):
        return Hidden.OUTSIDE
    rest = key[len(prefix) :]
    if not rest:
        return Hidden.MARKER
    names = rest.split("/")
    inner = names[:-1] if rest.endswith("/") else names
    for name in inner:
        reason = problem(name)
        if reason is not None:
            return reason
    return Hidden.MARKER if rest.endswith("/") else Placed(tuple(names))
