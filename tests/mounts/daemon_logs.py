"""What the log of a mount should not hold: a warning that nobody announced fails the test."""

import os
import re
from collections.abc import Sequence

_UNANNOUNCED = re.compile(r"^(?!\d{4}-\d\d-\d\d \S+ (?:INFO|DEBUG) )")
"""Any line that is not plain information: warnings, errors, tracebacks, and what libraries say on stderr."""


WITHOUT_DIGEST = "has no digest to be compared with"
"""Most test objects have none, and the warning of it is tried where it is meant."""


def unannounced(log: str, expected: Sequence[str]) -> list[str]:
    """The lines of a log that are neither information nor matched by one of the `expected` patterns."""
    patterns = [*expected, WITHOUT_DIGEST]
    if os.geteuid() != 0:
        patterns.append(r"cannot set .* of the mount, which takes root")
    lines = [line for line in log.splitlines() if _UNANNOUNCED.match(line)]
    return [line for line in lines if not any(re.search(pattern, line) for pattern in patterns)]
