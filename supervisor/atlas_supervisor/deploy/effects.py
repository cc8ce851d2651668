"""What a deploy needs of the world, and nothing about how it is done.

The runner knows the table and this; `executor` does the work on real slots and sockets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from atlas_supervisor.deploy.machine import Consequence, Plan, StepOutcome
from atlas_supervisor.model.deploy import DeployEvent, DeployRecord, StepDetail
from atlas_supervisor.model.release import Release, VersionChange


@dataclass(frozen=True)
class Transition:
    """A transition that has happened; `record` is the deploy after it."""

    record: DeployRecord
    event: DeployEvent
    demands: tuple[Consequence, ...] = ()
    versions: VersionChange | None = None
    has_new_result: bool = False
    """Whether the deploy has another result than before."""


class ActiveDeploy(Protocol):
    """The deploy that an activity works for."""

    record: DeployRecord
    plan: Plan
    release: Release

    def note(self, detail: StepDetail) -> None:
        """Note what the step is to record should the activity be interrupted."""


class Effects(Protocol):
    """One activity for each phase. An activity that is cancelled half-way undoes what it did."""

    async def preflight(self, deploy: ActiveDeploy) -> StepOutcome:
        """Check everything that can be checked before anything is started."""

    async def launch(self, deploy: ActiveDeploy) -> StepOutcome:
        """Start the release on the staging slot and wait until it is ready."""

    async def smoke(self, deploy: ActiveDeploy) -> StepOutcome:
        """Run the smoke tests against staging."""

    async def health(self, deploy: ActiveDeploy) -> StepOutcome:
        """Run the health gate against staging."""

    async def await_switch(self, deploy: ActiveDeploy) -> StepOutcome:
        """Let staging have its part of the traffic, and wait for the operator."""

    async def ramp(self, deploy: ActiveDeploy) -> StepOutcome:
        """Give staging its step's share of the traffic, and watch until something follows."""

    async def switch(self, deploy: ActiveDeploy) -> StepOutcome:
        """Send all traffic to staging, durably; on failure everything is as it was."""

    async def guard(self, deploy: ActiveDeploy) -> StepOutcome:
        """Watch the new version for the guard time."""

    async def warm(self, deploy: ActiveDeploy) -> StepOutcome:
        """Keep the old version alive for the rest of its warm time."""

    async def drain(self, deploy: ActiveDeploy) -> StepOutcome:
        """Let the version that has no more traffic finish, and end it."""

    async def revert(self, deploy: ActiveDeploy) -> StepOutcome:
        """Send all traffic back to the warm version, durably; on failure as for a switch."""

    async def unstage(self, deploy: ActiveDeploy) -> StepOutcome:
        """End the instance that did not get all the traffic."""

    def ports(self) -> tuple[int, int]:
        """Return the active and the staging port as they are now."""

    def weight(self) -> float:
        """Return the share of the traffic that staging has."""


class PendingWrite(Protocol):
    """A transition that is on its way to the disk, with what it demands."""

    @property
    def written(self) -> bool:
        """Whether all of it is on the disk."""

    async def wait(self) -> None:
        """Wait until it is, however long that takes."""


class TransitionLog(Protocol):
    """Writes transitions down, in the order in which they happen, and publishes them."""

    async def write(self, transition: Transition) -> PendingWrite:
        """Write a transition, and what it demands, after everything that is pending.

        Return at the first failure, too: it is then published all the same and tried again.
        """
