"""What the format of a model file says of its inside: where each tensor lies.

safetensors: 8 bytes with the length of a header in little endian, the header in JSON, and the tensors' bytes, whose
offsets in the header are counted from its end (the format's own description). Must not know who reads. Pure.
"""

import json
from typing import Any

LARGEST_HEADER = 512 * 1024
"""Bytes of a header that is looked at: 2 ms for one of 3,000 tensors, in which the loop does nothing else."""

LENGTH = 8
"""Bytes of the length before the header."""


def has_tensors(name: str) -> bool:
    """Whether a file of this name says where its tensors are."""
    return name.endswith(".safetensors")


def borders(beginning: bytes | memoryview, size: int) -> tuple[int, ...]:
    """Where tensors begin or end in a safetensors file of `size` bytes, in bytes and ascending, each once; empty unless
    the file's `beginning` holds all of a header that is right and not too large."""
    header = int.from_bytes(beginning[:LENGTH], "little")
    data = LENGTH + header
    if not LENGTH < data <= min(len(beginning), LARGEST_HEADER):
        return ()
    try:
        said = json.loads(bytes(beginning[LENGTH:data]))
        found = {offset for name, one in said.items() if name != "__metadata__" for offset in _offsets(one)}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return ()
    if not found or min(found) < 0 or data + max(found) > size:
        return ()
    return tuple(data + offset for offset in sorted(found))


def _offsets(tensor: dict[str, Any]) -> tuple[int, int]:
    start, stop = tensor["data_offsets"]
    if not (type(start) is int and type(stop) is int):
        raise TypeError("an offset is a number of bytes")
    return start, stop
