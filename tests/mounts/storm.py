"""What a reader does in a storm of overwrites: open, read here and there, close; run in a reader's process."""

import errno
import os
import random

from tests.mounts.contents import MIB, PAGE


def read_through(path: str, seed: int) -> list[tuple[str, int, bytes]]:
    """Reads of one open file as (how it went, offset, a part of the bytes), all of one version if any."""
    dice, found = random.Random(seed), []
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        return [("stale" if error.errno == errno.ESTALE else str(error), 0, b"")]
    try:
        everything = bytearray()
        for _ in range(4):
            offset, size = dice.randrange(5 * MIB // PAGE) * PAGE, dice.choice([PAGE, MIB // 2, 3 * MIB])
            try:
                data = os.pread(fd, size, offset)
            except OSError as error:
                found.append(("stale" if error.errno == errno.ESTALE else str(error), 0, b""))
                continue
            # The version is said every 16 bytes; its first 8 are enough of each page.
            everything += b"".join(data[at : at + 8] for at in range(0, len(data), PAGE))
            found.append(("read", offset, data[: 4 * PAGE]))
            found.append(("read", offset + len(data) // PAGE * PAGE - PAGE, data[-PAGE:]))
        versions = {bytes(everything[at : at + 8]) for at in range(0, len(everything), 8)}
        return found if len(versions) <= 1 else [*found, ("a mix of versions in one handle", 0, b"")]
    finally:
        os.close(fd)
