"""Words of the user's as values: sizes, times, counts, addresses. No library, disk or network.

Must not know which setting is meant: what is wrong is said in one sentence, by a `UsageError`.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from lazyfs.errors import UsageError
from lazyfs.objects import GIB, KIB, MIB

_UNITS = {"": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": 1024 * GIB}
_UNITS |= {"K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
LARGEST_SIZE = (1 << 63) - 1
"""Bytes: what the kernel counts in (off_t), and beyond every disk."""

_TIMES = {"": 1.0, "MS": 1e-3, "S": 1.0, "M": 60.0, "MIN": 60.0, "H": 3600.0, "D": 86400.0}


def parse_size(text: str) -> int:
    """`200GiB`, `64M` or `1048576` in bytes. A bare letter is a power of 1024, as for mount(8) and systemd."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise UsageError(f"{shortened(text)!r} is not a size; write it like 200GiB, 512MiB or 1048576")
    size = float(match[1]) * _UNITS[match[2].upper()]
    if size > LARGEST_SIZE:
        raise UsageError(f"{shortened(text)!r} is more than there can be; write a size like 200GiB")
    return int(size)


def shortened(text: str) -> str:
    """What the user wrote, as far as a sentence about it needs it."""
    return text if len(text) <= 100 else f"{text[:100]}..."


def parse_share(text: str) -> int | float:
    """A size, or a percentage of the filesystem as a float below 1: `5%` is 0.05."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*%", text.strip())
    if match is None:
        return parse_size(text)
    if float(match[1]) >= 100:
        said = shortened(text)
        raise UsageError(f"{said!r} leaves no room for a cache; write a percentage below 100%, or a size like 10GiB")
    return float(match[1]) / 100


def parse_duration(text: str) -> float:
    """`60s`, `5m`, `1h` or bare seconds, in seconds; `indefinite` is infinity."""
    if text.strip().lower() == "indefinite":
        return inf
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _TIMES:
        raise UsageError(f"{shortened(text)!r} is not a time; write it like 60s, 5m, 1h or indefinite")
    return float(match[1]) * _TIMES[match[2].upper()]


def parse_mode(text: str) -> int:
    """Permission bits in octal, `0444`."""
    if re.fullmatch(r"[0-7]{3,4}", text.strip()) is None:
        raise UsageError(f"{shortened(text)!r} is not a file mode; write it in octal like 0444")
    return int(text, 8)


def parse_count(text: str) -> int:
    """A whole number from 0."""
    if re.fullmatch(r"[0-9]{1,9}", text.strip()) is None:
        raise UsageError(f"{shortened(text)!r} is not a whole number")
    return int(text)


def parse_flag(text: str) -> bool:
    """`true`/`false`, `yes`/`no`, `on`/`off`, `1`/`0`; an empty word counts as set, as in `-o allow-other`."""
    word = text.strip().lower()
    if word in {"", "1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off"}:
        return False
    raise UsageError(f"{shortened(text)!r} is neither true nor false")


def parse_text(text: str) -> str:
    """Any words; white space around them is dropped."""
    return text.strip()


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a port of an address, 0 for any that is free, or, where `path` is not empty, a unix socket."""

    host: str
    port: int
    path: str = ""


LONGEST_SOCKET_PATH = 107
"""Bytes: sun_path in linux/un.h, less the NUL at its end."""


def parse_address(text: str) -> Address:
    """`127.0.0.1:9567`, `[::1]:9567`, `localhost:9567` or `unix:/path`. An address must be said, so that nobody listens
    to the whole network by leaving it out."""
    word = text.strip()
    if word.startswith("unix:"):
        path = word.removeprefix("unix:")
        size = len(path.encode("utf-8", "surrogateescape"))
        if not path.startswith("/") or "\0" in path or size > LONGEST_SOCKET_PATH:
            raise UsageError(
                f"{shortened(text)!r} is not the place of a unix socket; write unix: and an absolute path of at most "
                f"{LONGEST_SOCKET_PATH} bytes"
            )
        return Address("", 0, path)
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)|localhost):([0-9]{1,5})", word)
    try:
        host = str(ipaddress.ip_address((match[1] or match[2]) if match and match[0][0] != "l" else "127.0.0.1"))
    except ValueError:
        match, host = None, ""
    if match is None or int(match[3]) > 65535 or (match[1] is not None) != (":" in host):
        raise UsageError(
            f"{shortened(text)!r} is not an address; write 127.0.0.1:9567 or unix:/run/lazyfs.sock for this machine "
            "alone, 0.0.0.0:9567 for everybody"
        )
    return Address(host, int(match[3]))


def choice(*words: str) -> Callable[[str], str]:
    """A parser that takes one of `words`, in any case."""

    def parse(text: str) -> str:
        if text.strip().lower() not in words:
            raise UsageError(f"{shortened(text)!r} is not one of {', '.join(words)}")
        return text.strip().lower()

    return parse
