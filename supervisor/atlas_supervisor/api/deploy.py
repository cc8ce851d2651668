"""The noun `deploy`: run one, and steer the one there is.

The noun `mode`: whether deploys are taken, and the reset after a fallback.

How a deploy's outcome is answered: by whoever started it, and by whoever steers it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from atlas_supervisor.api import examples
from atlas_supervisor.api.examples import refused
from atlas_supervisor.api.responses import ErrorDetail
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
from atlas_supervisor.model.deploy import DeployRecord, Mode, Result
from atlas_supervisor.model.status import Status


class RefusedDeploy(DeployRecord):
    """A deploy that did not do what was asked: its whole record, and the error."""

    error: ErrorDetail


def accepted(record: DeployRecord) -> Reply:
    """Answer that the deploy has begun, and where to follow it."""
    return Reply(record, status=202, headers={"Location": f"/deploy/{record.deploy_id}"})


def answer(record: DeployRecord, *, asked: frozenset[Result]) -> Reply:
    """Answer with the record if what was `asked` was done, else refuse with it."""
    if record.result is None:
        return accepted(record)
    if record.result in asked:
        return Reply(record)
    reason = record.reason or "no reason is recorded"
    if record.result is Result.ABORTED:
        status, code, message = 409, "deploy_aborted", f"the deploy was aborted: {reason}"
    elif record.result is Result.ROLLED_BACK:
        status, code, message = 422, "release_did_not_pass", f"it was reverted: {reason}"
    elif record.result is Result.FAILED:
        status, code, message = 422, "release_did_not_pass", f"the release did not pass: {reason}"
    else:
        status, code = 409, "deploy_went_otherwise"
        message = f"the deploy came out as {record.result.value}: {reason}"
    raise RefusedError(
        code,
        message,
        status=status,
        hint=f"atlasctl show {record.deploy_id} tells what every step found",
        extra=record.model_dump(mode="json"),
    )


def _with_record(status: int, code: str, description: str, record: DeployRecord) -> ResponseSpec:
    error = ErrorDetail(
        code=code, message=f"{description}: {record.reason}", hint="atlasctl show tells more"
    )
    example = RefusedDeploy(**record.model_dump(), error=error)
    return ResponseSpec(
        status, f"`{code}`: {description}; the record, and `error`.", RefusedDeploy, example
    )


BUSY = refused(
    409,
    "deploy_in_progress",
    "a deploy is in progress",
    "wait for it, or give it up with POST /deploy/abort",
)
NOT_DURABLE = refused(
    503,
    "not_durable",
    "it could not be written down, so it was not done",
    "see whether the disk of STATE_DIR is full or read-only",
)
STOPPING = refused(503, "stopping", "the supervisor is stopping", "try again later")
SWITCH_FAILED = _with_record(
    503,
    "switch_failed",
    "the switch could not be done; ports and mode are as before, staging stays up for a retry",
    examples.SWITCH_FAILED,
)
MODE_IS_SINGLE = refused(
    409,
    "mode_is_single",
    "deploys are off",
    "reset it with POST /deploy/mode when you know why",
)
ABORTED = _with_record(409, "deploy_aborted", "the deploy was aborted", examples.ABORTED)
TOO_LATE = _with_record(
    409, "too_late", "the deploy could not be aborted any more", examples.SWITCHED
)
NOT_PASSED = _with_record(422, "release_did_not_pass", "the release did not pass", examples.FAILED)


def nothing_to(action: str) -> ResponseSpec:
    """Describe the refusal of an action that there is no deploy for."""
    return refused(
        409,
        f"nothing_to_{action}",
        f"there is nothing to {action}: no deploy is in progress",
        "GET /deploy/status shows what is going on",
    )


_PASSED = frozenset({Result.SWITCHED, Result.AWAITING_SWITCH, Result.DRY_RUN_PASSED})


class DeployQuery(BaseModel):
    """How to run a deploy."""

    model_config = ConfigDict(extra="forbid")

    dry_run: bool = Field(
        default=False, description="Launch, smoke-test and probe on staging, then stop; no switch."
    )
    wait: bool = Field(
        default=True,
        description="Answer with the outcome; false answers 202 at once. The deploy goes on if "
        "the client leaves.",
    )


class DeployBody(BaseModel):
    """What to deploy; nothing in it means the worker directory."""

    model_config = ConfigDict(extra="forbid")

    release: (
        Annotated[
            str,
            Field(min_length=1, max_length=255, pattern=r"^[^/.\x00-\x1f\x7f][^/\x00-\x1f\x7f]*$"),
        ]
        | None
    ) = Field(
        default=None,
        description="A name below RELEASES_DIR. A name, never a path: no slash, no leading dot.",
    )


async def _deploy(call: Request[DeployQuery, DeployBody]) -> Reply:
    record = await call.control.deploys.deploy(
        release=call.body.release,
        dry_run=call.query.dry_run,
        actor=call.actor,
        key=call.key,
    )
    if not call.query.wait:
        return accepted(record)
    return answer(await call.control.deploys.settled(record.deploy_id), asked=_PASSED)


async def _switch(call: Request[Nothing, Nothing]) -> Reply:
    record = await call.control.deploys.switch(call.actor, call.key)
    return answer(record, asked=frozenset({Result.SWITCHED}))


async def _abort(call: Request[Nothing, Nothing]) -> Reply:
    record = await call.control.deploys.abort(call.actor, call.key)
    return answer(record, asked=frozenset({Result.ABORTED}))


async def _rollback(call: Request[Nothing, Nothing]) -> Reply:
    # Warm, the deploy that is undone is the answer; else the one that brings the old release back.
    asked = frozenset({Result.ROLLED_BACK, Result.SWITCHED})
    return answer(await call.control.deploys.rollback(call.actor, call.key), asked=asked)


_DEPLOY_ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="POST",
        path="/deploy/bluegreen",
        handler=_deploy,
        summary="Deploy a release",
        description=(
            "Launches the release on staging, smoke-tests and probes it, switches all traffic to "
            "it and drains the old one. By default it answers once the new version has all the "
            "traffic; guard, warm time and drain go on afterwards and show in the record."
        ),
        tag="Deploy",
        query=DeployQuery,
        body=DeployBody,
        access=Access.CHANGE,
        keyed=True,
        answers=(
            ResponseSpec(
                200,
                "It switched, waits for the switch, or passed its dry run.",
                DeployRecord,
                examples.SWITCHED,
            ),
            ResponseSpec(
                202,
                "It has begun (`wait=false`).",
                DeployRecord,
                examples.BEGUN,
                {"Location": "Where to follow it."},
            ),
            NOT_PASSED,
            BUSY,
            MODE_IS_SINGLE,
            ABORTED,
            examples.refused(
                404,
                "unknown_release",
                "there is no release of this name",
                "a release is a folder below RELEASES_DIR",
            ),
            SWITCH_FAILED,
            NOT_DURABLE,
            STOPPING,
        ),
    ),
    Route(
        method="POST",
        path="/deploy/switch",
        handler=_switch,
        summary="Go ahead with the waiting deploy",
        description="For a deploy in `awaiting_switch`, and to retry a switch that failed.",
        tag="Deploy",
        query=Nothing,
        body=Nothing,
        access=Access.CHANGE,
        keyed=True,
        answers=(
            ResponseSpec(200, "It has all the traffic.", DeployRecord, examples.SWITCHED),
            NOT_PASSED,
            ABORTED,
            nothing_to("switch"),
            SWITCH_FAILED,
        ),
    ),
    Route(
        method="POST",
        path="/deploy/abort",
        handler=_abort,
        summary="Give up the deploy in progress",
        description="At any step before the switch. Staging is stopped, the mode stays.",
        tag="Deploy",
        query=Nothing,
        body=Nothing,
        access=Access.CHANGE,
        keyed=True,
        answers=(
            ResponseSpec(200, "It is given up.", DeployRecord, examples.ABORTED),
            nothing_to("abort"),
            TOO_LATE,
        ),
    ),
    Route(
        method="POST",
        path="/deploy/rollback",
        handler=_rollback,
        summary="Go back to the version before",
        description="At once if it is warm, else its release is launched and passes the gates.",
        tag="Deploy",
        query=Nothing,
        body=Nothing,
        access=Access.CHANGE,
        keyed=True,
        answers=(
            ResponseSpec(
                200, "The version before has all the traffic.", DeployRecord, examples.ROLLED_BACK
            ),
            NOT_PASSED,
            BUSY,
            nothing_to("roll_back"),
            examples.refused(
                409,
                "previous_version_gone",
                "the version before is neither warm nor a release",
                "deploy a release instead",
            ),
            SWITCH_FAILED,
            NOT_DURABLE,
            STOPPING,
        ),
    ),
)


class ModeBody(BaseModel):
    """The mode to set."""

    model_config = ConfigDict(extra="forbid")

    mode: Mode = Field(
        description="`bluegreen`: deploys are taken; this resets a fallback. `single`: none are."
    )


async def _mode(call: Request[Nothing, ModeBody]) -> Reply:
    return Reply(await call.control.deploys.set_mode(call.body.mode, call.actor, call.key))


_MODE_ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="POST",
        path="/deploy/mode",
        handler=_mode,
        summary="Set the mode",
        description="The operator's reset after a fallback to `single`.",
        tag="Deploy",
        query=Nothing,
        body=ModeBody,
        access=Access.CHANGE,
        keyed=True,
        answers=(
            ResponseSpec(
                200, "The mode is set; the state at this moment.", Status, examples.STATUS
            ),
            examples.refused(
                409,
                "single_by_settings",
                "DEPLOY_MODE=single in the settings always wins",
                "set DEPLOY_MODE=bluegreen in the env file and restart the daemon",
            ),
            NOT_DURABLE,
        ),
    ),
)

ROUTES = (*_DEPLOY_ROUTES, *_MODE_ROUTES)
