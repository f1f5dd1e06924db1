"""All checks in their order. Must not know what they are about."""

from collections.abc import Iterator
from pathlib import Path

from lazyfs.config import Config
from lazyfs.objects import Source
from lazyfs.service.doctor import bucket, host, storage
from lazyfs.service.doctor.findings import Finding, Patient, examine
from lazyfs.service.machine import default_cache_dir


def examination(config: Config, source: Source | None, cache_dir: Path | None) -> Iterator[tuple[str, Finding]]:
    """What each check finds, as soon as it has. Without a source only the machine and its cache are looked at."""
    patient = Patient(config, source, cache_dir or default_cache_dir())
    checks = [*host.CHECKS, *storage.CHECKS, *(bucket.CHECKS if source is not None else ())]
    yield from examine(patient, checks)
