"""The noun `deploy`: run one, and steer the one there is."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from supervisor.api import examples, outcome
from supervisor.api.routes import Access, Answer, AnyRoute, Call, Nothing, Reply, Route
from supervisor.model.deploy import DeployRecord, Result

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


async def _deploy(call: Call[DeployQuery, DeployBody]) -> Reply:
    record = await call.control.deploys.deploy(
        release=call.body.release,
        dry_run=call.query.dry_run,
        actor=call.actor,
        key=call.key,
    )
    if not call.query.wait:
        return outcome.accepted(record)
    return outcome.answer(await call.control.deploys.settled(record.deploy_id), asked=_PASSED)


async def _switch(call: Call[Nothing, Nothing]) -> Reply:
    record = await call.control.deploys.switch(call.actor, call.key)
    return outcome.answer(record, asked=frozenset({Result.SWITCHED}))


async def _abort(call: Call[Nothing, Nothing]) -> Reply:
    record = await call.control.deploys.abort(call.actor, call.key)
    return outcome.answer(record, asked=frozenset({Result.ABORTED}))


async def _rollback(call: Call[Nothing, Nothing]) -> Reply:
    # Warm, the deploy that is undone is the answer; else the one that brings the old release back.
    asked = frozenset({Result.ROLLED_BACK, Result.SWITCHED})
    return outcome.answer(await call.control.deploys.rollback(call.actor, call.key), asked=asked)


ROUTES: tuple[AnyRoute, ...] = (
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
            Answer(
                200,
                "It switched, waits for the switch, or passed its dry run.",
                DeployRecord,
                examples.SWITCHED,
            ),
            Answer(
                202,
                "It has begun (`wait=false`).",
                DeployRecord,
                examples.BEGUN,
                {"Location": "Where to follow it."},
            ),
            outcome.NOT_PASSED,
            outcome.BUSY,
            outcome.MODE_IS_SINGLE,
            outcome.ABORTED,
            examples.refused(
                404,
                "unknown_release",
                "there is no release of this name",
                "a release is a folder below RELEASES_DIR",
            ),
            outcome.SWITCH_FAILED,
            outcome.NOT_DURABLE,
            outcome.STOPPING,
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
            Answer(200, "It has all the traffic.", DeployRecord, examples.SWITCHED),
            outcome.NOT_PASSED,
            outcome.ABORTED,
            outcome.nothing_to("switch"),
            outcome.SWITCH_FAILED,
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
            Answer(200, "It is given up.", DeployRecord, examples.ABORTED),
            outcome.nothing_to("abort"),
            outcome.TOO_LATE,
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
            Answer(
                200, "The version before has all the traffic.", DeployRecord, examples.ROLLED_BACK
            ),
            outcome.NOT_PASSED,
            outcome.BUSY,
            outcome.nothing_to("roll_back"),
            examples.refused(
                409,
                "previous_version_gone",
                "the version before is neither warm nor a release",
                "deploy a release instead",
            ),
            outcome.SWITCH_FAILED,
            outcome.NOT_DURABLE,
            outcome.STOPPING,
        ),
    ),
)
