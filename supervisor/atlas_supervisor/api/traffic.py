"""The routes that split the traffic between two versions, steer a ramp, and hold connections."""

from __future__ import annotations

from pydantic import BaseModel, Field

from atlas_supervisor import errors
from atlas_supervisor.api import examples
from atlas_supervisor.api.routes import (
    Access,
    AnyRoute,
    Nothing,
    Reply,
    Request,
    ResponseSpec,
    Route,
)
from atlas_supervisor.model.ramp import RampAction, RampView
from atlas_supervisor.model.requests import RequestHour
from atlas_supervisor.model.status import HoldView, SplitView


class SplitBody(BaseModel, extra="forbid"):
    """The split to set."""

    staging_weight: float = Field(
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of new connections, or with TRAFFIC_STICKY=address of client addresses, "
        "that the waiting version gets; 0 takes it away.",
        examples=[examples.SPLIT.staging_weight],
    )


class RampBody(BaseModel, extra="forbid"):
    """What to do to the ramp."""

    action: RampAction = Field(
        description="`pause` stops its clock, `resume` goes on, `advance` takes the next step now; "
        "after the last one that is the switch.",
        examples=[RampAction.PAUSE.value],
    )


class HoldBody(BaseModel, extra="forbid"):
    """The hold to begin."""

    max_seconds: float = Field(
        default=30,
        ge=1,
        le=300,
        allow_inf_nan=False,
        description="When it ends by itself, if it is not released before.",
        examples=[30],
    )


class ReleaseBody(BaseModel, extra="forbid"):
    """The hold to end."""

    hold_id: str | None = Field(
        default=None,
        max_length=64,
        description="The `hold_id` of the hold to end; without it, whichever there is.",
        examples=[examples.HOLD.hold_id],
    )


async def _hold(call: Request[Nothing, HoldBody]) -> Reply:
    return Reply(await call.control.holds.hold(call.body.max_seconds, call.actor))


async def _release(call: Request[Nothing, ReleaseBody]) -> Reply:
    return Reply(await call.control.holds.release(call.actor, call.body.hold_id))


async def _requests(call: Request[Nothing, Nothing]) -> Reply:
    return Reply(await call.control.requests.last_hour())


async def _view(call: Request[Nothing, Nothing]) -> Reply:
    return Reply(call.control.traffic.view())


async def _set(call: Request[Nothing, SplitBody]) -> Reply:
    return Reply(await call.control.traffic.set_weight(call.body.staging_weight, call.actor))


async def _ramp(call: Request[Nothing, RampBody]) -> Reply:
    return Reply(await call.control.traffic.ramp(call.body.action, call.actor, call.key))


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/deploy/requests",
        handler=_requests,
        summary="Users' requests by version",
        description="Of the last hour, in minutes, with the switches of that time. Of workers that "
        "count their requests (docs/worker-contract.md, 6); of others there are none. It goes "
        "on over restarts of the daemon.",
        tag="Deploy",
        query=Nothing,
        body=Nothing,
        access=Access.READ,
        answers=(ResponseSpec(200, "The last hour.", RequestHour, examples.REQUEST_HOUR),),
    ),
    Route(
        method="GET",
        path="/deploy/traffic",
        handler=_view,
        summary="Split of the traffic",
        description="While a deploy that has passed its gates waits for its switch, or ramps.",
        tag="Deploy",
        query=Nothing,
        body=Nothing,
        access=Access.READ,
        answers=(ResponseSpec(200, "The split.", SplitView, examples.SPLIT),),
        errors=(errors.NOTHING_TO_SPLIT, errors.NO_PUBLIC_PORT),
    ),
    Route(
        method="POST",
        path="/deploy/traffic",
        handler=_set,
        summary="Split the traffic",
        description="Gives the new version a share of new connections, while its deploy waits for "
        "its switch or ramps; a ramp is paused by that. Open connections stay where they are. The "
        "share is durable: it survives a kill of the daemon and a reload. It ends with the switch, "
        "an abort, or the end of the version's worker.",
        tag="Deploy",
        query=Nothing,
        body=SplitBody,
        access=Access.CHANGE,
        answers=(ResponseSpec(200, "The split from now on.", SplitView, examples.SPLIT),),
        errors=(
            errors.NOTHING_TO_SPLIT,
            errors.NO_PUBLIC_PORT,
            errors.NOT_DURABLE,
            errors.STOPPING,
        ),
    ),
    Route(
        method="POST",
        path="/deploy/ramp",
        handler=_ramp,
        summary="Steer the ramp",
        description="For a deploy that ramps (TRAFFIC_RAMP). While it is paused, the new version "
        "is watched and reverted as ever. `POST /deploy/switch` ends the ramp with all traffic, "
        "`POST /deploy/abort` with none. Repeated under its `Idempotency-Key`, a request takes no "
        "second step.",
        tag="Deploy",
        query=Nothing,
        body=RampBody,
        access=Access.CHANGE,
        answers=(ResponseSpec(200, "The ramp from now on.", RampView, examples.RAMP),),
        errors=(
            errors.NOTHING_TO_RAMP,
            errors.RAMP_NOT_POSSIBLE,
            errors.NOT_DURABLE,
            errors.STOPPING,
        ),
        keyed=True,
    ),
    Route(
        method="POST",
        path="/traffic/hold",
        handler=_hold,
        summary="Hold new connections",
        description="New connections to the public port wait in the kernel until the release; none "
        "is refused. Requests in progress end as ever, and workers with the kit announce that they "
        "close their open connections. Deploys, switches and rollbacks go on meanwhile.",
        tag="Deploy",
        query=Nothing,
        body=HoldBody,
        access=Access.CHANGE,
        answers=(ResponseSpec(200, "The hold.", HoldView, examples.HOLD),),
        errors=(
            errors.ALREADY_HELD,
            errors.NOTHING_TO_HOLD,
            errors.HOLD_FAILED,
            errors.STOPPING,
        ),
    ),
    Route(
        method="POST",
        path="/traffic/release",
        handler=_release,
        summary="Release what is held",
        description="Connections that have waited are handed on to the active version, in order.",
        tag="Deploy",
        query=Nothing,
        body=ReleaseBody,
        access=Access.CHANGE,
        answers=(ResponseSpec(200, "The hold as it ended.", HoldView, examples.HOLD),),
        errors=(errors.NOTHING_TO_RELEASE,),
    ),
)
