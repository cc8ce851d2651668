"""The routes that run a deploy, steer the one in progress, and set the mode."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError

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
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.deploy import DeployRecord, Mode, Result
from atlas_supervisor.model.release import EarlierVersions
from atlas_supervisor.model.status import Status

_PASSED = frozenset({Result.SWITCHED, Result.AWAITING_SWITCH, Result.DRY_RUN_PASSED})


class DeployQuery(BaseModel, extra="forbid"):
    """How to run a deploy."""

    dry_run: bool = Field(
        default=False,
        description="Launch, smoke-test and probe on staging, then stop staging; no switch.",
        examples=[True],
    )
    wait: bool = Field(
        default=True,
        description="Answer with the outcome; `false` answers 202 at once.",
    )


_NAME = r"^[^/.\x00-\x1f\x7f][^/\x00-\x1f\x7f]*$"


def _is_name(release: str) -> str:
    """Return it. The error for a path names the folder, which shells complete to a path."""
    if re.fullmatch(_NAME, release):
        return release
    folder = PurePosixPath(release).name
    meant = f": {folder}" if re.fullmatch(_NAME, folder) else ""
    raise PydanticCustomError(
        "release_name",
        "a release is named by its folder in RELEASES_DIR alone{meant}",
        {"meant": meant},
    )


class DeployBody(BaseModel, extra="forbid"):
    """What to deploy."""

    release: (
        Annotated[
            str,
            AfterValidator(_is_name),
            Field(min_length=1, max_length=255, json_schema_extra={"pattern": _NAME}),
        ]
        | None
    ) = Field(
        default=None,
        description="The name of a folder below RELEASES_DIR; no slash, no leading dot. Without "
        "it the worker directory is deployed.",
        examples=[examples.SWITCHED.release],
    )


class RollbackBody(BaseModel, extra="forbid"):
    """What to go back to, and how."""

    version: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        default=None,
        description="One of the last five versions that served, or its release's name; without it "
        "the version before.",
        examples=[examples.EARLIER.versions[0].version],
    )
    fast: bool = Field(
        default=False,
        description="Skip smoke tests and health gate; possible if it ran without complaint within "
        "24 h.",
        examples=[True],
    )


class ModeBody(BaseModel, extra="forbid"):
    """The mode to set."""

    mode: Mode = Field(
        description="`bluegreen` enables deploys and resets a fallback, `single` disables them.",
        examples=[Mode.BLUEGREEN.value],
    )


async def _deploy(call: Request[DeployQuery, DeployBody]) -> Reply:
    record = await call.control.deploys.deploy(
        release=call.body.release,
        dry_run=call.query.dry_run,
        actor=call.actor,
        key=call.key,
    )
    if not call.query.wait:
        return _accepted(record)
    return _answer(await call.control.deploys.settled(record.deploy_id), asked=_PASSED)


async def _switch(call: Request[Nothing, Nothing]) -> Reply:
    record = await call.control.deploys.switch(call.actor, call.key)
    return _answer(record, asked=frozenset({Result.SWITCHED}))


async def _abort(call: Request[Nothing, Nothing]) -> Reply:
    record = await call.control.deploys.abort(call.actor, call.key)
    return _answer(record, asked=frozenset({Result.ABORTED}))


async def _earlier(call: Request[Nothing, Nothing]) -> Reply:
    is_known = call.actor.name != "anonymous"  # as for the list of releases
    return Reply(await call.control.queries.earlier(thorough=is_known))


async def _rollback(call: Request[Nothing, RollbackBody]) -> Reply:
    # To a warm version, the answer is the deploy that is undone; else the one that launches the
    # previous release again.
    asked = frozenset({Result.ROLLED_BACK, Result.SWITCHED})
    record = await call.control.deploys.rollback(
        call.actor, call.key, version=call.body.version, fast=call.body.fast
    )
    return _answer(record, asked=asked)


async def _mode(call: Request[Nothing, ModeBody]) -> Reply:
    await call.control.deploys.set_mode(call.body.mode, call.actor, call.key)
    return Reply(call.control.queries.status())


def _accepted(record: DeployRecord) -> Reply:
    """Answer 202: the deploy has started, and `Location` says where to follow it.

    It is relative to the request's own path, so that it holds behind a proxy's path prefix.
    """
    return Reply(record, status=202, headers={"Location": record.deploy_id})


def _answer(record: DeployRecord, *, asked: frozenset[Result]) -> Reply:
    """Answer with the record if its result is one of `asked`, else raise with the record."""
    if record.result is None:
        return _accepted(record)
    if record.result in asked:
        return Reply(record)
    raise _other_result(record)


def _other_result(record: DeployRecord) -> RefusedError:
    outcome = "was reverted" if record.result is Result.ROLLED_BACK else "did not pass"
    if record.result is Result.ABORTED:
        row = errors.DEPLOY_ABORTED
    elif record.result in {Result.ROLLED_BACK, Result.FAILED}:
        row = errors.RELEASE_DID_NOT_PASS
    else:
        row = errors.DEPLOY_WENT_OTHERWISE
    return row.error(
        deploy_id=record.deploy_id,
        result=record.result,
        outcome=outcome,
        reason=record.reason or "no reason is recorded",
        extra=record.model_dump(mode="json"),
    )


ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="POST",
        path="/deploy/bluegreen",
        handler=_deploy,
        summary="Deploy a release",
        description="Launches the release on staging, runs its smoke tests and health probes, "
        "switches all traffic to it and drains the old version. By default the answer comes once "
        "the new version has all the traffic; guard, warm time and drain go on afterwards and "
        "show in the record. The deploy goes on if the client leaves.",
        tag="Deploy",
        query=DeployQuery,
        body=DeployBody,
        access=Access.CHANGE,
        keyed=True,
        answers=(
            ResponseSpec(
                200,
                "It switched, waits for the switch (`awaiting_switch`), or passed its dry run.",
                DeployRecord,
                examples.SWITCHED,
            ),
            ResponseSpec(
                202,
                "It has started (`wait=false`); the record as it is.",
                DeployRecord,
                examples.STARTED,
                {"Location": "Where to follow it, relative to the request's path."},
            ),
        ),
        errors=(
            errors.UNKNOWN_RELEASE,
            errors.DEPLOY_IN_PROGRESS,
            errors.MODE_IS_SINGLE,
            errors.MODE_IS_SINGLE_BY_SETTINGS,
            errors.DEPLOY_ABORTED,
            errors.RELEASE_DID_NOT_PASS,
            errors.SWITCH_FAILED,
            errors.NOT_DURABLE,
            errors.STOPPING,
        ),
    ),
    Route(
        method="POST",
        path="/deploy/switch",
        handler=_switch,
        summary="Switch to the waiting deploy",
        description="For a deploy in `awaiting_switch`: because AUTO_SWITCH_ON_HEALTH=false, or to "
        "retry a switch that failed. Two requests at the same time both get the record.",
        tag="Deploy",
        query=Nothing,
        body=Nothing,
        access=Access.CHANGE,
        keyed=True,
        answers=(
            ResponseSpec(
                200, "The new version has all the traffic.", DeployRecord, examples.SWITCHED
            ),
        ),
        errors=(
            errors.NOTHING_TO_SWITCH,
            errors.DEPLOY_ABORTED,
            errors.RELEASE_DID_NOT_PASS,
            errors.SWITCH_FAILED,
            errors.NOT_DURABLE,
            errors.STOPPING,
        ),
    ),
    Route(
        method="POST",
        path="/deploy/abort",
        handler=_abort,
        summary="Abort the deploy in progress",
        description="Possible at any step before the switch. Staging is stopped, the mode is "
        "unchanged. Two requests at the same time, or while staging is being stopped, both get "
        "the record.",
        tag="Deploy",
        query=Nothing,
        body=Nothing,
        access=Access.CHANGE,
        keyed=True,
        answers=(ResponseSpec(200, "It is aborted.", DeployRecord, examples.ABORTED),),
        errors=(
            errors.NOTHING_TO_ABORT,
            errors.TOO_LATE,
            errors.NOT_DURABLE,
            errors.STOPPING,
        ),
    ),
    Route(
        method="POST",
        path="/deploy/rollback",
        handler=_rollback,
        summary="Go back to an earlier version",
        description="To the version before, or to one of the last five that served, in either "
        "mode. If it is still warm, it gets the traffic at once, and the answer is the record of "
        "the deploy that is undone (`rolled_back`). Otherwise its release is launched and passes "
        "the gates, and the answer is the record of that deploy (`switched`). "
        "docs/adr/0005-versions-stack.md defines which version is the one before. By hand one can "
        "go back past an irreversible version, too; the record says so.",
        tag="Deploy",
        query=Nothing,
        body=RollbackBody,
        access=Access.CHANGE,
        keyed=True,
        answers=(
            ResponseSpec(
                200,
                "The earlier version has all the traffic.",
                DeployRecord,
                examples.ROLLED_BACK,
            ),
        ),
        errors=(
            errors.NOTHING_TO_ROLL_BACK,
            errors.UNKNOWN_VERSION,
            errors.VERSION_IS_ACTIVE,
            errors.FAST_NOT_ALLOWED,
            errors.PREVIOUS_VERSION_GONE,
            errors.DEPLOY_IN_PROGRESS,
            errors.DEPLOY_ABORTED,
            errors.DEPLOY_WENT_OTHERWISE,
            errors.RELEASE_DID_NOT_PASS,
            errors.SWITCH_FAILED,
            errors.NOT_DURABLE,
            errors.STOPPING,
        ),
    ),
    Route(
        method="GET",
        path="/deploy/rollback",
        handler=_earlier,
        summary="What can be gone back to",
        heavy=True,
        description="The last five other versions that served: how fast each can take over, and "
        "whether an irreversible version served since. Whether a folder still has the version "
        "that git or a digest gave it is looked up for callers who are known by token or uid.",
        tag="Deploy",
        query=Nothing,
        body=Nothing,
        answers=(
            ResponseSpec(200, "The versions, the latest first.", EarlierVersions, examples.EARLIER),
        ),
    ),
    Route(
        method="POST",
        path="/deploy/mode",
        handler=_mode,
        summary="Set the mode",
        description="`bluegreen` is the operator's reset after a fallback to `single`.",
        tag="Deploy",
        query=Nothing,
        body=ModeBody,
        access=Access.CHANGE,
        keyed=True,
        answers=(
            ResponseSpec(200, "The mode is set; the current status.", Status, examples.STATUS),
        ),
        errors=(errors.SINGLE_BY_SETTINGS, errors.NOT_DURABLE),
    ),
)
