"""What lies in ops/ agrees with the code: every name in the dashboard and the alert rules is a metric that exists."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from cdc.config import WorkerConfig, load
from cdc.observe import names
from cdc.observe.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "ops" / "prometheus"
DASHBOARD = ROOT / "ops" / "grafana" / "dashboards" / "cdc.json"

SERIES = {series for metric in names.METRICS for series in metric.series}


def promtool(*arguments: str, text: str | None = None) -> str | None:
    """What promtool says, or `None` on a machine of somebody who has not installed it; CI must have it."""
    program = shutil.which("promtool")
    if program is None:
        message = "promtool is missing, the alert rules are not checked: apt-get install prometheus"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        print(message, file=sys.stderr)
        return None
    done = subprocess.run(
        [program, *arguments], cwd=PROMETHEUS, input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def used_in(text: str) -> set[str]:
    """The names of metrics in a text."""
    return set(re.findall(r"\bcdc_[a-z0-9_]+\b", text))


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard, without the headings."""
    everything: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [panel for panel in everything if panel["type"] != "row"]


def queries() -> list[str]:
    """The queries of the dashboard."""
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def test_prometheus_takes_the_configuration_and_the_alert_rules() -> None:
    said = promtool("check", "config", "prometheus.yml")
    assert said is None or "rules found" in said


def test_every_alert_fires_when_it_should_and_is_silent_when_all_is_well() -> None:
    said = promtool("test", "rules", "alerts_test.yml")
    assert said is None or "SUCCESS" in said


def test_prometheus_can_read_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {
            "record": f"dashboard:{index}",
            "expr": query.replace("$__rate_interval", "1m").replace("$pipeline", ".*").replace("$target", ".*"),
        }
        for index, query in enumerate(queries())
    ]
    # JSON is YAML.
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    said = promtool("check", "rules", str(file))
    assert said is None or f"{len(rules)} rules found" in said


def test_prometheus_has_no_objection_to_the_names_and_help_texts() -> None:
    metrics = Metrics("cdc")
    target, lane = metrics.target("internal"), metrics.lane()
    metrics.worker(version="1")
    target.batch_applied(transactions=1, inserts=1, size_bytes=1, duration_s=0.1)
    target.heartbeat_held(age_s=0.1, latency_s=0.1)
    target.table_stopped("public.users", "shape")
    target.error(ValueError())
    target.position(1)
    target.lag_bytes(1)
    lane.source_position(1)
    lane.slot("cdc", active=True, retained_bytes=1, safe_wal_size=1, wal_status="lost", confirmed_flush_lsn=1)
    promtool("check", "metrics", text=metrics.render().decode())


def test_every_alert_has_a_test() -> None:
    alerts = re.findall(r"alert: (\w+)", (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))
    tests = (PROMETHEUS / "alerts_test.yml").read_text(encoding="utf-8")
    assert len(alerts) == len(set(alerts)) > 10
    for alert in alerts:
        assert re.search(rf"alertname: {alert}\n\s+exp_alerts: \[{{", tests), f"no test expects {alert} to fire"
        assert re.search(rf"eval_time: 50m, alertname: {alert} }}", tests), f"no test expects {alert} to be silent"


def test_the_alert_rules_use_metrics_that_exist() -> None:
    rules = (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8")
    assert used_in(rules) <= SERIES
    assert used_in((PROMETHEUS / "alerts_test.yml").read_text(encoding="utf-8")) <= SERIES


def test_the_dashboard_uses_metrics_that_exist_and_shows_all_of_them() -> None:
    used = used_in(DASHBOARD.read_text(encoding="utf-8"))
    assert used <= SERIES
    assert [metric.name for metric in names.METRICS if not used & set(metric.series)] == []


def test_every_query_of_the_dashboard_keeps_to_the_chosen_pipeline() -> None:
    for query in queries():
        assert query.count("{") == query.count('{pipeline=~"$pipeline"'), query


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        return {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}

    assert len({panel["id"] for panel in panels()}) == len(panels())
    for one, other in combinations(panels(), 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])
    assert max(x for panel in panels() for x, _ in cells(panel)) < 24


def test_the_readme_lists_every_metric() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert names.markdown_table() in readme, "print the table with: python -m cdc.observe.names"


def test_the_table_is_printed_by_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cdc.observe.names"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == names.markdown_table()


def test_prometheus_and_compose_scrape_where_the_worker_listens() -> None:
    _, port = WorkerConfig().metrics_host_and_port
    assert f'targets: ["worker:{port}"]' in (PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8")
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert f"127.0.0.1:{port}:{port}" in compose
    assert f"EXPOSE {port}" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_compose_mounts_what_exists() -> None:
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    mounts = re.findall(r"\./([\w./-]+):/", compose)
    assert len(mounts) >= 5
    for mount in mounts:
        assert (ROOT / mount).exists(), mount


def test_the_configuration_of_compose_is_valid_with_the_variables_that_compose_gives() -> None:
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    variables = dict(re.findall(r"^    (\w+_DATABASE_URL): (\S+)$", compose, re.MULTILINE))
    environ = {name: re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value) for name, value in variables.items()}
    config = load(ROOT / "ops" / "compose" / "cdc.toml", environ)
    assert list(config.targets) == ["internal", "external", "datamart"]
    services = re.findall(r"^  (\w+):$", compose, re.MULTILINE)
    assert {"source", "worker", "prometheus", "grafana", *config.targets} <= set(services)


def test_the_procfile_starts_the_worker() -> None:
    assert (ROOT / "Procfile").read_text(encoding="utf-8") == "worker: python -m cdc run\n"
