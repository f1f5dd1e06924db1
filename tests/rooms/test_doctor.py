"""The checks of `lazyfs doctor` as functions: what cannot be provoked on every machine, and what runs them."""

import dataclasses
import threading
from pathlib import Path

import pytest

from lazyfs.config import Config
from lazyfs.errors import SetupError
from lazyfs.objects import MIB
from lazyfs.service.doctor import bucket, host, storage
from lazyfs.service.doctor.findings import FAIL, OK, SKIP, Check, Finding, Patient, examine, ok

PATIENT = Patient(Config(), None, Path("/nowhere"))


def test_a_check_that_hangs_or_breaks_hides_nothing() -> None:
    """It is left behind, those that need it are skipped, and the rest goes on."""
    stuck = threading.Event()

    def hangs(_: Patient) -> Finding:
        stuck.wait()
        return ok("")

    def breaks(_: Patient) -> Finding:
        raise ZeroDivisionError("by nothing")

    def refuses(_: Patient) -> Finding:
        raise SetupError("a sentence")

    def missing(_: Patient) -> Finding:
        raise FileNotFoundError(2, "No such file or directory", "/x")

    checks = [
        Check("hangs", hangs, seconds=0.01),
        Check("after", lambda _: ok("never"), ("hangs",)),
        Check("after that", lambda _: ok("never"), ("after",)),
        Check("breaks", breaks),
        Check("refuses", refuses),
        Check("missing", missing),
        Check("works", lambda _: ok("fine")),
    ]
    found = dict(examine(PATIENT, checks))
    stuck.set()
    assert {name: (one.status, one.words) for name, one in found.items()} == {
        "hangs": (FAIL, "no answer within 0.01 s"),
        "after": (SKIP, "not tried: see hangs"),
        "after that": (SKIP, "not tried: see after"),
        "breaks": (FAIL, "a defect of this check: ZeroDivisionError: by nothing"),
        "refuses": (FAIL, "a sentence"),
        "missing": (FAIL, "/x: No such file or directory"),
        "works": (OK, "fine"),
    }


def test_the_tables_are_in_order() -> None:
    """Each check has a name of its own, and needs only what comes before it."""
    checks = [*host.CHECKS, *storage.CHECKS, *bucket.CHECKS]
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    for place, check in enumerate(checks):
        assert set(check.needs) <= set(names[:place]), check.name


@pytest.mark.parametrize(
    ("limit", "budget", "status", "mend"),
    [
        (4096, 256, "ok", ""),
        (600, 256, "warn", "--memory-budget=128MiB"),
        (256, 256, "fail", "--memory-budget=136MiB"),
        (100, 64, "fail", "--memory-budget=16MiB"),
    ],
)
def test_memory(limit: int, budget: int, status: str, mend: str) -> None:
    """MiB of a limit, and of a budget."""
    found = host.weighed(limit * MIB, budget * MIB)
    assert found.status == status
    assert mend in found.mend


@pytest.mark.parametrize(
    ("release", "expected"),
    [("6.18.44-fc-v669", (6, 18)), ("5.10.0-33-amd64", (5, 10)), ("4.19", (4, 19)), ("weird", (0, 0)), ("", (0, 0))],
)
def test_versions_of_kernels(release: str, expected: tuple[int, int]) -> None:
    assert host.version(release) == expected


@pytest.mark.parametrize("check", host.CHECKS, ids=lambda check: check.name)
def test_each_check_of_the_machine_answers(check: Check) -> None:
    """With and without what users ask for; one that fails says what to do."""
    for config in (Config(), Config(allow_other=True), dataclasses.replace(Config(), memory_budget=64 * MIB)):
        found = check.look(dataclasses.replace(PATIENT, config=config))
        assert found.words
        assert found.mend or found.status not in (FAIL, "warn") or check.name == "user namespace"
