"""The noun `canary`: shares of calls for a feature's new code, and the evidence on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from atlas_supervisor.api import examples
from atlas_supervisor.api.examples import refused
from atlas_supervisor.api.routes import (
    Access,
    AnyRoute,
    Nothing,
    Reply,
    Request,
    ResponseSpec,
    Route,
)
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.canary import CanaryReport, CanaryView, FeatureView

_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}", re.ASCII)


class PercentageBody(BaseModel):
    """The share to set."""

    model_config = ConfigDict(extra="forbid")

    percentage: float = Field(
        ge=0, le=1, allow_inf_nan=False, description="Share of calls, 0 to 1: 0.1 is 10 %."
    )


class RampBody(BaseModel):
    """What to do to the ramp."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["start", "pause", "resume", "advance", "promote", "rollback"] = Field(
        description="`start` at the first step of CANARY_RAMP; `pause` and `resume`; `advance` to "
        "the next step at once; `promote`: all calls; `rollback`: none."
    )


class ResetBody(BaseModel):
    """What to reset."""

    model_config = ConfigDict(extra="forbid")

    feature: str | None = Field(
        default=None,
        pattern=_NAME.pattern,
        max_length=100,
        description="Go back to the settings for this feature; without it, the fallback is reset.",
    )


class ReportQuery(BaseModel):
    """The span of the report."""

    model_config = ConfigDict(extra="forbid")

    hours: int = Field(default=24, ge=1, le=720, description="Of the last so many hours.")


def _feature(path: Mapping[str, str]) -> str:
    name = path["feature"]
    if not _NAME.fullmatch(name):
        raise RefusedError(_UNKNOWN, "there is no such feature", status=404, hint=_UNKNOWN_HINT)
    return name


async def _view(call: Request[Nothing, Nothing]) -> Reply:
    return Reply(call.control.canary.view())


async def _set(call: Request[Nothing, PercentageBody]) -> Reply:
    feature, percentage = _feature(call.path), call.body.percentage
    return Reply(await call.control.canary.set_percentage(feature, percentage, call.actor))


async def _ramp(call: Request[Nothing, RampBody]) -> Reply:
    feature, action = _feature(call.path), call.body.action
    return Reply(await call.control.canary.ramp(feature, action, call.actor, call.key))


async def _reset(call: Request[Nothing, ResetBody]) -> Reply:
    return Reply(await call.control.canary.reset(call.body.feature, call.actor, call.key))


async def _report(call: Request[ReportQuery, Nothing]) -> Reply:
    return Reply(await call.control.canary.report(call.query.hours))


_UNKNOWN, _UNKNOWN_HINT = "unknown_feature", "CANARY_FEATURES lists them"
_UNKNOWN_FEATURE = refused(404, _UNKNOWN, "there is no feature 'speech'", _UNKNOWN_HINT)
_NOT_DURABLE = refused(
    503,
    "not_durable",
    "the canary policy could not be written and is unchanged",
    "see whether the disk of STATE_DIR is full or read-only",
)
_PATH = {"feature": "One of CANARY_FEATURES."}

ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/deploy/canary",
        handler=_view,
        summary="Every feature's canary",
        description="Its share, where its ramp is and what it waits for, what the evidence says "
        "and why, and whether the numbers are to be trusted.",
        tag="Canary",
        query=Nothing,
        body=Nothing,
        answers=(ResponseSpec(200, "The canaries as they are now.", CanaryView, examples.VIEW),),
    ),
    Route(
        method="PUT",
        path="/deploy/canary/{feature}",
        handler=_set,
        summary="Set a feature's share",
        description="A new epoch begins, and the share survives a restart. A ramp ends; its "
        "evidence goes on, or begins anew if all calls or none were the canary's.",
        tag="Canary",
        query=Nothing,
        body=PercentageBody,
        parameters=_PATH,
        access=Access.CHANGE,
        answers=(
            ResponseSpec(200, "The feature as it is now.", FeatureView, examples.FEATURE),
            _UNKNOWN_FEATURE,
            _NOT_DURABLE,
        ),
    ),
    Route(
        method="POST",
        path="/deploy/canary/{feature}/ramp",
        handler=_ramp,
        summary="Steer a feature's ramp",
        description="Asked for what is so already, nothing changes.",
        tag="Canary",
        query=Nothing,
        body=RampBody,
        parameters=_PATH,
        access=Access.CHANGE,
        keyed=True,
        answers=(
            ResponseSpec(200, "The feature as it is now.", FeatureView, examples.FEATURE),
            _UNKNOWN_FEATURE,
            refused(
                409,
                "ramp_not_possible",
                "vision is steady: no ramp in progress",
                "start one first",
            ),
            _NOT_DURABLE,
        ),
    ),
    Route(
        method="POST",
        path="/deploy/canary/reset",
        handler=_reset,
        summary="Reset the fallback, or a feature",
        description="Without a feature: canaries that the fallback turned off are on again, and "
        "what was before is forgotten. With one: it goes back to the settings, and its evidence "
        "begins anew.",
        tag="Canary",
        query=Nothing,
        body=ResetBody,
        access=Access.CHANGE,
        keyed=True,
        answers=(
            ResponseSpec(200, "The canaries as they are now.", CanaryView, examples.VIEW),
            _UNKNOWN_FEATURE,
            _NOT_DURABLE,
        ),
    ),
    Route(
        method="GET",
        path="/deploy/canary/report",
        handler=_report,
        summary="Canary and stable, compared",
        description="For each feature, over the last hours: both arms' error rates with intervals "
        "and latencies, the difference stratified by epoch, the verdict and its reason.",
        tag="Canary",
        query=ReportQuery,
        body=Nothing,
        answers=(ResponseSpec(200, "The report.", CanaryReport, examples.REPORT),),
    ),
)
