"""Which of the things that happen to a deploy are the reason why it came out as it did."""

from __future__ import annotations

from supervisor.deploy.machine import Event, Phase

AFTER_SWITCH = frozenset({Phase.GUARD, Phase.WARM, Phase.DRAIN, Phase.DRAIN_REVERTED})
"""Phases that the supervisor's stop may cut short without any harm."""

_EXPLAINED = frozenset(
    {
        Event.FAILED,
        Event.STAGING_DIED,
        Event.ACTIVE_DIED,
        Event.ABORT_REQUESTED,
        Event.ROLLBACK_REQUESTED,
    }
)

_TIDYING = frozenset({Phase.WARM, Phase.DRAIN, Phase.DRAIN_REVERTED, Phase.UNSTAGE})
"""Phases whose failure is shown in their step, and does not change why it came out as it did."""


def explains(phase: Phase, event: Event) -> bool:
    """Tell whether the cause of the event, in this phase, becomes the deploy's reason."""
    if event is Event.SUPERVISOR_STOPPED:
        return phase not in AFTER_SWITCH | _TIDYING
    return event in _EXPLAINED and not (event is Event.FAILED and phase in _TIDYING)
