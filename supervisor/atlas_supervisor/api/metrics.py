"""The noun `metrics`: numbers for Prometheus, in its own text format."""

from __future__ import annotations

from atlas_supervisor.api.routes import AnyRoute, Nothing, Reply, Request, ResponseSpec, Route

_FORMAT = "text/plain; version=0.0.4"

_EXAMPLE = """\
# HELP deploy_switch_total Attempted switches of all traffic, by deploys and rollbacks.
# TYPE deploy_switch_total gauge
deploy_switch_total 3.0
# HELP atlas_slot_state 1 for the state of the slot, 0 for the others.
# TYPE atlas_slot_state gauge
atlas_slot_state{slot="blue",state="running"} 1.0
"""


async def _metrics(call: Request[Nothing, Nothing]) -> Reply:
    return Reply(await call.control.metrics.text(), content_type=_FORMAT)


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/metrics",
        handler=_metrics,
        summary="Metrics for Prometheus",
        description="Always in the text format, version 0.0.4. docs/metrics.md explains all, "
        "docs/monitoring/README.md has alert rules and a dashboard.",
        tag="Metrics",
        query=Nothing,
        body=Nothing,
        answers=(ResponseSpec(200, "All metrics.", None, _EXAMPLE, content_type="text/plain"),),
    ),
)
