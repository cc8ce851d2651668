"""What a deploy needs of the world, and nothing about how it is done.

The runner knows the table and this; `activities` does the work on real slots and sockets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from atlas_supervisor.model.deploy import DeployRecord
from atlas_supervisor.model.event import DeployEvent, PublishedEvent
from atlas_supervisor.model.release import Release


@dataclass(frozen=True)
class StepOutcome:
    """How an activity ended. `detail` goes into the step, `message` says it in words."""

    ok: bool
    message: str
    detail: dict[str, Any] = field(default_factory=dict)
    staging_died: bool = False
    """It failed because the staging instance ended."""
    superseded: bool = False
    """It ended early because the next deploy needs the staging slot."""


class Effects(Protocol):
    """Performs the effects of the table. What it does is undone if it is cancelled half-way."""

    async def preflight(self, release: Release) -> StepOutcome:
        """Check everything that can be checked before anything is started."""

    async def launch(self, release: Release) -> StepOutcome:
        """Start the release on the staging slot and wait until it is ready."""

    async def smoke(self, deploy_id: str) -> StepOutcome:
        """Run the smoke tests against staging."""

    async def health(self) -> StepOutcome:
        """Run the health gate against staging."""

    async def flip(self, release: Release, *, rollback: bool) -> StepOutcome:
        """Send all traffic to staging, durably; on failure everything is as it was."""

    async def flip_back(self) -> StepOutcome:
        """Send all traffic back to the warm version, durably; likewise."""

    async def watch(self) -> StepOutcome:
        """Watch the new version for the guard time."""

    async def keep_warm(self) -> StepOutcome:
        """Keep the old version alive for the rest of its warm time."""

    async def drain_staging(self, known: dict[str, Any]) -> StepOutcome:
        """Let the version that has no traffic any more finish, and end it.

        `known` gets what is known of it by then, should this be cancelled.
        """

    async def stop_staging(self) -> StepOutcome:
        """End the instance that never had traffic."""

    async def fall_back_to_single(self, reason: str) -> None:
        """Take no more deploys until an operator resets it."""

    async def audit(self, action: str, outcome: str, record: DeployRecord, reason: str) -> None:
        """Write an entry of the audit trail in the daemon's name."""

    async def audit_result(self, record: DeployRecord) -> None:
        """Have it audited what the deploy has come to; nobody waits for that."""

    async def journal(self, record: DeployRecord, event: DeployEvent) -> int:
        """Write a transition down, durably; return its id in the journal. Raises StoreError."""

    def tell(self, announcement: PublishedEvent, journal_id: int | None) -> None:
        """Tell whoever listens; None: it could not be written, but it has happened."""

    def ports(self) -> tuple[int, int]:
        """Return the active and the staging port as they are now."""
