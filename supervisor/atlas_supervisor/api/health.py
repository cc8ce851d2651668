"""The routes for health, liveness and readiness."""

from __future__ import annotations

from pydantic import BaseModel, Field

from atlas_supervisor import errors
from atlas_supervisor.api import examples
from atlas_supervisor.api.routes import AnyRoute, Nothing, Reply, Request, ResponseSpec, Route
from atlas_supervisor.model.health import Health, HealthStatus


class Alive(BaseModel, frozen=True):
    """The answer of a daemon that lives, or is ready."""

    status: str = Field(description="`alive` or `ready`.")


async def _health(call: Request[Nothing, Nothing]) -> Reply:
    health = await call.control.health.report()
    return Reply(health, status=503 if health.status is HealthStatus.UNHEALTHY else 200)


async def _livez(_call: Request[Nothing, Nothing]) -> Reply:
    return Reply(Alive(status="alive"))


async def _readyz(call: Request[Nothing, Nothing]) -> Reply:
    if not call.control.queries.ready():
        raise errors.NOT_READY.error()
    return Reply(Alive(status="ready"))


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/health",
        handler=_health,
        summary="Health of the active worker and the daemon",
        description="A score over the checks that apply, and each check. Answered from memory: the "
        "active worker is checked every two seconds and after each switch. Just after a start the "
        "answer waits up to 0.1 s for the first result. docs/health.md explains each check.",
        tag="Health",
        query=Nothing,
        body=Nothing,
        answers=(
            ResponseSpec(200, "`healthy` or `degraded`.", Health, examples.HEALTH),
            ResponseSpec(503, "`unhealthy`.", Health, examples.UNHEALTHY),
        ),
    ),
    Route(
        method="GET",
        path="/livez",
        handler=_livez,
        summary="Liveness of the daemon",
        description="Answers as long as the daemon can answer at all; its workers don't matter.",
        tag="Health",
        query=Nothing,
        body=Nothing,
        answers=(ResponseSpec(200, "The daemon lives.", Alive, Alive(status="alive")),),
    ),
    Route(
        method="GET",
        path="/readyz",
        handler=_readyz,
        summary="Readiness of this machine",
        description="For load balancers that decide whether this machine gets traffic.",
        tag="Health",
        query=Nothing,
        body=Nothing,
        answers=(
            ResponseSpec(200, "An active worker takes traffic.", Alive, Alive(status="ready")),
        ),
        errors=(errors.NOT_READY,),
    ),
)
