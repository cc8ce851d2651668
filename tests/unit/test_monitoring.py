"""Holds the alerts and the dashboard against the metrics of the daemon."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # its types are a package of their own
from prometheus_client import Metric

from tests.harness import missing
from tests.unit.supervisor.telemetry.support import everything, exposed_name, sample_names

FOLDER = Path(__file__).parents[2] / "docs/monitoring"
ALERTS = FOLDER / "alerts.yml"
ALERTS_TEST = FOLDER / "alerts.test.yml"
PROMETHEUS_OWN = {"up"}
"""Series that Prometheus adds."""

FUNCTIONS = re.compile(
    r"\b(?:absent|by|changes|histogram_quantile|increase|max|min|min_over_time|or|rate|sum)\b"
)


@pytest.fixture
def families(tmp_path: Path) -> list[Metric]:
    return everything(tmp_path, os.getpid())


def test_every_metric_but_the_promised_ones_has_the_prefix(families: list[Metric]) -> None:
    promised = {
        *("deploy_switch_total", "deploy_switch_success", "deploy_switch_fail"),
        *("deploy_bluegreen_runs", "canary_requests"),
        *("canary_vision", "canary_web", "canary_optimizer"),
    }
    names = {exposed_name(family) for family in families}

    assert {name for name in names if not name.startswith("atlas_")} == promised


# Alerts and dashboard.


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    return found


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    yield from (each["expr"] for each in dashboard["annotations"]["list"])
    yield from (target["expr"] for panel in panels() for target in panel.get("targets", []))


def metrics_in(expression: str) -> set[str]:
    """Return the metric names in a PromQL expression."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\bby \([^)]*\)|\"[^\"]*\"", "", expression)
    return set(re.findall(r"[a-zA-Z_]\w*", FUNCTIONS.sub("", bare)))


def test_alerts_and_panels_use_existing_metrics(families: list[Metric]) -> None:
    asked = set().union(*map(metrics_in, expressions()))

    assert len(asked) > 40
    assert asked - sample_names(families) == PROMETHEUS_OWN


def test_panels_of_the_dashboard_have_unique_ids_and_do_not_overlap() -> None:
    ids = Counter(panel["id"] for panel in panels())
    assert set(ids.values()) == {1}
    taken = Counter(
        (x, y)
        for panel in panels()
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    assert set(taken.values()) == {1}
    assert max(x for x, _ in taken) < 24


def test_every_alert_has_an_action_and_is_tested() -> None:
    tried = Counter(
        (case["alertname"], bool(case["exp_alerts"]))
        for test in yaml.safe_load(ALERTS_TEST.read_text())["tests"]
        for case in test["alert_rule_test"]
    )
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert tried[rule["alert"], True], rule["alert"]
        assert tried[rule["alert"], False], rule["alert"]


@pytest.mark.skipif(bool(missing("promtool")), reason="promtool is not installed")
def test_the_alerts_fire_as_their_rules_state() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", ALERTS_TEST.name],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )

    assert done.returncode == 0, done.stdout + done.stderr
