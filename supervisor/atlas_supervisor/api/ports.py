"""What the API needs of the daemon, noun by noun, and nothing about how it is done.

Every method raises `RefusedError` for what can't be done, and AtlasError where the daemon's own
storage fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.audit import AuditEntry, Verification
from atlas_supervisor.model.canary import CanaryReport, CanaryView, FeatureView
from atlas_supervisor.model.deploy import DeployRecord, Mode
from atlas_supervisor.model.event import EventFeed, Transition
from atlas_supervisor.model.health import Health
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.log import LogFeed, LogSource, WantedLines
from atlas_supervisor.model.release import ReleaseView
from atlas_supervisor.model.status import Status


class DeployPort(Protocol):
    """Deploys, and the state that they lead to."""

    def status(self) -> Status:
        """Return everything at a glance, from memory."""

    def ready(self) -> bool:
        """Tell whether an active worker takes traffic."""

    # What was done under a key before is not done again: the call then returns what came of it,
    # and says so in the key.

    async def deploy(
        self, *, release: str | None, dry_run: bool, actor: Actor, key: IdempotencyKey | None = None
    ) -> DeployRecord:
        """Begin a deploy, and return its record as soon as it is durable."""

    async def settled(self, deploy_id: str) -> DeployRecord:
        """Wait until the deploy has a result (not for its guard, warm time and drain)."""

    async def switch(self, actor: Actor, key: IdempotencyKey | None = None) -> DeployRecord:
        """Go ahead with the waiting deploy; returns once it has switched, or failed to."""

    async def abort(self, actor: Actor, key: IdempotencyKey | None = None) -> DeployRecord:
        """Give up the deploy in progress; returns once staging is stopped."""

    async def rollback(self, actor: Actor, key: IdempotencyKey | None = None) -> DeployRecord:
        """Go back to the version before; returns once it has all the traffic."""

    async def set_mode(self, mode: Mode, actor: Actor, key: IdempotencyKey | None = None) -> Status:
        """Set the mode durably."""

    async def history(self, limit: int) -> list[DeployRecord]:
        """Return the latest deploys, newest first."""

    async def releases(self) -> list[ReleaseView]:
        """Return the named releases that exist, by name."""

    async def find(self, deploy_id: str) -> DeployRecord | None:
        """Return one deploy, or None."""

    async def transitions(self, deploy_id: str) -> list[Transition]:
        """Return the transitions of one deploy, in order."""

    async def events(self, *, after: int | None, deploy_id: str | None) -> EventFeed:
        """Return what happens to deploys, or to one, from now on or after an id.

        Whoever asks closes it.
        """


class CanaryPort(Protocol):
    """Feature canaries: their shares, and the evidence on them."""

    def view(self) -> CanaryView:
        """Return every feature's canary as it is now, from memory."""

    async def set_percentage(self, feature: str, percentage: float, actor: Actor) -> FeatureView:
        """Give a feature a share of its own."""

    async def ramp(
        self, feature: str, action: str, actor: Actor, key: IdempotencyKey | None = None
    ) -> FeatureView:
        """Do something to a feature's ramp."""

    async def reset(
        self, feature: str | None, actor: Actor, key: IdempotencyKey | None = None
    ) -> CanaryView:
        """Reset one feature to the settings; without one, the fallback."""

    async def report(self, hours: int) -> CanaryReport:
        """Return the last hours' numbers of every feature."""


class HealthPort(Protocol):
    """How everything is."""

    async def first_checks(self) -> None:
        """Wait for the first look after the start, for a tenth of a second at most."""

    async def report(self) -> Health:
        """Return how everything is, after the same wait."""


class AuditPort(Protocol):
    """Who did what, when, to what effect."""

    async def entries(
        self, *, limit: int, before: int | None, action: str | None, subject: str | None
    ) -> list[AuditEntry]:
        """Return the newest entries, newest first: with an id below, of an action, on a subject."""

    async def verify(self) -> Verification:
        """Look the whole of it over."""

    def enqueue(
        self, actor: Actor, action: str, outcome: str, *, subject: str | None = None, **detail: Any
    ) -> None:
        """Have an entry written, without waiting for it."""


class LogPort(Protocol):
    """The daemon's own log, and what the workers print."""

    async def read(
        self, source: LogSource, wanted: WantedLines, *, lines: int, follow: bool, after: str | None
    ) -> LogFeed:
        """Return the last lines, or those after a place, and with `follow` what comes then.

        Whoever asks closes it.
        """


class MetricsPort(Protocol):
    """Numbers for Prometheus."""

    async def text(self) -> bytes:
        """Return all of them in the text format, version 0.0.4."""

    def answered(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """Count an answer of the API; None: it was a stream. Method and route are bounded."""


@dataclass(frozen=True)
class Control:
    """The daemon, seen from the API."""

    deploys: DeployPort
    canary: CanaryPort
    health: HealthPort
    audit: AuditPort
    logs: LogPort
    metrics: MetricsPort
