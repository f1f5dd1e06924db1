"""The table and the curves of `scripts/fleet`."""

import argparse
import sys
from dataclasses import replace
from statistics import median

from tests.simulation.fleet import Outcome, Plan, simulate

WIDTH = 60
"""Characters of the longest bar."""


def row(name: str, outcome: Outcome) -> str:
    """A line of the table, as the README has it."""
    first, middle, last = min(outcome.ready), median(outcome.ready), max(outcome.ready)
    return (
        f"| {name} | {outcome.asked.total():,} | {outcome.refused.total():,} | {max(outcome.asked.values()):,} | "
        f"{first:.0f} / {middle:.0f} / {last:.0f} s |"
    )


def curve(name: str, outcome: Outcome) -> str:
    """Requests of each second as bars: # for those that were answered, - for those that were refused."""
    most = max(outcome.asked.values())
    lines = [f"{name}:"]
    for second in range(int(max(outcome.ready)) + 1):
        asked, refused = outcome.asked[second], outcome.refused[second]
        good = round((asked - refused) * WIDTH / most)
        lines.append(f"{second:4d} s {asked:6d} {'#' * good}{'-' * (round(asked * WIDTH / most) - good)}")
    return "\n".join(lines)


def main() -> None:
    """Simulate, and print."""
    usual = Plan()
    parser = argparse.ArgumentParser(prog="scripts/fleet", description=__doc__)
    parser.add_argument("--daemons", type=int, default=usual.daemons)
    parser.add_argument("--spans", type=int, default=usual.spans, help="GETs that each one needs")
    parser.add_argument("--limit", type=float, default=usual.limit, help="requests a second that the prefix takes")
    parser.add_argument("--jitter", type=float, default=10.0, help="seconds over which the third kind starts")
    parser.add_argument("--seed", type=int, default=usual.seed)
    asked = parser.parse_args()
    plan = Plan(asked.daemons, asked.spans, asked.limit, seed=asked.seed)
    kinds = {
        "each request by itself": replace(plan, patient=False),
        "lazyfs": plan,
        f"lazyfs, start_jitter {asked.jitter:g} s": replace(plan, jitter=asked.jitter),
    }
    found = {name: simulate(kind) for name, kind in kinds.items()}
    lines = [f"{plan.daemons} daemons, {plan.spans} GETs each, of a prefix that takes {plan.limit:g} a second", ""]
    heads = ("clients", "requests", "refused", "in the busiest second", "ready: first / half / all")
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [row(name, outcome) for name, outcome in found.items()]
    lines += ["", *(curve(name, outcome) + "\n" for name, outcome in found.items())]
    sys.stdout.write("\n".join(lines))


if __name__ == "__main__":
    main()
