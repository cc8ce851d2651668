"""The routes for feature canaries: their shares, ramps and evidence."""

from __future__ import annotations

import re
from typing import Literal

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
from atlas_supervisor.config.fields import Ramp
from atlas_supervisor.model.canary import CanaryReport, CanaryView, FeatureView, SimulationView

_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}", re.ASCII)


class PercentageBody(BaseModel, extra="forbid"):
    """The share to set."""

    percentage: float = Field(
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of calls: 0.1 is 10 %.",
        examples=[examples.FEATURE.share],
    )


class FeatureRampBody(BaseModel, extra="forbid"):
    """An action on a feature's ramp."""

    action: Literal["start", "pause", "resume", "advance", "promote", "rollback"] = Field(
        description="`start` at the first step of CANARY_RAMP; `pause`, `resume`; `advance` to the "
        "next step at once; `promote`: all calls to the canary; `rollback`: none.",
        examples=["pause"],
    )


class ResetBody(BaseModel, extra="forbid"):
    """What to reset."""

    feature: str | None = Field(
        default=None,
        pattern=_NAME.pattern,
        max_length=100,
        description="Reset this feature to the settings; without it, the fallback is reset.",
        examples=[examples.FEATURE.feature],
    )


class ReportQuery(BaseModel, extra="forbid"):
    """Which hours to report on."""

    hours: int = Field(default=24, ge=1, le=720, description="Number of hours until now.")


class SimulateQuery(BaseModel, extra="forbid"):
    """How many keys call, and how often their calls fail."""

    keys: int = Field(default=1_000, ge=1, le=1_000_000, description="How many keys (users) call.")
    error_rate: float = Field(
        default=0.01,
        ge=0,
        le=0.5,
        allow_inf_nan=False,
        description="Error rate of both arms: 0.01 is 1 %.",
    )
    ramp: Ramp | None = Field(
        default=None, description="Ascending shares, as 0.05,0.25,1; CANARY_RAMP without it."
    )


async def _view(call: Request[Nothing, Nothing]) -> Reply:
    return Reply(call.control.canary.view())


async def _set(call: Request[Nothing, PercentageBody]) -> Reply:
    feature, percentage = call.path["feature"], call.body.percentage
    return Reply(await call.control.canary.set_percentage(feature, percentage, call.actor))


async def _ramp(call: Request[Nothing, FeatureRampBody]) -> Reply:
    feature, action = call.path["feature"], call.body.action
    return Reply(await call.control.canary.ramp(feature, action, call.actor, call.key))


async def _reset(call: Request[Nothing, ResetBody]) -> Reply:
    return Reply(await call.control.canary.reset(call.body.feature, call.actor, call.key))


async def _report(call: Request[ReportQuery, Nothing]) -> Reply:
    return Reply(await call.control.canary.report(call.query.hours))


async def _simulate(call: Request[SimulateQuery, Nothing]) -> Reply:
    query = call.query
    return Reply(await call.control.canary.simulate(query.keys, query.error_rate, query.ramp))


_PATH = {"feature": "A name of CANARY_FEATURES."}

ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/deploy/canary",
        handler=_view,
        summary="Every feature's canary",
        description="Its share, its ramp and what that waits for, the evidence and its verdict, "
        "and reasons not to trust the numbers. docs/canary.md explains them.",
        tag="Canary",
        query=Nothing,
        body=Nothing,
        answers=(ResponseSpec(200, "All canaries.", CanaryView, examples.VIEW),),
    ),
    Route(
        method="PUT",
        path="/deploy/canary/{feature}",
        handler=_set,
        summary="Set a feature's share",
        description="A new epoch begins; the share survives a restart. A ramp ends. The evidence "
        "is kept, unless all calls or none went to the canary before (promoted, rolled back, "
        "share 1 or 0, canaries off): then it starts again.",
        tag="Canary",
        query=Nothing,
        body=PercentageBody,
        parameters=_PATH,
        access=Access.CHANGE,
        answers=(ResponseSpec(200, "The feature's canary.", FeatureView, examples.FEATURE),),
        errors=(errors.UNKNOWN_FEATURE, errors.FEATURE_KILLED, errors.NOT_DURABLE),
    ),
    Route(
        method="POST",
        path="/deploy/canary/{feature}/ramp",
        handler=_ramp,
        summary="Steer a feature's ramp",
        description="An action that is in effect already changes nothing. Send `advance` with an "
        "`Idempotency-Key`.",
        tag="Canary",
        query=Nothing,
        body=FeatureRampBody,
        parameters=_PATH,
        access=Access.CHANGE,
        keyed=True,
        answers=(ResponseSpec(200, "The feature's canary.", FeatureView, examples.FEATURE),),
        errors=(
            errors.UNKNOWN_FEATURE,
            errors.FEATURE_KILLED,
            errors.RAMP_NOT_POSSIBLE,
            errors.NOT_DURABLE,
        ),
    ),
    Route(
        method="POST",
        path="/deploy/canary/reset",
        handler=_reset,
        summary="Reset the fallback, or a feature",
        description="Without a feature, canaries that the fallback turned off are on again, each "
        "with a new epoch and new evidence, and the fallback ignores earlier calls. With one, that "
        "feature is reset to the settings in any stage, and its evidence starts again.",
        tag="Canary",
        query=Nothing,
        body=ResetBody,
        access=Access.CHANGE,
        keyed=True,
        answers=(ResponseSpec(200, "All canaries.", CanaryView, examples.VIEW),),
        errors=(errors.UNKNOWN_FEATURE, errors.NOT_DURABLE),
    ),
    Route(
        method="GET",
        path="/deploy/canary/report",
        handler=_report,
        summary="Compare canary and stable",
        description="For each feature over the last hours: error rates with intervals and "
        "latencies of both arms, their difference stratified by epoch, and the verdict with its "
        "reason.",
        tag="Canary",
        query=ReportQuery,
        body=Nothing,
        heavy=True,
        answers=(ResponseSpec(200, "The report.", CanaryReport, examples.REPORT),),
    ),
    Route(
        method="GET",
        path="/deploy/canary/simulate",
        handler=_simulate,
        summary="Simulate a ramp of a good canary",
        description="How often a ramp, and longer ones, promote a canary that is no worse, if so "
        "many keys call. A key counts once on each step at which its arm is drawn.",
        tag="Canary",
        query=SimulateQuery,
        body=Nothing,
        heavy=True,
        answers=(ResponseSpec(200, "The simulation.", SimulationView, examples.SIMULATION),),
        errors=(errors.RAMP_NOT_POSSIBLE,),
    ),
)
