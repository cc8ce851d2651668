"""The noun `history`: past deploys, and one deploy as it is now.

The noun `status`: everything at a glance.

The noun `release`: what there is to deploy by name.
"""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field

from atlas_supervisor.api import examples
from atlas_supervisor.api.routes import AnyRoute, Nothing, Reply, Request, ResponseSpec, Route
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.deploy import DeployRecord
from atlas_supervisor.model.event import Transition
from atlas_supervisor.model.release import LastDeploy, ReleaseView
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.status import Status

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


async def _history(call: Request[HistoryQuery, Nothing]) -> Reply:
    return Reply(History(deploys=await call.control.deploys.history(call.query.limit)))


async def _show(call: Request[Nothing, Nothing]) -> Reply:
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

_HISTORY_ROUTES: tuple[AnyRoute, ...] = (
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
            ResponseSpec(200, "The latest deploys.", History, History(deploys=[examples.SWITCHED])),
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
            ResponseSpec(200, "The record.", DeployStory, _STORY),
            examples.refused(
                404,
                "deploy_not_found",
                "there is no deploy with this id",
                "GET /deploy/history lists them",
            ),
        ),
    ),
)


async def _status(call: Request[Nothing, Nothing]) -> Reply:
    await call.control.health.first_checks()  # just after a start there is no score to tell yet
    return Reply(call.control.deploys.status())


_STATUS_ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/deploy/status",
        handler=_status,
        summary="Everything at a glance",
        description="Mode, ports, slots, traffic, the last deploy, and what to look after.",
        tag="Deploy",
        query=Nothing,
        body=Nothing,
        answers=(ResponseSpec(200, "The state at this moment.", Status, examples.STATUS),),
    ),
)


class ReleaseList(BaseModel):
    """The releases that exist."""

    model_config = ConfigDict(frozen=True)

    releases: list[ReleaseView]


async def _releases(call: Request[Nothing, Nothing]) -> Reply:
    return Reply(ReleaseList(releases=await call.control.deploys.releases()))


_EXAMPLE = ReleaseView(
    name="2026-11-23",
    version="1.4.2",
    slots=[SlotName.BLUE],
    last_deploy=LastDeploy(
        deploy_id=examples.SWITCHED.deploy_id,
        started_ts=examples.SWITCHED.started_ts,
        result=examples.SWITCHED.result,
    ),
)

_RELEASE_ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/deploy/releases",
        handler=_releases,
        summary="Releases",
        description="The folders of RELEASES_DIR, by name: which run, and how each was deployed "
        "last. Empty where RELEASES_DIR is not set.",
        tag="Deploy",
        query=Nothing,
        body=Nothing,
        answers=(
            ResponseSpec(200, "The releases.", ReleaseList, ReleaseList(releases=[_EXAMPLE])),
        ),
    ),
)

ROUTES = (*_STATUS_ROUTES, *_HISTORY_ROUTES, *_RELEASE_ROUTES)
