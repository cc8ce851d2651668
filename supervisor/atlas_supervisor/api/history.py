"""The routes that show the status, past deploys, and the releases that exist."""

from __future__ import annotations

import re

from pydantic import BaseModel, Field

from atlas_supervisor import errors
from atlas_supervisor.api import examples
from atlas_supervisor.api.routes import AnyRoute, Nothing, Reply, Request, ResponseSpec, Route
from atlas_supervisor.model.deploy import DeployRecord, Transition
from atlas_supervisor.model.release import ReleaseView
from atlas_supervisor.model.status import Status

# Anything else in a path (NUL, a lone surrogate, kilobytes) never reaches the database.
_DEPLOY_ID = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)


class HistoryQuery(BaseModel, extra="forbid"):
    """How many deploys to list."""

    limit: int = Field(default=50, ge=1, le=1000, description="Maximum number of deploys.")


class History(BaseModel, frozen=True):
    """Past deploys, newest first."""

    deploys: list[DeployRecord] = Field(description="The deploys, newest first.")


class DeployWithTransitions(DeployRecord):
    """The record of one deploy, with its transitions so far."""

    transitions: list[Transition] = Field(description="Its transitions so far, in order.")


class ReleaseList(BaseModel, frozen=True):
    """The releases that exist, by name."""

    releases: list[ReleaseView] = Field(description="The releases, by name.")


async def _status(call: Request[Nothing, Nothing]) -> Reply:
    await call.control.health.first_checks()  # just after a start there is no score yet
    return Reply(call.control.queries.status())


async def _history(call: Request[HistoryQuery, Nothing]) -> Reply:
    return Reply(History(deploys=await call.control.queries.history(call.query.limit)))


async def _show(call: Request[Nothing, Nothing]) -> Reply:
    deploy_id = call.path["deploy_id"]
    record = await call.control.queries.find(deploy_id) if _DEPLOY_ID.fullmatch(deploy_id) else None
    if record is None:
        raise errors.DEPLOY_NOT_FOUND.error()
    transitions = await call.control.queries.transitions(deploy_id)
    return Reply(DeployWithTransitions(**dict(record), transitions=transitions))


async def _releases(call: Request[Nothing, Nothing]) -> Reply:
    # Git takes time and follows the checkout's own configuration: not for any local program.
    is_known = call.actor.name != "anonymous"
    found = await call.control.queries.releases(with_git=is_known)
    return Reply(ReleaseList(releases=found))


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/deploy/status",
        handler=_status,
        summary="The current status",
        description="Mode, ports, slots, traffic, the last deploy, and suggestions for the "
        "operator.",
        tag="Deploy",
        query=Nothing,
        body=Nothing,
        answers=(ResponseSpec(200, "The current status.", Status, examples.STATUS),),
    ),
    Route(
        method="GET",
        path="/deploy/history",
        handler=_history,
        summary="Past deploys",
        description="Newest first, each with its steps; a deploy in progress is included.",
        tag="Deploy",
        query=HistoryQuery,
        body=Nothing,
        heavy=True,
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
        parameters={"deploy_id": "The `deploy_id` of a deploy's record."},
        answers=(
            ResponseSpec(
                200,
                "The record.",
                DeployWithTransitions,
                DeployWithTransitions(**dict(examples.SWITCHED), transitions=[examples.TRANSITION]),
            ),
        ),
        errors=(errors.DEPLOY_NOT_FOUND,),
    ),
    Route(
        method="GET",
        path="/deploy/releases",
        handler=_releases,
        summary="Releases",
        description="The folders of RELEASES_DIR by name, where each runs now and how its last "
        "deploy ended. Empty if RELEASES_DIR is not set.",
        tag="Deploy",
        query=Nothing,
        body=Nothing,
        answers=(
            ResponseSpec(
                200, "The releases.", ReleaseList, ReleaseList(releases=[examples.RELEASE])
            ),
        ),
        errors=(errors.RELEASES_UNREADABLE,),
    ),
)
