"""Metrics pushed to an OpenTelemetry collector by the official SDK: the only importer of opentelemetry, an extra.

Its job: the families of `metrics`, in the SDK's own words, sent by its exporter over OTLP/HTTP. Not by instruments of
the SDK, which would be called on every read: the numbers are counted already. What the SDK reads from the environment
(OTEL_EXPORTER_OTLP_HEADERS, _CERTIFICATE, _TIMEOUT, OTEL_METRIC_EXPORT_INTERVAL, OTEL_RESOURCE_ATTRIBUTES) holds.

Blocks; in one thread at a time.
"""

import logging
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from prometheus_client.core import Metric

from lazyfs import __version__
from lazyfs.errors import SetupError

log = logging.getLogger(__name__)

PATH = "/v1/metrics"
"""Of the OTLP specification, where the endpoint names none."""

INTERVAL = 60.0
"""Seconds between two pushes, the specification's default."""

Labels = tuple[tuple[str, str], ...]


class Push(Protocol):
    """Sends families to a collector, each `interval` seconds. A collector that does not take them is nothing that the
    mount can help; it is logged once until it does."""

    interval: float

    def send(self, found: Sequence[Metric]) -> None:
        """Send them once."""
        ...


def pusher(endpoint: str) -> Push:
    """What pushes to this endpoint, http(s)://host[:port][/path]. `SetupError` if the extra is not installed."""
    try:
        return _Pusher(endpoint)
    except ImportError:
        raise SetupError(
            "--otlp-endpoint needs the OpenTelemetry SDK, which is not installed; install it with: "
            "pip install 'lazyfs[otel]'"
        ) from None


def _interval() -> float:
    try:
        return max(0.1, int(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "")) / 1000)
    except ValueError:
        return INTERVAL


class _Pusher:
    def __init__(self, endpoint: str) -> None:
        # Here, for it is an extra, and half a second of a start that nearly nobody asks for.
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
        from opentelemetry.sdk.metrics import export  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415

        self._export = export
        url = endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + PATH
        self._exporter = OTLPMetricExporter(endpoint=url)
        self._resource = Resource.create({"service.name": "lazyfs", "service.version": __version__})
        self._scope = InstrumentationScope("lazyfs", __version__)
        self._began = time.time_ns()
        self._failing = False
        self.interval = _interval()
        # It has a word for each attempt; ours is one for each time it stops working.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    def send(self, found: Sequence[Metric]) -> None:
        """See `Push`."""
        export, now = self._export, time.time_ns()
        told = [self._metric(family, now) for family in found if family.samples]
        scope = export.ScopeMetrics(self._scope, told, "")
        data = export.MetricsData([export.ResourceMetrics(self._resource, [scope], "")])
        taken = self._exporter.export(data) is export.MetricExportResult.SUCCESS
        if not taken and not self._failing:
            log.warning("the OpenTelemetry collector does not take the metrics; they are pushed again each interval")
        elif taken and self._failing:
            log.info("the OpenTelemetry collector takes the metrics again")
        self._failing = not taken

    def _metric(self, family: Metric, now: int) -> Any:
        export = self._export
        if family.type == "histogram":
            cumulative = export.AggregationTemporality.CUMULATIVE
            spreads = export.Histogram(self._spreads(family, now), cumulative)
            return export.Metric(family.name, family.documentation, "s", spreads)
        points = [
            export.NumberDataPoint(
                attributes=dict(sample.labels), start_time_unix_nano=self._began, time_unix_nano=now, value=sample.value
            )
            for sample in family.samples
            if not sample.name.endswith("_created")
        ]
        data: Any = export.Gauge(points)
        if family.type == "counter":
            data = export.Sum(points, export.AggregationTemporality.CUMULATIVE, is_monotonic=True)
        unit = "s" if family.name.endswith("_seconds") else "By" if family.name.endswith("_bytes") else "1"
        return export.Metric(family.name, family.documentation, unit, data)

    def _spreads(self, family: Metric, now: int) -> list[Any]:
        """The points of a histogram. Prometheus's buckets hold what is in the smaller ones too, these do not."""
        buckets: defaultdict[Labels, list[tuple[float, float]]] = defaultdict(list)
        sums: dict[Labels, float] = {}
        for sample in family.samples:
            labels = tuple((name, value) for name, value in sample.labels.items() if name != "le")
            if sample.name.endswith("_bucket"):
                buckets[labels].append((float(sample.labels["le"]), sample.value))
            elif sample.name.endswith("_sum"):
                sums[labels] = sample.value
        points = []
        for labels, ends in buckets.items():
            counts = [int(count) for _, count in ends]
            points.append(
                self._export.HistogramDataPoint(
                    attributes=dict(labels),
                    start_time_unix_nano=self._began,
                    time_unix_nano=now,
                    count=counts[-1],
                    sum=sums[labels],
                    bucket_counts=[after - before for before, after in zip([0, *counts], counts, strict=False)],
                    explicit_bounds=[end for end, _ in ends[:-1]],
                    min=0.0,
                    max=0.0,
                )
            )
        return points
