"""The ramp of a deploy: the new version gets growing shares of the traffic. Pure.

What the next daemon needs to go on with it is in here too, and all of it is written with the
deploy's record, at each transition.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, Field, computed_field
from pydantic.json_schema import SkipJsonSchema

from atlas_supervisor.model.judgement import Judgement, VersionFigures


class RampAction(StrEnum):
    """What an operator may do to a ramp."""

    PAUSE = "pause"
    RESUME = "resume"
    ADVANCE = "advance"


class RampStep(BaseModel, frozen=True):
    """The time with one share of the traffic."""

    share: float = Field(description="Share of new connections that the new version had.")
    since_ts: datetime = Field(description="When it was given that.")
    until_ts: datetime | None = Field(default=None, description="When that ended; null so far.")
    new: VersionFigures | None = Field(
        default=None, description="The new version's requests meanwhile; null if not counted."
    )
    old: VersionFigures | None = Field(
        default=None, description="The old version's; null if they are not counted."
    )


class Ramp(BaseModel, frozen=True):
    """A ramp, as it is shown and written."""

    shares: tuple[float, ...] = Field(description="TRAFFIC_RAMP as it was at the beginning.")
    steps: tuple[RampStep, ...] = Field(description="The steps so far; the last one is current.")
    paused: bool = Field(default=False, description="Whether an operator has stopped its clock.")
    waited_seconds: float = Field(
        default=0, description="Time on the current step, without what was paused."
    )
    looked_ts: datetime = Field(description="When the numbers were read.")
    next_ts: datetime | None = Field(
        default=None, description="When the next step is due at the earliest; null while paused."
    )
    requests_needed: int | None = Field(
        default=None,
        description="Requests of the new version that the step still waits for; null if its "
        "requests are not counted: then time, crashes and probes decide alone.",
    )
    waits_for: str = Field(default="", description="What the next step waits for, in words.")
    judgement: Judgement | None = Field(
        default=None, description="What users' requests say by now; null before the first look."
    )
    saved: SkipJsonSchema[dict[str, Any]] = Field(default={}, exclude=True)
    """What the next daemon goes on with: the evidence, and where the step's counts began."""

    @classmethod
    def begun(cls, shares: tuple[float, ...], weight: float, at: datetime) -> Self:
        """Return a ramp at its first step; a larger share that was set by hand is kept."""
        step = RampStep(share=max(shares[0], weight), since_ts=at)
        return cls(shares=shares, steps=(step,), looked_ts=at)

    @computed_field(description="Share of new connections that the new version has.")  # type: ignore[prop-decorator]  # pydantic's own order
    @property
    def share(self) -> float:
        """The share of the current step."""
        return self.steps[-1].share

    @computed_field(description="When it was given that.")  # type: ignore[prop-decorator]  # pydantic's own order
    @property
    def since_ts(self) -> datetime:
        """The beginning of the current step."""
        return self.steps[-1].since_ts

    @computed_field(description="Number of the current step, from 1.")  # type: ignore[prop-decorator]  # pydantic's own order
    @property
    def step(self) -> int:
        """How many of the shares are reached, at least 1."""
        return max(sum(share <= self.share for share in self.shares), 1)

    @computed_field(description="How many steps there are; the last one is the switch.")  # type: ignore[prop-decorator]  # pydantic's own order
    @property
    def of(self) -> int:
        """The number of shares."""
        return len(self.shares)

    @computed_field(description="The share that follows; 1 is the switch.")  # type: ignore[prop-decorator]  # pydantic's own order
    @property
    def next_share(self) -> float:
        """The smallest share above the present one."""
        return next((share for share in self.shares if share > self.share), 1.0)

    @computed_field(  # type: ignore[prop-decorator]  # pydantic's own order
        description="Users' requests that the new version has failed; null if not counted."
    )
    @property
    def failed_requests(self) -> int | None:
        """The sum over all steps."""
        counted = [step.new.failed for step in self.steps if step.new]
        return sum(counted) if counted else None

    def at_share(self, share: float, at: datetime) -> Self:
        """Return it with another share, whose step begins now."""
        ended = self.ended(at)
        steps = (*ended.steps, RampStep(share=share, since_ts=at))
        fresh = {"waited_seconds": 0.0, "looked_ts": at, "next_ts": None, "requests_needed": None}
        return ended.model_copy(update={**fresh, "steps": steps})

    def resumed(self, at: datetime) -> Self:
        """Return it after a pause: its clock goes on, at the first share at least."""
        going = self.model_copy(update={"paused": False, "looked_ts": at})
        return going if self.share >= self.shares[0] else going.at_share(self.shares[0], at)

    def ended(self, at: datetime) -> Self:
        """Return it with its current step at its end."""
        last = self.steps[-1].model_copy(update={"until_ts": at})
        return self.model_copy(update={"steps": (*self.steps[:-1], last), "waits_for": ""})


class RampView(Ramp, frozen=True):
    """The ramp of the deploy in progress."""

    deploy_id: str = Field(description="The deploy.")
    version: str | None = Field(description="Its version.")
    phase: str = Field(description="Its phase: `ramp`, or `switch` once it goes on to that.")
