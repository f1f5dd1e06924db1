"""Lines of the table: what was measured, against what, and whether that is enough. Numbers only; measures nothing."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Bound:
    """What a ratio must reach: at least `limit`, or at most `limit`."""

    limit: float
    least: bool

    def __str__(self) -> str:
        return f"{'>=' if self.least else '<='} {self.limit:g}"

    def holds(self, value: float) -> bool:
        """Whether this value is good enough."""
        return value >= self.limit if self.least else value <= self.limit


def at_least(limit: float) -> Bound:
    """More is better."""
    return Bound(limit, least=True)


def at_most(limit: float) -> Bound:
    """Less is better."""
    return Bound(limit, least=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line. `ours` and `theirs` are measurements in `unit`, in the order they were made; without `theirs`, the
    bound is on `ours` itself. Without a bound, the line only informs. `failure`: why there are no numbers."""

    row: str
    workload: str
    unit: str = ""
    ours: Sequence[float] = ()
    theirs: Sequence[float] = ()
    bound: Bound | None = None
    note: str = ""
    failure: str = ""

    @property
    def ratios(self) -> list[float]:
        """Pair by pair; a single figure of theirs stands beside each of ours."""
        if not self.theirs:
            return list(self.ours)
        theirs = self.theirs if len(self.theirs) > 1 else [self.theirs[0]] * len(self.ours)
        return [mine / other if other else float("inf") for mine, other in zip(self.ours, theirs, strict=True)]

    @property
    def reached(self) -> bool | None:
        """Whether the median of the ratios holds the bound; None where there is none."""
        if self.failure:
            return False
        return None if self.bound is None else self.bound.holds(statistics.median(self.ratios))

    def cells(self) -> list[str]:
        """The line in words, as many as `HEADINGS`."""
        if self.failure:
            return [self.row, self.workload, "failed", "", "", "", "NO", self.failure]
        ratio = _spread(self.ratios) if self.theirs or self.bound else ""
        reached = {True: "yes", False: "NO", None: ""}[self.reached]
        bound = "" if self.bound is None else str(self.bound)
        return [
            self.row, self.workload, _figure(self.ours, self.unit), _figure(self.theirs, self.unit), ratio, bound,
            reached, self.note,
        ]  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        found = asdict(self)
        ratios = self.ratios if self.ours else []
        found |= {"bound": str(self.bound or ""), "ratios": ratios, "reached": self.reached}
        return found


HEADINGS = ["row", "workload", "lazyfs", "compared", "ratio (min..max)", "bound", "reached", "note"]


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"  # infinity, too


def _figure(values: Sequence[float], unit: str) -> str:
    return f"{_number(statistics.median(values))} {unit}".rstrip() if values else "-"


def _spread(values: Sequence[float]) -> str:
    middle = _number(statistics.median(values))
    return middle if min(values) == max(values) else f"{middle} ({_number(min(values))}..{_number(max(values))})"


def table(lines: Sequence[Line]) -> str:
    """The lines under their headings, columns aligned."""
    rows = [HEADINGS, *(line.cells() for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(r, widths, strict=True)).rstrip() for r in rows)


def markdown(lines: Sequence[Line]) -> str:
    """The same as Markdown, for the README; notes are left to those who run it."""
    rows = [[cell.replace("|", "/") for cell in line.cells()[:-1]] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in [HEADINGS[:-1], ["---"] * (len(HEADINGS) - 1), *rows]) + "\n"
