"""The dashboard and the alert rules: every query of them is one that Prometheus takes, about what a mount tells.

Always: parsed by Prometheus's grammar, each metric and label looked for in the pages of a mount that has worked. In a
full run, where Prometheus is installed: evaluated by it, on what it scraped from a mount.
"""

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

import lazyfs
from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mount, Mounter, wait_until
from tests.mounts.pages import Pages, pages_of
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault

DEPLOY = Path(lazyfs.__file__).parent / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
RULES = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]

GIVEN_BY_PROMETHEUS = {"job", "instance", "le", "__name__"}
"""Labels that a page does not have, or only some of its samples."""


def queries() -> Iterator[tuple[str, str]]:
    """Every expression, with what it is for. Variables of Grafana's as it fills them in."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], filled(target["expr"])
    for rule in RULES:
        yield rule["alert"], rule["expr"]


def filled(expression: str) -> str:
    """An expression as Grafana sends it."""
    for variable, value in {"$job": ".+", "$instance": ".+", "$__rate_interval": "1m"}.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


def parts(node: Any) -> Iterator[Any]:
    """An expression and all that it is made of."""
    yield node
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if (inner := getattr(node, name, None)) is not None:
            yield from parts(inner)
    for inner in getattr(node, "args", ()) or ():
        yield from parts(inner)


def used(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The metrics of an expression, each with its labels: those it is selected by, and those of `by` and `on`."""
    grouped = {
        label.strip()
        for match in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)
        for label in match.split(",")
        if label.strip()
    }
    for node in parts(promql_parser.parse(expression)):
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name, expression
            selected = {matcher.name for matcher in node.matchers.matchers}
            yield node.name, (selected | grouped) - GIVEN_BY_PROMETHEUS


def worked(s3: FastS3Server, mounter: Mounter, reader: Reader) -> Mount:
    """A mount that has read, been refused, and hides a key."""
    s3.put("models", "weights", pages(1, 3 * MIB))
    s3.put("models", "denied", pages(2, MIB))
    s3.put("models", "a//b", b"hidden")
    s3.fault = lambda request: Fault(status=403, code="AccessDenied") if request.key == "denied" else None
    mount = mounter.mount(s3, "s3://models", "--metrics-address=127.0.0.1:0", expect=["failed with EACCES"])
    _work(mount, reader)
    mount.settle()
    return mount


def _work(mount: Mount, reader: Reader) -> None:
    reader.call("digest", str(mount.path / "weights"))
    list((mount.path / "a").iterdir())
    with pytest.raises(PermissionError):
        reader.call("digest", str(mount.path / "denied"))


def test_every_query_is_of_what_a_mount_tells(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    shown = pages_of(worked(s3, mounter, reader))
    told: dict[str, set[str]] = {}
    for name, labels in shown.samples():
        told.setdefault(name, set()).update(label for label, _ in labels)
    asked = list(queries())
    assert len(asked) > 50
    for title, expression in asked:
        found = list(used(expression))
        assert found, title
        # Of several metrics in one expression, a label of `by` may be of the other.
        everywhere = set().union(*(told.get(name, ()) for name, _ in found))
        for name, wanted in found:
            assert name in told, f"{title}: {name}"
            assert wanted <= everywhere, f"{title}: {name} has no label {wanted - everywhere}"


def test_the_files_are_as_their_readers_want_them() -> None:
    """Each alert says how bad it is and what to do; each panel has a place of its own and a data source to choose."""
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert all(rule["annotations"][name].endswith(".") for name in ("summary", "description"))
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    assert {target["datasource"]["uid"] for panel in panels for target in panel["targets"]} == {"${datasource}"}


class Prometheus:
    """A server that scrapes one page each second, with the rules."""

    def __init__(self, work: Path, shown: Pages) -> None:
        config = work / "prometheus.yml"
        target = shown.where.removeprefix("http://")
        config.write_text(
            f"global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{DEPLOY / 'alerts.yml'}]\n"
            f"scrape_configs: [{{job_name: lazyfs, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._log = (work / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus", f"--config.file={config}", f"--storage.tsdb.path={work / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip

    def ask(self, path: str, **arguments: str) -> Any:
        """What its API answers; None while it does not."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}") as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it is starting
                return None
            raise AssertionError(f"{arguments}: {error.read().decode()}") from None
        except OSError:
            return None

    def value(self, expression: str) -> list[Any]:
        """The result of an expression now."""
        found = self.ask("query", query=expression)
        return [] if found is None else list(found["result"])

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus; the default run parses each query")
def test_every_query_is_evaluated_by_prometheus(s3: FastS3Server, mounter: Mounter, reader: Reader) -> None:
    """Those of the dashboard give something, none of the alerts an error; what was done here is an alert."""
    mount = worked(s3, mounter, reader)
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=pages_of(mount).get("/metrics")[2],
        capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert checked.stdout + checked.stderr == b""
    prometheus = Prometheus(mounter.work, pages_of(mount))
    try:
        wait_until(lambda: prometheus.value("count_over_time(lazyfs_up[1m]) >= 3"), "three scrapes", 60)
        _work(mount, reader)
        expression = "increase(lazyfs_fuse_errors_total{error='EACCES'}[1m]) > 0"
        wait_until(lambda: prometheus.value(expression), "what came after", 60)
        wait_until(lambda: prometheus.value("rate(lazyfs_fuse_errors_total[1m])"), "rates", 60)
        for panel in DASHBOARD["panels"]:
            for target in panel.get("targets", ()):
                assert prometheus.value(filled(target["expr"])), panel["title"]
        for rule in RULES:
            prometheus.value(rule["expr"])
        refused = next(rule["expr"] for rule in RULES if rule["alert"] == "LazyfsS3Refuses")
        assert prometheus.value(refused)
        (group,) = prometheus.ask("rules")["groups"]
        assert {rule["health"] for rule in group["rules"]} == {"ok"}
    finally:
        prometheus.close()
