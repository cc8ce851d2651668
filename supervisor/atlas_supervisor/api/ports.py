"""What the API needs of the daemon, as protocols.

Every method raises `RefusedError` for a request that can't be done, and AtlasError where the
daemon's own storage fails. Given an idempotency key that was used before, a method does nothing,
marks the key as repeated and returns the earlier outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from atlas_supervisor.fleet.view import FleetView, RolloutAction
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.audit import AuditEntry, Verification
from atlas_supervisor.model.canary import CanaryReport, CanaryView, FeatureView, SimulationView
from atlas_supervisor.model.deploy import DeployRecord, EventFeed, Mode, Transition
from atlas_supervisor.model.health import Health
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.log import LogFeed, LogSource, WantedLines
from atlas_supervisor.model.ramp import RampAction, RampView
from atlas_supervisor.model.release import EarlierVersions, ReleaseView
from atlas_supervisor.model.requests import RequestHour
from atlas_supervisor.model.status import HoldView, ReloadView, SplitView, Status


class DeployPort(Protocol):
    """Starts and steers deploys."""

    async def deploy(
        self, *, release: str | None, dry_run: bool, actor: Actor, key: IdempotencyKey | None = None
    ) -> DeployRecord:
        """Start a deploy; return its record as soon as it is durable."""

    async def settled(self, deploy_id: str) -> DeployRecord:
        """Wait until the deploy has a result, not for its guard, warm time and drain."""

    async def switch(self, actor: Actor, key: IdempotencyKey | None = None) -> DeployRecord:
        """Switch to the waiting deploy; return once that has succeeded or failed."""

    async def abort(self, actor: Actor, key: IdempotencyKey | None = None) -> DeployRecord:
        """Abort the deploy in progress; return once staging is stopped."""

    async def rollback(
        self,
        actor: Actor,
        key: IdempotencyKey | None = None,
        *,
        version: str | None = None,
        fast: bool = False,
    ) -> DeployRecord:
        """Go back to a version, or the previous one; return once it has all the traffic."""

    async def set_mode(self, mode: Mode, actor: Actor, key: IdempotencyKey | None = None) -> None:
        """Set the mode durably."""


class TrafficPort(Protocol):
    """The split of the traffic while a deploy waits for its switch."""

    def view(self) -> SplitView:
        """Return it as it is now."""

    async def set_weight(self, weight: float, actor: Actor) -> SplitView:
        """Give the new version this share; return once that is durable. It pauses a ramp."""

    async def ramp(
        self, action: RampAction, actor: Actor, key: IdempotencyKey | None = None
    ) -> RampView:
        """Pause, resume or advance the ramp; return it as it is then."""


class HoldPort(Protocol):
    """Holds new connections."""

    async def hold(self, max_seconds: float, actor: Actor) -> HoldView:
        """Let them wait, for so long at most."""

    async def release(self, actor: Actor, hold_id: str | None = None) -> HoldView:
        """End the hold, or the one of this id; return it as it ended."""


class QueryPort(Protocol):
    """Answers questions about deploys, and changes nothing."""

    def status(self) -> Status:
        """Return the current status, from memory."""

    def ready(self) -> bool:
        """Return whether an active worker takes traffic."""

    async def history(self, limit: int) -> list[DeployRecord]:
        """Return the latest deploys, newest first."""

    async def releases(self, *, with_git: bool) -> list[ReleaseView]:
        """Return the named releases that exist, by name. Raises RefusedError."""

    async def earlier(self, *, thorough: bool) -> EarlierVersions:
        """Return the versions that can be gone back to."""

    async def find(self, deploy_id: str) -> DeployRecord | None:
        """Return one deploy, or None."""

    async def transitions(self, deploy_id: str) -> list[Transition]:
        """Return the transitions of one deploy, in order."""

    async def events(self, *, after: int | None, deploy_id: str | None) -> EventFeed:
        """Return the events of all deploys or of one, from now on or after an id.

        The caller closes the feed.
        """


class RequestPort(Protocol):
    """Users' requests, as workers count them."""

    async def last_hour(self) -> RequestHour:
        """Return the last hour by version, with the switches."""


class ReloadPort(Protocol):
    """Replaces the daemon in place."""

    async def reload(self, actor: Actor) -> ReloadView:
        """Check the new program and settings; return once the replacement is about to happen."""


