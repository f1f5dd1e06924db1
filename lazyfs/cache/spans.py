"""How the chunks that must be fetched are cut into GETs. Pure; must not know how they are sent."""

from collections.abc import Iterator, Sequence

from lazyfs.objects import CHUNK_SIZE, MIB, runs

NEAR = 8 * MIB
"""From where the reader is. At 30 ms to the first byte and 90 MB/s a connection, one GET of 5 MiB takes 88 ms, and five
GETs of 1 MiB side by side 42."""


SOON = 128 * MIB
"""From there. What lies further on comes in GETs as large as may be, though connections are idle: one of 8 MiB takes
0.12 s, and so does who reads 1 GB/s until he gets there. Of four shards of 500 MiB, 531 GETs were sent before, and 294
with this."""

NEVER = 1 << 62
"""No chunk number is a multiple of it."""


def spans_to_get(absent: Sequence[int], demand: int, reader: int, *, idle: int, most: int) -> list[range]:
    """Spans of at most `most` chunks for these ascending chunk numbers, of which a reader waits for those before byte
    `demand`, while `idle` connections have nothing to do. The rest is ahead of who has got to byte `reader`, which is
    negative where he is so far before the beginning.

    Near the reader GETs are small, so that the first bytes come over many connections at once; further ahead they are
    as large as may be, for each costs the same CPU and the same wait for its first byte, but where a window grows by
    much at once, and not far from the reader, it is spread over all connections: its bytes are wanted sooner than one
    brings 8 MiB. Both only as far as connections are idle: 32 readers had 0.3 GB/s with small GETs, for 32 times 1 MiB
    in 62 ms is no more. Where none is, what a reader waits for is one GET, and what is behind it as few as may be: each
    is a round trip in which its connection brings nothing. What he does not wait for is none of his GET's, which goes
    before everybody's read-ahead.
    """
    idle = max(0, idle)
    urgent = sum(number * CHUNK_SIZE < demand for number in absent)
    if idle < urgent:
        return [*_evenly(absent[:urgent], most), *_evenly(absent[urgent:], most)]
    near = max(urgent, min(sum(number * CHUNK_SIZE < reader + NEAR for number in absent), idle))
    far = absent[near:]
    if near >= idle:
        return [*runs(absent[:near], 1), *_evenly(far, most)]
    soon = len(far) > most and far[0] * CHUNK_SIZE < reader + SOON
    share = -(-len(far) // (idle - near)) if soon else most
    return [*runs(absent[:near], 1), *runs(far, min(share, most))]


def _evenly(numbers: Sequence[int], most: int) -> Iterator[range]:
    """Each run of adjacent numbers in as few spans as may be, of one length."""
    for run in runs(numbers, NEVER):
        size = -(-len(run) // -(-len(run) // most))
        yield from (range(start, min(start + size, run.stop)) for start in range(run.start, run.stop, size))
