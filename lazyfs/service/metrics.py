"""The facts of a mount in the words of Prometheus: the only importer of prometheus_client.

Its job: names, units and labels. Names end in what they count (`_total`, `_seconds`, `_bytes`); a label has one of a
few values that are known before, never a key, a path or a word of a server. Translated when somebody asks: the hot
paths count in plain numbers, for a call of the client library costs 1 us and more, and a cached read has a few of them.

Pure but for /proc, from which the client library takes what it says of the process.
"""

import dataclasses
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

from lazyfs import __version__
from lazyfs.models.library import LibraryStatistics
from lazyfs.objects import CHUNK_SIZE
from lazyfs.service.facts import Facts
from lazyfs.stores.traffic import BROKEN, UNANSWERED
from lazyfs.tallies import Spread

Labels = tuple[str, ...]
L = TypeVar("L", bound=Labels)


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the mount is there, whether its loop turns, and for how many seconds it has not answered, or needed to
    answer; `words` say what is wrong, empty if nothing is."""

    mounted: bool
    turning: bool
    lag: float
    words: str = ""


def families(facts: Facts | None, health: Health) -> list[Metric]:
    """Everything there is to tell. Without facts, of a mount that has not begun, only its health."""
    found = list(_health(health))
    if facts is not None:
        for part in (_kernel, _s3, _cache, _rest):
            found += part(facts)
    return [*found, *ProcessCollector(registry=None).collect()]


def page(found: Sequence[Metric], accept: str) -> tuple[str, bytes]:
    """The content type and the text of an exposition: OpenMetrics or Prometheus's own, as the header Accept asks."""
    registry = CollectorRegistry()
    registry.register(_Given(found))
    try:
        encode, content_type = choose_encoder(accept)
    except ValueError:  # a version that is none
        encode, content_type = choose_encoder("")
    return content_type, encode(registry)


def as_json(found: Iterable[Metric]) -> list[dict[str, Any]]:
    """The same numbers for who does not read expositions: name, type, help, and samples with their labels."""
    return [
        {
            "name": metric.name,
            "type": metric.type,
            "help": metric.documentation,
            "samples": [{"name": s.name, "labels": dict(s.labels), "value": s.value} for s in metric.samples],
        }
        for metric in found
    ]


def of_models(stats: LibraryStatistics, *, ready: bool | None = None) -> list[Metric]:
    """What a `ModelCache` counted; `ready`: whether the one model that a server is for can be used."""
    one = [] if ready is None else [_gauge("lazyfs_model_ready", "1 if the model can be used.", ready)]
    now = {"models": "Models on this disk.", "bytes": "Their bytes.", "in_use": "Models that this object uses."}
    return one + [
        _gauge(f"lazyfs_models_{name}", now[name], value)
        if name in now
        else _counter(f"lazyfs_models_{name}", f"See lazyfs.LibraryStatistics.{name}.", value)
        for name, value in dataclasses.asdict(stats).items()
    ]


