"""A deploy as it is recorded, shown and published: its steps, its record, its events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Protocol, Self

from pydantic import BaseModel, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from atlas_supervisor.model.drain import DrainCounts
from atlas_supervisor.model.judgement import Judgement
from atlas_supervisor.model.probe import CheckResult, ProbeResult
from atlas_supervisor.model.ramp import Ramp
from atlas_supervisor.model.worker_text import disclosed, withheld

BEGUN = "begun"
"""The first event of every deploy; it has no source."""


class Mode(StrEnum):
    """Whether deploys are enabled. A fallback to `single` stays until an operator resets it."""

    SINGLE = "single"
    BLUEGREEN = "bluegreen"


class AfterFailure(StrEnum):
    """What happens to the mode when a deploy fails or its guard reverts it."""

    SINGLE = "single"
    """Deploys are disabled until an operator enables them."""
    STAY = "stay"
    """Deploys stay enabled."""


class Result(StrEnum):
    """A deploy's outcome, as its caller sees it."""

    SWITCHED = "switched"
    AWAITING_SWITCH = "awaiting_switch"
    DRY_RUN_PASSED = "dry_run_passed"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"


class Cause(StrEnum):
    """What a deploy was started for."""

    REQUESTED = "requested"
    """Someone asked for it: a deploy, a dry run or a rollback."""
    RECYCLED = "recycled"
    """The active worker was beyond a limit, and the same release took its place."""


class StepName(StrEnum):
    """The steps of a deploy, in the order in which they come."""

    PREFLIGHT = "preflight"
    LAUNCH = "launch"
    SMOKE = "smoke"
    HEALTH = "health"
    SWITCH = "switch"
    GUARD = "guard"
    DRAIN = "drain"


class StepDetail(BaseModel, frozen=True, extra="allow"):
    """What every step may record. What does not apply is absent from the record."""

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
    irreversible: bool | None = Field(
        None, description="True: its `release.toml` says so, and nothing reverts it by itself."
    )


class LaunchDetail(StepDetail):
    """What `launch` records."""

    pid: int | None = Field(None, description="Of the worker's process.")
    instance: str | None = Field(None, description="The worker's name in logs and probes.")
    kit: bool | None = Field(None, description="Whether the worker uses the worker kit.")


class SmokeDetail(StepDetail):
    """What `smoke` records."""

    checks: list[CheckResult] | None = Field(None, description="Every test, in the file's order.")
    skipped: bool | None = Field(None, description="True: of a fast rollback, not done.")


class HealthDetail(StepDetail):
    """What `health` records."""

    probes: list[ProbeResult] | None = Field(None, description="Every probe, in order.")
    skipped: bool | None = Field(None, description="True: of a fast rollback, not done.")


class SwitchDetail(StepDetail):
    """What `switch` records; of a ramp that fails, the probe that did."""

    failed_probe: ProbeResult | None = Field(None, description="The last one, if it reverted.")

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
    seconds: float | None = Field(
        None, description="Since the switch. This and what follows: if requests are counted."
    )
    requests: int | None = Field(
        None, description="Users' requests that the new version has had since the switch."
    )
    failed: int | None = Field(
        None, description="Of them, those that failed: 5xx, or cut by the end of a process."
    )
    error_rate: float | None = Field(None, description="Failed ones among them, 0 to 1.")
    old_requests: int | None = Field(
        None, description="Requests in the old version's record: of its worst hour."
    )
    old_failed: int | None = Field(None, description="Of them, those that failed.")
    old_error_rate: float | None = Field(None, description="Failed ones among them; null: none.")
    allowed_error_rate: float | None = Field(
        None, description="Up to here, the new version counts as no worse."
    )
    odds: float | None = Field(
        None, description="How strongly the failures speak against the new version, to 1."
    )
    odds_needed: float | None = Field(None, description="The odds at which it is reverted.")
    slow: int | None = Field(
        None, description="Requests that took longer than `slow_ms`, from 10 s after the switch on."
    )
    slow_ms: float | None = Field(
        None, description="Where slow begins by the record; null if that is too small."
    )
    allowed_slow: float | None = Field(
        None, description="Share of slow requests up to which it counts as no slower."
    )
    slow_odds: float | None = Field(None, description="How strongly those speak against it.")
    holdback: float | None = Field(
        None, description="Share of new connections that the old version still gets."
    )
    comparison: Judgement | None = Field(
        None, description="What the requests of both say, in a holdback."
    )


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


class Step(BaseModel, frozen=True):
    """One step that has ended."""

    name: StepName = Field(description="The step. Steps are listed in this order, as far as run.")
    ok: bool = Field(description="Whether it passed.")
    duration_ms: float = Field(description="How long it took.")
    detail: Annotated[dict[str, Any], _DetailSchema()] = Field(
        default_factory=dict,
        description="What the step has found; `message` says in words what happened.",
    )


