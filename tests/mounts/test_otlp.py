"""Metrics pushed to an OpenTelemetry collector: a fake one that decodes what comes."""

import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mounter, environment, is_mounted, run, wait_until
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server


class Collector(ThreadingHTTPServer):
    """What was pushed, in order; answers with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.refused = 0
        self.pushed: list[ExportMetricsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.paths: set[str] = set()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}"

    def last(self) -> dict[str, Any]:
        """The metrics of the last push, by name."""
        (resource,) = self.pushed[-1].resource_metrics
        (scope,) = resource.scope_metrics
        return {metric.name: metric for metric in scope.metrics}


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.paths.add(self.path)
        if self.server.status == 200:
            self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.server.pushed.append(ExportMetricsServiceRequest.FromString(body))
        else:
            self.server.refused += 1
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """One that takes everything."""
    with Collector() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def labels(point: Any) -> dict[str, str]:
    """The attributes of a point."""
    return {one.key: one.value.string_value for one in point.attributes}


def test_the_same_numbers_are_pushed(
    s3: FastS3Server, mounter: Mounter, reader: Reader, collector: Collector
) -> None:
    """As sums, gauges and histograms; the last push is of the end. A collector that refuses them is told of once."""
    s3.put("models", "weights", pages(1, 2 * MIB))
    more = {"OTEL_METRIC_EXPORT_INTERVAL": "200", "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=models"}
    mount = mounter.mount(
        s3, "s3://models", f"--otlp-endpoint={collector.url}",
        env=environment(mounter.work / "home", s3, **more), expect=["the OpenTelemetry collector does not take"],
    )  # fmt: skip
    assert reader.call("digest", str(mount.path / "weights"))[0] == 2 * MIB
    collector.status = 400
    wait_until(lambda: collector.refused >= 3, "pushes that were refused")
    collector.status = 200
    wait_until(lambda: "takes the metrics again" in mount.logged(), "pushes that were taken")
    assert mount.logged().count("does not take the metrics") == 1
    assert mount.signal(signal.SIGTERM) == 0
    found = collector.last()
    assert collector.paths == {"/v1/metrics"}
    assert collector.headers[-1]["x-tenant"] == "models"
    resource = {one.key: one.value.string_value for one in collector.pushed[-1].resource_metrics[0].resource.attributes}
    assert resource["service.name"] == "lazyfs"
    (read_bytes,) = found["lazyfs_read_bytes"].sum.data_points
    assert found["lazyfs_read_bytes"].sum.is_monotonic
    assert (read_bytes.as_double, found["lazyfs_read_bytes"].unit) == (2 * MIB, "By")
    requests = {labels(p)["operation"]: p.as_double for p in found["lazyfs_fuse_requests"].sum.data_points}
    durations = {labels(p)["operation"]: p for p in found["lazyfs_fuse_request_duration_seconds"].histogram.data_points}
    for operation, count in requests.items():
        point = durations[operation]
        assert point.count == sum(point.bucket_counts) == count
        assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    # The mount was on its way out.
    assert [point.as_double for point in found["lazyfs_up"].gauge.data_points] == [0]


def test_without_the_extra(s3: FastS3Server, mounter: Mounter, tmp_path: Path) -> None:
    """One sentence that says what to install."""
    fake = tmp_path / "without" / "opentelemetry"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise ImportError('not installed')\n")
    s3.put("models", "k", b"k")
    path = mounter.place()
    env = environment(mounter.work / "home", s3, PYTHONPATH=str(fake.parent))
    options = [*mounter.options(s3), f"--cache-dir={mounter.cache()}", "--otlp-endpoint=http://127.0.0.1:1"]
    done = run(["mount", *options, "s3://models", path], env)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "pip install 'lazyfs[otel]'" in done.stderr
    assert not is_mounted(path)
