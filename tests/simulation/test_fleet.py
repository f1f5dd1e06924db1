"""Fleets that start at once: no storm of refusals, and nobody is left behind."""

import functools

import pytest

from tests.simulation.fleet import Outcome, Plan, simulate

SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 9))]


outcome_of = functools.cache(simulate)
"""What a plan comes to, once for all who ask."""


def ideal(plan: Plan) -> float:
    """Seconds that a prefix takes for all of it."""
    return plan.daemons * plan.spans / plan.limit


def check(plan: Plan, outcome: Outcome) -> None:
    """All are ready, once, by no more than twice the time that it takes anyway, and no request was made up."""
    assert len(outcome.ready) == plan.daemons
    assert outcome.asked.total() - outcome.refused.total() == plan.daemons * plan.spans
    assert max(outcome.ready) < 2 * ideal(plan) + plan.jitter


@pytest.mark.parametrize("seed", SEEDS)
def test_fifty_at_once(seed: int) -> None:
    """What is refused is the first burst, 32 requests of each that nobody can know to be too many, and little more."""
    plan = Plan(seed=seed)
    outcome = outcome_of(plan)
    check(plan, outcome)
    assert outcome.refused.total() < 50 * 32 * 1.5
    later = sum(count for second, count in outcome.refused.items() if second >= 2)
    assert later < 0.1 * plan.daemons * plan.spans


@pytest.mark.parametrize("seed", SEEDS)
def test_jitter_spreads_it(seed: int) -> None:
    """Over ten seconds: no second is as busy as the first one was, and no more is refused."""
    at_once, spread = outcome_of(Plan(seed=seed)), outcome_of(Plan(seed=seed, jitter=10.0))
    check(Plan(seed=seed, jitter=10.0), spread)
    assert spread.refused.total() <= at_once.refused.total()
    assert max(spread.asked.values()) < 0.7 * max(at_once.asked.values())


def test_each_by_itself_is_a_storm() -> None:
    """What the patience is for: clients that keep a pause for each request ask more than twice as often as they
    need."""
    ours, theirs = outcome_of(Plan()), outcome_of(Plan(patient=False))
    assert theirs.excess > 2
    assert ours.excess < 1.3


@pytest.mark.parametrize("limit", [100.0, 1000.0])
def test_whatever_the_limit_is(limit: float) -> None:
    """Two requests a second for each daemon, or twenty: they settle near it."""
    plan = Plan(limit=limit, spans=max(100, int(limit) // 3))
    outcome = outcome_of(plan)
    check(plan, outcome)
    assert outcome.excess < 1.6
    end = int(max(outcome.ready))
    middle = [outcome.asked[second] for second in range(end // 4, end // 2)]
    assert max(middle) < 4 * limit


def test_one_alone_is_not_held_up() -> None:
    """Below the limit nothing is refused, and it takes as long as 28 connections take; four are kept for demand."""
    plan = Plan(daemons=1, spans=320)
    outcome = outcome_of(plan)
    assert outcome.refused.total() == 0
    assert outcome.ready[0] == pytest.approx(12 * (0.03 + 8 * 1024 * 1024 / 90e6))


def test_the_same_seed_is_the_same_fleet() -> None:
    """So that a number in the README can be had again."""
    assert simulate(Plan(jitter=10.0)).words() == outcome_of(Plan(jitter=10.0)).words()
