"""The ways in which processes read a file: what order of offsets and sizes the kernel sends. Pure."""

import random
from collections.abc import Callable

from lazyfs.objects import KIB, MIB

Read = tuple[int, int]
"""(offset, size), as the kernel sends it: the size may reach past the end of the file."""

SIZES = (4 * KIB, 64 * KIB, 128 * KIB, 192 * KIB, 256 * KIB, MIB, MIB, MIB)


def upwards(dice: random.Random, size: int, count: int) -> list[Read]:
    """From somewhere to the end."""
    step = dice.choice(SIZES)
    start = dice.choice((0, 0, dice.randrange(size + 1)))
    return [(start + number * step, step) for number in range(count)]


def downwards(dice: random.Random, size: int, count: int) -> list[Read]:
    """From somewhere to the beginning."""
    step = dice.choice(SIZES)
    start = dice.choice((size, dice.randrange(size + 1)))
    return [(start - (number + 1) * step, step) for number in range(count) if start >= (number + 1) * step]


def strided(dice: random.Random, size: int, count: int) -> list[Read]:
    """Elements at equal distances."""
    length, step = dice.choice(SIZES), dice.randint(1, 12) * MIB // 2
    start = dice.randrange(size // 2 + 1)
    reads = [(start + number * step, length) for number in range(count)]
    return reads if dice.random() < 0.7 else reads[::-1]


def touches(dice: random.Random, size: int, count: int) -> list[Read]:
    """A page here and there."""
    return [(dice.randrange(size + 1) // (4 * KIB) * (4 * KIB), 4 * KIB) for _ in range(count)]


def around(dice: random.Random, size: int, count: int) -> list[Read]:
    """What the kernel reads around touches of a mapping: 1 MiB each, not beyond the end."""
    pages = [dice.randrange(size + 1) // (4 * KIB) * (4 * KIB) for _ in range(count)]
    return [(page, min(MIB, size - page)) for page in pages if page < size]


def mapped(dice: random.Random, size: int, count: int) -> list[Read]:
    """What the kernel's read-ahead of a walk through a mapping sends: 1 MiB each, now and then out of order."""
    start = dice.randrange(size + 1) // (4 * KIB) * (4 * KIB)
    reads = [(start + number * MIB, MIB) for number in range(count)]
    for place in range(len(reads) - 1):
        if dice.random() < 0.2:
            reads[place], reads[place + 1] = reads[place + 1], reads[place]
    return reads


def anything(dice: random.Random, size: int, count: int) -> list[Read]:
    """Any offset and size, also several chunks at once, nothing at all, and past the end."""
    return [(dice.randrange(size + MIB), dice.choice((0, 1, dice.randrange(5 * MIB)))) for _ in range(count)]


PATTERNS: tuple[Callable[[random.Random, int, int], list[Read]], ...] = (
    upwards,
    upwards,
    downwards,
    strided,
    touches,
    around,
    mapped,
    mapped,
    anything,
)


def draw(dice: random.Random, size: int, count: int) -> list[Read]:
    """At most `count` reads of a file of `size` bytes."""
    return dice.choice(PATTERNS)(dice, size, count)
