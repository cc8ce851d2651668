"""What an operator should do about the state that the daemon is in, if anything."""

from __future__ import annotations

from supervisor.config import Settings
from supervisor.model.deploy import Mode
from supervisor.model.slot import SlotState
from supervisor.model.state import DeployState
from supervisor.model.status import Suggestion
from supervisor.workers.slot import Slot


def suggestions(settings: Settings, state: DeployState, active: Slot) -> list[Suggestion]:
    """Return what is wrong and what would mend it; empty when all is well."""
    found = []
    logs = settings.state_dir / "logs"
    log = logs / f"worker-{active.name}.log"
    if state.mode is Mode.SINGLE and settings.deploy_mode is Mode.BLUEGREEN:
        found.append(
            Suggestion(
                code="mode_is_single",
                message="No deploys are taken: one did not pass or was reverted, or an operator "
                "has set the mode.",
                action="Look at it with `atlasctl history` and `atlasctl show`, then reset: "
                "`atlasctl mode bluegreen`.",
            )
        )
    if active.state is SlotState.BACKOFF:
        found.append(
            Suggestion(
                code="active_worker_crashes",
                message="The active worker keeps dying, or does not answer 2xx on "
                f"{settings.health_path}; {active.restarts} restarts so far.",
                action=f"{logs / 'supervisor.jsonl'} says why, {log} what it printed; "
                "`atlasctl rollback` goes back.",
            )
        )
    if active.state is SlotState.FAILED:
        found.append(
            Suggestion(
                code="active_worker_given_up",
                message="The active worker died too often and was given up: nobody serves.",
                action=f"Look at {log}; deploy a version that works "
                "(`atlasctl deploy`), or restart the daemon once the cause is mended.",
            )
        )
    return found
