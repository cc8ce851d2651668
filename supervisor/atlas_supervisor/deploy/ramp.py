"""What follows in a ramp: from a look at the new version, and from a request. Pure.

A step lasts TRAFFIC_STEP_SECONDS and TRAFFIC_MIN_REQUESTS of the new version at least. Then the
next one follows if users' requests show that the version is not worse, or if they say nothing
against it; while they say something, without proof, the share stays (`HOLD_AGAINST`). Proof, a
crash and failing probes end the ramp, also while it is paused.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from atlas_supervisor.deploy.machine import Event, Phase, Plan, Row
from atlas_supervisor.model.judgement import Judgement, VersionFigures
from atlas_supervisor.model.ramp import Ramp
from atlas_supervisor.model.verdict import Verdict

HOLD_AGAINST = 3.0
"""Odds against the new version from which on its share does not grow. Of versions that are as good
as the old one, at most one in three ever comes to these odds, and it goes on once the requests
show that it is no worse."""


class Next(NamedTuple):
    """What follows from a look: an event, or None and what is waited for."""

    event: Event | None
    why: str


def after_look(ramp: Ramp, *, step_seconds: float, is_steered: bool) -> Next:
    """Return the event that follows from the numbers that were just read.

    `is_steered`: the share is in force, and both versions live.
    """
    judgement = ramp.judgement
    if judgement is not None and judgement.verdict is Verdict.FAIL:
        return Next(Event.FAILED, judgement.why)
    wait = None
    if ramp.paused:
        wait = "an operator: it is paused"
    elif not is_steered:
        wait = "both versions to serve with their shares"
    elif (left := step_seconds - ramp.waited_seconds) > 0:
        wait = f"the time of the step: {left:.0f} s"
    elif ramp.requests_needed:
        wait = f"{ramp.requests_needed:,} more requests of the new version"
    elif judgement is not None and _speaks_against(judgement):
        wait = f"clearer evidence: {judgement.why}"
    if wait is not None:
        return Next(None, wait)
    return Next(Event.STEP_PASSED if ramp.next_share < 1 else Event.PASSED, described(ramp))


def _speaks_against(judgement: Judgement) -> bool:
    if judgement.verdict is Verdict.PASS or judgement.against is None:
        return False
    return judgement.against >= HOLD_AGAINST


def after_row(
    plan: Plan, ramp: Ramp | None, row: Row, *, weight: float, at: datetime
) -> Ramp | None:
    """Return the ramp after a transition into it, within it or out of it.

    `weight` is the share that staging has, or was just given by hand.
    """
    if row.phase is not Phase.RAMP or ramp is None:
        return Ramp.begun(plan.ramp, weight, at)
    if row.target is not Phase.RAMP:
        kept = {"comparison": ramp.saved.get("comparison")}  # a holdback goes on with it
        goes_on = row.target is Phase.SWITCH and kept["comparison"] is not None
        return ramp.ended(at).model_copy(update={"saved": kept if goes_on else {}})
    if row.event in {Event.STEP_PASSED, Event.ADVANCE_REQUESTED}:
        return ramp.at_share(ramp.next_share, at)
    if row.event is Event.SPLIT_REQUESTED:
        return ramp.at_share(weight, at).model_copy(update={"paused": True})
    if row.event is Event.PAUSE_REQUESTED:
        return ramp.model_copy(update={"paused": True, "next_ts": None})
    return ramp.resumed(at)


def described(ramp: Ramp) -> str:
    """Return the current step in words."""
    step = ramp.steps[-1]
    text = f"{share_text(step.share)} for {ramp.waited_seconds:.0f} s"
    if step.new is None:
        return f"{text}; its requests are not counted, so time, crashes and probes decide alone"
    text += f": {_figures(step.new)}"
    return f"{text}; old version: {_figures(step.old)}" if step.old else text


def share_text(share: float) -> str:
    """Return a share in percent."""
    return f"{share * 100:.6g} %"


def _figures(figures: VersionFigures) -> str:
    return f"{figures.requests:,} requests, {figures.failed:,} failed"
