"""What a row is."""

from collections.abc import Iterator

from scripts.benchmarks.results import Line
from scripts.benchmarks.stage import Stage


class Row:
    """One promise about speed. `name` is its number; `last` rows look at what the others left."""

    name = ""
    last = False

    def run(self, stage: Stage) -> Iterator[Line]:
        """Measure, and give the lines of the table as they are known. Whatever is raised is a failed row."""
        raise NotImplementedError
