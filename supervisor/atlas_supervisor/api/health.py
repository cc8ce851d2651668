"""The noun `health`: what a process manager, a load balancer or a worried person asks."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from atlas_supervisor.api import examples
from atlas_supervisor.api.routes import AnyRoute, Nothing, Reply, Request, ResponseSpec, Route
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.health import Health, HealthStatus


class Alive(BaseModel):
    """The answer of somebody who is there."""

    model_config = ConfigDict(frozen=True)

    status: str


async def _health(call: Request[Nothing, Nothing]) -> Reply:
    health = await call.control.health.report()
    return Reply(health, status=503 if health.status is HealthStatus.UNHEALTHY else 200)


async def _livez(_call: Request[Nothing, Nothing]) -> Reply:
    return Reply(Alive(status="alive"))


async def _readyz(call: Request[Nothing, Nothing]) -> Reply:
    if not call.control.deploys.ready():
        raise RefusedError(_CODE, _MESSAGE, status=503, hint=_HINT)
    return Reply(Alive(status="ready"))


_CODE, _MESSAGE = "not_ready", "no active worker takes traffic"
_HINT = "GET /deploy/status shows the slots, the worker's log says why"

ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/health",
        handler=_health,
        summary="How well everything is",
        description=(
            "A score over the checks that apply, and each check. It is answered from memory: the "
            "active instance is looked at every two seconds and after each switch."
        ),
        tag="Health",
        query=Nothing,
        body=Nothing,
        answers=(
            ResponseSpec(200, "Healthy or degraded.", Health, examples.HEALTH),
            ResponseSpec(503, "Unhealthy.", Health, examples.UNHEALTHY),
        ),
    ),
    Route(
        method="GET",
        path="/livez",
        handler=_livez,
        summary="The daemon lives",
        description="Answers as long as the daemon can answer at all, whatever its workers do.",
        tag="Health",
        query=Nothing,
        body=Nothing,
        answers=(ResponseSpec(200, "It does.", Alive, Alive(status="alive")),),
    ),
    Route(
        method="GET",
        path="/readyz",
        handler=_readyz,
        summary="An active worker takes traffic",
        description="For whoever decides whether this machine gets traffic.",
        tag="Health",
        query=Nothing,
        body=Nothing,
        answers=(
            ResponseSpec(200, "One does.", Alive, Alive(status="ready")),
            examples.refused(503, _CODE, _MESSAGE, _HINT),
        ),
    ),
)
