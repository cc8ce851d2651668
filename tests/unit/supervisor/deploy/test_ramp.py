"""What follows in a ramp, without clocks and workers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from atlas_supervisor.deploy.machine import Event, Phase, Plan, step
from atlas_supervisor.deploy.ramp import HOLD_AGAINST, after_look, after_row
from atlas_supervisor.model.judgement import Judgement, VersionFigures
from atlas_supervisor.model.ramp import Ramp
from atlas_supervisor.model.verdict import Verdict

SHARES = (0.05, 0.25, 1.0)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = NOW + timedelta(seconds=60)
PLAN = Plan(ramp=SHARES)


def a_ramp(**changes: Any) -> Ramp:
    return Ramp.begun(SHARES, 0, NOW).model_copy(update=changes)


def judged(verdict: Verdict, against: float | None = None) -> Judgement:
    return Judgement(verdict=verdict, against=against, why="5 of 100 failed, and 1 of 900")


def follows(ramp: Ramp, *, is_steered: bool = True) -> Event | None:
    return after_look(ramp, step_seconds=60, is_steered=is_steered).event


def after(ramp: Ramp | None, event: Event, weight: float = 0, phase: Phase = Phase.RAMP) -> Ramp:
    found = after_row(PLAN, ramp, step(PLAN, phase, event), weight=weight, at=LATER)
    assert found is not None
    return found


def test_a_step_takes_its_time_and_its_requests_and_goes_on_without_evidence() -> None:
    assert follows(a_ramp(waited_seconds=59.9)) is None
    assert follows(a_ramp(waited_seconds=60, requests_needed=1)) is None
    for quiet in (None, judged(Verdict.INCONCLUSIVE), judged(Verdict.INCONCLUSIVE, 1.2)):
        for needed in (None, 0):  # not counted, or enough of them
            done = a_ramp(waited_seconds=60, requests_needed=needed, judgement=quiet)
            assert follows(done) is Event.STEP_PASSED
    assert follows(a_ramp(waited_seconds=60), is_steered=False) is None


def test_doubt_holds_the_share_and_proof_reverts_it() -> None:
    doubt = judged(Verdict.INCONCLUSIVE, HOLD_AGAINST)
    held = after_look(a_ramp(waited_seconds=900, judgement=doubt), step_seconds=60, is_steered=True)
    assert held.event is None
    assert held.why == "clearer evidence: 5 of 100 failed, and 1 of 900"
    good = a_ramp(waited_seconds=60, judgement=judged(Verdict.PASS, HOLD_AGAINST))
    assert follows(good) is Event.STEP_PASSED
    for changes in ({}, {"paused": True}, {"requests_needed": 5}):
        assert follows(a_ramp(judgement=judged(Verdict.FAIL), **changes)) is Event.FAILED


def test_the_last_share_below_all_leads_to_the_switch() -> None:
    ramp = after(a_ramp(waited_seconds=60), Event.STEP_PASSED)
    assert (ramp.step, ramp.of, ramp.share, ramp.next_share) == (2, 3, 0.25, 1)
    assert (ramp.since_ts, ramp.waited_seconds, ramp.steps[0].until_ts) == (LATER, 0, LATER)
    assert follows(ramp.model_copy(update={"waited_seconds": 60})) is Event.PASSED
    assert after(ramp, Event.PASSED).steps[-1].until_ts == LATER


def test_a_pause_stops_the_clock_and_a_resumed_step_goes_on_with_it() -> None:
    paused = after(a_ramp(waited_seconds=40, next_ts=LATER), Event.PAUSE_REQUESTED)
    assert (paused.paused, paused.next_ts, paused.waited_seconds) == (True, None, 40)
    assert follows(paused.model_copy(update={"waited_seconds": 900})) is None
    resumed = after(paused, Event.RESUME_REQUESTED)
    assert (resumed.paused, resumed.waited_seconds, resumed.looked_ts) == (False, 40, LATER)
    advanced = after(paused, Event.ADVANCE_REQUESTED)
    assert (advanced.share, advanced.paused) == (0.25, True)


@pytest.mark.parametrize(("by_hand", "goes_on_at", "then"), [(0.1, 0.1, 0.25), (0, 0.05, 0.25)])
def test_a_share_set_by_hand_pauses_the_ramp_which_goes_on_from_there(
    by_hand: float, goes_on_at: float, then: float
) -> None:
    ramp = after(a_ramp(), Event.SPLIT_REQUESTED, by_hand)
    assert (ramp.share, ramp.paused) == (by_hand, True)
    ramp = after(ramp, Event.RESUME_REQUESTED)
    assert (ramp.share, ramp.next_share, ramp.paused) == (goes_on_at, then, False)


def test_a_ramp_begins_at_its_first_share_and_takes_none_away_that_was_set_by_hand() -> None:
    assert after(None, Event.SWITCH_REQUESTED, 0, Phase.AWAITING_SWITCH).share == 0.05
    begun = after(None, Event.SWITCH_REQUESTED, 0.4, Phase.AWAITING_SWITCH)
    assert (begun.share, begun.step, begun.next_share) == (0.4, 2, 1)


def test_failed_requests_add_up_over_the_steps() -> None:
    ramp = a_ramp()
    assert ramp.failed_requests is None
    steps = tuple(
        ramp.steps[0].model_copy(update={"new": VersionFigures(requests=9, failed=failed)})
        for failed in (2, 3)
    )
    assert ramp.model_copy(update={"steps": steps}).failed_requests == 5


def test_evidence_is_kept_and_not_shown() -> None:
    assert "saved" not in a_ramp(saved={"comparison": {}}).model_dump_json()
    assert "saved" not in str(Ramp.model_json_schema(mode="serialization"))


def test_a_holdback_goes_on_with_what_the_ramp_has_compared() -> None:
    ramp = a_ramp(saved={"comparison": {"number": 3}, "begun": {"step": 1}})

    assert after(ramp, Event.PASSED).saved == {"comparison": {"number": 3}}
    assert after(ramp, Event.FAILED).saved == {}
