"""The alert rules and the dashboard of the documentation, against the metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from meter_agent._health import NEARLY_FULL, OLD_EVENT_SECONDS
from meter_agent.integrations._metrics import METRICS, Kind
from tests.docs.test_docs import DOCS, ROOT, reference
from tests.patience import PATIENCE_SECONDS

ALERTS = DOCS / "monitoring" / "meter-agent-alerts.yml"
DASHBOARD = DOCS / "monitoring" / "meter-agent-dashboard.json"
OF_OPENTELEMETRY = {
    "meter_agent_request_duration_count_total",
    "meter_agent_request_duration_sum_seconds_total",
}
"""What OpenTelemetry shows in the histogram's place, as its own test finds."""


def promtool(*arguments: str | Path) -> str:
    """Run promtool of `make .tools/promtool`, or that of the path."""
    command = shutil.which("promtool", path=ROOT / ".tools") or shutil.which("promtool")
    assert command, "promtool is not here; run: make .tools/promtool"
    done = subprocess.run(
        [command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def names_in(expressions: list[str]) -> set[str]:
    return set(re.findall(r"\bmeter_agent_\w+", " ".join(expressions)))


def names_shown() -> set[str]:
    names = {metric.prometheus_name for metric in METRICS if metric.kind is not Kind.HISTOGRAM}
    for metric in METRICS:
        if metric.kind is Kind.HISTOGRAM:
            names |= {f"{metric.prometheus_name}_{part}" for part in ("bucket", "count", "sum")}
    return names


def test_prometheus_loads_the_four_rules() -> None:
    assert "4 rules found" in promtool("check", "rules", ALERTS)


def test_each_alert_fires_when_it_should_and_only_then() -> None:
    promtool("test", "rules", Path(__file__).with_name("alerts_test.yml"))
    tested = yaml.safe_load(Path(__file__).with_name("alerts_test.yml").read_text())["tests"]
    fires, quiet = (
        {
            case["alertname"]
            for test in tested
            for case in test["alert_rule_test"]
            if bool(case.get("exp_alerts")) is firing
        }
        for firing in (True, False)
    )
    assert fires == quiet == {rule["alert"] for rule in rules()}


def test_prometheus_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    variables = {"$__rate_interval": "5m", "$__range": "6h", "$job": ".*", "$instance": ".*"}
    recorded = []
    for n, query in enumerate(queries()):
        for variable, value in variables.items():
            query = query.replace(variable, value)  # noqa: PLW2901
        recorded.append({"record": f"query_{n}", "expr": query})
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    assert f"{len(recorded)} rules found" in promtool("check", "rules", file)


def test_alerts_ask_for_metrics_that_there_are() -> None:
    assert names_in([rule["expr"] for rule in rules()]) <= names_shown()


def test_the_dashboard_shows_every_metric_that_there_is_and_no_other() -> None:
    assert names_in(queries()) == names_shown() | OF_OPENTELEMETRY


def test_the_panels_of_the_dashboard_do_not_overlap_and_explain_themselves() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        columns, lines = (range(at[z], at[z] + at[size]) for z, size in ("xw", "yh"))
        cells = {(x, y) for x in columns for y in lines}
        assert not cells & taken
        assert columns.stop <= 24
        taken |= cells
        assert panel["title"]
        assert panel["description"]
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_alerts_and_health_have_the_same_limits() -> None:
    by_name = {rule["alert"]: rule["expr"] for rule in rules()}
    assert by_name["MeterAgentEventsNotDelivered"].endswith(f" > {OLD_EVENT_SECONDS:g}")
    limits = re.findall(r"> ([\d.]+)", by_name["MeterAgentBufferNearlyFull"])
    assert limits == [f"{NEARLY_FULL:g}"] * 2


def test_the_guide_tells_what_to_do_about_each_alert() -> None:
    guide = (DOCS / "howto" / "monitor.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", guide, re.MULTILINE)) >= {
        rule["alert"] for rule in rules()
    }


@pytest.mark.parametrize("metric", METRICS, ids=[metric.name for metric in METRICS])
def test_every_metric_is_in_the_reference(metric: Any) -> None:
    label = f"{{{metric.label}}}" if metric.label else ""
    row = f"| `{metric.prometheus_name}{label}` | `{metric.name}` | {metric.kind} | {metric.help} |"
    assert row in reference("metrics.md")
