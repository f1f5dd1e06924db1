"""What a check finds, and how checks are run so that the whole never hangs.

Must not know what is checked. A check is a function of the patient; it runs in a thread of its own, which is left
behind when it takes too long: a system call on a dead disk or mount cannot be interrupted.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lazyfs.config import Config
from lazyfs.errors import LazyfsError
from lazyfs.objects import Source

OK, WARN, FAIL, SKIP = "ok", "warn", "fail", "skip"
"""SKIP: not tried, for what it needs is not there."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: a sentence, and the command or the step that mends it, if something is to be mended."""

    status: str
    words: str
    mend: str = ""


def ok(words: str, mend: str = "") -> Finding:
    """All is well."""
    return Finding(OK, words, mend)


def warn(words: str, mend: str = "") -> Finding:
    """It works, and not as well as it could."""
    return Finding(WARN, words, mend)


def fail(words: str, mend: str = "") -> Finding:
    """It does not work."""
    return Finding(FAIL, words, mend)


def skip(words: str) -> Finding:
    """It was not tried."""
    return Finding(SKIP, words)


@dataclass(slots=True)
class Patient:
    """What is examined. `source` is None for the machine alone. `known` is what checks leave for those after them."""

    config: Config
    source: Source | None
    cache_dir: Path
    known: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """One row of a table. `seconds` it may take; `needs` names checks before it that must not have failed."""

    name: str
    look: Callable[[Patient], Finding]
    needs: tuple[str, ...] = ()
    seconds: float = 5.0


def examine(patient: Patient, checks: Sequence[Check]) -> Iterator[tuple[str, Finding]]:
    """Run the checks in order, and say of each, as soon as it is over, what it found."""
    missing: set[str] = set()
    for check in checks:
        lacking = [name for name in check.needs if name in missing]
        finding = skip(f"not tried: see {lacking[0]}") if lacking else _bounded(check, patient)
        if finding.status in (FAIL, SKIP):
            missing.add(check.name)
        yield check.name, finding


def _bounded(check: Check, patient: Patient) -> Finding:
    found: list[Finding] = []

    def look() -> None:
        try:
            found.append(check.look(patient))
        except LazyfsError as error:
            found.append(fail(str(error)))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            found.append(fail(f"{where}{error.strerror or error}"))
        except Exception as error:  # noqa: BLE001 - one check that is wrong must not hide what the others find
            found.append(fail(f"a defect of this check: {type(error).__name__}: {error}"))

    thread = threading.Thread(target=look, name=f"check {check.name}", daemon=True)
    thread.start()
    thread.join(check.seconds)
    return found[0] if found else fail(f"no answer within {check.seconds:g} s")
