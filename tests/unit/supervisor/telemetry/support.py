"""Every metric of the daemon with a value, for tests of documents and rules."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client import Metric

from atlas_supervisor.api import examples, fleet_examples
from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.collector import Snapshot, gauges
from atlas_supervisor.fleet.gauges import fleet_gauges
from atlas_supervisor.model.canary import CanaryPolicy, FeaturePolicy
from atlas_supervisor.model.deploy import BEGUN, DeployEvent, DeployRecord, Mode, PublishedEvent
from atlas_supervisor.model.histogram import Histogram
from atlas_supervisor.model.probe import ProbeResult
from atlas_supervisor.model.requests import RequestCounts, RequestTotals
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.state import DeployState
from atlas_supervisor.model.status import Status
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.system.clock import now
from atlas_supervisor.telemetry.metrics import Metrics
from atlas_supervisor.telemetry.metrics.machine import Running, WorkerUsage
from atlas_supervisor.traffic.plane import RelayTraffic
from atlas_worker.contract import latency_bucket


def made(folder: Path) -> Metrics:
    features = Settings.model_fields["canary_features"].default
    ports = {SlotName.BLUE: 8791, SlotName.GREEN: 8792}
    return Metrics(version="1.2.3", features=features, slot_ports=ports, state_dir=folder)


def probe_result(verdict: Verdict, seconds: float) -> ProbeResult:
    return ProbeResult(verdict=verdict, status=None, duration_ms=1000 * seconds, message="a test")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def published(
    record: DeployRecord,
    *,
    source: str | None = None,
    event: str = BEGUN,
    rollback: bool = False,
) -> PublishedEvent:
    """Return the published transition that led to `record`."""
    step = record.steps[-1] if record.steps else None
    happened = DeployEvent.of(
        record, ts=now(), source=source, event=event, cause="a test", step=step
    )
    return PublishedEvent(happened, rollback=rollback)


REQUESTS = RequestTotals(
    RequestCounts(begun=16, classes=(0, 10, 0, 2, 1), left=2, cut=1),
    Histogram([(latency_bucket(4.0), 9), (latency_bucket(700.0), 4)]),
)


def read_gauges(status: Status = examples.STATUS, **changes: object) -> list[Metric]:
    """Return the gauges of a daemon in this state."""
    given = {
        "status": status,
        "state": DeployState(
            mode=Mode.BLUEGREEN,
            active_port=8791,
            staging_port=8792,
            last_deploy_ts=now(),
            last_switch_ts=now(),
            canary=CanaryPolicy(
                enabled=True, salt="", features={"vision": FeaturePolicy(share=0.1, epoch=1)}
            ),
        ),
        "ready": True,
        "queued": dict.fromkeys(SlotName, 0),
        "relayed": {"public": RelayTraffic(1, 2, 3, 4)},
        "listeners": 0,
        "requests": {("blue", "1.4.0"): REQUESTS},
    }
    return list(gauges(Snapshot(**{**given, **changes})))  # type: ignore[arg-type]  # by its name


def everything(folder: Path, pid: int) -> list[Metric]:
    """Return every family of a daemon, each with a sample."""
    metrics = made(folder)
    WorkerUsage(metrics.registry, lambda: [Running("blue", "1.4.0", pid)])
    metrics.deploys.count(published(examples.STARTED))
    metrics.deploys.count(published(examples.SWITCHED, source="switch", event="passed"))
    metrics.probes.probed(8791, probe_result(Verdict.PASS, 0.1))
    metrics.requests.answered("GET", "/livez", 200, 0.1)
    status = examples.STATUS.model_copy(update={"health_score": 97})
    return [
        *metrics.registry.collect(),
        *read_gauges(status),
        *fleet_gauges("shop", fleet_examples.FLEET, connected=True),
    ]


def sample_names(families: Iterable[Metric]) -> set[str]:
    return {sample.name for family in families for sample in family.samples}


def exposed_name(family: Metric) -> str:
    """Return a family's name as the text format has it."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
