"""The steps of a deploy, and what each of them records."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from atlas_supervisor.model.drain import DrainCounts
from atlas_supervisor.model.probe import CheckResult, ProbeResult


class StepName(StrEnum):
    """The steps of a deploy, in the order in which they come."""

    PREFLIGHT = "preflight"
    LAUNCH = "launch"
    SMOKE = "smoke"
    HEALTH = "health"
    SWITCH = "switch"
    GUARD = "guard"
    DRAIN = "drain"


class StepDetail(BaseModel):
    """What every step may record. What does not apply is absent from the record."""

    model_config = ConfigDict(frozen=True, extra="allow")

    message: str = Field("", description="What happened, in words.")
    output: list[str] | None = Field(
        None, description="The last lines that the worker printed; of a step that failed."
    )

    def recorded(self, message: str) -> dict[str, Any]:
        """Return the detail as JSON, with this message and without what was not set."""
        dumped = self.model_dump(mode="json", exclude={"message"})
        given = {name: value for name, value in dumped.items() if name in self.model_fields_set}
        return {"message": message, **given}


class PreflightDetail(StepDetail):
    """What `preflight` records."""

    version: str | None = Field(None, description="The version of the release.")
    version_source: str | None = Field(
        None, description="Where the version comes from: `VERSION`, `git`, `name` or `digest`."
    )
    version_note: str | None = Field(
        None, description="Why no better source could be used; absent if none was there."
    )
    waited_ms: float | None = Field(None, description="Until the staging slot was free.")
    strangers: list[str] | None = Field(
        None, description="Listeners of other programs that would receive public connections."
    )


class LaunchDetail(StepDetail):
    """What `launch` records."""

    pid: int | None = Field(None, description="Of the worker's process.")
    instance: str | None = Field(None, description="The worker's name in logs and probes.")
    kit: bool | None = Field(None, description="Whether the worker uses the worker kit.")


class SmokeDetail(StepDetail):
    """What `smoke` records."""

    checks: list[CheckResult] | None = Field(None, description="Every test, in the file's order.")


class HealthDetail(StepDetail):
    """What `health` records."""

    probes: list[ProbeResult] | None = Field(None, description="Every probe, in order.")


class SwitchDetail(StepDetail):
    """What `switch` records."""

    state_file_ms: float | None = Field(None, description="To write the state file durably.")
    landing: str | None = Field(
        None, description="Where a connection made after the flip arrived: `right`, or `unseen`."
    )
    landing_detail: str | None = Field(None, description="The same in words.")
    flip_us: float | None = Field(None, description="Microseconds that the flip took.")


class GuardDetail(StepDetail):
    """What `guard` records."""

    guarded_seconds: float | None = Field(None, description="0 if there was no guard time.")
    probes: int | None = Field(None, description="How many probes were made.")
    failed_probe: ProbeResult | None = Field(None, description="The last one, if it reverted.")


class DrainDetail(StepDetail):
    """What `drain` records."""

    by_itself: bool | None = Field(None, description="Whether the worker ended in time.")
    left: DrainCounts | None = Field(
        None, description="What it reported as still open; null if it reported nothing."
    )
    cut: DrainCounts | None = Field(
        None, description="What it cut off at its deadline; null if it reported nothing."
    )
    rescued: int | None = Field(
        None, description="Connections of a dead worker that were passed on."
    )


class _DetailSchema:
    """Documents a step's detail, which is kept as it was written, as one of the models above."""

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        models = StepDetail.__subclasses__()
        return {"anyOf": [handler(model.__pydantic_core_schema__) for model in models]}


class Step(BaseModel):
    """One step that has ended."""

    model_config = ConfigDict(frozen=True)

    name: StepName = Field(description="The step. Steps are listed in this order, as far as run.")
    ok: bool = Field(description="Whether it passed.")
    duration_ms: float = Field(description="How long it took.")
    detail: Annotated[dict[str, Any], _DetailSchema()] = Field(
        default_factory=dict,
        description="What the step has found; `message` says in words what happened.",
    )
