"""The events of deploys, as they are published and as the journal keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Protocol, Self

from pydantic import BaseModel, ConfigDict, Field

from atlas_supervisor.model.deploy import DeployRecord, Result
from atlas_supervisor.model.step import Step

BEGUN = "begun"
"""The first event of every deploy; it has no source."""


class Transition(BaseModel):
    """One transition of a deploy, as its record lists it."""

    model_config = ConfigDict(frozen=True)

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


class DeployEvent(BaseModel):
    """One transition as it is published, with the deploy's state after it."""

    model_config = ConfigDict(frozen=True)

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
