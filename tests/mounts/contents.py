"""Bytes that say which version of what they are, and where in it they lie.

Every 16 bytes hold a version number and the number of their 4 KiB page, so that bytes of a wrong version, from a wrong
place, or zeros are known on sight.
"""

import struct

import numpy as np

PAGE = 4096
MIB = 1024 * 1024


def pages(version: int, size: int) -> bytes:
    """`size` bytes of version `version`, which is not 0."""
    count = -(-size // PAGE)
    words = np.empty((count, PAGE // 16, 2), dtype="<u8")
    words[:, :, 0] = version
    words[:, :, 1] = np.arange(count, dtype="<u8")[:, None]
    return words.tobytes()[:size]


def versions_in(data: bytes, offset: int) -> set[int]:
    """The versions that whole 16 byte words of `data`, read from `offset` (a multiple of 16), belong to; 0 for words
    that belong to no version at their place."""
    found = set()
    for at in range(0, len(data) - 15, 16):
        version, page = struct.unpack_from("<QQ", data, at)
        found.add(version if page == (offset + at) // PAGE else 0)
    return found
