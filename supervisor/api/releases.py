"""The noun `release`: what there is to deploy by name."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from supervisor.api import examples
from supervisor.api.routes import Answer, AnyRoute, Call, Nothing, Reply, Route
from supervisor.model.release import LastDeploy, ReleaseView
from supervisor.model.slot import SlotName


class ReleaseList(BaseModel):
    """The releases that exist."""

    model_config = ConfigDict(frozen=True)

    releases: list[ReleaseView]


async def _releases(call: Call[Nothing, Nothing]) -> Reply:
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

ROUTES: tuple[AnyRoute, ...] = (
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
        answers=(Answer(200, "The releases.", ReleaseList, ReleaseList(releases=[_EXAMPLE])),),
    ),
)