class CanaryPort(Protocol):
    """Feature canaries: their shares, and the evidence on them."""

    def view(self) -> CanaryView:
        """Return every feature's canary as it is now, from memory."""

    async def set_percentage(self, feature: str, percentage: float, actor: Actor) -> FeatureView:
        """Set a feature's share."""

    async def ramp(
        self, feature: str, action: str, actor: Actor, key: IdempotencyKey | None = None
    ) -> FeatureView:
        """Apply an action to a feature's ramp."""

    async def reset(
        self, feature: str | None, actor: Actor, key: IdempotencyKey | None = None
    ) -> CanaryView:
        """Reset one feature to the settings; without one, the fallback."""

    async def report(self, hours: int) -> CanaryReport:
        """Return every feature's numbers of the last hours."""

    async def simulate(
        self, keys: int, error_rate: float, shares: tuple[float, ...] | None
    ) -> SimulationView:
        """Return how often a ramp promotes a good canary; None: the ramp of the settings."""


class HealthPort(Protocol):
    """Health of the active worker and the daemon."""

    async def first_checks(self) -> None:
        """Wait for the first check after the start, at most 0.1 s."""

    async def report(self) -> Health:
        """Return the health, after the same wait."""


class TrailPort(Protocol):
    """The audit trail, to be read."""

    async def entries(
        self, *, limit: int, before: int | None, action: str | None, subject: str | None
    ) -> list[AuditEntry]:
        """Return the newest entries that match, newest first; `before` is an id."""

    async def verify(self) -> Verification:
        """Verify the whole trail."""


class AuditPort(Protocol):
    """The audit trail, to be written."""

    def enqueue(
        self, actor: Actor, action: str, outcome: str, *, subject: str | None = None, **detail: Any
    ) -> object:
        """Queue an entry, without waiting until it is written."""

    async def record(
        self, actor: Actor, action: str, outcome: str, *, subject: str | None = None, **detail: Any
    ) -> None:
        """Write an entry; if the disk fails, it stays queued."""


class LogPort(Protocol):
    """The daemon's own log, and the workers' output."""

    async def read(
        self, source: LogSource, wanted: WantedLines, *, lines: int, follow: bool, after: str | None
    ) -> LogFeed:
        """Return the last lines, or those after a position; with `follow` new ones as well.

        The caller closes the feed.
        """


class MetricsPort(Protocol):
    """Metrics for Prometheus."""

    async def text(self) -> bytes:
        """Return all metrics in the text format, version 0.0.4."""

    def answered(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """Count an answer of the API; `seconds` is None for a stream. Labels are bounded."""


class FleetPort(Protocol):
    """The fleet that this machine belongs to.

    What changes it returns the fleet as it is afterwards, and is audited on this machine. It raises
    EngineError where the engine does not do what it is asked.
    """

    async def view(self) -> FleetView:
        """Return the fleet; while the engine is away, as this machine knew it last."""

    async def begin(
        self, release: str, *, max_unavailable: int, waves: Sequence[float], actor: Actor
    ) -> FleetView:
        """Begin a rollout."""

    async def steer(self, action: RolloutAction, actor: Actor) -> FleetView:
        """Pause, resume or abort the rollout, or let the hosts that have it go back."""

    async def break_slot(self, host: str, generation: int, actor: Actor) -> FleetView:
        """Take the slot away that a host took at this generation."""

    async def kill(self, feature: str | None, actor: Actor) -> FleetView:
        """Switch a feature's canary off on every host; without one, all features."""

    async def reset(self, actor: Actor) -> FleetView:
        """Let the settings of each host count again."""

    async def forget(self, host: str, actor: Actor) -> FleetView:
        """Remove a host that is gone for good."""


@dataclass(frozen=True)
class Control:
    """The parts of the daemon that the API uses."""

    deploys: DeployPort
    queries: QueryPort
    traffic: TrafficPort
    requests: RequestPort
    holds: HoldPort
    reloads: ReloadPort
    canary: CanaryPort
    health: HealthPort
    audit: AuditPort
    trail: TrailPort
    logs: LogPort
    metrics: MetricsPort
    fleet: FleetPort | None = None
    """None if the machine belongs to no fleet."""