class DeployRecord(BaseModel, frozen=True):
    """A deploy, from its request to the end of its drain."""

    deploy_id: str = Field(description="The deploy's name.")
    result: Result | None = Field(description="The outcome; null while the deploy is in progress.")
    dry_run: bool = Field(description="Whether only the gates are run, without a switch.")
    release: str | None = Field(description="The release's name; null for the worker directory.")
    version: str | None = Field(
        description="The release's version; null until preflight has determined it."
    )
    active_port: int = Field(description="Port of the active slot; changes with the switch.")
    staging_port: int = Field(description="Port of the staging slot; changes with the switch.")
    steps: list[Step] = Field(description="The steps that have ended, in order.")
    reason: str | None = Field(description="Why it had this result, in words.")
    guard: GuardDetail | None = Field(
        None, description="What the guard has seen so far; null unless it watches."
    )
    phase: str = Field(
        description="The current phase (docs/deploy-machine.md); `ended` once nothing more happens."
    )
    until_ts: datetime | None = Field(
        default=None,
        description="When the phase ends by itself, if nothing happens: `guard` and `warm`; else "
        "null.",
    )
    started_ts: datetime = Field(description="When it was requested.")
    ended_ts: datetime | None = Field(
        description="When guard, warm time and drain were over as well; null before that."
    )
    requested: str | None = Field(
        default=None,
        description="What began it, in words: `deploy requested by uid:0`, or why a worker is "
        "recycled.",
    )
    cause: Cause = Field(
        default=Cause.REQUESTED,
        description="`requested`: someone asked for it; `recycled`: the daemon replaces a worker "
        "that is beyond WORKER_MAX_RSS_MB or WORKER_MAX_AGE_SECONDS.",
    )
    ramp: Ramp | None = Field(
        default=None, description="Its ramp; null if there is none (yet): see TRAFFIC_RAMP."
    )

    @property
    def facts(self) -> dict[str, str]:
        """The fields of every log line about it."""
        release = self.release or self.version
        return {"deploy_id": self.deploy_id, **({"release": release} if release else {})}


class Transition(BaseModel, frozen=True):
    """One transition of a deploy, as its record lists it."""

    id: int | None = Field(
        description="Its id in the journal, for `Last-Event-ID`; null while it is not written."
    )
    ts: datetime = Field(description="When it happened.")
    source: str | None = Field(description="The phase that ended; null at the beginning.")
    event: str = Field(description="`begun`, or an event of docs/deploy-machine.md.")
    target: str = Field(description="The phase that follows.")
    cause: str = Field(description="What happened, in words.")
    duration_ms: float | None = Field(
        description="How long the phase took; null at the beginning and after a restart."
    )


class DeployEvent(BaseModel, frozen=True):
    """One transition as it is published, with the deploy's state after it."""

    deploy_id: str = Field(description="The deploy's name.")
    ts: datetime = Field(description="When it happened.")
    source: str | None = Field(description="The phase that ended; null at the beginning.")
    event: str = Field(description="`begun`, or an event of docs/deploy-machine.md.")
    target: str = Field(description="The phase that follows.")
    cause: str = Field(description="What happened, in words.")
    duration_ms: float | None = Field(
        description="How long the phase took; null at the beginning and after a restart."
    )
    step: Step | None = Field(description="The step that ended, or null.")
    result: Result | None = Field(description="The deploy's `result` afterwards.")
    reason: str | None = Field(description="Its `reason` afterwards.")
    release: str | None = Field(description="Its `release`.")
    version: str | None = Field(description="Its `version` afterwards.")
    dry_run: bool = Field(description="Its `dry_run`.")
    active_port: int = Field(description="Its `active_port` afterwards.")
    staging_port: int = Field(description="Its `staging_port` afterwards.")
    deploy_cause: Cause = Field(description="Its `cause`.")

    @classmethod
    def of(
        cls,
        record: DeployRecord,
        *,
        ts: datetime,
        source: str | None,
        event: str,
        cause: str,
        duration_ms: float | None = None,
        step: Step | None = None,
    ) -> Self:
        """Return the event that led to `record` as it is now."""
        return cls(
            deploy_id=record.deploy_id,
            ts=ts,
            source=source,
            event=event,
            target=record.phase,
            cause=cause,
            duration_ms=duration_ms,
            step=step,
            result=record.result,
            reason=record.reason,
            release=record.release,
            version=record.version,
            dry_run=record.dry_run,
            active_port=record.active_port,
            staging_port=record.staging_port,
            deploy_cause=record.cause,
        )


@dataclass(eq=False)
class PublishedEvent:
    """An event on its way to its subscribers, who share the one object."""

    event: DeployEvent
    id: int | None = None
    """Its id as it is published; None if it was published before it could be written."""
    journal_id: int | None = None
    """Its id in the journal as far as it is known by now."""
    is_published: bool = False
    rollback: bool = False
    """At the beginning: whether it launches the version before again, because of a rollback."""

    @cached_property
    def data(self) -> bytes:
        """The event as one line of JSON; made once, however many listen."""
        return disclosed(self._marked)

    @cached_property
    def withheld_data(self) -> bytes:
        """The same without a worker's words, for callers that may not read logs."""
        return withheld(self._marked)

    @cached_property
    def _marked(self) -> bytes:
        return self.event.model_dump_json().encode()


class EventFeed(Protocol):
    """The events of one subscriber, in order. To be closed by the subscriber."""

    resumes_at: int | None
    """The id after which it goes on; None if only the events themselves can tell."""
    reset: str | None
    """Why it can't go on where it was asked to, in words."""

    async def next(self) -> PublishedEvent | None:
        """Wait for the next event; None: there is no more. Raises AtlasError."""

    def ready(self) -> PublishedEvent | None:
        """Take the next event if it is there already."""

    def close(self) -> None:
        """End it, from anywhere and at any time; a call of `next` that waits returns None."""


def as_transition(published: PublishedEvent) -> Transition:
    """Return an event as the deploy's record lists it."""
    fields = published.event.model_dump(include=set(Transition.model_fields) - {"id"})
    return Transition(id=published.journal_id, **fields)
