"""The noun `mode`: whether deploys are taken, and the reset after a fallback."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from supervisor.api import examples, outcome
from supervisor.api.routes import Access, Answer, AnyRoute, Call, Nothing, Reply, Route
from supervisor.model.deploy import Mode
from supervisor.model.status import Status


class ModeBody(BaseModel):
    """The mode to set."""

    model_config = ConfigDict(extra="forbid")

    mode: Mode = Field(
        description="`bluegreen`: deploys are taken; this resets a fallback. `single`: none are."
    )


async def _mode(call: Call[Nothing, ModeBody]) -> Reply:
    return Reply(await call.control.deploys.set_mode(call.body.mode, call.actor, call.key))


ROUTES: tuple[AnyRoute, ...] = (
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
            Answer(200, "The mode is set; the state at this moment.", Status, examples.STATUS),
            examples.refused(
                409,
                "single_by_settings",
                "DEPLOY_MODE=single in the settings always wins",
                "set DEPLOY_MODE=bluegreen in the env file and restart the daemon",
            ),
            outcome.NOT_DURABLE,
        ),
    ),
)
