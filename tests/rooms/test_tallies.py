"""Durations in buckets, by the rule of Prometheus: a duration that is the end of a bucket is in it."""

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.tallies import QUICK, SLOW, Tally


@given(st.lists(st.one_of(st.floats(0, 1e6), st.sampled_from(QUICK)), max_size=30))
def test_each_duration_is_in_one_bucket(durations: list[float]) -> None:
    """The smallest that holds it."""
    tally = Tally(QUICK)
    for seconds in durations:
        tally.add(seconds)
    found = tally.state()
    assert found.count == len(durations)
    assert found.total == sum(durations)
    for end in QUICK:
        upto = sum(count for bound, count in zip(found.bounds, found.counts, strict=False) if bound <= end)
        assert upto == sum(seconds <= end for seconds in durations)


def test_a_state_is_a_copy() -> None:
    """What is counted later is not in it."""
    tally = Tally(SLOW)
    before = tally.state()
    tally.add(0.02)
    assert (before.count, tally.state().count) == (0, 1)
