"""How what must be fetched is cut into GETs: small ones near the reader while connections are idle, large ones else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cache.spans import spans_to_get
from lazyfs.objects import MIB, runs


def lengths(absent: range, demand: int, idle: int, most: int = 8) -> list[int]:
    """Chunks of each GET, of which who waits for those before `demand` is there, or before the first."""
    return [len(span) for span in spans_to_get(absent, max(0, demand) * MIB, demand * MIB, idle=idle, most=most)]


@pytest.mark.parametrize(
    ("absent", "demand", "idle", "expected"),
    [
        (range(1), 1, 32, [1]),
        (range(8), 1, 32, [1] * 8),
        (range(16), 0, 32, [1] * 8 + [8]),
        (range(16), 1, 4, [1] * 4 + [6, 6]),
        (range(16), 1, 0, [1, 8, 7]),
        (range(2, 12), 4, 0, [2, 8]),
        (range(2), 2, 0, [2]),
        (range(2), 2, 1, [2]),
        (range(2), 2, 2, [1, 1]),
        (range(16), 2, -5, [2, 7, 7]),
        (range(8, 16), 0, 32, [8]),
        (range(64, 128), 0, 32, [2] * 32),
        (range(128, 192), 0, 32, [8] * 8),
        (range(127, 191), 0, 32, [1] + [2] * 31 + [1]),
        (range(16), -200, 32, [8, 8]),
        (range(16), -64, 32, [1] * 16),
        (range(16), -4, 32, [1] * 16),
        (range(64, 128), 0, 8, [8] * 8),
        (range(256), 0, 32, [1] * 8 + [8] * 31),
    ],
)
def test_the_cut(absent: range, demand: int, idle: int, expected: list[int]) -> None:
    """Small while it helps, then on the grid of large ones; a window that grows at once goes over all connections; as
    few as may be once all are busy."""
    assert lengths(absent, demand, idle) == expected


def test_nobody_waits_for_what_is_near_somebody() -> None:
    """Where he is says how it is cut, and not what is urgent: two that are busy have few GETs, and a third is none of
    theirs."""
    assert spans_to_get(range(8), 0, 0, idle=2, most=8) == [range(1), range(1, 2), range(2, 8)]
    assert spans_to_get(range(100, 108), 0, 99 * MIB, idle=32, most=8) == [range(n, n + 1) for n in range(100, 107)] + [
        range(107, 108)
    ]
    assert spans_to_get(range(4), 2 * MIB, -200 * MIB, idle=32, most=8) == [range(1), range(1, 2), range(2, 4)]


@given(
    st.sets(st.integers(0, 200)),
    st.integers(0, 200),
    st.integers(-300, 300),
    st.integers(-40, 40),
    st.integers(1, 16),
)
def test_each_chunk_once(numbers: set[int], demand: int, reader: int, idle: int, most: int) -> None:
    """Whatever is absent, it is asked for once, in ascending spans of adjacent chunks that are not too long."""
    spans = spans_to_get(sorted(numbers), demand * MIB, reader * MIB, idle=idle, most=most)
    assert [number for span in spans for number in span] == sorted(numbers)
    assert all(1 <= len(span) <= most for span in spans)
    urgent = sorted(number for number in numbers if number < demand)
    if idle >= len(urgent):
        assert all(len(span) == 1 for span in spans if span.start < demand)
    if idle <= 0:
        rest = sorted(numbers - set(urgent))
        assert len(spans) == sum(-(-len(run) // most) for part in (urgent, rest) for run in runs(part, 1000))
    assert not any(span.start < demand < span.stop for span in spans), "read-ahead in a GET that goes before all"
