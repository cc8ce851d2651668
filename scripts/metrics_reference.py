"""`docs/metrics.md`: every metric of the daemon, with its type, labels and help."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from prometheus_client import Metric

from scripts.markdown import linked, row
from tests.unit.supervisor.telemetry.support import everything, exposed_name

DOCUMENT = """\
# Metrics

<!-- Generated from the daemon's metrics by ./scripts/generate-docs; do not edit. -->

What `GET /metrics` has. How to scrape it, alerts and a dashboard:
[monitoring](monitoring/README.md).

Counters start at 0 with the daemon. `slot` is `blue` or `green`, `version` is that of the release
in the slot. The values of all labels are bounded: none comes from a client. There is one histogram
`canary_NAME` for each of `CANARY_FEATURES`.

The first five names have no prefix and no label, and are gauges although they never decrease,
because a counter's name would have to end in `_total` ([ADR
0007](adr/0007-metrics-under-promised-names.md)). So `promtool check metrics` prints one warning:
`deploy_switch_total` ends like a counter.

| metric | type | labels | meaning |
| --- | --- | --- | --- |
{rows}
"""

PROMISED = (
    *("deploy_switch_total", "deploy_switch_success", "deploy_switch_fail"),
    *("deploy_bluegreen_runs", "canary_requests"),
)


def metrics_reference() -> str:
    """Return the text of `docs/metrics.md`."""
    with TemporaryDirectory() as folder:
        families = {exposed_name(each): each for each in everything(Path(folder), os.getpid())}
    ordered = [*PROMISED, *sorted(families.keys() - {*PROMISED})]
    return DOCUMENT.format(rows="\n".join(_row(name, families[name]) for name in ordered))


def _row(name: str, family: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in _labels(family))
    return row(f"`{name}`", family.type, labels, _marked(family.documentation, _labels(family)))


def _labels(family: Metric) -> list[str]:
    """Return the labels in their order; `le` belongs to every histogram."""
    found = dict.fromkeys(label for sample in family.samples for label in sample.labels)
    return [label for label in found if label != "le"]


def _marked(text: str, labels: Iterable[str]) -> str:
    """Return a help as Markdown: settings, files and the values of labels as code."""
    text = re.sub(r"\b([A-Z]+_[A-Z_]+|\w+\.(?:json|db)|[A-Z]{3,4} /[\w/]+)\b", r"`\1`", text)
    for label in labels:
        text = re.sub(rf"\b({label}) (?=is\b)", r"`\1` ", text)
    return linked(text.removesuffix("."))
