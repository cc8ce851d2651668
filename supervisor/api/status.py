"""The noun `status`: everything at a glance."""

from __future__ import annotations

from supervisor.api import examples
from supervisor.api.routes import Answer, AnyRoute, Call, Nothing, Reply, Route
from supervisor.model.status import Status


async def _status(call: Call[Nothing, Nothing]) -> Reply:
    await call.control.health.looked()  # just after a start there is no score to tell yet
    return Reply(call.control.deploys.status())


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/deploy/status",
        handler=_status,
        summary="Everything at a glance",
        description="Mode, ports, slots, traffic, the last deploy, and what to look after.",
        tag="Deploy",
        query=Nothing,
        body=Nothing,
        answers=(Answer(200, "The state at this moment.", Status, examples.STATUS),),
    ),
)
