"""The noun `health`: what a process manager or a load balancer asks."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from supervisor.api import examples
from supervisor.api.routes import Answer, AnyRoute, Call, Nothing, Reply, Route
from supervisor.errors import RefusedError


class Alive(BaseModel):
    """The answer of somebody who is there."""

    model_config = ConfigDict(frozen=True)

    status: str


async def _livez(_call: Call[Nothing, Nothing]) -> Reply:
    return Reply(Alive(status="alive"))


async def _readyz(call: Call[Nothing, Nothing]) -> Reply:
    if not call.control.deploys.ready():
        raise RefusedError(_CODE, _MESSAGE, status=503, hint=_HINT)
    return Reply(Alive(status="ready"))


_CODE, _MESSAGE = "not_ready", "no active worker takes traffic"
_HINT = "GET /deploy/status shows the slots, the worker's log says why"

ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/livez",
        handler=_livez,
        summary="The daemon lives",
        description="Answers as long as the daemon can answer at all, whatever its workers do.",
        tag="Health",
        query=Nothing,
        body=Nothing,
        answers=(Answer(200, "It does.", Alive, Alive(status="alive")),),
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
            Answer(200, "One does.", Alive, Alive(status="ready")),
            examples.refused(503, _CODE, _MESSAGE, _HINT),
        ),
    ),
)