class _Given:
    """What `prometheus_client` takes for a collector."""

    def __init__(self, found: Sequence[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        yield from self._found


def _health(health: Health) -> Iterator[Metric]:
    build = InfoMetricFamily("lazyfs_build", "The program that serves the mount.")
    build.add_metric([], {"version": __version__, "python": platform.python_version()})
    yield build
    yield _gauge("lazyfs_up", "1 if the mount is there and its loop turns.", health.mounted and health.turning)
    yield _gauge("lazyfs_loop_lag_seconds", "How long the loop of the mount took to answer, or has not.", health.lag)


def _kernel(facts: Facts) -> Iterator[Metric]:
    calls = facts.calls
    seconds = {(operation,): spread for operation, spread in calls.seconds.items()}
    yield _counters(
        "lazyfs_fuse_requests",
        "Requests of the kernel that were answered.",
        ("operation",),
        {labels: spread.count for labels, spread in seconds.items()},
    )
    yield _counters(
        "lazyfs_fuse_errors",
        "Requests of the kernel that were answered with an error, also with one that says only that nothing is there.",
        ("operation", "error"),
        calls.failures,
    )
    yield _histograms(
        "lazyfs_fuse_request_duration_seconds", "Time to answer a request of the kernel.", ("operation",), seconds
    )
    yield _counter("lazyfs_read_bytes", "Bytes given to readers.", facts.read_bytes)
    yield _counter("lazyfs_failures", "Requests that failed and should not: all but missing names.", facts.failures)
    yield _gauge("lazyfs_open_files", "Files that are open.", facts.open_files)
    yield _counter("lazyfs_passthrough_opens", "Opens of files that the kernel reads by itself.", facts.passed.opens)
    yield _gauge("lazyfs_passthrough_files", "Open files that the kernel reads by itself.", facts.passed.files)
    yield _gauge("lazyfs_inodes", "Inodes that the kernel knows.", facts.inodes)


def _s3(facts: Facts) -> Iterator[Metric]:
    traffic, fetch = facts.traffic, facts.fetch
    by = ("operation", "status")
    yield _counters(
        "lazyfs_s3_requests",
        f"Requests to S3 that are over, by the status of the answer: {UNANSWERED} without one, {BROKEN} if its body "
        "did not come whole.",
        by,
        traffic.requests,
    )
    yield _counters(
        "lazyfs_s3_errors",
        "Those of them that failed.",
        by,
        {key: count for key, count in traffic.requests.items() if key[1][0] not in "23"},
    )
    words = "Time until all of an answer was here."
    yield _histograms("lazyfs_s3_request_duration_seconds", words, by, traffic.seconds)
    yield _histograms(
        "lazyfs_s3_first_byte_seconds",
        "Time until the head of an answer was here; of a listing, all of it.",
        ("operation",),
        {(operation,): spread for operation, spread in traffic.first_byte.items()},
    )
    yield _counters(
        "lazyfs_s3_received_bytes",
        "Bytes of objects received, for a reader that waits or ahead of one.",
        ("purpose",),
        {("demand",): fetch.demand_bytes, ("read_ahead",): fetch.bytes_received - fetch.demand_bytes},
    )
    yield _counter("lazyfs_s3_retries", "Requests sent again after a failure.", fetch.retries)
    yield _counter("lazyfs_s3_restarts", "GETs broken off because they fell behind, and sent again.", fetch.restarts)
    yield _counter("lazyfs_s3_slow_downs", "Answers that asked for fewer requests.", fetch.slow_downs)
    yield _gauge("lazyfs_s3_connections", "GETs that may be under way at once now.", fetch.connections)
    yield _gauge("lazyfs_s3_quiet_seconds", "Time since S3 last answered, or since the start.", traffic.quiet)
    yield _histograms(
        "lazyfs_queue_wait_seconds",
        "Time waited for: the gate that bounds GETs, a connection for one, the writer of the cache on disk.",
        ("queue",),
        {(queue,): spread for queue, spread in facts.waits.items()},
    )


def _cache(facts: Facts) -> Iterator[Metric]:
    chunks, memory = facts.chunks, facts.memory
    yield _counters(
        "lazyfs_cache_hits",
        "Chunks found: in memory when a reader came, or brought from disk, or from S3, for or ahead of readers.",
        ("tier",),
        {("memory",): facts.in_memory, ("disk",): chunks.disk_hits, ("s3",): chunks.misses},
    )
    yield _counters(
        "lazyfs_cache_misses",
        "Chunks not found: not in memory when a reader came, not on disk when they were brought.",
        ("tier",),
        {("memory",): facts.not_in_memory, ("disk",): chunks.misses},
    )
    yield _counters(
        "lazyfs_cache_evicted_bytes",
        "Bytes dropped to make room.",
        ("tier",),
        {("memory",): memory.evictions * CHUNK_SIZE, ("disk",): facts.disk_evicted},
    )
    yield _counters(
        "lazyfs_cache_written_chunks",
        "Chunks from S3, by whether they were kept on disk.",
        ("result",),
        {("kept",): chunks.kept, ("unkept",): chunks.unkept},
    )
    yield _counter("lazyfs_cache_corrupt_chunks", "Chunks on disk that were wrong, and fetched again.", chunks.corrupt)
    yield _counter("lazyfs_cache_disk_failures", "Failures of the index or of the disk below it.", facts.disk_failures)
    yield _gauge("lazyfs_memory_used_bytes", "Memory for chunks in use.", (memory.slots - memory.free) * CHUNK_SIZE)
    yield _gauge("lazyfs_memory_bound_bytes", "The memory budget.", facts.memory_budget)
    yield _gauge("lazyfs_disk_used_bytes", "Disk space of the cache, index included.", facts.disk_used)
    yield _gauge("lazyfs_disk_bound_bytes", "Disk space that the cache may take now.", facts.disk_bound)


def _rest(facts: Facts) -> Iterator[Metric]:
    verified = facts.verified
    yield _counters(
        "lazyfs_verifications",
        "Objects compared with their digests: they agreed, had none, were wrong, were mended or refused after that.",
        ("result",),
        {(name,): getattr(verified, name) for name in ("verified", "without", "wrong", "mended", "refused")},
    )
    yield _gauge("lazyfs_verifications_under_way", "Objects being compared now.", verified.under_way)
    yield _gauge("lazyfs_sources", "Sources of the mount.", facts.sources)
    hidden = GaugeMetricFamily("lazyfs_hidden_keys", "Keys that no name stands for.", labels=["reason"])
    for reason, count in facts.hidden.items():
        hidden.add_metric([reason], count)
    yield hidden


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=float(value))


def _counter(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(name, words, value=float(value))


def _counters(name: str, words: str, labels: Labels, values: Mapping[L, float]) -> Metric:
    family = CounterMetricFamily(name, words, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family


def _histograms(name: str, words: str, labels: Labels, spreads: Mapping[L, Spread]) -> Metric:
    family = HistogramMetricFamily(name, words, labels=labels)
    for key, spread in spreads.items():
        ends = [*map(repr, spread.bounds), "+Inf"]
        family.add_metric(key, list(zip(ends, accumulate(spread.counts), strict=True)), spread.total)
    return family
