"""The noun `history`: past deploys, and one deploy as it is now."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field

from supervisor.api import examples
from supervisor.api.routes import Answer, AnyRoute, Call, Nothing, Reply, Route
from supervisor.errors import RefusedError
from supervisor.model.deploy import DeployRecord
from supervisor.model.event import Transition

# Whatever else stands in a path (NUL, half a character, a novel) never reaches the database.
_DEPLOY_ID = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)


class HistoryQuery(BaseModel):
    """How much of the history."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=50, ge=1, le=1000, description="At most so many, newest first.")


class History(BaseModel):
    """Past deploys, newest first."""

    model_config = ConfigDict(frozen=True)

    deploys: list[DeployRecord]


class DeployStory(DeployRecord):
    """One deploy, with all that happened to it."""

    transitions: list[Transition]


async def _history(call: Call[HistoryQuery, Nothing]) -> Reply:
    return Reply(History(deploys=await call.control.deploys.history(call.query.limit)))


async def _show(call: Call[Nothing, Nothing]) -> Reply:
    deploy_id = call.path["deploy_id"]
    record = await call.control.deploys.find(deploy_id) if _DEPLOY_ID.fullmatch(deploy_id) else None
    if record is None:
        raise RefusedError(
            "deploy_not_found",
            "there is no deploy with this id",
            status=404,
            hint="GET /deploy/history lists them",
        )
    transitions = await call.control.deploys.transitions(deploy_id)
    return Reply(DeployStory(**dict(record), transitions=transitions))


_STORY = DeployStory(**dict(examples.SWITCHED), transitions=[examples.TRANSITION])

ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/deploy/history",
        handler=_history,
        summary="Past deploys",
        description="Newest first, each with its steps; one in progress included.",
        tag="Deploy",
        query=HistoryQuery,
        body=Nothing,
        answers=(
            Answer(200, "The latest deploys.", History, History(deploys=[examples.SWITCHED])),
        ),
    ),
    Route(
        method="GET",
        path="/deploy/{deploy_id}",
        handler=_show,
        summary="One deploy",
        description="Its record as it is now, with its transitions.",
        tag="Deploy",
        query=Nothing,
        body=Nothing,
        parameters={"deploy_id": "The `deploy_id` of a deploy's answer."},
        answers=(
            Answer(200, "The record.", DeployStory, _STORY),
            examples.refused(
                404,
                "deploy_not_found",
                "there is no deploy with this id",
                "GET /deploy/history lists them",
            ),
        ),
    ),
)
